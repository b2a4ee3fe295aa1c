"""Stored bytes of prepared sets: records, what describes them, and decoded pixels."""

import errno
import os
import shutil

import numpy as np
import pytest
from flips import cut, flipped

from metalearn.core import digest, files
from metalearn.data import builders, records
from metalearn.data.images import limits

SHAPE, PER_CLASS = (6, 6, 3), 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("METALEARN_CACHE", str(root))
    return root


def pixels(part, index, seed=0):
    rng = np.random.default_rng([seed, index, len(part)])
    return rng.integers(0, 256, (PER_CLASS, *SHAPE), np.uint8)


def source(seed=0, config="plain"):
    def part(name):
        return builders.PartSource(
            class_names=(f"{name}-a", f"{name}-b"),
            class_groups=("g", "h"),
            images=lambda index: iter(pixels(name, index, seed)),
        )

    return builders.RecordSource(
        name="toy",
        config=config,
        description="A toy.",
        image_shape=SHAPE,
        parts={"train": part("train"), "test": part("test")},
        info={"split": "none"},
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A prepared folder, loaded once; copied by each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(tmp_path_factory.mktemp("built")))
        folder = builders.prepare_records(source())
        records.load_records(folder)
        return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "set")


def is_right(dataset):
    """The pixels of the source, which no file of the folder has told."""
    return all(
        (classes.images == np.concatenate([pixels(part, 0), pixels(part, 1)])).all()
        and classes.class_names == (f"{part}-a", f"{part}-b")
        and classes.groups.tolist() == [0, 1]
        and classes.labels.tolist() == [0, 0, 0, 1, 1, 1]
        and not classes.rotations
        for part, classes in dataset.parts.items()
    ) and set(dataset.parts) == {"train", "test"}


def outcome(read, folder):
    """A message that names the folder, or exactly what was stored."""
    try:
        found = read()
    except ValueError as error:
        assert str(folder) in str(error) and "Delete" in str(error), error
        return "noticed"
    assert found
    return "harmless"


def of(folder, words):
    found = sorted(folder.glob(words))
    assert found
    return found


@pytest.mark.parametrize("change", ["flip", "cut"])
def test_decoded_pixels_are_never_used_when_changed(folder, change):
    """They are decoded again; what was changed is replaced."""
    decoded = of(folder, "decoded-*.npy")
    changed = flipped(decoded, seed=0) if change == "flip" else cut(decoded)
    for found in changed:
        file = found if change == "flip" else found[0]
        before = file.read_bytes() if file.exists() else b""
        assert is_right(records.load_records(folder))
        assert file.read_bytes() != before
    assert of(folder, "decoded-*.npy") == decoded


def test_flipped_bits_of_records_are_noticed(folder):
    """Every one, and before a native reader sees it; by every way to read."""
    array_records = of(folder, "*.array_record-*")
    train = of(folder, "*-train.array_record-*")
    for decoded in of(folder, "decoded-*.npy"):
        decoded.unlink()
    found = [
        outcome(lambda: is_right(records.load_records(folder)), folder)
        for _ in flipped(array_records, seed=1, num=60)
    ]
    assert found == ["noticed"] * 60
    for _ in flipped(train, seed=2, num=40):
        with pytest.raises(digest.Damaged, match=r"array_record-.* is not as it was"):
            records.RecordImages(folder, "train")


def test_flipped_bits_of_what_describes_the_records_are_noticed_or_harmless(folder):
    described = [p for p in folder.iterdir() if p.suffix in (".json", ".txt")]
    assert {"metadata.json", "dataset_info.json", "features.json"} <= {
        path.name for path in described
    }
    found = [
        outcome(lambda: is_right(records.load_records(folder)), folder)
        for _ in flipped(described, seed=3)
    ]
    assert found.count("noticed") > 90


def test_cut_files_are_noticed(folder):
    for file, what in cut(p for p in folder.iterdir() if "decoded" not in p.name):
        with pytest.raises((ValueError, FileNotFoundError), match="Delete"):
            records.load_records(folder)
            raise AssertionError(f"{file} {what}")
    assert is_right(records.load_records(folder))


def test_files_of_another_part_or_set_are_noticed(folder, cache):
    other = builders.prepare_records(source(seed=1))
    records.load_records(other)
    (train,), (test,) = of(folder, "decoded-train*.npy"), of(folder, "decoded-test*.npy")
    shutil.copy(test, train)
    assert is_right(records.load_records(folder))
    # The pixels of the other set, whole and under the right name.
    shutil.copy(of(other, "decoded-train*.npy")[0], train)
    assert is_right(records.load_records(folder))
    (file,) = of(folder, "*-train.array_record-*")
    shutil.copy(other / file.name, file)
    with pytest.raises(digest.Damaged, match=str(file)):
        records.load_records(folder)
    shutil.copy(other / "metadata.json", folder / "metadata.json")
    with pytest.raises(digest.Damaged):
        records.load_records(folder)


def test_a_stale_cache_goes_when_another_is_written(folder):
    (train,) = of(folder, "decoded-train*.npy")
    stale = [folder / "decoded-train-0123.npy", folder / ".decoded-train-x"]
    for path in stale:
        shutil.copy(train, path)
    train.write_bytes(b"")
    assert is_right(records.load_records(folder))
    assert of(folder, "decoded-train*.npy") == [train]
    assert not any(path.exists() for path in stale)


def test_a_whole_cache_is_mapped_and_read_only(folder):
    images = records.load_records(folder).train.images
    assert isinstance(images, np.memmap) and not images.flags.writeable


def test_a_cache_that_cannot_be_written_is_no_error(folder, monkeypatch):
    for decoded in of(folder, "decoded-*.npy"):
        decoded.unlink()

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(records.np.lib.format, "write_array", full)
    assert is_right(records.load_records(folder))
    assert not list(folder.glob("*decoded-*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_disk_while_records_are_built_is_said(cache, monkeypatch, number):
    def fail(directory, facts):
        raise OSError(number, os.strerror(number), str(directory / "metadata.json"))

    monkeypatch.setattr(builders, "sealed_metadata", fail)
    with pytest.raises(files.CannotWrite, match=r"cannot be written: .*METALEARN_CACHE"):
        builders.prepare_records(source())
    assert list(cache.rglob("*")) == []


def test_records_of_an_older_format_are_replaced(cache):
    older = cache / "toy" / "plain" / records.OLDER[0]
    older.mkdir(parents=True)
    (older / "metadata.json").write_text("{}")
    assert records.prepared_dirs("toy") == []
    folder = builders.prepare_records(source())
    assert not older.exists() and is_right(records.load_records(folder))


def test_a_set_without_metadata_says_what_to_do(folder, monkeypatch):
    (folder / "metadata.json").unlink()
    with pytest.raises(ValueError, match=r"cannot be read .*Delete that folder"):
        records.load_records(folder)


def test_records_are_read_whatever_limit_they_were_prepared_under(folder):
    """They were within the limits of that time, and are the library's own files."""
    for path in folder.glob("decoded-*"):
        path.unlink()
    with limits.within(max_pixels=SHAPE[0] * SHAPE[1] - 1):
        found = records.load_records(folder)
        rows = records.RecordImages(folder, "train")
        np.testing.assert_array_equal(rows[0], found.train.images[0])
