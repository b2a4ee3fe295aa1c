"""Wrong labels and long tails by number, parts of a set, and files that do not fit."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
from few_labels import arrays, write_own_labels

from metalearn.data import noisy

LABELS = np.repeat(np.arange(5), 40).astype(np.int32)


def _png(value):
    image = pytest.importorskip("PIL.Image")
    found = io.BytesIO()
    image.fromarray(np.full((8, 8), value, np.uint8)).save(found, "PNG")
    return found.getvalue()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("kind", noisy.FLIPS)
def test_flips_are_as_many_as_asked_and_of_their_kind(share, kind):
    found = noisy.flipped(LABELS, 5, share=share, kind=kind, seed=3)
    wrong = found != LABELS
    able = LABELS > 0 if kind == "background" else np.ones(len(LABELS), bool)
    assert wrong.sum() == round(share * able.sum()) and not wrong[~able].any()
    assert found.dtype == LABELS.dtype and 0 <= found.min() <= found.max() < 5
    if kind == "pair":
        np.testing.assert_array_equal(found[wrong], (LABELS[wrong] + 1) % 5)
    elif kind == "background":
        assert (found[wrong] == 0).all()
    elif share == 1.0:  # every other class, and about as often
        counts = np.bincount((found - LABELS) % 5, minlength=5)
        assert counts[0] == 0 and counts[1:].min() > 30
    again = noisy.flipped(LABELS, 5, share=share, kind=kind, seed=3)
    np.testing.assert_array_equal(found, again)
    other = noisy.flipped(LABELS, 5, share=share, kind=kind, seed=4)
    assert share in (0.0, 1.0) or (found != other).any()


def test_a_long_tail_is_exponential():
    rows = noisy.long_tail(LABELS, 5, imbalance=16, seed=0)
    assert np.bincount(LABELS[rows]).tolist() == [40, 20, 10, 5, 2]
    assert len(np.unique(rows)) == len(rows)
    everything = noisy.long_tail(LABELS, 5, imbalance=1, seed=0)
    np.testing.assert_array_equal(everything, np.arange(200))
    # A class that is rarer already keeps all it has, and none becomes empty.
    short = LABELS[np.r_[:40, 40:43, 80:200]]
    rows = noisy.long_tail(short, 5, imbalance=1e6, seed=0)
    assert np.bincount(short[rows]).tolist() == [40, 1, 1, 1, 1]


def test_split_tail_and_flips_of_one_seed_are_drawn_apart():
    """By one stream of numbers the places that stay would be those that are made wrong."""
    labels = np.zeros(400, np.int32)
    made = {"class_names": "a", "name": "made", "validation": 0.25, "test": 0.25}
    images = np.arange(400, dtype=np.float32)[:, None, None, None] / 400
    data = noisy.split_of(images, labels, clean_per_class=100, seed=7, **made)
    clean = set(np.rint(400 * data.clean.images.ravel()).astype(int).tolist())
    wrong = set(np.flatnonzero(noisy.flipped(labels, 2, share=0.25, seed=7)).tolist())
    two = np.repeat([0, 1], 400)
    tail = noisy.long_tail(two, 2, imbalance=4, seed=7)
    rare = set((tail[tail >= 400] - 400).tolist())
    assert len(clean) == len(wrong) == len(rare) == 100
    # A quarter of a quarter in common, by chance.
    for one, other in ((clean, wrong), (clean, rare), (wrong, rare)):
        assert 10 < len(one & other) < 40


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: noisy.flipped(LABELS, 5, share=1.5, seed=0), "share of flips is 1.5"),
        (lambda: noisy.flipped(LABELS, 5, share=-0.1, seed=0), "share of flips is -0.1"),
        (lambda: noisy.flipped(LABELS, 5, share=np.nan, seed=0), "share of flips is nan"),
        (lambda: noisy.flipped(LABELS, 4, share=0.1, seed=0), r"0\.\.4; expected 0\.\.3"),
        (
            lambda: noisy.flipped(LABELS, 5, share=0, kind="x", seed=0),
            "kind of flips is 'x'",
        ),
        (lambda: noisy.long_tail(LABELS, 5, imbalance=0.5, seed=0), "imbalance is 0.5"),
        (lambda: noisy.long_tail(LABELS, 5, imbalance=np.inf, seed=0), "imbalance is inf"),
    ],
)
def test_options_out_of_range_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def _split(**changes):
    images = np.arange(200, dtype=np.float32)[:, None, None, None] / 200
    settings = {"clean_per_class": 4, "validation": 0.1, "test": 0.3, "seed": 1}
    return noisy.split_of(
        images, LABELS, class_names="abcde", name="made", **settings | changes
    )


def test_parts_share_no_image_and_have_every_class():
    data = _split()
    parts = [getattr(data, name) for name in ("train", "clean", "validation", "test")]
    assert [len(part) for part in parts] == [100, 20, 20, 60]
    seen = np.concatenate([part.images.ravel() for part in parts])
    assert len(np.unique(seen)) == 200
    for part in parts:
        assert len(set(np.bincount(part.labels).tolist())) == 1
        np.testing.assert_array_equal(
            part.labels, LABELS[np.rint(200 * part.images.ravel()).astype(int)]
        )
    assert (_split(seed=2).test.images != data.test.images).any()


@pytest.mark.parametrize("changes", [{"clean_per_class": 40}, {"test": 0.01}])
def test_a_class_with_too_few_images_is_named(changes):
    with pytest.raises(
        ValueError, match=r"class 'a' of made has 40 images.*clean-per-class"
    ):
        _split(**changes)
    with pytest.raises(ValueError, match=r"the share for test is 0\.0; expected a share"):
        _split(test=0.0)


# -- Files -----------------------------------------------------------------------------


def test_arrays_of_the_user_are_read_as_they_are(tmp_path):
    found = noisy.load_own(write_own_labels(tmp_path))
    assert found.class_names == ("0", "1", "2") and found.train.truth is None
    made = arrays()
    np.testing.assert_array_equal(found.test.images[..., 0], made["test_images"])
    np.testing.assert_array_equal(found.train.labels, made["train_labels"])
    assert found.train.labels.dtype == np.int32
    names = {"class_names": np.array(["x", "y", "z"])}
    truth = {"train_truth": made["train_labels"][::-1].copy()}
    found = noisy.load_own(write_own_labels(tmp_path, **names, **truth))
    assert found.class_names == ("x", "y", "z") and found.train.truth is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean_labels": np.zeros(6, int)}, "clean part of own has no image of '1', '2'"),
        ({"train_labels": np.array([0, 1, -1] * 8)}, "label -1 in row 2, counted from 0"),
        ({"test_labels": np.array([0, 7, 2] * 4)}, "label 7 in row 1.*expected 0..2"),
        ({"test_labels": np.full(12, 2**40)}, "label 2147483647 in row 0"),
        ({"test_labels": None}, "lacks test_labels"),
        ({"more": np.zeros(2)}, "has more; expected train_images"),
        ({"test_images": np.zeros((12, 9, 8), np.uint8)}, r"\[9, 8, 1\], and training has"),
        (
            {"test_images": np.zeros((11, 8, 8), np.uint8)},
            r"images \[11, 8, 8, 1\] and lab",
        ),
        ({"clean_images": np.full((6, 8, 8), np.nan)}, "clean part of own: 6 of 6 images"),
        (
            {"train_images": np.full((24, 8, 8), 77.0)},
            "train part of own: images are float",
        ),
        ({"train_truth": np.full(24, 3)}, "true label 3 in row 0"),
        ({"train_labels": np.array(1)}, r"labels \[\]; expected \[I, H, W, C\] and \[I\]"),
        ({"class_names": np.array(["a", "a", "b"])}, "name 'a' in row 1"),
        ({"class_names": np.array(["a", " ", "b"])}, "name ' ' in row 1"),
        ({"class_names": np.array([1.0, 2.0, 3.0])}, "class_names of float64"),
        ({"train_images": np.zeros((24, 0, 8), np.uint8)}, r"images \[0, 8, 1\]; expected"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        noisy.load_own(write_own_labels(tmp_path, **changes))


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path):
    folder = write_own_labels(tmp_path, train_labels=np.zeros(24))
    with pytest.raises(TypeError, match=r"labels of float64\[24\]; expected whole numbers"):
        noisy.load_own(folder)
    (folder / "labels.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no file of numpy\.savez"):
        noisy.load_own(folder)


def test_folders_of_the_user_are_read_and_a_class_without_a_clean_image_named(tmp_path):
    for part in ("train", "clean", "validation", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(_png(50 + 100 * number))
    found = noisy.load_own(tmp_path, channels=1)
    assert found.class_names == ("cat", "dog")
    np.testing.assert_array_equal(found.test.images[:, 0, 0, 0], [50, 150])
    assert noisy.load_own(tmp_path).train.images.shape == (2, 8, 8, 3)
    (tmp_path / "clean" / "dog" / "a.png").unlink()
    with pytest.raises(ValueError, match="clean part of own has no image of 'dog'"):
        noisy.load_own(tmp_path)
    folder = tmp_path / "test" / "cow"
    folder.mkdir()
    (folder / "a.png").write_bytes(_png(9))
    with pytest.raises(ValueError, match="has the class 'cow', which neither"):
        noisy.load_own(tmp_path)


def _write_digits(folder, images, labels):
    for name, array in zip(noisy.SETS["mnist"], (images, labels)):
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(gzip.compress(head + array.tobytes()))


def test_files_of_digits_are_read_and_classes_kept_in_order(tmp_path):
    images = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
    _write_digits(tmp_path, images, np.array([9, 4, 1, 9], np.uint8))
    found, labels, names = noisy.load_labelled("mnist", tmp_path, classes=("9", "4"))
    np.testing.assert_array_equal(found[..., 0], images[[0, 1, 3]])
    assert labels.tolist() == [0, 1, 0] and names == ("9", "4")
    with pytest.raises(ValueError, match="has no class '10'"):
        noisy.load_labelled("mnist", tmp_path, classes=("9", "10"))
    with pytest.raises(ValueError, match="expected each once"):
        noisy.load_labelled("mnist", tmp_path, classes=("9", "9"))
    file = tmp_path / noisy.SETS["mnist"][0]
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))
    with pytest.raises(ValueError, match="23 values for an array"):
        noisy.load_labelled("mnist", tmp_path)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        noisy.load_labelled("mnist", tmp_path)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data_dir was given"):
        noisy.load_labelled("mnist", None)
    with pytest.raises(FileNotFoundError, match="the set 'own' are missing"):
        noisy.load_own(tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        noisy.load_labelled("mnits", tmp_path)


@pytest.mark.data
def test_the_stored_sets_are_read(shared_dir):
    images, labels, _ = noisy.load_labelled("mnist", shared_dir / "data")
    assert images.shape == (10_000, 28, 28, 1)
    assert np.bincount(labels)[:3].tolist() == [980, 1135, 1032]
    classes = ("apple", "whale")
    images, labels, _ = noisy.load_labelled(
        "cifar-fs", shared_dir / "data", classes=classes
    )
    assert images.shape == (200, 32, 32, 3) and labels.sum() == 100
