"""Image tasks under random affine maps."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import metalearn as ml
from metalearn.apps import FewShotImages, Recipe, learners
from metalearn.tasks.distorted import affine

SIDE = 7


def _tasks(images=None):
    """3-way 2-shot tasks of images with two channels."""
    if images is None:
        images = np.random.default_rng(0).uniform(size=(24, SIDE, SIDE, 2))
    return ml.data.few_shot(
        images.astype(np.float32),
        np.arange(24) // 6,
        num_ways=3,
        num_support=2,
        num_query=3,
    )


@pytest.mark.usefixtures("x64")
def test_affine_is_that_of_scipy_about_the_centre():
    rng = np.random.default_rng(1)
    image, shift = rng.uniform(size=(5, 8, 2)), np.asarray([0.7, -1.3])
    matrix = np.asarray([[1.1, 0.2], [-0.3, 0.8]])
    found = affine(jnp.asarray(image), jnp.asarray(matrix), jnp.asarray(shift))
    centre = np.asarray([2.0, 3.5])
    for channel in range(2):
        expected = ndimage.affine_transform(
            image[..., channel],
            matrix,
            centre + shift - matrix @ centre,
            order=1,
            mode="grid-constant",
        )
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-12)


def test_maps_have_uniform_entries_of_the_documented_ranges():
    # An image of its own row and column numbers shows where each pixel came from.
    side, strength = 41, 0.2
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    image = np.stack([rows, columns, np.full_like(rows, side)], -1) / side
    image = image[None].repeat(40, 0)
    tasks = ml.data.few_shot(
        image.astype(np.float32), np.arange(40) // 20, num_ways=2, num_query=18
    )
    x = ml.tasks.distorted(tasks, strength)(jax.random.key(0)).query.x
    x = np.asarray(x, np.float64) * [side, side, 1]
    middle = (side - 1) // 2
    at = x[:, middle, middle, :2]
    np.testing.assert_allclose(x[:, middle, middle, 2], 1, atol=1e-5)  # inside all images
    shifts = (at - middle) / side
    down = x[:, middle + 4, middle, :2] - at
    right = x[:, middle, middle + 4, :2] - at
    changes = np.stack([down, right], -1) / 4 - np.eye(2)
    for found, reach in ((shifts, strength / 2), (changes, strength)):
        flat = found.reshape(len(found), -1)
        assert np.abs(flat).max() <= reach + 1e-4
        # Each entry by itself fills its range: 36 draws leave out an eighth at either end
        # with a probability of one in a hundred and twenty.
        assert (flat.max(0) > 0.75 * reach).all() and (flat.min(0) < -0.75 * reach).all()
        correlated = np.abs(np.corrcoef(flat.T) - np.eye(flat.shape[1]))
        assert correlated.max() < 0.6


def test_images_of_a_task_have_maps_of_their_own_and_support_other_ones_than_query():
    images = np.broadcast_to(
        np.random.default_rng(2).uniform(size=(SIDE, SIDE, 2)), (24, SIDE, SIDE, 2)
    )
    task = ml.tasks.distorted(_tasks(images), 0.3)(jax.random.key(1))
    seen = [image.tobytes() for image in np.concatenate([task.support.x, task.query.x])]
    assert len(set(seen)) == len(seen) == 15


def test_without_strength_the_task_is_the_one_of_the_sampler():
    task = ml.tasks.distorted(_tasks(), 0.0)(jax.random.key(3))
    plain = _tasks()(jax.random.split(jax.random.key(3), 3)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), task, plain)
    np.testing.assert_array_equal(task.support.y, plain.support.y)


@pytest.mark.parametrize("strength", [-0.1, 0.5, float("nan"), float("inf"), True, "0.2"])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises((ValueError, TypeError), match="strength is"):
        ml.tasks.distorted(_tasks(), strength)


def test_tasks_without_images_are_refused():
    with pytest.raises(ValueError, match="images"):
        ml.tasks.distorted(ml.tasks.sinusoid())


def test_equal_settings_share_a_compilation():
    assert ml.tasks.distorted(_tasks()).sample == ml.tasks.distorted(_tasks()).sample
    assert ml.tasks.distorted(_tasks(), 0.1).sample != ml.tasks.distorted(_tasks()).sample


def test_the_application_distorts_meta_training_alone():
    part = SimpleNamespace(
        images=np.random.default_rng(3).integers(0, 255, (24, 8, 8, 1), np.uint8),
        labels=np.arange(24) // 6,
        rotations=False,
    )
    data = SimpleNamespace(name="own", image_shape=(8, 8, 1), part=lambda name: part)
    app = FewShotImages(ways=3, eval_queries=2, distort=0.2)
    tasks = {name: app.tasks(data, name) for name in ("train", "validation", "test")}
    assert tasks["train"].name.endswith("(distorted)")
    assert tasks["train"].sample.change.strength == 0.2
    for name in ("validation", "test"):
        assert tasks[name].sample == app.tasks(data, "test").sample
        assert not hasattr(tasks[name].sample, "change")
    plain = FewShotImages(ways=3, eval_queries=2).tasks(data, "train")
    assert tasks["train"].sample.sample == plain.sample


def test_a_strength_out_of_range_is_refused_before_there_are_data():
    recipe = Recipe(app=FewShotImages(distort=0.5), learner=learners.ProtoNet())
    with pytest.raises(ValueError, match=r"app\.distort is 0\.5"):
        recipe.check()
