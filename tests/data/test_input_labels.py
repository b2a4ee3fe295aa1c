"""What `few_shot` and `stream` say about the labels of users."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from few_images import BOTH, BYTES, LABELS, NUM, WAYS, batch_of, drawn, few_shot

from metalearn import data

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
    with pytest.raises(ValueError, match="has 2 examples, but support and query take 3"):
        data.few_shot(images, labels, num_ways=3, num_support=2, unequal_shots=True)
