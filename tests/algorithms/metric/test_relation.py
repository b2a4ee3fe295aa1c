"""Relation networks against loops in NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, differs, wide_blobs
from tiny import INPUTS, WAYS, one

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")

WIDTH, HIDDEN, SIDE = 3, 2, 5


def scaled(ways=WAYS, **options):
    """A learner whose encoder multiplies by one parameter."""
    encoder = ml.from_apply_fn(lambda key, x: jnp.ones(()), lambda w, x: w * x)
    options = {"width": WIDTH, "hidden": HIDDEN, "task_chunk": 9, **options}
    return ml.relation_network(encoder, num_ways=ways, **options)


@functools.cache
def params_for(maps):
    """Parameters of any values, of the shapes of a new learner."""
    x = jnp.zeros((1, SIDE, SIDE, 2) if maps else (1, INPUTS))
    like = ml.Examples.of(x, jnp.zeros(1, jnp.int32))
    made = jax.eval_shape(
        scaled().init, jax.random.key(0), ml.Task(support=like, query=like)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.7 * rng.normal(size=leaf.shape), made.params)


def blurred(x, kernel):
    """A convolution with a border of zeros, a pixel after the other."""
    if x.ndim == 1:
        return x @ kernel
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[:2]
    return np.array(
        [
            [np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) for j in range(columns)]
            for i in range(rows)
        ]
    )


def block(p, x):
    x = blurred(x, p["kernel"]) + p["bias"]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * p["norm_scale"] + p["norm_bias"]
    x = np.maximum(x, 0)
    if x.ndim == 1 or min(x.shape[:2]) < 2:
        return x
    rows, columns = x.shape[0] // 2, x.shape[1] // 2
    x = x[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, -1)
    return x.max((1, 3))


def related(p, of_class, query):
    x = block(p["second"], block(p["first"], np.concatenate([of_class, query], -1)))
    x = np.maximum(x.ravel() @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    return (x @ p["out"]["kernel"] + p["out"]["bias"])[0]


@functools.cache
def estimate():
    learner = scaled()
    return jax.jit(
        lambda variables, tasks, key: learner.estimate(variables, tasks, key=key)
    )


def estimated(params, tasks):
    variables = ml.Variables(params=jax.tree.map(jnp.asarray, params), state={})
    return estimate()(variables, tasks, jax.random.key(0))


def image_tasks(num=2):
    """Tasks of three classes, of which one has no support example, and masked rows."""
    rng = np.random.default_rng(3)
    y = jnp.asarray([[0, 0, 2, 2]] * num, jnp.int32)
    mask = jnp.asarray([[True, True, True, False]] * num)

    def part():
        x = jnp.asarray(rng.normal(size=(num, 4, SIDE, SIDE, 2)))
        return ml.Examples(x=x, y=y, mask=mask)

    return ml.Task(support=part(), query=part())


def test_maps_are_compared_as_in_the_paper_and_the_loss_is_squared():
    """Value and gradient, by finite differences, of the squares over present classes."""
    tasks, params = image_tasks(), params_for(maps=True)
    rng = np.random.default_rng(4)
    way = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), params)

    def loss(step):
        now = jax.tree.map(lambda a, b: a + step * b, params, way)
        errors = []
        for t in range(2):
            support, query = (
                now["encoder"] * np.asarray(part.x[t])
                for part in (tasks.support, tasks.query)
            )
            classes = {0: support[:2].mean(0), 2: support[2]}
            for i, y in enumerate((0, 0, 2)):
                for k, of_class in classes.items():
                    r = 1 / (1 + np.exp(-related(now["head"], of_class, query[i])))
                    errors.append((r - (y == k)) ** 2)
        return np.mean(errors)

    found = estimated(params, tasks)
    close(found.metrics["query/mse"].mean(), loss(0))
    along = sum(map(np.vdot, jax.tree.leaves(found.grads), jax.tree.leaves(way)))
    close(along, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-6)


@functools.cache
def episode(pool):
    learner = scaled(pool=pool)

    def run(params, support, x):
        adapted = learner.adapt(ml.Variables(params=params, state={}), support)
        return learner.predict(adapted, x)

    return jax.jit(run)


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_equal_shots_change_the_sum_and_not_the_mean(pool):
    task, params = one(wide_blobs()), params_for(maps=False)
    x = np.repeat(np.asarray(task.support.x)[::2], 2, 0)
    found = []
    for shots in (1, 2):
        mask = jnp.asarray(np.arange(2 * WAYS) % 2 < shots)
        support = ml.Examples(x=jnp.asarray(x), y=task.support.y, mask=mask)
        found.append(np.asarray(episode(pool)(params, support, task.query.x)))
    assert differs(*found) == (pool == "sum")
    scale = 1 if pool == "mean" else 2
    query = params["encoder"] * np.asarray(task.query.x)
    expected = [
        [
            related(params["head"], scale * params["encoder"] * x[2 * k], row)
            for k in range(3)
        ]
        for row in query
    ]
    close(found[1], np.array(expected))


def test_the_loss_of_one_half_everywhere_is_a_quarter():
    params = params_for(maps=True)
    nothing = {"kernel": np.zeros((HIDDEN, 1)), "bias": np.zeros(1)}
    params = {**params, "head": {**params["head"], "out": nothing}}
    found = estimated(params, image_tasks())
    close(found.metrics["query/mse"], np.full(2, 0.25))


def test_a_new_relation_module_is_drawn_as_in_the_released_code():
    learner = scaled(width=40, hidden=30)
    variables = jax.jit(learner.init)(jax.random.key(0), one(image_tasks()))
    head = jax.tree.map(np.asarray, variables.params["head"])
    assert head["first"]["kernel"].shape == (3, 3, 4, 40)
    assert head["hidden"]["kernel"].shape == (40, 30)  # 5x5 -> 2x2 -> 1x1
    for name, spread in (("first", 2 / (9 * 40)), ("second", 2 / (9 * 40))):
        np.testing.assert_allclose(head[name]["kernel"].std() ** 2, spread, rtol=0.2)
        assert not head[name]["bias"].any() and not head[name]["norm_bias"].any()
        assert (head[name]["norm_scale"] == 1).all()
    for name in ("hidden", "out"):
        assert 0.006 < head[name]["kernel"].std() < 0.014
        assert (head[name]["bias"] == 1).all()


@pytest.mark.parametrize(("side", "left"), [(1, 1), (3, 1), (7, 1), (19, 16), (4, 1)])
def test_maps_are_halved_where_they_can_be(side, left):
    x = jnp.zeros((1, side, side, 2))
    like = ml.Examples.of(x, jnp.zeros(1, jnp.int32))
    made = jax.eval_shape(
        scaled().init, jax.random.key(0), ml.Task(support=like, query=like)
    )
    assert made.params["head"]["hidden"]["kernel"].shape == (left * WIDTH, HIDDEN)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": "max"}, "pool is 'max'; expected one of mean, sum"),
        ({"width": 0}, "width is 0; expected an integer of 1 or more"),
        ({"hidden": 0}, "hidden is 0; expected an integer of 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        scaled(**options)
