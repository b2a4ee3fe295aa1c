"""Online learning resumed, and refused for bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from levels import (
    INNER,
    KEY,
    OUTER,
    SETTINGS,
    half_mse,
    level_task,
    levels,
    play,
    same,
    scalar,
    trainer,
    without_times,
)

import metalearn as ml
from metalearn.training.online import (
    follow_the_meta_leader,
)

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
