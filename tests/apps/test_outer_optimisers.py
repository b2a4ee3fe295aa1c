"""Outer optimisers of recipes: schedules and clipping by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from metalearn.apps import Outer


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("cosine", [1.0, 0.5, 0.0]),
        ("linear", [1.0, 0.5, 0.0]),
        ("halving", [1.0, 0.25, 0.0625]),
    ],
)
def test_schedules(schedule, expected):
    opt = Outer(name="sgd", rate=1.0, schedule=schedule, halve_every=2).build(8)
    params = {"w": jnp.zeros(())}
    state, rates = opt.init(params), []
    for _ in range(9):
        updates, state = opt.update({"w": jnp.ones(())}, state, params)
        rates.append(-float(updates["w"]))
    np.testing.assert_allclose([rates[0], rates[4], rates[8]], expected, atol=1e-6)


def test_clipping_bounds_the_norm():
    opt = Outer(name="sgd", rate=1.0, schedule="constant", clip=2.0).build(1)
    grads = {"w": jnp.asarray([30.0, 40.0])}
    updates, _ = opt.update(grads, opt.init(grads), grads)
    np.testing.assert_allclose(updates["w"], [-1.2, -1.6], rtol=1e-6)


def test_clipping_of_coordinates_and_of_single_arrays():
    """By coordinate, then by the norm of each array, then of all, as LEO's code begins."""
    grads = {"a": np.array([3.0, 0.05, -0.2]), "b": np.array([0.03, 0.04])}
    by_value = {k: np.clip(g, -0.1, 0.1) for k, g in grads.items()}
    norms = {k: np.linalg.norm(g) for k, g in by_value.items()}
    assert norms["a"] > 0.1 > norms["b"]
    by_array = {k: g * min(1, 0.1 / norms[k]) for k, g in by_value.items()}
    total = np.sqrt(sum(np.sum(g**2) for g in by_array.values()))
    expected = {
        (0.1, None, None): by_value,
        (0.1, 0.1, None): by_array,
        (0.1, 0.1, 0.05): {k: g * 0.05 / total for k, g in by_array.items()},
    }
    for (value, array, whole), wanted in expected.items():
        opt = Outer(
            name="sgd",
            rate=1.0,
            schedule="constant",
            clip_value=value,
            clip_array=array,
            clip=whole,
        ).build(1)
        updates, _ = opt.update(grads, opt.init(grads), grads)
        for name, g in wanted.items():
            np.testing.assert_allclose(-updates[name], g, rtol=1e-6)
