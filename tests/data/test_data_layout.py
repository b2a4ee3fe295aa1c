"""What a folder or zip holds: classes, parts, what is left out, links, limits, splits."""

import io
import json
import os
import tarfile
import unicodedata
import zipfile

import numpy as np
import pytest
from image_folders import BASE, ONE, described, folder, packed, picture
from PIL import Image

from metalearn import data
from metalearn.data.images.splits import part_of

SPLITS = {"train": ["ant"], "val": ["bee"], "test": ["cat"]}
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("METALEARN_CACHE", str(root))
    return root


def test_every_suffix_is_read_in_any_case(tmp_path):
    kinds = {"WEBP": "webp", "tif": "tiff", "TIFF": "tiff", "gif": "gif", "JPG": "jpeg"}
    content = {f"{k}/{i}.{k}": picture(i, kinds[k]) for k in kinds for i in range(2)}
    classes, info = described(folder(tmp_path / "a", content), split="test")
    assert classes == {"test": dict.fromkeys(sorted(kinds), 2)}
    assert "left out: nothing" in info["protocol"]


def test_what_is_done_to_images_is_said_with_its_number(tmp_path):
    clear = io.BytesIO()
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(clear, "png")
    root = folder(tmp_path / "a", {**BASE, "ant/clear.png": clear.getvalue()})
    test = data.load(root, split="test")
    assert (test.test.images[2] == 255).all()
    assert "found: 1 transparent, put on white" in test.info["preprocessing"]
    assert "turned by EXIF" in test.info["preprocessing"]


def test_what_is_left_out_is_said_with_its_number(tmp_path):
    beside = {"README": b"", "docs/a.txt": b"", "ant/b.npy": b"", ".DS_Store": b""}
    root = folder(tmp_path / "a", {**BASE, **beside})
    (root / "fox").mkdir()
    os.mkfifo(root / "ant" / "pipe.png")
    classes, info = described(root, split="test")
    assert list(classes["test"]) == ["ant", "bee", "cat"]
    for words in (
        "3 files that are no images",
        ".npy 1",
        "1 hidden",
        "1 pipes",
        "1 empty folders (fox)",
    ):
        assert words in info["protocol"]
    zipped = packed(tmp_path / "a.zip", {**BASE, **beside, "fox/": b""})
    told = described(zipped, split="test")[1]["protocol"]
    assert "3 files that are no images" in told and "1 empty folders (fox)" in told


@pytest.mark.parametrize("suffix", ["heic", "npy", "svg", "webp2"])
def test_a_class_without_a_readable_image_is_not_lost(tmp_path, suffix):
    root = folder(tmp_path / "a", {**BASE, f"fox/0.{suffix}": b"x"})
    for split in ("random", "test"):
        with pytest.raises(ValueError, match=rf"lost as classes: 'fox' .*\.{suffix} 1"):
            described(root, split=split)
    # Where the classes are listed, no folder is taken for one.
    assert list(described(root, splits=SPLITS)[0]) == ["train", "validation", "test"]
    with pytest.raises(ValueError, match=r"'fox' holds no image that can be read"):
        described(root, splits={"train": ["fox"]})
    (root / "gnu").mkdir()
    with pytest.raises(ValueError, match="'gnu' is an empty folder"):
        described(root, splits={"train": ["gnu"]})


def test_links_are_followed_wherever_they_lead(tmp_path):
    other = folder(tmp_path / "other", {"dog/0.png": ONE})
    root = folder(tmp_path / "a", BASE)
    (root / "dog").symlink_to(other / "dog")
    (root / "ant" / "9.png").symlink_to(other / "dog" / "0.png")
    (root / ".#lock").symlink_to("/nowhere")  # as editors leave
    classes, _ = described(root, split="test")
    assert classes == {"test": {"ant": 3, "bee": 2, "cat": 2, "dog": 1}}
    (root / "ant" / "loop").symlink_to(root)
    with pytest.raises(ValueError, match=r"'ant/loop' .* in a circle"):
        described(root, split="test")
    (root / "ant" / "loop").unlink()
    for name in ("gone", "ant/gone.png"):
        (root / name).symlink_to("/nowhere")
        with pytest.raises(ValueError, match=rf"'{name}' .* a link to '/nowhere', cannot"):
            described(root, split="test")
        (root / name).unlink()


def test_links_of_a_zip_are_refused(tmp_path):
    path = packed(tmp_path / "a.zip", BASE)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("dog")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "../ant")
    with pytest.raises(ValueError, match=r"'dog' .* is a link"):
        described(path, split="test")


PARTS = {
    "train/ant/0.png": ONE,
    "train/owl/0.png": ONE,
    "val/bee/0.png": ONE,
    "test/cat/0.png": ONE,
}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "valid", "testing"),
        ("meta-train", "meta_validation", "metatest"),
        ("train", "dev", "test"),
        ("base", "val", "novel"),
    ],
)
def test_folders_of_parts(tmp_path, names):
    rename = dict(zip(("train", "val", "test"), names, strict=True))
    content = {
        "top/" + "/".join([rename[k.split("/")[0]], *k.split("/")[1:]]): v
        for k, v in PARTS.items()
    }
    classes, info = described(folder(tmp_path / "a", content))
    assert classes == {
        "train": {"ant": 1, "owl": 1},
        "validation": {"bee": 1},
        "test": {"cat": 1},
    }
    assert f"'{names[1]}' as validation" in info["protocol"]
    assert [part_of(name) for name in names] == ["train", "validation", "test"]


def test_folders_of_parts_that_do_not_split_the_classes(tmp_path):
    root = folder(tmp_path / "a", {**PARTS, "val/ant/1.png": ONE})
    with pytest.raises(ValueError, match=r"1 classes .* several .*\['ant'\].*'random'"):
        described(root)
    classes, info = described(root, split="random")
    assert {n: c for part in classes.values() for n, c in part.items()} == {
        "ant": 2,  # pooled, so no class is in two parts
        "bee": 1,
        "cat": 1,
        "owl": 1,
    }
    assert "pooled" in info["protocol"]
    with pytest.raises(ValueError, match=r"split='test' .* folders of parts"):
        described(root, split="test")
    with pytest.raises(ValueError, match=r"\['val', 'valid'\], which all mean"):
        described(folder(root, {"valid/elk/0.png": ONE}))
    with pytest.raises(ValueError, match=r"'val/1\.png' .* directly in the folder"):
        described(folder(tmp_path / "b", {**PARTS, "val/1.png": ONE}))
    # Classes that are called as parts are, and one part alone.
    flat = folder(tmp_path / "c", {"train/0.png": ONE, "test/0.png": ONE})
    assert described(flat, split="test")[0] == {"test": {"test": 1, "train": 1}}
    one = {name: value for name, value in PARTS.items() if name.startswith("train")}
    assert described(folder(tmp_path / "d", one))[0] == {"train": {"ant": 1, "owl": 1}}


def test_a_folder_with_one_archive(tmp_path):
    root = folder(tmp_path / "a", {"README": b""}, SPLITS)
    packed(root / "images.zip", BASE)
    assert described(root)[0] == {
        "train": {"ant": 2},
        "validation": {"bee": 2},
        "test": {"cat": 2},
    }
    packed(root / "images.zip", {**BASE, "splits.json": json.dumps({"test": ["ant"]})})
    assert described(root)[0] == {"test": {"ant": 2}}
    packed(root / "more.zip", BASE)
    with pytest.raises(
        ValueError, match=r"holds the archives \['images.zip', 'more.zip'\]"
    ):
        described(root)
    packed(root / "outer.zip", {"images.zip": b""})
    with pytest.raises(ValueError, match=r"holds the archives \['images.zip'\]"):
        described(root / "outer.zip", split="test")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(root, arcname="a")
    with pytest.raises(ValueError, match="is a tar archive: unpack it"):
        described(tmp_path / "a.tar.gz", split="test")


def test_names_of_a_zip_from_other_systems(tmp_path):
    path = packed(tmp_path / "mac.zip", {**BASE, f"{NFD}/0.png": ONE})
    raw = bytearray(path.read_bytes())
    # The Finder writes UTF-8 without the bit that says so.
    for mark, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        at = raw.find(mark)
        while at >= 0:
            raw[at + offset] &= ~8
            at = raw.find(mark, at + 4)
    path.write_bytes(raw)
    assert described(path, splits={"test": [NFC]})[0] == {"test": {NFC: 1}}
    for change in (lambda n: n.replace("/", "\\"), lambda n: f"./{n}"):
        path = packed(tmp_path / "a.zip", {change(k): v for k, v in BASE.items()})
        assert described(path, split="test")[0] == {
            "test": dict.fromkeys(("ant", "bee", "cat"), 2)
        }


@pytest.mark.parametrize(("on_disk", "listed"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_normal_forms_of_accents(tmp_path, on_disk, listed):
    root = folder(tmp_path / "a", {**BASE, f"{on_disk}/0.png": ONE})
    found, _ = described(root, splits={"train": [listed, "ant"], "test": ["bee"]})
    assert found["train"] == {"ant": 2, NFC: 1}
    with pytest.raises(ValueError, match="is in 'train' and again in 'test'"):
        described(root, splits={"train": [NFC], "test": [NFD]})
    folder(root, {f"{NFC if on_disk == NFD else NFD}/0.png": ONE})
    with pytest.raises(ValueError, match="differ in the Unicode form"):
        described(root, split="test")


TEXT = json.dumps(SPLITS)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(tmp_path, encoding):
    root = folder(tmp_path / "a", BASE, TEXT.encode(encoding))
    assert list(described(root)[0]) == ["train", "validation", "test"]
    inside = packed(tmp_path / "a.zip", {**BASE, "splits.json": TEXT.encode(encoding)})
    assert list(described(inside)[0]) == ["train", "validation", "test"]


BAD_SPLITS = {
    "swapped letters": ({"trian": ["ant"], "test": ["cat"]}, "'trian'.*mean 'train'"),
    "swapped in all": ({"trian": ["ant"], "tset": ["cat"]}, "'trian'.*mean 'train'"),
    "lost letter": ({"train": ["ant"], "validaton": ["cat"]}, "mean 'validation'"),
    "one too many": ({"train": ["ant"], "tests": ["cat"]}, "mean 'test'"),
    "in a named one": ({"a": {"trian": ["ant"], "val": ["bee"]}}, "mean 'train'"),
    "text": ({"train": "ant", "val": ["bee"]}, "'train' of .* is a str"),
    "text alone": ({"train": "ant"}, "'train' of .* is a str"),
    "object": ({"train": {"ant": 1}, "val": ["bee"]}, "'train' of .* is a dict"),
    "number": ({"train": 3, "val": ["bee"]}, "'train' of .* is a int"),
    "numbers": ({"train": [1, 2]}, "lists '1', a int"),
    "lists": ({"train": [["ant"]]}, "a list"),
    "two names": ({"val": ["bee"], "validation": ["cat"]}, "both mean the validation"),
    "class twice": ({"train": ["ant", "ant"]}, "'ant' is in 'train' and again"),
    "key twice": (b'{"train": ["ant"], "train": ["bee"]}', r"keys \['train'\] stand more"),
    "deep": (b"[" * 100_000, "not valid JSON"),
    "latin": ('{"train": ["café"]}'.encode("latin-1"), "expected UTF-8"),
    "no part": ({"a": ["ant"]}, "holds 0 splits"),
    "no class": ({"train": []}, "lists no class"),
    "not JSON": (b"train: ant", "not valid JSON"),
    "null": (b"null", "holds a NoneType"),
}


@pytest.mark.parametrize("name", BAD_SPLITS)
def test_bad_lists_of_classes(tmp_path, name):
    content, words = BAD_SPLITS[name]
    root = folder(tmp_path / "a", BASE, content)
    with pytest.raises((ValueError, TypeError), match=words) as raised:
        described(root)
    assert "splits.json" in str(raised.value)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (["ant"], "splits is a list; expected class names by part"),
        (5, "splits is a int"),
        ({"train": "ant"}, "'train' of the option splits is a str"),
        ({"tset": ["ant"], "train": ["bee"]}, "Did you mean 'test'"),
    ],
)
def test_bad_options_of_splits(tmp_path, splits, words):
    with pytest.raises((ValueError, TypeError), match=words):
        described(folder(tmp_path / "a", BASE), splits=splits)


def test_any_sequence_lists_classes(tmp_path):
    splits = {"train": ("ant",), "test": np.array(["bee"]), "dev": {"cat"}}
    found, _ = described(folder(tmp_path / "a", BASE), splits=splits)
    assert found == {"train": {"ant": 2}, "validation": {"cat": 2}, "test": {"bee": 2}}
