"""What `few_shot` and `stream` say about the images of users."""

import types

import numpy as np
import pytest
from few_images import BOTH, BYTES, LABELS, NUM, STANDARD, UNIT, drawn, few_shot, stream

from metalearn import data


def sparse():
    """Standardised drawings: one pixel of 1,000 is bright, far above one deviation."""
    ink = np.zeros((NUM, 32, 32, 1), np.float32)
    ink[:, 5, 5] = 1
    return (ink - ink.mean()) / ink.std()


UNSCALED = {
    **{
        f"0..255 {dtype.__name__}": (
            BYTES.astype(dtype),
            "from 0 to 255 .*Divide .*255, or",
        )
        for dtype in (np.float16, np.float32, np.float64)
    },
    "0..255 interpolated": (BYTES * 0.999, "Divide them by 255"),
    "0..255 grey": (BYTES[..., :1] * 1.0, "Divide them by 255"),
    "0..255 without channels": (BYTES[..., 0] * 1.0, "Divide them by 255"),
    "0..255 with transparency": (
        np.concatenate([BYTES, BYTES[..., :1]], -1) * 1.0,
        "Divide them by 255",
    ),
    "0..255 flattened": (BYTES.reshape(NUM, -1) * 1.0, "flattened .* Divide .*255"),
    "0..16 flattened": (
        np.round(UNIT[:, :8, :8, 0] * 16).reshape(NUM, -1),
        "flattened .* Divide .*16",
    ),
    "0..255 tiny": (BYTES[:, :2, :2] * 1.0, "Divide them by 255"),
    "0..255 of drawings": ((BYTES > 254) * 255.0, "Divide them by 255"),
    "one unscaled image": (
        np.concatenate([UNIT[:-1], BYTES[-1:]]),
        f"largest in image {NUM - 1}",
    ),
    "one unscaled image among negative ones": (
        np.concatenate([np.tile(UNIT - 0.01, (99, 1, 1, 1))[:-1], BYTES[-1:]]),
        "largest in image 2375",
    ),
    "0..16": (np.round(UNIT * 16), "from 0 to 16 .* largest value"),
    "0..65535": (UNIT * 65535, "Divide them by 65535"),
    "mean taken away": (BYTES - BYTES.mean(), "standardise"),
    "-128..127": (BYTES - 128.0, "from -128 to 127 .*standardise"),
    "standardised after bytes": ((BYTES - 0.5) / 0.25, "standardise"),
    "overshoot": (BYTES * 1.02 - 2, "standardise"),
    "0..255 twice divided": (UNIT / 255, "divided by 255 twice"),
    "levels of grey": (np.round(UNIT * 10), "whole numbers.*largest value"),
    "flattened 0..15": (np.round(UNIT * 15).reshape(NUM, -1), "Divide them by 15"),
    "bytes of 4 bits": ((UNIT * 15).astype(np.uint8), "bytes .* from 0 to 15.* / 15"),
    "bytes of 0 and 1": ((BYTES > 99).astype(np.uint8), "bytes .* from 0 to 1.* 255"),
    "channels first": (np.moveaxis(BYTES, -1, 1), r"channels first.*moveaxis"),
    "channels first, floats": (np.moveaxis(UNIT, -1, 1), r"channels first.*moveaxis"),
}


@BOTH
@pytest.mark.parametrize("name", UNSCALED)
def test_unscaled_images_are_named(make, name):
    images, words = UNSCALED[name]
    labels = np.resize(LABELS, len(images))
    with pytest.raises(ValueError, match=f"(?s){words}") as raised:
        make(images, labels)
    assert "expected" in str(raised.value)
    if images.dtype != np.uint8:
        make(images, labels, check_images=False)


SCALED = {
    "bytes": (BYTES, UNIT),
    "0..1": (UNIT, UNIT),
    "-1..1": (2 * UNIT - 1, 2 * UNIT - 1),
    "standardised": (STANDARD, STANDARD),
    "standardised by a pixel": (sparse(), sparse()),
    "0..4": (UNIT * 4, UNIT * 4),
    "black": (UNIT * 0, UNIT * 0),
    "black bytes": (BYTES * 0, UNIT * 0),
    "half precision": (UNIT.astype(np.float16), UNIT.astype(np.float16)),
    "stones of a board": (np.round(UNIT * 2), np.round(UNIT * 2)),
    "drawings": (np.round(UNIT), np.round(UNIT)),
    "counts": (np.round(UNIT * 9).reshape(NUM, -1), np.round(UNIT * 9).reshape(NUM, -1)),
    "features": (STANDARD.reshape(NUM, -1) * 300, STANDARD.reshape(NUM, -1) * 300),
    "small table": (BYTES.reshape(NUM, -1)[:, :8] * 1.0, BYTES.reshape(NUM, -1)[:, :8]),
    "maps of features": (
        np.tile(UNIT * 90, (1, 1, 1, 5)),
        np.tile(UNIT * 90, (1, 1, 1, 5)),
    ),
}


@BOTH
@pytest.mark.parametrize("name", SCALED)
def test_scaled_images_and_features_are_taken_as_they_are(make, name):
    images, wanted = SCALED[name]
    found = drawn(make(images, LABELS)).reshape(-1, *images.shape[1:])
    near = np.abs(found[:, None] - wanted[None]).reshape(len(found), NUM, -1).max(-1)
    assert near.min(1).max() < 1e-5 * max(1, np.abs(wanted).max())


DTYPES = {
    "int64": (BYTES.astype(np.int64), "int64.*from 0 to 255.*astype.np.uint8"),
    "int32": (BYTES.astype(np.int32) - 9, "int32.*from -9 to 246.*floats"),
    "uint16": (BYTES.astype(np.uint16) * 257, "uint16.*from 0 to 65535.*floats"),
    "int8": ((BYTES // 2).astype(np.int8), "int8.*from 0 to 127"),
    "bool": (BYTES > 99, "bool.*astype.np.float32"),
    "complex": (BYTES * 1j, "complex128"),
    "text": (BYTES.astype(str), "<U"),
}


@BOTH
@pytest.mark.parametrize("name", DTYPES)
def test_other_dtypes_are_named(make, name):
    images, words = DTYPES[name]
    with pytest.raises(TypeError, match=f"images have dtype {words}"):
        make(images, LABELS)


@BOTH
def test_images_that_are_not_finite_are_named(make):
    for value in (np.nan, np.inf, -np.inf):
        images = UNIT.copy()
        images[8, 1, 1] = value
        for check in (True, False):
            with pytest.raises(
                ValueError, match="non-finite values, the first is number 8"
            ):
                drawn(make(images, LABELS, check_images=check), 99)


def test_images_of_several_sizes_are_named():
    with pytest.raises(TypeError, match="different sizes"):
        few_shot([BYTES[0], BYTES[1, :5]] * 12, LABELS)


class Changing:
    """Image 14, which is not looked at before it is read, is another."""

    def __init__(self, other):
        self.other = other

    def __len__(self):
        return NUM

    def __getitem__(self, i):
        return self.other if i == 14 else UNIT[i]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (BYTES[14], "image 14 is uint8 .* image 0 is float32"),
        (UNIT[14, :5], r"image 14 is float32 \(5, 12, 3\)"),
        (UNIT[14].astype(np.float64), "image 14 is float64"),
        (BYTES[14].astype(np.float32), "largest in image 14"),
        (UNIT[14] * np.nan, "the first is number 14"),
    ],
    ids=["bytes", "shape", "double", "unscaled", "NaN"],
)
def test_a_stream_looks_at_what_it_reads(other, words):
    tasks = stream(Changing(other), LABELS)
    with pytest.raises(ValueError, match=words):
        drawn(tasks, 50)


def dataset():
    part = data.from_arrays(BYTES, LABELS)
    return data.ImageDataset(name="d", train=part, validation=None, test=part, info={})


THINGS = {
    "data set": (dataset(), "a whole data set .ImageDataset.*dataset.train"),
    "dict": ({"train": BYTES}, "a whole data set .dict"),
    "missing part": (None, "images is None"),
    "name": ("glyphs", r"ml\.data\.load\('glyphs'\)\.train"),
    "without labels": (types.SimpleNamespace(images=BYTES), "no labels"),
    "tasks": (few_shot(BYTES, LABELS), "tasks .TaskSampler. were given"),
    "number": (7, "images are a int|random access"),
    "generator": (iter(BYTES), "images are a |random access"),
}


@BOTH
@pytest.mark.parametrize("name", THINGS)
def test_what_are_no_images_is_named(make, name):
    images, words = THINGS[name]
    labels = None if hasattr(images, "images") else LABELS
    with pytest.raises(TypeError, match=words):
        make(images, labels)


@BOTH
def test_a_part_has_its_labels(make):
    part = dataset().train
    found, wanted = make(part), make(BYTES, LABELS)
    np.testing.assert_array_equal(drawn(found), drawn(wanted))
    function = getattr(found, "batches", None) or found.sample
    assert function.class_names == part.class_names
    make(part, part.labels)
    with pytest.raises(TypeError, match="labels of their own"):
        make(part, part.labels[::-1])


def test_a_stream_does_not_drop_rotations():
    part = data.from_arrays(BYTES, LABELS, rotations=True)
    with pytest.raises(ValueError, match="rotations as further classes"):
        stream(part)


@pytest.mark.parametrize("function", [data.shrunk, data.fewer_classes])
def test_whole_sets_are_wanted_where_a_part_is_given(function):
    with pytest.raises(TypeError, match="given a ImageClasses; expected a whole data set"):
        function(dataset().train, 2)
    for number in (2.5, "2", True, None):
        with pytest.raises(ValueError):
            function(dataset(), number)


@pytest.mark.parametrize(
    "options", [dict(seed=-1), dict(seed=0.5), dict(threads=0), dict(workers=-1)]
)
def test_options_of_a_stream_are_checked_before_reading(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        stream(BYTES, LABELS, **options)
