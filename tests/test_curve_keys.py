"""Keys of curves: a fitted curve by NumPy, and an EMO that recalls by it."""

import jax
import numpy as np
import pytest

import metalearn as ml
from benchmarks import curve_keys
from metalearn import apps
from metalearn.apps import learners

pytestmark = pytest.mark.usefixtures("x64")


def test_a_key_is_a_curve_through_the_points_that_are_there():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-5, 5, (6, 1)), rng.normal(size=(6, 1))
    mask = np.array([True, True, False, True, True, False])
    found = curve_keys.key_of(ml.Examples(x=x, y=y, mask=mask), 1.5, 0.05)
    places = np.linspace(-5, 5, 21)

    def alike(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2) / 4.5)

    at, heights = x[mask, 0], y[mask, 0]
    weights = np.linalg.solve(alike(at, at) + 0.05 * np.eye(4), heights)
    np.testing.assert_allclose(found[:-1], alike(places, at) @ weights, atol=1e-10)
    assert found[-1] == curve_keys.LIFT and found.dtype == np.float64


def test_keys_of_one_function_are_nearer_than_those_of_others():
    def key(points, phase):
        x = np.asarray(points, np.float64)[:, None]
        return curve_keys.key_of(ml.Examples.of(x, 2 * np.sin(x - phase)), 1.5, 0.05)

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    first, again = key([-4, -2, 0, 2, 4], 0.5), key([-3, -1, 1, 3, 4.5], 0.5)
    other = key([-4, -2, 0, 2, 4], 2.0)
    assert cosine(first, again) > 0.9 > cosine(first, other)


def test_a_recipe_takes_the_learner_and_its_memory_holds_the_keys():
    recipe = apps.find("sinusoid-emo").recipe
    settings = learners.settings_of("benchmarks.curve_keys:emo_by_fit")()
    offers = recipe.app.offers(settings, {"name": "sinusoid"}, evaluating=False)
    learner = settings.build(offers, capacity=3, recall=2)
    task = ml.tasks.sinusoid(5)(jax.random.key(0))
    memory = jax.eval_shape(learner.init, jax.random.key(0), task).state["memory"]
    assert memory.keys.shape == (3, curve_keys.PLACES + 1)
    assert ml.describe(learner)["remember"] == "all"
