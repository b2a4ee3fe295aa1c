"""Why a step was not finite, and what becomes of a run in which none was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sines import KEY, SINES, counting_learner, fit, same, sine_learner
from tiny import plain

import metalearn as ml


def with_query(change):
    def sample(key):
        task = SINES(key)
        return dataclasses.replace(task, query=change(task.query, key))

    return sample


def once(key, share=0.05):
    return jax.random.uniform(jax.random.fold_in(key, 9)) < share


def nan_inputs(query, key):
    x = jnp.where(once(key), query.x.at[1].set(jnp.nan), query.x)
    return dataclasses.replace(query, x=x)


def huge_targets(query, key):
    return dataclasses.replace(query, y=jnp.where(once(key), 1e30, 1.0) * query.y)


def grows(count):
    return jnp.where(count < 3, 1e-3, jnp.nan)


def exploding(state):
    """A model whose running average is infinite from the first training pass on."""
    made = counting_learner()

    def estimate(variables, tasks, *, key):
        found = made.estimate(
            ml.Variables(params=variables.params, state={}), tasks, key=key
        )
        return dataclasses.replace(found, state={"mean": variables.state["mean"] + state})

    def init(key, task):
        return ml.Variables(params={"n": jnp.zeros(1)}, state={"mean": jnp.zeros(())})

    return made._replace(init=init, estimate=estimate)


CASES = {
    "data": (
        lambda: ml.meta_trainer(sine_learner(), optax.sgd(1e-3)),
        with_query(nan_inputs),
        [r"data of the step are the cause: query\.x of task \d holds 1 numb", "Clean them"],
        ["Lower", "eps_root"],
    ),
    "sizes": (
        lambda: ml.meta_trainer(sine_learner(), optax.sgd(1e-3)),
        with_query(huge_targets),
        ["data of the step are finite", "the metric .*query/loss", "Lower the inner"],
        ["the cause"],
    ),
    "schedule": (
        lambda: ml.meta_trainer(sine_learner(), optax.sgd(grows)),
        SINES,
        ["step 3 is not finite: found in the update of the outer", "rate and its schedule"],
        ["Lower", "eps_root", "meta-gradient and"],
    ),
    "first step": (
        lambda: ml.meta_trainer(
            ml.maml(plain(1), ml.losses.mse, optax.sgd(1e30), num_steps=2), optax.sgd(1e-3)
        ),
        SINES,
        ["step 0 is not finite", "the outer rate is not the cause: look at the inner rate"],
        ["Clean"],
    ),
    "averages": (
        lambda: ml.meta_trainer(exploding(jnp.inf), optax.sgd(1e-3)),
        SINES,
        ["found in the state of the model", "running averages"],
        ["Lower", "outer optimiser"],
    ),
    "metric": (
        lambda: ml.meta_trainer(
            counting_learner(lambda n: {"query/loss": n, "spread": 1 / (2 - n)}),
            optax.sgd(1.0),
        ),
        SINES,
        ["step 2 is not finite: found in the metric spread"],
        ["query/loss"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cause_is_named(case):
    make, tasks, words, others = CASES[case]
    with pytest.raises(ml.NonFiniteGradient) as error:
        fit(60, make(), tasks)
    for word in words:
        assert error.match(f"(?s){word}"), word
    said = str(error.value)
    assert not any(word in said for word in others), said


def test_a_run_whose_steps_were_all_skipped_is_no_result(tmp_path):
    trainer = ml.meta_trainer(
        counting_learner(lambda n: {"query/loss": n + jnp.nan}), optax.sgd(1.0)
    )
    words = "all 7 steps were skipped.*nothing was trained"
    with pytest.raises(ml.NonFiniteGradient, match=words):
        fit(7, trainer, nonfinite="skip", log_every=3)
    checkpoints = ml.Checkpoints(tmp_path / "run")
    options = {"nonfinite": "skip", "checkpoints": checkpoints, "checkpoint_every": 2}
    with pytest.raises(ml.NonFiniteGradient, match="all 4 steps"):
        fit(4, trainer, **options)
    with pytest.raises(ml.NonFiniteGradient, match="all 6 steps"):
        fit(6, trainer, resume=True, **options)


def test_a_run_that_skipped_most_says_so():
    report = lambda n: {"query/loss": jnp.where(n < 2, 0.0, jnp.nan)}
    trainer = ml.meta_trainer(counting_learner(report), optax.sgd(1.0))
    with pytest.warns(UserWarning, match="5 of 7 steps were not finite"):
        result = fit(7, trainer, nonfinite="skip", log_every=3)
    assert result.skipped == 5 and float(result.variables.params["n"][0]) == 2
    assert fit(2, trainer, nonfinite="skip").skipped == 0


# -- State that changes in training -----------------------------------------------------


def carrying(make):
    """A learner whose state after a step is `make(state)`."""
    made = counting_learner()

    def estimate(variables, tasks, *, key):
        found = made.estimate(variables, tasks, key=key)
        return dataclasses.replace(found, state=make(variables.state))

    def init(key, task):
        state = {"mean": jnp.zeros((2,), jnp.float32), "count": jnp.zeros((), jnp.int32)}
        return ml.Variables(params={"n": jnp.zeros(1)}, state=state)

    return ml.meta_trainer(made._replace(init=init, estimate=estimate), optax.sgd(1.0))


def test_state_that_becomes_float64_trains(x64):
    """As a batch norm of float32 does that sees inputs of float64."""
    trainer = carrying(
        lambda state: {"mean": state["mean"] + np.float64(0.5), "count": state["count"] + 1}
    )
    state = fit(3, trainer).state.variables.state
    assert state["mean"].dtype == jnp.float32 and int(state["count"]) == 3
    np.testing.assert_array_equal(state["mean"], [1.5, 1.5])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: {"mean": s["mean"]}, "leaves .*'mean'.* init gave .*'count'"),
        (
            lambda s: {**s, "mean": jnp.zeros(3)},
            r"mean is float32\[3\] after .*float32\[2\]",
        ),
        (lambda s: {**s, "count": s["count"] + 0.5}, r"count is float32\[\] after .*int32"),
        (lambda s: {**s, "mean": s["mean"].astype(int)}, r"mean is int32\[2\] after"),
    ],
)
def test_state_of_another_kind_is_named_before_the_first_step(make, words):
    with pytest.raises(TypeError, match=words):
        fit(3, carrying(make))


def test_steps_without_averages_of_their_own_are_refused():
    """`norm="per_step"` would read the last ones for every step beyond."""
    from tiny import blobs, linen

    short, long = (
        ml.maml(
            linen(),
            ml.losses.cross_entropy,
            optax.sgd(0.1),
            num_steps=steps,
            norm="per_step",
        )
        for steps in (2, 5)
    )
    variables = short.init(KEY, blobs(KEY))
    with pytest.raises(
        ValueError, match=r"averages of 2 inner steps .* takes 5.*num_steps=2"
    ):
        ml.evaluate(long, variables, blobs, num_tasks=2, key=KEY)
    one = ml.maml(
        linen(), ml.losses.cross_entropy, optax.sgd(0.1), num_steps=1, norm="per_step"
    )
    ml.evaluate(one, variables, blobs, num_tasks=2, key=KEY)
    assert same(variables, variables)
