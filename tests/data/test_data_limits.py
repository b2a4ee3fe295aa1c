"""Limits of folders and archives of images, before anything is decoded."""

import struct
import zipfile

import pytest
from image_folders import BASE, ONE, described, folder, packed

from metalearn.data.images.archives import ImageTree
from metalearn.data.images.limits import Limits, limits_of, within


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))


LIMITS = {
    "side": (dict(image_size=10**6), "image_size=1000000 gives .* max_pixels"),
    "total": (
        dict(image_size=5000, max_bytes=10**8),
        "6 images of 5000x5000x3 .* max_bytes",
    ),
    "as stored": (dict(max_bytes=1799), "6 images of 10x10x3 .* max_bytes=1799"),
    "pixels": (dict(max_pixels=99), r"'ant/0\.png' .* has 10x10 pixels; .*max_pixels=99"),
    "file": (dict(max_file_bytes=50), r"'ant/0\.png' .* max_file_bytes=50"),
    "files": (dict(max_files=5), "more than 5 files; .*max_files"),
    "zero": (dict(max_files=0), "max_files=0 was given"),
    "half": (dict(max_bytes=0.5), "max_bytes=0.5 was given"),
    "beyond Pillow": (dict(max_pixels=10**12), "at most 178956970"),
}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("zipped", [False, True])
def test_limits(tmp_path, name, zipped):
    options, words = LIMITS[name]
    root = packed(tmp_path / "a.zip", BASE) if zipped else folder(tmp_path / "a", BASE)
    with pytest.raises(ValueError, match=words):
        described(root, split="test", **options)
    limits = {"max_bytes": 1800, "max_pixels": 100, "max_files": 6}
    assert described(root, split="test", **limits)[0]["test"]["cat"] == 2


@pytest.mark.parametrize(
    "limit",
    [{"max_pixels": 99}, {"max_bytes": 1799}, {"max_file_bytes": 50}, {"max_files": 5}],
)
def test_limits_around_a_call_are_those_of_all_that_is_read(tmp_path, limit):
    """As the command line gives them; an option of the call itself goes before."""
    (name,), root = limit, folder(tmp_path / "a", BASE)
    with within(**limit):
        with pytest.raises(ValueError, match=f"option {name}|{name}="):
            described(root, split="test")
        described(root, split="test", **{name: 10_000})
        with within(max_files=7, max_pixels=None):  # others stay
            assert getattr(limits_of(), name) == (7 if name == "max_files" else limit[name])
    described(root, split="test")
    with pytest.raises(ValueError, match="whole number"), within(max_files=0):
        pass


def test_only_members_that_are_read_are_limited(tmp_path):
    path = packed(tmp_path / "a.zip", {**BASE, "README": bytes(100 * 2**20)})
    assert "1 files that are no images" in described(path, split="test")[1]["protocol"]
    path = packed(tmp_path / "b.zip", {**BASE, "ant/b.bmp": bytes(65 * 2**20)})
    with pytest.raises(ValueError, match=r"'ant/b\.bmp' .* unpacks to 68157440 bytes"):
        described(path, split="test")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """Every entry of the directory leads to one member, as in the bombs of D. Fifield."""
    path = packed(tmp_path / "a.zip", {"ant/0.bmp": bytes(2**20)})
    raw = path.read_bytes()
    start = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    entry, count = raw[start:end], 400
    entries = b"".join(entry.replace(b"ant/0.bmp", b"%03d/0.bmp" % i) for i in range(count))
    tail = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0
    )
    path.write_bytes(raw[:start] + entries + tail)
    with pytest.raises(ValueError, match=r"unpacks to .* share their bytes"):
        ImageTree(path)


@pytest.mark.parametrize("large", [False, True], ids=["usual", "zip64"])
def test_members_are_counted_before_they_are_listed(tmp_path, monkeypatch, large):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 100 if large else 65535)
    path = packed(tmp_path / "a.zip", {f"{i}/0.png": b"" for i in range(3000)})
    assert (b"PK\6\6" in path.read_bytes()) == large
    assert len(ImageTree(path, Limits(max_files=3000)).paths) == 3000
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ValueError, match="more than 2999 files"):
        ImageTree(path, Limits(max_files=2999))


def test_depth_and_repeated_paths(tmp_path):
    deep = packed(tmp_path / "a.zip", {"a/" * 5000 + "x.png": ONE})
    with pytest.raises(ValueError, match="folders 5000 deep"):
        ImageTree(deep)
    deep = folder(tmp_path / "a", {"a/" * 40 + "x.png": ONE})
    with pytest.raises(ValueError, match="folders 32 deep"):
        ImageTree(deep)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = tmp_path / "b.zip"
        with zipfile.ZipFile(twice, "w") as archive:
            for _ in range(2):
                archive.writestr("ant/0.png", ONE)
    with pytest.raises(ValueError, match=r"holds 'ant/0\.png' twice"):
        ImageTree(twice)
