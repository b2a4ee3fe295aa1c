"""CHAML: which areas and users come next, and that its gradient is that of MAML."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn.algorithms.gradient.chaml import Schedule, accuracies, right_of
from metalearn.core.task import Examples, Task, TaskSampler

C, U, T = 8, 6, 4
ORDER = (5, 2, 7, 0, 1, 3, 4, 6)  # from easy to hard
POOL = ml.Pool(areas=C, users=U, order=ORDER)
SHARES = {"hard_areas": 0.5, "hard_users": 0.5, "easy_share": 0.5, "easy_steps": 10}


def _schedule(**changes):
    settings = {"pool": POOL, "hardness": True, "curriculum": True, **SHARES}
    return Schedule(**settings | changes)


def _state(step, areas=None, users=None):
    none = -np.ones((C, U), np.float32)
    users = none if users is None else users
    areas = none[:, 0] if areas is None else areas
    found = {"areas": jnp.asarray(areas, jnp.float32), "users": jnp.asarray(users)}
    return {"step": jnp.asarray(step, jnp.int32), "hardness": found}


@functools.partial(jax.jit, static_argnums=0)
def _planned(schedule, state, keys):
    return jax.vmap(lambda key: schedule.tasks(state, T, key))(keys)


def _plans(schedule, state, num=400):
    found = _planned(schedule, state, jax.random.split(jax.random.key(3), num))
    found = jax.tree.map(np.asarray, found)
    assert found["areas"].shape == (num, T, C) and (found["areas"].sum(-1) == 1).all()
    return {**found, "area": found["areas"].argmax(-1)}


def _chi_square(counts):
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("off", [{"hardness": False}, {"hard_areas": 0, "hard_users": 0}])
def test_without_hard_shares_and_curriculum_it_draws_as_maml_does(off):
    schedule = _schedule(curriculum=False, **off)
    # Whatever the last round was like; of it, only which areas it had can matter.
    for step in (0, 1):
        found = _plans(schedule, _state(step))
        counts = np.bincount(found["area"].ravel(), minlength=C)
        # Limits that a uniform draw is beyond once in ten thousand; draws of one step are
        # without replacement, which makes the statistic smaller.
        assert _chi_square(counts) < 29.9  # 7 degrees of freedom
        best = found["users"].argmax(-1)
        assert _chi_square(np.bincount(best.ravel(), minlength=U)) < 25.7  # 5 degrees
        assert all(len(set(row)) == T for row in found["area"].tolist())


def test_hard_half_of_areas_is_the_half_of_lowest_accuracy():
    areas = np.full(C, -1.0, np.float32)
    areas[[0, 2, 5, 7]] = [0.9, 0.3, 0.6, 0.4]
    for row in _plans(_schedule(curriculum=False), _state(2, areas))["area"].tolist():
        assert {2, 7} < set(row)
        # The others were not in the round before.
        assert set(row) - {2, 7} <= {1, 3, 4, 6}


def test_ties_of_hardness_are_broken_at_random():
    areas = np.full(C, -1.0, np.float32)
    areas[[0, 2, 5, 7]] = 0.5
    found = _plans(_schedule(curriculum=False), _state(2, areas))["area"].ravel()
    counts = np.bincount(found, minlength=C)[[0, 2, 5, 7]]
    assert counts.sum() == 2 * 400 and _chi_square(counts) < 21.1  # 3 degrees of freedom


def test_too_few_other_areas_mean_that_all_are_drawn_anew():
    areas = np.full(C, -1.0, np.float32)
    areas[list(ORDER[:4])] = [0.1, 0.2, 0.3, 0.4]  # the whole easy half
    found = _plans(_schedule(), _state(2, areas))["area"]
    assert {tuple(sorted(row)) for row in found.tolist()} == {(0, 2, 5, 7)}


def test_second_step_has_the_areas_of_the_first_and_its_hardest_users():
    areas = np.full(C, -1.0, np.float32)
    areas[[1, 3, 4, 6]] = [0.9, 0.3, 0.6, 0.4]
    users = -np.ones((C, U), np.float32)
    users[3, [0, 2, 4, 5]] = [1.0, 0.2, 0.5, 0.8]
    users[4, [0, 1]] = [0.5, 0.25]
    found = _plans(_schedule(curriculum=False), _state(1, areas, users))
    for row, wishes in zip(found["area"].tolist(), found["users"], strict=True):
        assert sorted(row) == [1, 3, 4, 6]
        order = np.argsort(-wishes[row.index(3)]).tolist()
        assert set(order[:2]) == {2, 4}  # hardest half of the four
        assert set(order[2:4]) == {1, 3}  # new ones
        assert set(order[4:]) == {0, 5}  # only where there are no others
        assert np.argmax(wishes[row.index(4)]) == 1


def test_pool_grows_at_its_step():
    schedule = _schedule(hardness=False)
    early, late = (_plans(schedule, _state(step))["area"] for step in (9, 10))
    assert set(early.ravel().tolist()) == set(ORDER[:4])
    assert set(late.ravel().tolist()) == set(range(C))
    with pytest.raises(ValueError, match="begins with 2 of 8 areas"):
        _schedule(easy_share=0.2).allowed(jnp.asarray(0), T)
    assert int(_schedule(easy_share=0.51).allowed(jnp.asarray(0), T).sum()) == 5


def test_accuracies_are_of_valid_queries_by_area_and_user():
    info = {
        "area": jnp.array([6, 2]),
        "query_user": jnp.array([[0, 0, 3], [1, 1, 1]]),
    }
    right = jnp.array([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]])
    mask = jnp.array([[True, True, True], [True, True, False]])
    found = jax.tree.map(np.asarray, accuracies(POOL, right, mask, info))
    users = -np.ones((C, U), np.float32)
    users[6, [0, 3]], users[2, 1] = [0.5, 0.5], 1.0
    areas = -np.ones(C, np.float32)
    areas[[6, 2]] = [0.5, 1.0]
    np.testing.assert_allclose(found["users"], users)
    np.testing.assert_allclose(found["areas"], areas)


def test_right_answers():
    x, y = jnp.zeros((2, 1)), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    outputs = jnp.array([[2.0, -1.0], [3.0, 0.5]])
    assert right_of(outputs, Examples.of(x, y)).tolist() == [1.0, 0.5]
    assert right_of(outputs, Examples.of(x, jnp.array([0, 1]))).tolist() == [1.0, 0.0]


@dataclasses.dataclass(frozen=True)
class _Toy:
    """Areas whose users differ; `planned` shows the three users most wanted."""

    def __call__(self, data, key):
        k_area, k_users, k_rows = jax.random.split(key, 3)
        plan = {
            "areas": jax.nn.one_hot(jax.random.randint(k_area, (), 0, C), C),
            "users": jax.random.uniform(k_users, (U,)),
        }
        return self.planned(data, plan, k_rows)

    def planned(self, data, plan, key):
        users = jax.lax.top_k(plan["users"], 3)[1]
        noise = jax.random.normal(key, (2, 3, 2))
        area = jnp.argmax(plan["areas"]).astype(jnp.int32)
        x = data[area, users][None] + noise
        y = (x.sum(-1, keepdims=True) > 0).astype(jnp.float32)
        info = {"area": area, "query_user": users}
        return Task(
            support=Examples.of(x[0], y[0]), query=Examples.of(x[1], y[1]), info=info
        )


def _toy():
    data = jax.random.normal(jax.random.key(9), (C, U, 2))
    return TaskSampler(_Toy(), data, "toy")


def _model():
    def init(key, x):
        del x
        return ml.Variables(params={"w": jax.random.normal(key, (2, 1))}, state={})

    def apply(variables, x, *, key=None, train=False, mask=None):
        del key, train, mask
        return jnp.tanh(x @ variables.params["w"]), variables.state

    return ml.Model(init, apply)


def _learner(build=ml.chaml, rate=0.5, **options):
    loss = ml.losses.binary_cross_entropy
    return build(_model(), loss, optax.sgd(rate), **options)


def test_gradient_is_that_of_maml_and_of_second_order():
    tasks = ml.sample_batch(_toy(), _toy().data, jax.random.split(jax.random.key(1), T))
    found = {}
    for name, learner in {
        "maml": _learner(ml.maml),
        "chaml": _learner(pool=POOL),
        "first": _learner(pool=POOL, differentiation="first_order"),
    }.items():
        variables = learner.init(jax.random.key(2), jax.tree.map(lambda a: a[0], tasks))
        found[name] = learner.estimate(variables, tasks, key=jax.random.key(0))
    grads = {name: np.asarray(e.grads["model"]["w"]) for name, e in found.items()}
    np.testing.assert_array_equal(grads["chaml"], grads["maml"])
    assert np.abs(grads["chaml"] - grads["first"]).max() > 1e-3
    assert found["chaml"].metrics.keys() == found["maml"].metrics.keys()
    areas = np.asarray(found["chaml"].state["hardness"]["areas"])
    assert set(np.flatnonzero(areas >= 0)) == set(np.asarray(tasks.info["area"]).tolist())


def test_training_repeats_areas_in_a_round_and_goes_on_exactly(tmp_path):
    trainer = ml.meta_trainer(_learner(pool=POOL, easy_steps=3), optax.adam(0.05))
    run = functools.partial(
        ml.fit, trainer, _toy(), tasks_per_step=T, key=jax.random.key(0), progress=False
    )
    shown, state = [], None
    for step in range(1, 7):
        state = run(num_steps=step, state=state).state
        hardness = state.variables.state["hardness"]
        shown.append(set(np.flatnonzero(np.asarray(hardness["areas"]) >= 0).tolist()))
        assert (np.asarray(hardness["users"]) >= 0).sum() == 3 * T
    assert shown[0] == shown[1] == set(ORDER[:4])
    assert shown[2] == shown[3] and shown[4] == shown[5]
    assert len(shown[4] & shown[3]) == 2  # the hardest half
    checkpoints = ml.Checkpoints(tmp_path)
    run(num_steps=3, checkpoints=checkpoints)
    resumed = run(num_steps=6, checkpoints=checkpoints, resume=True).state
    whole = run(num_steps=6).state
    for other in (resumed, state):
        jax.tree.map(np.testing.assert_array_equal, whole.variables, other.variables)


def test_refuses_tasks_that_cannot_be_asked_for():
    trainer = ml.meta_trainer(_learner(pool=POOL), optax.adam(0.05))
    plain = TaskSampler(lambda data, key: _Toy()(data, key), _toy().data, "plain")
    with pytest.raises(ValueError, match=r"chaml chooses the tasks .* 'plain' cannot"):
        ml.fit(trainer, plain, num_steps=1, tasks_per_step=T, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hard_areas": 1.2}, "hard_areas is 1.2"),
        ({"easy_share": 0.0}, "easy_share"),
        ({"pool": POOL._replace(order=(0, 0))}, "the order of the pool is"),
        ({"pool": POOL._replace(areas=0)}, "areas of the pool"),
        ({"hardness": False, "hard_areas": 0.2}, "hard_areas is 0.2, .* hardness=True"),
        ({"hardness": False, "hard_users": 0.2}, "hard_users is 0.2, .* hardness=True"),
        ({"curriculum": False, "easy_steps": 9}, "easy_steps is 9, .*Leave it at 500"),
        ({"curriculum": False, "easy_share": 1.0}, "easy_share is 1.0, .* curriculum=True"),
        ({"easy_steps": 0, "easy_share": 0.9}, "easy_share is 0.9, .* easy_steps above 0"),
    ],
)
def test_refuses_wrong_settings(options, said):
    with pytest.raises(ValueError, match=said):
        _learner(**options)
