"""Shifted and mirrored image tasks."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import metalearn as ml

SIDE = 6


def _tasks(images=None):
    """3-way 2-shot tasks of images whose pixels are all different and above 0."""
    if images is None:
        pixels = np.arange(1, 1 + SIDE * SIDE * 2, dtype=np.float32).reshape(SIDE, SIDE, 2)
        scale = np.linspace(0.5, 1, 24, dtype=np.float32)[:, None, None, None]
        images = scale * pixels[None] / pixels.size
    return ml.data.few_shot(
        images, np.arange(24) // 6, num_ways=3, num_support=2, num_query=3
    )


def _versions(image: np.ndarray, shift: int, *, mirror: bool) -> dict[bytes, tuple]:
    """Every shifted and mirrored version of an image, by a loop over pixels."""
    found = {}
    for turned in (False, True) if mirror else (False,):
        for down in range(-shift, shift + 1):
            for right in range(-shift, shift + 1):
                made = np.zeros_like(image)
                for i in range(SIDE):
                    for j in range(SIDE):
                        if 0 <= i - down < SIDE and 0 <= j - right < SIDE:
                            made[i, j] = image[i - down, j - right]
                made = made[:, ::-1] if turned else made
                found[made.tobytes()] = (turned, down, right)
    return found


def test_every_image_is_a_shifted_and_mirrored_one_of_its_task_and_all_versions_occur():
    plain, sampler = _tasks(), ml.tasks.augmented(_tasks(), shift=1)
    seen, both = set(), jax.jit(lambda k: (plain(jax.random.split(k, 3)[0]), sampler(k)))
    for seed in range(12):
        before, after = both(jax.random.key(seed))
        for old, new in ((before.support, after.support), (before.query, after.query)):
            np.testing.assert_array_equal(old.y, new.y)
            np.testing.assert_array_equal(old.mask, new.mask)
            for image, moved in zip(np.asarray(old.x), np.asarray(new.x), strict=True):
                seen.add(_versions(image, 1, mirror=True)[moved.tobytes()])
    assert len(seen) == 18  # nine shifts, each mirrored or not


def test_images_of_a_task_have_draws_of_their_own_and_support_other_ones_than_query():
    images = np.broadcast_to(
        np.asarray(_tasks()(jax.random.key(0)).support.x[:1]), (24, SIDE, SIDE, 2)
    )
    task = ml.tasks.augmented(_tasks(images), shift=2)(jax.random.key(1))
    support = {image.tobytes() for image in np.asarray(task.support.x)}
    query = [image.tobytes() for image in np.asarray(task.query.x)]
    assert len(support) > 1 and len(set(query)) > 1
    assert query[: len(task.support.x)] != [i.tobytes() for i in np.asarray(task.support.x)]


def test_without_shift_and_mirror_the_task_is_the_one_of_the_sampler():
    task = ml.tasks.augmented(_tasks(), shift=0, mirror=False)(jax.random.key(3))
    plain = _tasks()(jax.random.split(jax.random.key(3), 3)[0])
    jax.tree.map(np.testing.assert_array_equal, task, plain)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shift": -1}, "shift is -1"),
        ({"shift": 1.5}, "shift is 1.5; expected an integer"),
        ({"shift": True}, "shift is True; expected an integer"),
        ({"shift": SIDE}, "less than the side"),
        ({"mirror": 1}, "mirror is 1; expected"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        ml.tasks.augmented(_tasks(), **options)


def test_curves_are_refused():
    with pytest.raises(ValueError, match="expected images"):
        ml.tasks.augmented(ml.tasks.sinusoid())


def test_equal_settings_share_programs():
    assert ml.tasks.augmented(_tasks()).sample == ml.tasks.augmented(_tasks()).sample
