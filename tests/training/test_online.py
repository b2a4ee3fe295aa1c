"""Following the meta-leader, by hand on a scalar quadratic model."""

import jax
import numpy as np
import optax
import pytest
from levels import (
    INNER,
    KEY,
    LEVELS,
    OUTER,
    SETTINGS,
    SIZES,
    half_mse,
    level_task,
    levels,
    play,
    same,
    scalar,
    trainer,
    without_times,
)
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
