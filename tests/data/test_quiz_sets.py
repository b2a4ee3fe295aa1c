"""Sets with a quiz: how they are divided and read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from few_quiz import SIZES, arrays, write_own_examples
from few_texts import WORDS, sentences, write_own

from metalearn.data.distillation import PARTS, divided, load_quiz_set
from metalearn.data.text import hashed_texts, labelled_texts


def test_parts_are_apart_and_have_their_share_of_each_class():
    labels = np.repeat([0, 1], [40, 9])
    shares = {"quiz": 0.1, "validation": 0.2, "test": 0.3}
    rows = divided(labels, ("a", "b"), **shares, seed=1, name="made")
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(49))
    found = {part: np.bincount(labels[rows[part]]).tolist() for part in PARTS}
    assert found == {
        "train": [16, 3],
        "quiz": [4, 1],
        "validation": [8, 2],
        "test": [12, 3],
    }
    again = divided(labels, ("a", "b"), **shares, seed=1, name="made")
    other = divided(labels, ("a", "b"), **shares, seed=2, name="made")
    assert (rows["test"] == again["test"]).all()
    assert (rows["test"] != other["test"]).any()


def test_own_arrays_come_as_they_were_given(tmp_path):
    data = load_quiz_set("own", write_own_examples(tmp_path))
    made = arrays()
    for part, size in SIZES.items():
        rows = made["parts"] == part
        np.testing.assert_array_equal(data.parts[part].images, made["inputs"][rows])
        np.testing.assert_array_equal(data.parts[part].labels, made["labels"][rows])
        assert rows.sum() == size
    assert data.class_names == ("0", "1", "2")


def test_own_labels_of_text_and_shares(tmp_path):
    names = np.array(["b", "a", "c"])[arrays()["labels"]]
    folder = write_own_examples(tmp_path, labels=names, parts=None)
    data = load_quiz_set("own", folder, quiz=0.2, test=0.2)
    assert data.class_names == ("a", "b", "c")
    sizes = {part: len(data.parts[part]) for part in PARTS}
    assert sizes == {"train": 18, "quiz": 9, "validation": 3, "test": 9}


def test_texts_have_vectors_that_only_training_texts_weigh(tmp_path):
    data = load_quiz_set("own-texts", write_own(tmp_path), dim=32)
    assert data.class_names == tuple(sorted(WORDS))
    texts = labelled_texts("own", tmp_path)
    assert len(texts.texts) == 6 * len(WORDS)
    rows = divided(
        texts.labels,
        texts.class_names,
        quiz=0.1,
        validation=0.1,
        test=0.3,
        seed=1,
        name="x",
    )
    made = hashed_texts([texts.texts[i] for i in rows["train"]], dim=32)
    expected = made([texts.texts[i] for i in rows["test"]])
    np.testing.assert_array_equal(data.parts["test"].images, expected)


def test_a_text_that_a_class_has_twice_is_in_one_part(tmp_path):
    rows = [(text, label) for label in WORDS for text in sentences(label)]
    rows += [(text.upper(), label) for text, label in rows]
    write_own(tmp_path, rows=rows)
    assert len(labelled_texts("own", tmp_path).texts) == 6 * len(WORDS)


def _with(name, row, value):
    found = arrays()[name].copy()
    found[row] = value
    return {name: found}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "lacks labels; expected inputs and labels"),
        ({"extra": np.zeros(2)}, "has extra; expected"),
        ({"labels": np.zeros(5, int)}, r"labels int64\[5\]; expected a row"),
        ({"labels": np.zeros(39)}, r"labels float64\[39\]"),
        (_with("labels", 4, -1), r"has the label -1 in row 4, counted from 0"),
        (_with("labels", 34, -1), r"examples\.npz has the label -1 in row 34, counted"),
        (_with("inputs", 2, np.nan), r"examples\.npz has inputs .* first in row 2"),
        (_with("inputs", 35, np.nan), r"examples\.npz has inputs .* first in row 35"),
        ({**_with("inputs", 36, np.nan), "parts": None}, "first in row 36, counted"),
        (_with("parts", 7, "tes"), "the part 'tes' in row 7, counted from 0"),
        ({"parts": np.zeros(39)}, "has parts of float64"),
        ({"class_names": np.array(["a", "b"])}, r"has the label 2 in row 2.*0\.\.1"),
        ({"class_names": np.array(["a", "a", "b"])}, "each name once"),
        ({"class_names": np.array(list("abcd"))}, "train part .* no example of 'd'"),
        ({"labels": np.zeros(39, int)}, "own has 1 class; expected 2"),
        ({"inputs": np.zeros((39, 0), np.float32)}, "is empty"),
        ({"inputs": np.zeros(39, np.float32)}, "one axis or more"),
        ({"inputs": np.full((39, 8, 8), 90.0)}, r"examples\.npz: .* run from 90 to 90"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, changes, said):
    folder = write_own_examples(tmp_path, **changes)
    with pytest.raises((ValueError, TypeError), match=said):
        load_quiz_set("own", folder)


def test_labels_of_no_class_are_not_left_out():
    shares = {"quiz": 0.1, "validation": 0.1, "test": 0.1, "seed": 0, "name": "made"}
    labels = np.repeat([0, 1], 20)
    labels[7] = 2
    with pytest.raises(ValueError, match=r"made has the label 2 in row 7, .*0\.\.1"):
        divided(labels, ("a", "b"), **shares)
    with pytest.raises(TypeError, match=r"labels of float64\[40\]"):
        divided(labels.astype(float), ("a", "b"), **shares)
    with pytest.raises(TypeError, match="labels of list"):
        divided(labels.tolist(), ("a", "b"), **shares)


def test_small_classes_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="the class 'b' of made has 3 examples, of which"):
        divided(
            np.repeat([0, 1], [40, 3]),
            ("a", "b"),
            quiz=0.1,
            validation=0.1,
            test=0.1,
            seed=0,
            name="made",
        )
    with pytest.raises(FileNotFoundError, match=r"'own' are missing \(examples\.npz\)"):
        load_quiz_set("own", tmp_path)
    with pytest.raises(FileNotFoundError, match="no data_dir was given"):
        load_quiz_set("mnist", None)
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        load_quiz_set("mnits", tmp_path)
    with pytest.raises(ValueError, match="unknown texts 'fewrel'"):
        labelled_texts("fewrel", tmp_path)


@pytest.mark.data
def test_digits_of_mnist(shared_dir):
    data = load_quiz_set("mnist", shared_dir / "data")
    sizes = {part: len(data.parts[part]) for part in PARTS}
    assert sizes["test"] in range(2990, 3010) and sum(sizes.values()) == 10_000
