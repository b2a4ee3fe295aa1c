"""Recipes of learned hyper-parameters, on few numbers: derivatives, and what they find."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml
from benchmarks import _hyper, hyperparameters

x64 = pytest.mark.usefixtures("x64")


def _examples(num, seed=0, shape=(4,), classes=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, num)
    x = 0.7 * rng.normal(size=(num, *shape))
    x.reshape(num, -1)[np.arange(num), y] += 1.5
    return ml.Examples.of(jnp.asarray(x), jnp.asarray(y, jnp.int32))


def _value_and_slope(problem):
    """The outer loss of a solved problem, and the hypergradient."""
    solve = ml.hypergradient.implicit(jax.grad(problem.inner), problem.solver)

    def value(hparams):
        return problem.outer(solve(problem.start, hparams).value, hparams)

    return jax.jit(jax.value_and_grad(value))


@x64
def test_the_slope_of_ridge_is_the_closed_form():
    """`dW/ds = -(X'X/N + s)^-1 W`, less the row of the bias."""
    train, held = _examples(12), _examples(9, 1)
    _, found = _value_and_slope(_hyper.ridge(train, held, 3))(jnp.asarray(-1.0))
    ones = lambda x: np.append(np.asarray(x), np.ones((len(x), 1)), 1)
    x, held_x = ones(train.x), ones(held.x)
    inside = np.diag([1.0, 1, 1, 1, 0])
    gram = x.T @ x / 12 + np.exp(-1.0) * inside
    weights = np.linalg.solve(gram, x.T @ np.eye(3)[train.y] / 12)
    change = -np.linalg.solve(gram, np.exp(-1.0) * inside @ weights)
    slope = held_x.T @ (held_x @ weights - np.eye(3)[held.y]) / 9
    np.testing.assert_allclose(found, (slope * change).sum(), rtol=1e-6)


@x64
@pytest.mark.parametrize("name", ["logistic", "cleaning", "augmentation"])
def test_slopes_by_differences(name, monkeypatch):
    solve = _hyper.minimised
    exact = lambda loss, start, tolerance=0: solve(loss, start, tolerance=1e-9)
    monkeypatch.setattr(_hyper, "minimised", exact)
    train, held = _examples(12), _examples(9, 1)
    if name == "logistic":
        problem = _hyper.logistic(train, held, 3)
        hparams = jnp.linspace(-3.0, -1.0, 4)
    elif name == "cleaning":
        problem = _hyper.cleaning(train, held, 3, log_strength=-2.0)
        hparams = jnp.linspace(-1.0, 1.0, 12)
    else:
        train, held = _examples(6, shape=(3, 3)), _examples(9, 1, shape=(3, 3))
        problem = _hyper.augmentation(train, held, 3, copies=2, seed=0)
        sizes = {"angle": 0.3, "shift": 0.4, "zoom": 0.1, "strength": 0.1}
        hparams = {name: jnp.log(size) for name, size in sizes.items()}
    run = _value_and_slope(problem)
    value = lambda hparams: run(hparams)[0]
    flat, back = jax.flatten_util.ravel_pytree(hparams)
    slope = jax.flatten_util.ravel_pytree(run(hparams)[1])[0]
    for place in (0, len(flat) - 1):
        step = 1e-5 * jnp.eye(len(flat))[place]
        apart = (value(back(flat + step)) - value(back(flat - step))) / 2e-5
        np.testing.assert_allclose(slope[place], apart, rtol=1e-4, atol=1e-8)


def test_maps_of_images():
    image = jnp.zeros((5, 5)).at[1, 2].set(1.0)
    zero = jnp.zeros(2)
    np.testing.assert_allclose(_hyper.mapped(image, 0.0, zero, 1.0), image, atol=1e-6)
    moved = _hyper.mapped(image, 0.0, jnp.asarray([2.0, 1.0]), 1.0)
    np.testing.assert_allclose(moved, jnp.zeros((5, 5)).at[3, 3].set(1.0), atol=1e-6)
    turned = _hyper.mapped(image, jnp.pi / 2, zero, 1.0)
    assert {tuple(p) for p in np.argwhere(turned > 0.99)} in ({(2, 1)}, {(2, 3)})


def test_descent_finds_the_best_of_a_grid():
    train, held = _examples(20), _examples(200, 1)
    problem = _hyper.ridge(train, held, 3)
    grid = _hyper.searched(problem, [jnp.asarray(s) for s in np.linspace(-8.0, 4.0, 49)])
    found = _hyper.descended(problem, jnp.asarray(-6.0), solves=30, rate=0.5)
    assert len(grid.values) == 49 and len(found.values) == 30
    assert min(found.values) < min(grid.values) + 1e-4
    np.testing.assert_allclose(min(grid.values), problem.outer(grid.weights, None), 1e-5)


def test_wrong_labels_get_small_weights():
    train, held = _examples(60), _examples(80, 1)
    wrong = np.arange(60) % 2 == 0
    y = jnp.where(wrong, (train.y + 1) % 3, train.y)
    noisy = ml.Examples.of(train.x, y)
    problem = _hyper.cleaning(noisy, held, 3, log_strength=-4.0)
    found = _hyper.descended(problem, jnp.zeros(60), solves=15, rate=0.5)
    assert hyperparameters.detection(found.hparams, wrong) > 0.85
    assert min(found.values) < found.values[0]


def test_detection_is_the_share_of_pairs_in_order():
    scores = np.array([0.0, 1.0, 2.0, 1.0])
    wrong = np.array([True, True, False, False])
    assert hyperparameters.detection(scores, wrong) == pytest.approx(3.5 / 4)


def test_a_whole_comparison_of_few_digits(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400).astype(np.int32)
    images = rng.integers(0, 60, (400, 8, 8)).astype(np.uint8)
    images[np.arange(400), labels % 8, labels // 8] = 255
    monkeypatch.setattr(hyperparameters, "read_digits", lambda folder: (images, labels))
    path = tmp_path / "found.json"
    hyperparameters.Hyperparameters(
        seeds=1,
        recipes=("ridge",),
        solves=3,
        many=4,
        json=str(path),
        data_dir=str(tmp_path),
    ).run_benchmark()
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = found["rows"]
    assert {row["solves"] for row in rows.values()} >= {3, 4}
    lines = hyperparameters.table_rows(found)
    assert any(line.startswith("| ridge, one strength") for line in lines)
