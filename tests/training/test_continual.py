"""Families that arrive one after another: windows, what counts as worse, growth."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from tiny import one, plain, sine_batch

import metalearn as ml
from metalearn.training import continual
from metalearn.training.trainer import TrainState


def test_growth_waits_and_starts_the_optimiser_anew():
    """The second stage is harder: the parameters grow once, after the rest."""
    model = ml.from_apply_fn(
        lambda key, x: {"b": jnp.ones(2)},
        lambda params, x: jnp.broadcast_to(params["b"].sum(), x.shape),
    )
    made = ml.maml(model, ml.losses.mse, optax.sgd(1e-3))
    easy = ml.tasks.sinusoid(num_support=2, num_query=2)
    hard = ml.TaskSampler(scaled_by(easy, 30.0), (), "hard")
    seen = []

    def grow(variables, key):
        del key
        seen.append(variables)
        params = jax.tree.map(lambda leaf: jnp.append(leaf, 0.0), variables.params)
        return ml.Variables(params=params, state=variables.state)

    found = ml.fit_continually(
        made,
        optax.adam(1e-4),
        [(easy, 4), (hard, 3)],
        tasks_per_step=4,
        key=jax.random.key(0),
        grow=grow,
        check_every=2,
        rest=5,
        progress=False,
    )
    assert [row["step"] for row in found.history] == [2, 4, 6, 7]
    assert [row["stage"] for row in found.history] == [0, 0, 1, 1]
    assert found.grown == [6] and len(seen) == 1
    assert [len(v.params["model"]["b"]) for v in found.stages] == [2, 3]
    assert int(found.state.step) == 7
    assert int(found.state.opt_state[0].count) == 1  # anew after step 6


def scaled_by(sampler, factor):
    def sample(data, key):
        task = sampler.sample(data, key)
        scale = lambda e: ml.Examples(x=e.x, y=factor * e.y, mask=e.mask)
        return ml.Task(support=scale(task.support), query=scale(task.query), info=task.info)

    return sample


def windows_of(values, monkeypatch, metric="query/loss", **options):
    """What `fit_continually` makes of windows of these means."""
    means, asked = iter(values), []

    def fit(trainer, tasks, *, state, num_steps, log_every, **rest):
        asked.append((num_steps, log_every))
        zero = trainer.learner.init(jax.random.key(0), one(sine_batch()))
        state = TrainState(step=num_steps, variables=zero, opt_state=None)
        means_of = next(means)
        rows = means_of if isinstance(means_of, list) else [means_of]
        begun, part = asked[-2][0] if len(asked) > 1 else 0, log_every
        ends = [begun + part * (i + 1) for i in range(len(rows))]
        rows = [{"step": e, metric: m} for e, m in zip(ends, rows, strict=True)]
        return SimpleNamespace(state=state, history=rows)

    monkeypatch.setattr(continual, "fit", fit)
    monkeypatch.setattr(continual, "_check_stages", lambda *given: None)
    found = ml.fit_continually(
        ml.maml(plain(1), ml.losses.mse, optax.sgd(0.1)),
        optax.sgd(0.1),
        tasks_per_step=2,
        key=jax.random.key(0),
        metric=metric,
        **{"grow": lambda v, key: v, "check_every": 2, "rest": 1, **options},
    )
    return found, asked


def test_every_row_is_the_mean_of_its_window(monkeypatch):
    """`fit` starts a new mean at multiples of `log_every`: none lies within a window."""
    tasks = ml.tasks.sinusoid()
    _, asked = windows_of([1.0] * 4, monkeypatch, stages=[(tasks, 3), (tasks, 4)])
    begin = 0
    for end, log_every in asked:
        assert not any(step % log_every == 0 for step in range(begin + 1, end))
        begin = end


def test_what_a_stage_has_left_over_is_not_compared(monkeypatch):
    tasks = ml.tasks.sinusoid()
    found, _ = windows_of(
        [1.0, 9.0, 1.0, 2.0], monkeypatch, stages=[(tasks, 3), (tasks, 4)]
    )
    assert [row["step"] for row in found.history] == [2, 3, 5, 7]
    assert found.grown == [7]


@pytest.mark.parametrize(
    ("values", "metric", "options", "grown"),
    [
        ([1.0, 1.2, 1.6], "query/loss", {"worse": 1.25}, [6]),
        ([1.0, 1.2, 1.6], "query/loss", {}, [6]),
        ([-1.0, -2.0, -1.9, -1.0], "query/loss", {"worse": 1.25}, [8]),
        ([0.0, 0.5], "query/loss", {"worse": 1.25}, [4]),
        ([0.8, 0.7, 0.5], "query/accuracy", {"worse": 0.85}, [6]),
        ([0.8, 0.7, 0.5], "query/accuracy", {}, [6]),
        ([0.5, 0.8], "query/accuracy", {}, []),
        ([0.0, 0.0], "query/accuracy", {"worse": 0.85}, []),
        ([1.0, 1.2, 1.6], "query/brier", {"higher_is_better": False}, [6]),
        ([-1.0, -1.1, -1.6], "query/score", {"higher_is_better": True}, [6]),
        ([0.8, 0.5], "query/loss", {"higher_is_better": True, "worse": 0.9}, [4]),
    ],
)
def test_what_counts_as_worse(values, metric, options, grown, monkeypatch):
    stages = [(ml.tasks.sinusoid(), 2 * len(values))]
    found, _ = windows_of(values, monkeypatch, metric, stages=stages, **options)
    assert found.grown == grown


def test_a_window_may_count_as_the_median_of_its_parts(monkeypatch):
    """One part far off grows nothing; all parts a little worse do."""
    stages = [(ml.tasks.sinusoid(), 18)]
    values = [[1.0, 1.1, 0.9], [1.0, 90.0, 1.1], [1.5, 1.6, 0.1]]
    found, asked = windows_of(
        values, monkeypatch, stages=stages, check_every=6, medians=3, rest=1
    )
    assert [row["query/loss"] for row in found.history] == [1.0, 1.1, 1.5]
    assert found.grown == [18]
    assert [log_every for _, log_every in asked] == [2, 2, 2]


def test_pieces_at_the_ends_of_a_window_do_not_count():
    """Rows end at multiples of a part; a window from 11 to 21 has four whole ones."""
    ends, means = (12, 14, 16, 18, 20, 21), (90.0, 1.0, 2.0, 3.0, 4.0, 0.0)
    rows = [{"step": s, "loss": m} for s, m in zip(ends, means, strict=True)]
    assert continual._median(rows, "loss", 11, 2) == 2.5
    assert continual._median(rows[:1], "loss", 11, 2) == 90.0  # nothing else is there


def test_stages_may_come_from_a_generator(monkeypatch):
    stages = ((ml.tasks.sinusoid(), 2) for _ in range(2))
    found, _ = windows_of([1.0, 1.0], monkeypatch, stages=stages)
    assert len(found.stages) == 2


def test_growth_is_a_function(monkeypatch):
    """Found before the first window and not at the first growth."""
    stages = [(ml.tasks.sinusoid(), 2)]
    with pytest.raises(TypeError, match="grow is a int; expected"):
        windows_of([1.0], monkeypatch, stages=stages, grow=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, "stages is empty"),
        ({"stages": [(ml.tasks.sinusoid(), 1), (ml.tasks.sinusoid(), 0)]}, "stage is 0"),
        ({"stages": [ml.tasks.sinusoid()]}, "a stage is a TaskSampler"),
        ({"stages": 3}, "stages is 3; expected pairs"),
        ({"worse": 0.0}, r"worse is 0\.0; expected a finite number above 0"),
        ({"worse": float("inf")}, "worse is inf"),
        ({"worse": 1.0}, "above one for a loss"),
        ({"worse": "2"}, "worse is '2'"),
        (
            {"worse": 1.25, "metric": "query/accuracy"},
            "worse is 1.25 for the metric 'query/accuracy', of which more is better; "
            "expected a ratio below one.*higher_is_better=False",
        ),
        ({"worse": 0.85}, "'query/loss', of which less is better; .*ratio above one"),
        ({"worse": 1.25, "higher_is_better": True}, "of which more is better"),
        ({"metric": "query/brier"}, "'query/brier' is better is not known"),
        ({"metric": "query/brier", "worse": 1.25}, "'query/brier' is better is not known"),
        ({"higher_is_better": 1}, "higher_is_better is 1; expected True"),
        ({"check_every": 0}, "check_every"),
        ({"medians": 0}, "medians is 0"),
        ({"medians": 3, "check_every": 4}, "medians is 3; expected a divisor of check_ev"),
    ],
)
def test_bad_continual_options(options, message):
    given = {"stages": [(ml.tasks.sinusoid(), 1)], **options}
    stages = given.pop("stages")
    with pytest.raises(ValueError, match=message):
        ml.fit_continually(
            ml.maml(plain(1), ml.losses.mse, optax.sgd(0.1)),
            optax.adam(1e-3),
            stages,
            tasks_per_step=2,
            key=jax.random.key(0),
            **given,
        )


def test_a_wrong_last_stage_costs_none_of_the_others():
    with pytest.raises(TypeError, match="tasks is a str"):
        ml.fit_continually(
            ml.maml(plain(1), ml.losses.mse, optax.sgd(0.1)),
            optax.adam(1e-3),
            [(ml.tasks.sinusoid(), 10**9), ("second", 1)],
            tasks_per_step=2,
            key=jax.random.key(0),
        )
