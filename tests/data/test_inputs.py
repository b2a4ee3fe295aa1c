"""What `few_shot` and `stream` say about the images and labels of users."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import data

RNG = np.random.default_rng(0)
NUM, WAYS = 24, 4
LABELS = np.arange(NUM) % WAYS
BYTES = RNG.integers(0, 256, (NUM, 12, 12, 3), np.uint8)
UNIT = (BYTES / 255).astype(np.float32)
STANDARD = (UNIT - UNIT.mean()) / UNIT.std()
SIZES = {"num_ways": 3, "num_support": 1, "num_query": 2}

few_shot = functools.partial(data.few_shot, **SIZES)
stream = functools.partial(data.stream, **SIZES)
BOTH = pytest.mark.parametrize("make", [few_shot, stream], ids=["few_shot", "stream"])


@functools.partial(jax.jit, static_argnums=0)
def some(sample, arrays, keys):
    return jax.vmap(functools.partial(sample, arrays))(keys)


def batch_of(tasks, num):
    if hasattr(tasks, "batches"):
        return next(iter(tasks.batches(num, 0)))
    batch = some(tasks.sample, tasks.data, jax.random.split(jax.random.key(0), num))
    return jax.tree.map(np.asarray, batch)


def drawn(tasks, num=8):
    """Images of some tasks."""
    return batch_of(tasks, num).support.x


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


WORDS = np.array(["owl", "ant", "cat", "bee"])


class Column:
    """A column of a table, as of pandas."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


GOOD_LABELS = {
    "list": LABELS.tolist(),
    "tuple": tuple(LABELS.tolist()),
    "column of numbers": LABELS[:, None],
    "jax": jnp.asarray(LABELS),
    "bytes": LABELS.astype(np.uint8),
    "negative": LABELS - 7,
    "objects": LABELS.astype(object),
    "column": Column(LABELS),
}
GOOD_WORDS = {
    "list": WORDS[LABELS].tolist(),
    "array": WORDS[LABELS],
    "column of words": WORDS[LABELS][:, None],
    "objects": WORDS[LABELS].astype(object),
    "column": Column(WORDS[LABELS].astype(object)),
    "bytes": WORDS[LABELS].astype("S3"),
}


@BOTH
@pytest.mark.parametrize("name", GOOD_LABELS)
def test_numbers_of_any_kind_are_labels(make, name):
    given = GOOD_LABELS[name]
    found, wanted = make(BYTES, given), make(BYTES, LABELS)
    np.testing.assert_array_equal(drawn(found), drawn(wanted))


@BOTH
@pytest.mark.parametrize("name", GOOD_WORDS)
def test_words_are_labels_in_sorted_order(make, name):
    found = make(BYTES, GOOD_WORDS[name])
    place = np.argsort(np.argsort(WORDS))
    np.testing.assert_array_equal(drawn(found), drawn(make(BYTES, place[LABELS])))
    function = getattr(found, "batches", None) or found.sample
    assert function.class_names == ("ant", "bee", "cat", "owl")


def test_names_do_not_ask_for_another_program():
    one, two = few_shot(BYTES, WORDS[LABELS]), few_shot(BYTES, LABELS)
    assert one.sample == two.sample and hash(one.sample) == hash(two.sample)


def test_equal_words_are_equal_classes():
    mixed = np.where(np.arange(NUM) < 12, "caf\u00e9", "cafe\u0301")
    labels = np.where(LABELS == 0, mixed, WORDS[LABELS])
    assert few_shot(BYTES, labels).sample.class_names == ("ant", "bee", "caf\u00e9", "cat")


BAD_LABELS = {
    "one-hot": (np.eye(WAYS)[LABELS], ValueError, r"one-hot.*argmax\(1\)"),
    "one-hot bytes": (np.eye(WAYS, dtype=np.uint8)[LABELS], ValueError, "one-hot"),
    "one-hot flags": (np.eye(WAYS, dtype=bool)[LABELS], ValueError, "one-hot"),
    "whole floats": (LABELS * 1.0, TypeError, r"dtype float64.*astype\(int\)"),
    "floats": (LABELS + 0.5, TypeError, "dtype float64.*number or a name"),
    "flags": (LABELS > 1, TypeError, r"dtype bool.*astype\(int\)"),
    "NaN": (
        np.where(LABELS == 1, np.nan, LABELS),
        ValueError,
        "6 of 24 labels are missing",
    ),
    "None": ([None, *LABELS[1:].tolist()], ValueError, "1 of 24 labels are missing.*0"),
    "no word": (["a", "b", None, "b"] * 6, ValueError, "6 of 24 .* first is number 2"),
    "NaN among words": (["a", "b", np.nan, "b"] * 6, ValueError, "first is number 2"),
    "mixed": (["a", 1] * 12, TypeError, r"types \['int', 'str'\]"),
    "masked": (np.ma.masked_equal(LABELS, 2), ValueError, "6 values .* masked"),
    "dates": (LABELS.astype("M8[D]"), TypeError, "datetime64"),
    "two columns": (np.stack([LABELS, LABELS], 1), ValueError, r"shape \(24, 2\)"),
    "too few": (LABELS[1:], ValueError, "24 images and labels of shape"),
    "none": (None, TypeError, "labels is None"),
    "a number": (3, ValueError, r"labels of shape \(\)"),
}


@BOTH
@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_are_named(make, name):
    labels, error, words = BAD_LABELS[name]
    with pytest.raises(error, match=words):
        make(BYTES, labels)


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


def test_labels_of_a_set_may_be_names():
    found = data.from_arrays(BYTES, WORDS[LABELS])
    assert found.class_names == ("ant", "bee", "cat", "owl")
    for name, rows in itertools.groupby(
        range(NUM), lambda i: found.class_names[found.labels[i]]
    ):
        mine = BYTES[WORDS[LABELS] == name]
        np.testing.assert_array_equal(found.images[list(rows)], mine)
    ordered = data.from_arrays(BYTES, WORDS[LABELS], class_names=WORDS.tolist())
    assert ordered.class_names == tuple(WORDS)
    np.testing.assert_array_equal(ordered.images[:6], BYTES[LABELS == 0])
    with pytest.raises(ValueError, match=r"labels hold \['owl'\]"):
        data.from_arrays(BYTES, WORDS[LABELS], class_names=["ant", "bee", "cat"])


def test_shots_may_differ_between_classes():
    """Against counts by hand: class c has c + 2 images, all different."""
    counts = np.array([2, 3, 4, 9])
    labels = np.repeat(np.arange(4), counts)
    images = np.arange(len(labels), dtype=np.float32)[:, None]
    tasks = data.few_shot(
        images, labels, num_ways=3, num_support=(1, 4), num_query=3, unequal_shots=True
    )
    batch = batch_of(tasks, 200)
    unequal, seen = 0, set()
    for t in range(200):
        classes, used = batch.info["class_ids"][t], {}
        for part in ("support", "query"):
            examples = getattr(batch, part)
            mask = examples.mask[t]
            rows, y = examples.x[t, mask, 0].astype(int), examples.y[t, mask]
            assert (labels[rows] == classes[y]).all()
            used[part] = rows
            number = np.bincount(y, minlength=3)
            assert (number >= 1).all() and (
                number <= {"support": 4, "query": 3}[part]
            ).all()
            if part == "support":
                shots = number
                unequal += len(set(shots)) > 1
                seen |= set(zip(counts[classes], shots))
            else:
                np.testing.assert_array_equal(
                    number, np.minimum(3, counts[classes] - shots)
                )
        both = np.concatenate([used["support"], used["query"]])
        assert len(set(both)) == len(both)
    assert unequal > 100
    assert {(9, k) for k in (1, 2, 3, 4)} | {(2, 1), (3, 1), (3, 2)} <= seen
    with pytest.raises(ValueError, match="has 2 images, but support and query take 3"):
        data.few_shot(images, labels, num_ways=3, num_support=2, unequal_shots=True)
