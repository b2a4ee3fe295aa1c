"""Following the meta-leader, by hand on a scalar quadratic model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import blobs, plain

import metalearn as ml
from metalearn.core import metrics
from metalearn.training import rounds
from metalearn.training.online import (
    OnlineResult,
    best_in_hindsight,
    follow_the_meta_leader,
    regret,
)

KEY = jax.random.key(3)
INNER, OUTER = 0.25, 0.5
SIZES = (4, 3, 4)  # of a task of level c all targets are c; the second is padded
LEVELS = (1.0, -2.0, 0.5)


def scalar():
    """One parameter that is the prediction; its loss is half the squared error."""
    return ml.from_apply_fn(
        lambda key, x: {"w": 3.0 * jnp.ones(1)},
        lambda params, x: jnp.broadcast_to(params["w"][None], x.shape),
    )


def half_mse(outputs, examples):
    return 0.5 * ml.losses.mse(outputs, examples)


def level_task(level, size, room=4):
    x = jnp.zeros((room, 1))
    held_out = ml.Examples.of(jnp.zeros((2, 1)), jnp.full((2, 1), level))
    valid = jnp.arange(room) < size
    y = jnp.where(valid[:, None], level, 0.0)
    return ml.Task(support=ml.Examples.of(x, y, valid), query=held_out)


def levels():
    return [level_task(c, n) for c, n in zip(LEVELS, SIZES, strict=True)]


@functools.cache
def trainer(kind="maml", rate=OUTER):
    model = scalar()
    if kind == "maml":
        learner = ml.maml(model, half_mse, optax.sgd(INNER), num_steps=1)
    elif kind == "fine_tune":
        learner = ml.fine_tune(model, half_mse, optax.sgd(INNER), num_steps=1)
    else:
        learner = ml.no_adaptation(model, half_mse)
    return ml.meta_trainer(learner, optax.sgd(rate))


SETTINGS = {"tasks_per_step": 1, "num_support": 2, "num_query": 2, "key": KEY}


def play(tasks=None, kind="maml", **options):
    options = {"batch_size": 2, "meta_steps": 2, "progress": False, **SETTINGS, **options}
    options.setdefault("loss_fn", half_mse)
    return follow_the_meta_leader(trainer(kind), tasks or levels(), **options)


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def same(first, second):
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_comes_later_changes_nothing_before():
    """To the bit: tasks to come, and rows of the current one that have not arrived."""
    first, other = levels(), levels()
    other[2] = level_task(70.0, 4)
    y = other[1].support.y.at[2:].set(-50.0)
    late = ml.Examples(x=other[1].support.x, y=y, mask=other[1].support.mask)
    other[1] = ml.Task(support=late, query=other[1].query)
    a, b = (without_times(play(tasks).history) for tasks in (first, other))
    assert a[:3] == b[:3]  # two arrivals of task 0, one of task 1
    assert a[3] != b[3] and a[4] != b[4]


# -- Rounds by hand ----------------------------------------------------------------------


def meta_step(w, c, kind="maml"):
    """All examples of a task are alike, so that every draw of it has this step.

    Outer loss of MAML `(1 - a)^2 (w - c)^2 / 2`, of joint training `(w - c)^2 / 2`.
    """
    factor = (1 - INNER) ** 2 if kind == "maml" else 1.0
    return w - OUTER * factor * (w - c)


def judged(w, c, kind="maml"):
    return 0.5 * ((w - c) * (1 if kind == "toe" else 1 - INNER)) ** 2


def test_current_task_alone_by_hand():
    """`train_on="current"`: the sequence is known whatever is drawn."""
    found = play(train_on="current")
    w, expected = 3.0, []
    for task, (c, n) in enumerate(zip(LEVELS, SIZES, strict=True)):
        for have in sorted({2, n}):
            w = meta_step(meta_step(w, c), c)
            steps = 2 * (len(expected) + 1)
            expected.append((task, have, steps, judged(w, c)))
    rows = [(r["task"], r["examples"], r["steps"]) for r in found.history]
    assert rows == [row[:3] for row in expected]
    losses = [row["query/loss"] for row in found.history]
    np.testing.assert_allclose(losses, [row[3] for row in expected], rtol=1e-5)
    np.testing.assert_allclose(found.state.variables.params["model"]["w"], [w], rtol=1e-5)
    assert int(found.state.step) == 12
    np.testing.assert_array_equal(
        found.values["query/loss"], [losses[1], losses[3], losses[5]]
    )


@pytest.mark.parametrize("kind", ["maml", "toe"])
def test_all_so_far_follows_the_tasks_that_were_drawn(kind, monkeypatch):
    """The draws are watched; the steps between are by hand."""
    drawn = []
    original = rounds.Episode.__call__

    def watched(self, data, key):
        task = original(self, data, key)
        jax.debug.callback(lambda t: drawn.append(int(t)), task.info["task"], ordered=True)
        return task

    monkeypatch.setattr(rounds.Episode, "__call__", watched)
    made = ml.meta_trainer(trainer(kind).learner, optax.sgd(OUTER))  # not a cached one
    shared = {**SETTINGS, "tasks_per_step": 1, "progress": False, "loss_fn": half_mse}
    found = follow_the_meta_leader(made, levels(), batch_size=2, meta_steps=3, **shared)
    jax.effects_barrier()
    w, losses = 3.0, []
    for arrival in range(6):
        chosen = drawn[3 * arrival : 3 * arrival + 3]
        assert max(chosen) <= arrival // 2
        for task in chosen:
            w = meta_step(w, LEVELS[task], kind)
        losses.append(judged(w, LEVELS[arrival // 2], kind))
    assert len(drawn) == 18 and set(drawn) == {0, 1, 2}
    got = [row["query/loss"] for row in found.history]
    np.testing.assert_allclose(got, losses, rtol=1e-5)


def test_past_has_no_steps_in_the_first_round():
    found = play(kind="fine_tune", train_on="past")
    assert [row["steps"] for row in found.history] == [0, 0, 2, 4, 6, 8]
    assert found.history[0]["query/loss"] == pytest.approx(judged(3.0, LEVELS[0]))
    w = 3.0
    for _ in range(4):  # task 1 is played on what task 0 brought alone
        w = meta_step(w, LEVELS[0], "joint")
    assert found.history[3]["query/loss"] == pytest.approx(judged(w, LEVELS[1]), rel=1e-5)


def test_scratch_begins_each_task_anew():
    """A round depends on its own task alone, and is joint training on it."""
    found = play(kind="toe", train_on="current", restart=True)
    for task, c in enumerate(LEVELS):
        w, rows = 3.0, [row for row in found.history if row["task"] == task]
        for row in rows:
            w = meta_step(meta_step(w, c, "toe"), c, "toe")
            assert row["query/loss"] == pytest.approx(judged(w, c, "toe"), rel=1e-4)
    assert int(found.state.step) == 4 and found.history[-1]["steps"] == 12


def test_the_update_procedure_can_have_more_steps():
    more = ml.maml(scalar(), half_mse, optax.sgd(INNER), num_steps=3)
    one, three = play(train_on="current"), play(train_on="current", adapting=more)
    ratio = three.values["query/loss"] / one.values["query/loss"]
    np.testing.assert_allclose(ratio, (1 - INNER) ** 4, rtol=1e-4)
    assert same(one.state, three.state)


def test_one_program_serves_all_rounds(count_compilations):
    made = ml.meta_trainer(trainer().learner, optax.sgd(0.3))
    counts = []
    follow_the_meta_leader(
        made,
        levels() + levels(),
        batch_size=2,
        meta_steps=2,
        progress=False,
        sinks=[lambda row: counts.append(count_compilations())],
        **SETTINGS,
    )
    assert len(counts) == 12 and not any(counts[1:])


# -- Thresholds and regret ---------------------------------------------------------------


def test_needed_examples_are_those_of_the_first_arrival_below():
    found = play(train_on="current", threshold=None)
    losses = np.asarray([row["query/loss"] for row in found.history]).reshape(3, 2)
    assert (losses[:, 0] > losses[:, 1]).all() and found.needed is None
    between = float(np.median(losses))
    needed = play(train_on="current", threshold=between).needed
    sizes = [(2, n) for n in SIZES]
    for task in range(3):
        below = [n for n, loss in zip(sizes[task], losses[task]) if loss <= between]
        assert needed[task] == below[0] if below else np.isnan(needed[task])
    assert len({np.isnan(n) for n in needed}) == 2  # both cases are there


def test_accuracy_has_to_rise_to_its_threshold():
    tasks = jax.vmap(blobs)(jax.random.split(KEY, 2))
    learner = ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.1))
    options = {**SETTINGS, "batch_size": 3, "meta_steps": 1, "progress": False}
    options |= {"metric": "query/accuracy"}
    made = ml.meta_trainer(learner, optax.sgd(0.1))
    easy = follow_the_meta_leader(made, tasks, threshold=0.0, **options)
    hard = follow_the_meta_leader(made, tasks, threshold=1.1, **options)
    assert easy.needed.tolist() == [3, 3] and np.isnan(hard.needed).all()
    said = {"threshold": 1.1, "higher_is_better": False}
    assert follow_the_meta_leader(made, tasks, **said, **options).needed.tolist() == [3, 3]


def reporting(name, monkeypatch):
    """Results with the loss under another name too."""
    original = metrics.of_task

    def of_task(loss_fn, outputs, examples):
        found = original(loss_fn, outputs, examples)
        return {**found, name: found["loss"]}

    monkeypatch.setattr(metrics, "of_task", of_task)
    learner = ml.maml(scalar(), half_mse, optax.sgd(INNER), num_steps=1)
    return ml.meta_trainer(learner, optax.sgd(OUTER))  # judges anew


def test_a_threshold_needs_a_direction(monkeypatch):
    made = reporting("brier", monkeypatch)
    options = {**SETTINGS, "batch_size": 2, "meta_steps": 2, "progress": False}
    options |= {"tasks": levels()[:2], "loss_fn": half_mse, "metric": "query/brier"}
    with pytest.raises(ValueError, match="'query/brier' is better is not known"):
        follow_the_meta_leader(made, threshold=0.1, **options)
    found = follow_the_meta_leader(made, **options)  # nothing depends on it
    assert found.needed is None
    losses = [row["query/brier"] for row in found.history]
    between = (min(losses[:2]) + max(losses[:2])) / 2
    needed = {
        said: follow_the_meta_leader(
            made, threshold=between, higher_is_better=said, **options
        ).needed[0]
        for said in (True, False)
    }
    assert losses[0] > losses[1]
    assert needed == {True: 2, False: SIZES[0]}
    with pytest.raises(ValueError, match="'query/brier' is better is not known"):
        regret(found, found, "query/brier")


def test_hindsight_and_regret_by_hand():
    """One task: the comparator follows from its steps; regret sums the differences."""
    tasks = [level_task(1.0, 4)]
    best = best_in_hindsight(trainer(), tasks, num_steps=5, loss_fn=half_mse, **SETTINGS)
    w = 3.0
    for _ in range(5):
        w = meta_step(w, 1.0)
    assert best.values["query/loss"] == pytest.approx([judged(w, 1.0)], rel=1e-4)
    found = play(tasks)
    np.testing.assert_allclose(
        regret(found, best), found.values["query/loss"] - best.values["query/loss"]
    )

    def result(losses, accuracies):
        values = {
            "query/loss": np.asarray(losses),
            "query/accuracy": np.asarray(accuracies),
        }
        return OnlineResult(
            state=None, values=values, needed=None, history=[], fingerprint="f"
        )

    a, b = result([3.0, 2.0, 2.5], [0.5, 0.6, 0.7]), result([1.0, 2.5, 0.5], [0.9, 0.5, 1])
    np.testing.assert_allclose(regret(a, b), [2.0, 1.5, 3.5])
    np.testing.assert_allclose(regret(a, b, "query/accuracy"), [0.4, 0.3, 0.6])
    with pytest.raises(ValueError, match="not in both"):
        regret(a, b, "query/error")
    np.testing.assert_allclose(
        regret(a, b, "query/loss", higher_is_better=True), [-2.0, -1.5, -3.5]
    )
    with pytest.raises(ValueError, match="different tasks"):
        regret(a, best)


# -- Resuming ----------------------------------------------------------------------------


def test_resumed_is_as_uninterrupted_and_tasks_may_be_added(tmp_path):
    made = trainer("maml")
    options = {**SETTINGS, "batch_size": 2, "meta_steps": 2, "progress": False}
    whole = follow_the_meta_leader(made, levels(), threshold=0.1, **options)
    checkpoints = ml.Checkpoints(tmp_path / "run")
    options["checkpoints"] = checkpoints

    def stop(row):
        if row["task"] == 1 and row["examples"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow_the_meta_leader(made, levels()[:2], sinks=[stop], **options)
    assert checkpoints.latest() == 1
    with pytest.raises(ValueError, match="resume=True"):
        follow_the_meta_leader(made, levels(), **options)
    options |= {"resume": True, "threshold": 0.1}
    resumed = follow_the_meta_leader(made, levels(), **options)
    assert same(whole.state, resumed.state)
    np.testing.assert_array_equal(whole.needed, resumed.needed)
    assert without_times(whole.history) == without_times(resumed.history)
    assert whole.fingerprint == resumed.fingerprint
    again = follow_the_meta_leader(made, levels(), **options)  # nothing is left to do
    assert same(whole.values, again.values)

    for change, message in (
        ({"meta_steps": 3}, "meta_steps: 2 there, 3 here"),
        ({"key": jax.random.key(4)}, r"key: \[0, 3\] there, \[0, 4\] here"),
        ({"train_on": "past"}, "train_on: all there, past here"),
        ({"restart": True}, "restart: False there, True here"),
    ):
        with pytest.raises(ml.CheckpointMismatch, match=message):
            follow_the_meta_leader(made, levels(), **{**options, **change})
    with pytest.raises(ml.CheckpointMismatch, match=r"task 0: digest .* there, "):
        follow_the_meta_leader(made, levels()[::-1], **options)
    with pytest.raises(ml.CheckpointMismatch, match="finished 3 tasks"):
        follow_the_meta_leader(made, levels()[:2], **options)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (optax.sgd(OUTER, momentum=0.9), "opt_state/0/trace/model/w: expected"),
        (optax.adam(OUTER), "opt_state/0/mu/model/w: expected"),
    ],
)
def test_an_outer_optimiser_with_another_state_is_refused(other, message, begun):
    with pytest.raises(ml.CheckpointMismatch, match=message):
        follow_the_meta_leader(ml.meta_trainer(trainer().learner, other), **begun)


def test_another_learner_is_refused(begun):
    more = ml.maml(scalar(), half_mse, optax.sgd(INNER), num_steps=3)
    with pytest.raises(ml.CheckpointMismatch, match=r"adapting: .* there, .* here"):
        follow_the_meta_leader(trainer(), **begun, adapting=more)
    with pytest.raises(ml.CheckpointMismatch, match=r"learner: .*: 1,.* there, .*: 3,"):
        follow_the_meta_leader(ml.meta_trainer(more, optax.sgd(OUTER)), **begun)


def test_another_rate_of_the_same_optimiser_is_not_seen(begun):
    """As the docstring says; the first task is done, and the rate counts from then on."""
    slow = ml.meta_trainer(trainer().learner, optax.sgd(0.25))
    tasks = levels()[:2]
    found, whole = (
        follow_the_meta_leader(made, **{**begun, "tasks": tasks, **options})
        for made, options in (
            (slow, {}),
            (trainer(), {"checkpoints": None, "resume": False}),
        )
    )
    histories = without_times(found.history), without_times(whole.history)
    assert histories[0][:2] == histories[1][:2] and histories[0] != histories[1]


@pytest.fixture
def begun(tmp_path):
    """Arguments that go on after the first task."""
    options = {**SETTINGS, "batch_size": 2, "meta_steps": 2, "progress": False}
    options |= {"tasks": levels()[:1], "checkpoints": ml.Checkpoints(tmp_path / "run")}
    follow_the_meta_leader(trainer(), **options)
    return {**options, "resume": True}


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    """The state fits: it is the same trainer's."""
    checkpoints = ml.Checkpoints(tmp_path / "run")
    state = jax.jit(trainer().init)(KEY, levels()[0])
    checkpoints.save(1, state, {"best_step": 1})
    with pytest.raises(ml.CheckpointMismatch, match="did not write"):
        play(checkpoints=checkpoints, resume=True)


# -- Bad input ---------------------------------------------------------------------------


def spoiled(number, change):
    tasks = levels()
    tasks[number] = change(tasks[number])
    return tasks


def with_nan(task):
    query = ml.Examples.of(task.query.x, jnp.full_like(task.query.y, jnp.nan))
    return ml.Task(support=task.support, query=query)


def with_holes(task):
    mask = jnp.asarray([True, False, True, True])
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=mask)
    return ml.Task(support=support, query=task.query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": spoiled(2, with_nan)}, "task 2: query.y holds 2 non-finite"),
        ({"tasks": spoiled(1, with_holes)}, "task 1 has 3 valid examples"),
        ({"tasks": [*levels()[:2], level_task(0.0, 1)]}, "task 2 has 1 valid"),
        ({"tasks": [*levels(), level_task(0.0, 5, room=5)]}, "task 3 has shapes"),
        ({"tasks": levels()[0]}, "Put one task into a list"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"meta_steps": True}, "meta_steps is True"),
        ({"num_query": 0}, "num_query is 0"),
        ({"tasks_per_step": 1.5}, "tasks_per_step is 1.5"),
        ({"num_support": 3}, r"num_support \+ num_query is 5"),
        ({"train_on": "future"}, "train_on is 'future'"),
        ({"metric": "query/accuracy"}, "not reported"),
        ({"threshold": 1.0, "higher_is_better": "no"}, "higher_is_better is 'no'"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "0.9"}, "threshold is '0.9'"),
        ({"threshold": True}, "threshold is True"),
        ({"resume": True}, "needs checkpoints"),
    ],
)
def test_bad_input_is_found_before_anything_is_played(options, message):
    rows = []
    with pytest.raises(ValueError, match=message):
        play(**{"sinks": [rows.append], **options})
    assert not rows


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match="task 1 is a int"):
        play([levels()[0], 3])
    with pytest.raises(TypeError, match="trainer is a MetaLearner"):
        follow_the_meta_leader(
            trainer().learner, levels(), batch_size=2, meta_steps=1, **SETTINGS
        )


def test_divergence_keeps_the_finished_tasks(tmp_path):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    wild = [levels()[0], level_task(3e38, 4)]
    with pytest.raises(ml.NonFiniteGradient, match="during task 1"):
        play(wild, checkpoints=checkpoints, progress=False)
    assert checkpoints.latest() == 1
