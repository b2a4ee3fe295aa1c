"""Keys: one check for all functions, and the same task for the same key."""

import functools

import jax
import numpy as np
import optax
import pytest
from tiny import blob_batch, blobs, plain, sine_batch

import metalearn as ml
from metalearn.core import keys
from metalearn.testing import check_learner

KEY = jax.random.key(0)
SINES = ml.tasks.sinusoid(num_support=3, num_query=3)


@functools.cache
def trainer():
    learner = ml.maml(plain(1), ml.losses.mse, optax.sgd(0.01), num_steps=1)
    return ml.meta_trainer(learner, optax.sgd(0.1))


@functools.cache
def variables():
    return trainer().init(KEY, SINES(KEY)).variables


WRONG = {
    "int": (
        lambda: 3,
        TypeError,
        r"the number 3; expected a key. Give jax.random.key\(3\)",
    ),
    "numpy": (lambda: np.int64(3), TypeError, "the number 3"),
    "None": (lambda: None, TypeError, "is a NoneType"),
    "bool": (lambda: True, TypeError, "is a bool"),
    "string": (lambda: "0", TypeError, "is a str"),
    "raw": (lambda: jax.random.PRNGKey(0), TypeError, "uint32.*PRNGKey.*wrap_key_data"),
    "floats": (lambda: np.zeros(2), TypeError, "is a ndarray"),
    "several": (lambda: jax.random.split(KEY, 2), ValueError, r"shape \(2,\); .* one key"),
    "rbg": (lambda: jax.random.key(0, impl="rbg"), ValueError, "generator 'rbg'.*threefry"),
    "unsafe": (lambda: jax.random.key(0, impl="unsafe_rbg"), ValueError, "'unsafe_rbg'"),
}
TAKERS = {
    "fit": lambda key: ml.fit(trainer(), SINES, num_steps=1, tasks_per_step=2, key=key),
    "evaluate": lambda key: ml.evaluate(trainer().learner, variables(), SINES, key=key),
    "sampler": SINES,
    "first": SINES.first,
    "init": lambda key: trainer().init(key, SINES(KEY)),
    "estimate": lambda key: trainer().learner.estimate(variables(), sine_batch(), key=key),
    "check_learner": lambda key: check_learner(
        trainer().learner, sine_batch(), key=None if key is None else key
    ),
    "continually": lambda key: ml.fit_continually(
        trainer().learner, optax.sgd(0.1), [(SINES, 1)], tasks_per_step=2, key=key
    ),
    "online": lambda key: ml.follow_the_meta_leader(
        trainer(),
        sine_batch(),
        batch_size=2,
        meta_steps=1,
        tasks_per_step=1,
        num_support=2,
        num_query=2,
        key=key,
    ),
    "hindsight": lambda key: ml.best_in_hindsight(
        trainer(),
        sine_batch(),
        num_steps=1,
        tasks_per_step=1,
        num_support=2,
        num_query=2,
        key=key,
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("taker", TAKERS)
def test_wrong_keys_are_refused_by_name(taker, kind):
    make, error, words = WRONG[kind]
    if (taker, kind) == ("check_learner", "None"):
        pytest.skip("has a key of its own")
    with pytest.raises(error, match=words):
        TAKERS[taker](make())


def test_batches_of_tasks_need_a_batch_of_keys():
    with pytest.raises(ValueError, match=r"keys has shape \(\); expected keys \[T\]"):
        ml.sample_batch(SINES, (), KEY)
    assert ml.sample_batch(SINES, (), jax.random.split(KEY, 2)).support.x.shape[0] == 2


def test_the_check_passes_traced_keys():
    jax.vmap(jax.jit(lambda key: keys.check_key(key) or jax.random.bits(key)))(
        jax.random.split(KEY, 2)
    )


@pytest.mark.parametrize("num", [1, 3, 7])
def test_the_draws_of_a_key_do_not_depend_on_others(num):
    """Which is why rbg is refused: under `vmap` it draws other numbers."""
    many = jax.random.split(KEY, num)
    batch = ml.sample_batch(ml.TaskSampler(lambda data, key: blobs(key)), (), many)
    np.testing.assert_array_equal(batch.support.x[-1], blobs(many[-1]).support.x)
    rbg = jax.random.split(jax.random.key(0, impl="rbg"), 7)
    together = jax.vmap(jax.random.bits)(rbg)
    assert (together != np.stack([jax.random.bits(key) for key in rbg])).any()


def test_seeds_make_keys_whatever_the_configuration():
    with jax.default_prng_impl("rbg"):
        found = keys.of_seed(3)
    np.testing.assert_array_equal(
        jax.random.key_data(found), jax.random.key_data(jax.random.key(3))
    )
    assert blob_batch(2).support.y.shape == (2, 6)
