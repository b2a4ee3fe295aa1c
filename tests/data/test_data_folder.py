"""One's own images: folders and zips, their splits, and what is wrong with them."""

import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from metalearn import data
from metalearn.data.images.archives import decode_image
from metalearn.data.images.folder import folder_source

CLASSES = ("ant", "bee", "cat", "dog", "eel")
SPLITS = {"train": ["ant", "bee", "cat"], "val": ["dog"], "test": ["eel"]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("METALEARN_CACHE", str(root))
    return root


def _image(seed, width=10, height=10, kind="png"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def _content(**sizes):
    kinds = {0: ("png", "png"), 1: ("JPEG", "jpeg"), 2: ("bmp", "bmp")}
    return {
        f"{name}/{i}.{kinds[i][0]}": _image([c, i], kind=kinds[i][1], **sizes)
        for c, name in enumerate(CLASSES)
        for i in range(3)
    }


def _folder(root, content, splits=SPLITS):
    for name, value in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(value)
    if splits is not None:
        (root / "splits.json").write_text(json.dumps(splits))
    return root


def _zip(path, content, splits=None, top=""):
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(top + name, value)
    if splits is not None:
        (path.parent / "splits.json").write_text(json.dumps(splits))
    return path


def test_pictures_of_16_bits_are_scaled(tmp_path):
    values = np.array([0, 256, 32768, 65535], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(np.tile(values, (4, 1))).save(stream, "png")
    found = decode_image(stream.getvalue(), mode="L", where="here")
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found[0, :, 0], values / 257, atol=1)


def _check(dataset):
    assert dataset.train.class_names == ("ant", "bee", "cat")
    assert dataset.validation.class_names == ("dog",)
    assert dataset.test.class_names == ("eel",)
    assert dataset.train.images.shape == (9, 10, 10, 3)
    expected = np.asarray(Image.open(io.BytesIO(_image([1, 0]))))
    np.testing.assert_array_equal(dataset.train.images[3], expected)


def test_folder_and_zip(tmp_path):
    folder = _folder(tmp_path / "images", _content())
    _check(data.load(folder))
    _check(data.load(f"folder:{folder}"))
    (tmp_path / "zips").mkdir()
    _check(data.load(_zip(tmp_path / "zips" / "a.zip", _content(), SPLITS)))
    top = {"__MACOSX/x.png": b"", "data/.DS_Store": b"", "data/readme.md": b"hi"}
    content = {f"data/{k}": v for k, v in _content().items()} | top
    _check(data.load(_zip(tmp_path / "zips" / "b.zip", content)))


def test_splits_inside_the_zip(tmp_path):
    content = {**_content(), "splits.json": json.dumps(SPLITS).encode()}
    _check(data.load(_zip(tmp_path / "a.zip", content, top="data/")))


def test_named_splits(tmp_path):
    other = {"train": ["eel"], "validation": ["dog"], "test": ["ant"]}
    named = {"first": SPLITS, "second": other, "names": {"ant": "an ant"}}
    folder = _folder(tmp_path / "images", _content(), named)
    _check(data.load(folder, split="first"))
    second = data.load(folder, split="second")
    assert second.train.class_names == ("eel",)
    assert "2 further classes unused" in second.info["protocol"]
    with pytest.raises(ValueError, match=r"2 splits \['first', 'second'\]"):
        data.load(folder)
    with pytest.raises(ValueError, match="split='third' is not in"):
        data.load(folder, split="third")
    (folder / "splits.json").write_text(json.dumps({"splits": SPLITS, "x": other}))
    _check(data.load(folder))
    _check(data.load(folder, splits=SPLITS))
    (tmp_path / "mine.json").write_text(json.dumps(SPLITS))
    _check(data.load(folder, splits=tmp_path / "mine.json"))
    with pytest.raises(FileNotFoundError, match="does not exist; expected a file like"):
        data.load(folder, splits=tmp_path / "none.json")


def test_random_split_and_one_part(tmp_path):
    folder = _folder(tmp_path / "images", _content(), None)
    with pytest.raises(FileNotFoundError, match=r"Write .*splits\.json like"):
        data.load(folder)
    dataset = data.load(folder, split="random")
    counts = [part.num_classes for part in dataset.parts.values()]
    assert counts == [3, 1, 1]
    assert "random 64/16/20, seed 0" in dataset.info["split"]
    others = [data.load(folder, split="random", seed=s).test.class_names for s in (1, 2)]
    assert len({dataset.test.class_names, *others}) > 1
    assert data.load(folder, split="test").test.num_classes == 5
    assert data.load(folder, split="test").train is None


def test_nested_classes_have_groups(tmp_path):
    content = {f"{d}/{k}": v for d in ("art", "photo") for k, v in _content().items()}
    folder = _folder(tmp_path / "images", content, None)
    test = data.load(folder, split="test").test
    assert test.num_classes == 10
    assert test.class_names[0] == "art/ant"
    assert test.group_names == ("art", "photo")
    assert test.groups.tolist() == [0] * 5 + [1] * 5


def test_sizes(tmp_path):
    content = {**_content(), "cat/odd.png": _image(7, width=14, height=12)}
    folder = _folder(tmp_path / "images", content)
    with pytest.raises(ValueError, match=r"odd\.png.* is 14x12 .*one size.*image_size"):
        data.load(folder)
    dataset = data.load(folder, image_size=9, channels=1)
    assert dataset.train.images.shape == (10, 9, 9, 1)
    assert "resized to 9x9" in dataset.info["preprocessing"]
    for wrong in (0, 2.5, "big"):
        with pytest.raises(ValueError, match="expected a whole number of pixels"):
            data.load(folder, image_size=wrong)
    with pytest.raises(ValueError, match="expected 1 or 3"):
        data.load(folder, channels=4)


def test_changed_contents_are_another_entry(tmp_path):
    path = _zip(tmp_path / "a.zip", _content(), SPLITS)
    data.load(path)
    content = {**_content(), "ant/0.png": _image(99)}
    assert (
        data.load(_zip(path, content)).train.images[0].tolist()
        == np.asarray(Image.open(io.BytesIO(_image(99)))).tolist()
    )


def test_bad_splits(tmp_path, cache):
    folder = _folder(tmp_path / "images", _content())
    for splits, message in (
        ({"train": ["ant", "yak", "gnu"]}, r"2 classes .*\['yak', 'gnu'\]"),
        ({"train": ["ant"], "test": ["ant"]}, "'ant' is in 'train' and again in 'test'"),
        ({"train": [], "test": []}, "lists no class"),
    ):
        with pytest.raises(ValueError, match=message):
            data.load(folder, splits=splits)
    (folder / "splits.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        data.load(folder)
    (folder / "splits.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list; expected an object"):
        data.load(folder)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"cat/bad.png": b"nothing"}, r"cat/bad\.png.* cannot be decoded"),
        ({"cat/cut.png": _image(1)[:-40]}, r"cat/cut\.png.* cannot be decoded"),
        ({"cat/tiny.png": _image(1, 4, 4)}, r"cat/tiny\.png.* 4x4 pixels; expected at"),
        ({"loose.png": _image(1)}, r"'loose\.png' .* is in no class folder"),
        ({"../out.png": _image(1)}, "leads out of the archive"),
    ],
)
def test_bad_contents_leave_nothing_behind(tmp_path, cache, extra, message):
    path = _zip(tmp_path / "a.zip", {**_content(), **extra}, SPLITS)
    with pytest.raises(ValueError, match=message):
        data.load(path)
    assert list(cache.rglob("*")) == []


def test_not_an_archive(tmp_path):
    path = tmp_path / "a.zip"
    with pytest.raises(FileNotFoundError, match="expected a folder or a zip"):
        data.load(path)
    path.write_bytes(b"PK but no zip")
    with pytest.raises(ValueError, match=r"13 bytes\) is not a readable zip"):
        data.load(path)
    _zip(path, {"readme.txt": b"x"})
    with pytest.raises(ValueError, match="holds no image among 1 files"):
        data.load(path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "archive", "split", "classes"),
    [
        ("cifar_fs", "cifar100_test_images", "cifar_fs", [64, 16, 20]),
        ("cifar_fs", "cifar100_test_images", "fc100", [60, 20, 20]),
        ("tiny_imagenet80", "tiny_imagenet80", None, [50, 10, 20]),
    ],
)
def test_real_splits(shared_dir, folder, archive, split, classes):
    path = shared_dir / "data" / folder / f"{archive}.zip"
    with contextlib.ExitStack() as stack:  # described, not built: that takes longer
        source = folder_source(path, split=split, stack=stack)
        assert [len(p.class_names) for p in source.parts.values()] == classes
        image = next(source.parts["test"].images(0))
        assert image.shape == source.image_shape


@pytest.mark.data
def test_real_birds(shared_dir):
    birds = data.load(shared_dir / "data" / "cub10" / "cub10_84.zip", split="test").test
    assert (birds.num_classes, birds.num_images) == (10, 294)
    assert birds.image_shape == (84, 84, 3)
