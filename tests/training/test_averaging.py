"""Averages of the weights: by hand, beside optax's, and where they are judged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import sines
from optax import contrib
from sines import KEY, SINES, same, sine_learner, sine_trainer

import metalearn as ml

DECAY = 0.9


@functools.cache
def trainer(decay=DECAY):
    if decay is None:
        return sine_trainer()
    return ml.meta_trainer(sine_learner(), ml.averaging(optax.adam(3e-3), decay))


def fit(num_steps, decay=DECAY, **options):
    return sines.fit(num_steps, trainer(decay), **options)


def test_the_average_is_optax_ema_without_its_bias():
    opt, ema = ml.averaging(optax.sgd(1.0), DECAY), optax.ema(DECAY)
    params = {"w": jnp.array([1.0, -2.0])}
    state, expected = opt.init(params), ema.init(params)
    assert same(state.average, params)
    for grad in (0.5, -1.0, 0.25, 2.0):
        updates, state = opt.update({"w": jnp.full((2,), grad)}, state, params)
        params = optax.apply_updates(params, updates)
        average, expected = ema.update(params, expected)
        np.testing.assert_allclose(state.average["w"], average["w"], rtol=1e-6)
    # By hand: the weights of the two last of four are 0.09 and 0.1 of 0.3439.
    assert float(state.count) == 4


def test_a_decay_next_to_one_is_the_plain_mean():
    """In single precision such a decay is one, and one minus its powers nothing."""
    opt = ml.averaging(optax.sgd(1.0), 1 - 1e-9)
    params = {"w": jnp.zeros(())}
    state = opt.init(params)
    for _ in range(4):
        updates, state = opt.update({"w": -jnp.ones(())}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.average["w"], 2.5, rtol=1e-6)  # of 1, 2, 3, 4


def test_without_a_decay_the_average_is_the_last_parameters():
    opt, params = ml.averaging(optax.sgd(1.0), 0.0), {"w": jnp.ones(())}
    state = opt.init(params)
    for grad in (0.5, -2.0):
        updates, state = opt.update({"w": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        assert same(state.average, params)


def test_what_the_optimiser_takes_beside_gradients_reaches_it():
    opt = ml.averaging(optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    params = {"w": jnp.ones(())}
    state = opt.init(params)
    for _ in range(4):
        updates, state = opt.update(params, state, params, value=1.0)
    assert float(updates["w"]) < 1


def test_training_is_the_same_and_the_average_is_judged():
    plain, averaged = fit(30, None), fit(30)
    assert same(plain.variables, averaged.state.variables)
    assert same(averaged.variables, ml.judged(averaged.state))
    assert not same(averaged.variables, averaged.state.variables)
    assert ml.judged(plain.state) is plain.state.variables


def test_validation_judges_the_average():
    held_back = ml.Validation(tasks=SINES, num_tasks=8, every=10, metric="query/loss")
    result = fit(10, validation=held_back)
    row = result.history[-1]
    judged = ml.evaluate(
        sine_learner(), ml.judged(result.state), SINES, num_tasks=8, key=jax.random.key(0)
    )
    np.testing.assert_allclose(
        row["validation/loss"], judged.values["query/loss"].mean(), rtol=1e-6
    )


def test_a_resumed_average_is_bit_identical(tmp_path):
    whole = fit(20)
    fit(12, checkpoints=ml.Checkpoints(tmp_path / "run"))
    resumed = fit(20, checkpoints=ml.Checkpoints(tmp_path / "run"), resume=True)
    assert same(whole.variables, resumed.variables) and same(whole.state, resumed.state)


def test_growth_averages_anew():
    """A stage ends on the average since the model grew, and before it grows again."""
    found = ml.fit_continually(
        sine_learner(),
        ml.averaging(optax.sgd(0.0), DECAY),
        [(SINES, 8), (SINES, 2)],
        tasks_per_step=2,
        key=KEY,
        grow=lambda variables, key: jax.tree.map(lambda leaf: leaf + 100, variables),
        worse=1 + 1e-9,
        check_every=2,
        rest=2,
        progress=False,
    )
    assert found.grown == [4, 6, 8, 10]  # each made the loss larger
    # Without a rate weights move by growth alone, by which an average is not behind.
    first, last = (jax.tree.leaves(stage.params) for stage in found.stages)
    for before, after in zip(first, last, strict=True):
        np.testing.assert_allclose(after - before, 100, rtol=1e-4)
    # Growth at the very end is for who goes on.
    for before, after in zip(last, jax.tree.leaves(found.state.variables.params)):
        np.testing.assert_allclose(after - before, 100, rtol=1e-4)


@pytest.mark.parametrize(
    "opt",
    [
        optax.partition(
            {"a": ml.averaging(optax.sgd(0.1)), "b": optax.sgd(0.1)},
            lambda params: jax.tree_util.tree_map_with_path(
                lambda path, _: "a" if "bias" in str(path) else "b", params
            ),
        ),
        optax.chain(ml.averaging(optax.sgd(0.1)), ml.averaging(optax.identity())),
        ml.averaging(ml.averaging(optax.sgd(0.1))),
    ],
    ids=["part", "chain", "nested"],
)
def test_averages_of_parts_are_refused_before_training(opt):
    with pytest.raises(ValueError, match="expected one of all"):
        ml.fit(
            ml.meta_trainer(sine_learner(), opt),
            SINES,
            num_steps=1,
            tasks_per_step=2,
            key=KEY,
        )


def test_a_state_of_another_optimiser_is_refused():
    opt, params = ml.averaging(optax.sgd(0.1)), {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match="expected its own"):
        opt.update(params, optax.sgd(0.1).init(params), params)


def test_bad_averages_are_refused():
    with pytest.raises(TypeError, match=r"opt is a float.*optax\.adam"):
        ml.averaging(1e-3)
    for decay in (-0.1, float("nan"), "0.9"):
        with pytest.raises(ValueError, match="decay is"):
            ml.averaging(optax.sgd(0.1), decay)
    with pytest.raises(ValueError, match=r"decay is 1\.0; expected a number from 0"):
        ml.averaging(optax.sgd(0.1), 1.0)
    opt = ml.averaging(optax.sgd(0.1))
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"no params.*update\(grads, state, params\)"):
        opt.update(params, opt.init(params))


def test_schedule_free_optimisers_are_judged_by_their_average():
    """They step from other points than those they are evaluated at."""
    opt = optax.chain(optax.clip_by_global_norm(10.0), contrib.schedule_free_sgd(0.1))
    params = {"w": jnp.ones(3)}
    state = opt.init(params)
    points, z = [], params["w"]
    for _ in range(3):
        grads = {"w": params["w"]}  # of |w|^2 / 2
        z = z - 0.1 * grads["w"]
        points.append(z)
        updates, state = opt.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    held = ml.TrainState(
        step=jnp.asarray(3),
        variables=ml.Variables(params=params, state={}),
        opt_state=state,
    )
    found = ml.judged(held).params["w"]
    np.testing.assert_allclose(found, np.mean(points, 0), rtol=1e-5)
    assert not np.allclose(found, params["w"])
