"""The host-side records refuse what the sampler could not rely on."""

import dataclasses

import numpy as np
import pytest

from metalearn.data import ImageClasses, ImageDataset, from_arrays, shrunk


def _fields(**changes):
    fields = {
        "images": np.zeros((4, 2, 3, 1), np.uint8),
        "labels": np.array([0, 0, 1, 1], np.int32),
        "class_names": ("a", "b"),
        "groups": np.zeros(2, np.int32),
        "group_names": ("all",),
    }
    return {**fields, **changes}


def test_properties():
    classes = ImageClasses(**_fields())
    assert classes.num_classes == 2
    assert classes.num_images == 4
    assert classes.image_shape == (2, 3, 1)
    assert classes.counts.tolist() == [2, 2]
    assert not classes.rotations
    assert "2 classes, 4 images of 2x3x1" in repr(classes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": [[1]]}, TypeError, "list"),
        ({"images": np.zeros((4, 2, 3, 1))}, TypeError, "float64; expected uint8"),
        ({"images": np.full((4, 2, 3, 1), np.nan)}, TypeError, "24 values are NaN"),
        ({"images": np.zeros((4, 2, 3, 1), np.int32)}, TypeError, "int32"),
        ({"images": np.zeros((4, 2, 3), np.uint8)}, ValueError, "I, H, W, C"),
        ({"images": np.zeros((4, 1, 2, 3, 1), np.uint8)}, ValueError, "I, H, W, C"),
        ({"images": np.zeros((4, 3, 2, 2), np.uint8)}, ValueError, "C = 1 or 3"),
        ({"images": np.zeros((0, 2, 2, 1), np.uint8)}, ValueError, "no empty axis"),
        ({"images": np.zeros((5, 2, 3, 1), np.uint8)}, ValueError, "5 images"),
        ({"labels": np.array([0, 0, 1, 1])}, TypeError, "int64"),
        ({"labels": np.array([0, 1, 0, 1], np.int32)}, ValueError, "not sorted"),
        ({"labels": np.array([0, 0, 2, 2], np.int32)}, ValueError, "an image: .1."),
        ({"labels": np.array([-1, 0, 1, 1], np.int32)}, ValueError, "from -1 to 1"),
        ({"class_names": ("a", "b", "c")}, ValueError, r"Classes without .* \[2\]"),
        ({"class_names": ("a", "a")}, ValueError, "more than once"),
        ({"class_names": ["a", "b"]}, TypeError, "tuple of str"),
        ({"groups": np.zeros(3, np.int32)}, ValueError, "3,. for 2 classes"),
        ({"groups": np.zeros(2)}, TypeError, "float64"),
        ({"groups": np.array([0, 1], np.int32)}, ValueError, "1 group_names"),
    ],
)
def test_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        ImageClasses(**_fields(**changes))


def test_from_arrays_sorts_and_fills_in():
    images = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((2, 2), np.uint8)
    classes = from_arrays(images, [1, 0, 1, 0])
    assert classes.labels.tolist() == [0, 0, 1, 1]
    assert classes.images[:, 0, 0, 0].tolist() == [1, 3, 0, 2]
    assert classes.class_names == ("class_0", "class_1")
    assert classes.groups.dtype == np.int32
    with pytest.raises(TypeError, match="expected integers or text"):
        from_arrays(images, [0.5, 1.5, 0.5, 1.5])
    with pytest.raises(ValueError, match=r"3,. for 4 images"):
        from_arrays(images, [0, 1, 1])


def test_shrunk_images_are_means_of_squares():
    pixels = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6, 1)
    classes = from_arrays(pixels, [0, 1])
    whole = ImageDataset(name="d", train=classes, validation=None, test=classes, info={})
    small = shrunk(whole, 2)
    assert small.image_shape == (2, 3, 1)
    first = [pixels[0, y : y + 2, x : x + 2].mean() for y in (0, 2) for x in (0, 2, 4)]
    np.testing.assert_array_equal(small.test.images[0].ravel(), np.rint(first))
    with pytest.raises(ValueError, match="does not divide images of 4x6"):
        shrunk(whole, 3)


def test_dataset_parts():
    classes = ImageClasses(**_fields())
    dataset = ImageDataset(
        name="d", train=None, validation=None, test=classes, info={"source": "here"}
    )
    assert list(dataset.parts) == ["test"]
    assert dataset.part("test") is classes
    assert dataset.image_shape == (2, 3, 1)
    with pytest.raises(ValueError, match="holds only test"):
        dataset.part("train")
    with pytest.raises(ValueError, match="expected one of train, validation, test"):
        dataset.part("val")
    with pytest.raises(ValueError, match="no part"):
        dataclasses.replace(dataset, test=None)
    other = ImageClasses(**_fields(images=np.zeros((4, 5, 5, 1), np.uint8)))
    with pytest.raises(ValueError, match="one shape for all"):
        dataclasses.replace(dataset, train=other)
