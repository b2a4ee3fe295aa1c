"""The batches of inner steps, told from the steps of a linear loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalearn as ml
from metalearn.inner import descent

NUM, SIZE, ROUNDS = 6, 2, 8
VALID = np.array([0, 1, 3, 5])


def batches():
    """The rows of every inner step, `[S, 2]`; a coordinate of a step belongs to a row."""
    model = ml.from_apply_fn(
        lambda key, x: jnp.zeros(NUM),
        lambda params, x: jnp.broadcast_to(params[None], x.shape),
    )

    def loss(outputs, examples):
        return ml.masked_mean(jnp.sum(outputs * examples.x, -1), examples.mask)

    mask = jnp.zeros(NUM, bool).at[VALID].set(True)
    support = ml.Examples.of(jnp.eye(NUM), jnp.zeros(NUM, jnp.int32), mask)
    num_steps = ROUNDS * len(VALID) // SIZE
    options = dict(num_steps=num_steps, batch_size=SIZE, trajectory=True)
    inner = descent(model, loss, optax.sgd(1.0), **options)
    variables = ml.Variables(params=jnp.zeros(NUM), state={})
    run = jax.jit(lambda k: inner.adapt(variables, None, support, key=k)[1].trajectory)
    seen = -np.diff(run(jax.random.key(0)), axis=0) * SIZE
    assert np.allclose(seen.sum(-1), SIZE)
    return np.stack([np.flatnonzero(np.round(step)) for step in seen])


def test_rounds_of_batches_see_every_valid_row_once_and_in_orders_of_their_own():
    """Of four rows in pairs: a third of the rounds pairs them as the first one does."""
    rounds = batches()
    for passed in rounds.reshape(ROUNDS, -1):
        assert sorted(passed) == VALID.tolist()
    assert len({tuple(map(tuple, pair)) for pair in rounds.reshape(ROUNDS, 2, 2)}) > 2
