"""Mini-batches drawn from a buffer of tasks of which a part has arrived."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml
from metalearn.training import rounds

KEY = jax.random.key(3)


def numbered(num_tasks=3, room=6):
    """Example n of task t has x = 100 t + n and y = -x."""
    x = 100.0 * jnp.arange(num_tasks)[:, None] + jnp.arange(room)[None]
    mask = jnp.ones((num_tasks, room), bool)
    return ml.Examples(x=x[..., None], y=-x[..., None], mask=mask)


@pytest.mark.parametrize("have", [2, 3, 4, 6])
def test_mini_batches_are_disjoint_and_of_what_has_arrived(have):
    sample = jax.jit(jax.vmap(rounds.Episode(2, 2), in_axes=(None, 0)))
    data = {
        "examples": numbered(),
        "info": {},
        "counts": np.int32([6, have, 0]),
        "first": np.int32(0),
        "num": np.int32(2),
    }
    drawn = sample(data, jax.random.split(KEY, 200))
    seen = {0: set(), 1: set()}
    for i in range(200):
        task = int(drawn.info["task"][i])
        count = (6, have)[task]
        parts = []
        for part, size in (
            (drawn.support, min(2, count // 2)),
            (drawn.query, min(2, count - min(2, count // 2))),
        ):
            mask = np.asarray(part.mask[i])
            assert mask.sum() == size and mask[:size].all()
            x, y = np.asarray(part.x[i])[..., 0], np.asarray(part.y[i])[..., 0]
            assert np.array_equal(x, -y) and not x[~mask].any()
            parts += list(x[mask])
        assert len(set(parts)) == len(parts)
        assert all(100 * task <= n < 100 * task + count for n in parts)
        seen[task] |= set(parts)
    assert len(seen[0]) == 6 and len(seen[1]) == have  # all of them, in time
    share = float(np.mean(drawn.info["task"]))
    assert abs(share - 0.5) < 0.15


def test_support_is_whole_once_enough_has_arrived():
    """K of K + Q examples, also where K is more than half; half of them before."""
    sample = jax.jit(jax.vmap(rounds.Episode(4, 1), in_axes=(None, 0)))
    data = {"examples": numbered(), "info": {}, "counts": jnp.asarray([6, 5, 4])}
    drawn = sample({**data, "first": 0, "num": 3}, jax.random.split(KEY, 60))
    rows = (drawn.info["task"], drawn.support.mask.sum(-1), drawn.query.mask.sum(-1))
    assert set(zip(*(r.tolist() for r in rows))) == {(0, 4, 1), (1, 4, 1), (2, 2, 1)}
