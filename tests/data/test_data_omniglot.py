"""Omniglot from archives: small synthetic ones, and the real ones where present."""

import io
import itertools
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from metalearn import data
from metalearn.data import builders, catalogue, records
from metalearn.data.images import omniglot

BACKGROUND = ("Armenian", "Greek", "Hebrew", "Korean", "Latin", "Tifinagh")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("METALEARN_CACHE", str(root))
    return root


def _png(seed, side=30):
    ink = np.random.default_rng(seed).random((side, side)) < 0.2
    stream = io.BytesIO()
    Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).convert("1").save(stream, "png")
    return stream.getvalue()


def _archive(path, alphabets, *, extra=None, characters=2, seed=0, side=30):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for a, alphabet in enumerate(alphabets):
            for c in range(characters):
                for d in range(3):
                    name = f"{alphabet}/character{c + 1:02d}/{a}{c}_{d + 1:02d}.png"
                    image = _png([seed, a, c, d], side)
                    archive.writestr(f"{path.stem}/{name}", image)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    _archive(folder / "images_background.zip", BACKGROUND)
    _archive(folder / "images_evaluation_half.zip", ("Angelic", "Tibetan"), seed=1)
    return folder


def _files(cache):
    return sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*"))


def test_lake_split(archives):
    dataset = data.load("omniglot", data_dir=archives)
    # Six alphabets: a third of them is held back, Vinyals' first.
    assert dataset.validation.group_names == ("Armenian", "Hebrew")
    assert dataset.train.group_names == ("Greek", "Korean", "Latin", "Tifinagh")
    assert dataset.test.group_names == ("Angelic", "Tibetan")
    assert dataset.train.rotations
    assert not dataset.validation.rotations
    assert not dataset.test.rotations
    assert dataset.train.images.shape == (24, 28, 28, 1)
    assert dataset.train.class_names[:2] == ("Greek/character01", "Greek/character02")
    assert dataset.train.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "not comparable" in dataset.info["protocol"]
    assert dataset.info["characters_per_alphabet"]["test"]["Angelic"] == 2
    expected = omniglot.shrink(np.asarray(Image.open(io.BytesIO(_png([0, 1, 0, 0])))) < 1)
    np.testing.assert_array_equal(dataset.train.images[0, ..., 0], expected)


def test_second_load_gives_the_same_without_tfds(archives, cache, monkeypatch):
    first = data.load("omniglot", data_dir=archives)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for again in (data.load("omniglot", data_dir=archives), data.load("omniglot")):
        np.testing.assert_array_equal(again.test.images, first.test.images)
        np.testing.assert_array_equal(again.train.labels, first.train.labels)
        assert again.info == first.info
    assert not first.test.images.flags.writeable


def test_validation_alphabets_can_be_chosen(archives):
    dataset = data.load("omniglot", data_dir=archives, validation_alphabets=["Greek"])
    assert dataset.validation.group_names == ("Greek",)
    with pytest.raises(ValueError, match=r"\['Klingon'\].*expected some of"):
        data.load("omniglot", data_dir=archives, validation_alphabets=["Klingon"])
    with pytest.raises(ValueError, match="Give data_dir as well"):
        data.load("omniglot", validation_alphabets=["Greek"])


def test_other_evaluation_alphabets_are_another_entry(archives, tmp_path):
    data.prepare("omniglot", data_dir=archives)
    other = tmp_path / "other"
    _archive(other / "images_background.zip", BACKGROUND)
    _archive(other / "images_evaluation.zip", ("Avesta",), seed=2)
    assert data.load("omniglot", data_dir=other).test.group_names == ("Avesta",)
    # What `prepare` chose stays the default.
    assert data.load("omniglot").test.group_names == ("Angelic", "Tibetan")
    data.prepare("omniglot", data_dir=other)
    assert data.load("omniglot").test.group_names == ("Avesta",)


def test_two_versions_and_no_choice(archives, tmp_path):
    data.load("omniglot", data_dir=archives)
    other = tmp_path / "other"
    _archive(other / "images_background.zip", BACKGROUND)
    data.load("omniglot", data_dir=other)
    with pytest.raises(ValueError, match=r"2 prepared versions .* Give data_dir"):
        data.load("omniglot")


def test_evaluation_archives_alone(tmp_path):
    folder = tmp_path / "evaluation"
    _archive(folder / "images_evaluation_1.zip", ("Avesta",), seed=1)
    _archive(folder / "images_evaluation_2.zip", ("Oriya",), seed=2)
    dataset = data.load("omniglot", data_dir=folder, parts=("test",))
    assert dataset.train is None
    assert dataset.validation is None
    assert dataset.test.group_names == ("Avesta", "Oriya")
    with pytest.raises(ValueError, match="asked for its 'train' classes but holds only"):
        data.load("omniglot", data_dir=folder, parts=("train", "test"))


def test_unpacked_folders(archives, tmp_path):
    folder = tmp_path / "unpacked"
    for archive in archives.iterdir():
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
    dataset = data.load("omniglot", data_dir=folder)
    assert dataset.train.num_classes == 8
    packed = data.load("omniglot", data_dir=archives)
    assert dataset.test.class_names == packed.test.class_names
    np.testing.assert_array_equal(dataset.train.images, packed.train.images)


def test_small_background_archives_overlap(tmp_path):
    folder = tmp_path / "small"
    _archive(folder / "images_background_small1.zip", ("Greek", "Latin", "Korean"))
    _archive(folder / "images_background_small2.zip", ("Greek", "Latin"))
    dataset = data.load("omniglot", data_dir=folder)
    assert dataset.train.num_images + dataset.validation.num_images == 18
    _archive(folder / "images_background_small2.zip", ("Greek", "Latin"), seed=9)
    with pytest.raises(ValueError, match="expected equal copies"):
        data.load("omniglot", data_dir=folder)


def test_random_split(archives, monkeypatch):
    with pytest.raises(ValueError, match=r"needs all 1623 characters; .* holds 16"):
        data.load("omniglot", data_dir=archives, split="random")
    names = {f"A/character{i}": {} for i in range(1623)}
    parts = omniglot._random_split(names, archives, 0)
    assert [len(part) for part in parts.values()] == [1100, 100, 423]
    assert sorted(itertools.chain(*parts.values())) == sorted(names)
    assert omniglot._random_split(names, archives, 1) != parts
    with pytest.raises(ValueError, match="expected 'lake' or 'random'"):
        data.load("omniglot", data_dir=archives, split="vinyals")


def test_shrink_is_the_covered_area():
    ink = np.zeros((105, 105), bool)
    ink[:15, :15] = True  # 15 source pixels are 4 target pixels
    small = omniglot.shrink(ink)
    assert (small[:4, :4] == 255).all()
    assert small.sum() == 16 * 255
    grey = omniglot.shrink(np.random.default_rng(0).random((105, 105)) < 0.3)
    assert abs(grey.mean() / 255 - 0.3) < 0.02


def test_missing_folder_and_archives(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder; expected one that"):
        data.load("omniglot", data_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds nothing; expected images_back"):
        data.load("omniglot", data_dir=tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="metalearn data prepare omniglot"):
        data.load("omniglot")
    with pytest.raises(FileNotFoundError, match="no data_dir was given"):
        data.prepare("omniglot")


def test_truncated_archive(archives, cache):
    path = archives / "images_background.zip"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"not a readable zip .*truncated"):
        data.load("omniglot", data_dir=archives)
    assert not cache.exists()


def test_damaged_member_leaves_nothing_behind(archives, cache):
    path = archives / "images_evaluation_half.zip"
    content = bytearray(path.read_bytes())
    place = content.find(b"IDAT", len(content) // 3)
    content[place + 6] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"character\d+/.*cannot be read .*CRC"):
        data.load("omniglot", data_dir=archives)
    assert _files(cache) == []


def test_undecodable_image_is_named(archives, cache):
    bad = {"images_background/Greek/character01/bad_09.png": b"not an image"}
    _archive(archives / "images_background.zip", BACKGROUND, extra=bad)
    with pytest.raises(ValueError, match=r"bad_09\.png.*cannot be decoded"):
        data.load("omniglot", data_dir=archives)
    assert _files(cache) == []


def test_too_small_images(archives, cache):
    _archive(archives / "images_background.zip", BACKGROUND, side=20)
    with pytest.raises(ValueError, match=r"shape \(20, 20\); expected a square image"):
        data.load("omniglot", data_dir=archives)
    assert _files(cache) == []


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../x", "C:\\x.png"])
def test_paths_that_climb_out(archives, cache, name):
    _archive(archives / "images_background.zip", BACKGROUND, extra={name: b"x"})
    with pytest.raises(ValueError, match="leads out of the archive"):
        data.load("omniglot", data_dir=archives)
    assert not cache.exists()


def test_other_archive_under_the_right_name(archives):
    path = archives / "images_background.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="expected the layout of the original"):
        data.load("omniglot", data_dir=archives)


def test_interrupted_build_leaves_nothing_behind(archives, cache, monkeypatch):
    calls = []
    encode = builders._encode_png

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(builders, "_encode_png", stop)
    with pytest.raises(KeyboardInterrupt):
        data.load("omniglot", data_dir=archives)
    assert _files(cache) == []
    monkeypatch.undo()
    monkeypatch.setenv("METALEARN_CACHE", str(cache))
    assert data.load("omniglot", data_dir=archives).train.num_classes == 8


def test_two_builders_at_once(archives, cache, monkeypatch):
    """The one that finishes second finds the records in place, and uses them."""
    run = builders._run_builder

    def overtaken(source, scratch):
        monkeypatch.setattr(builders, "_run_builder", run)
        builders.prepare_records(source)
        return run(source, scratch)

    monkeypatch.setattr(builders, "_run_builder", overtaken)
    assert data.load("omniglot", data_dir=archives).train.num_classes == 8
    assert len(records.prepared_dirs("omniglot")) == 1
    assert not list(cache.glob(".building-*"))


def test_damaged_records_and_force(archives):
    expected = np.array(data.load("omniglot", data_dir=archives).train.images)
    (directory,) = records.prepared_dirs("omniglot")
    (pixels,) = directory.glob("decoded-train-*.npy")
    pixels.write_bytes(pixels.read_bytes()[:50])  # cut short: decoded again
    again = data.load("omniglot").train.images
    np.testing.assert_array_equal(again, expected)
    (file,) = directory.glob("*-train.array_record-*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"not as it was written: .*Delete .*load again"):
        data.load("omniglot")
    data.prepare("omniglot", data_dir=archives, force=True)
    np.testing.assert_array_equal(data.load("omniglot").train.images, expected)
    (directory / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        data.load("omniglot", data_dir=archives)


def test_download_only_with_tensorflow(archives, cache, monkeypatch):
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: name)

    def fetch(folder):
        for path in archives.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError("no route to host")

    monkeypatch.setattr(catalogue, "download_omniglot", fail)
    with pytest.raises(FileNotFoundError, match="no route to host"):
        data.load("omniglot")
    assert not (cache / "archives" / "omniglot").exists()
    monkeypatch.setattr(catalogue, "download_omniglot", fetch)
    assert data.load("omniglot").test.group_names == ("Angelic", "Tibetan")


def test_import_is_cheap_and_nothing_needs_tensorflow(archives, cache):
    code = (
        "import sys, metalearn.data as d\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"d.load('omniglot', data_dir={str(archives)!r})\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.data
@pytest.mark.slow  # half a minute; the next test reads one of both archives
def test_real_archives(shared_dir):
    dataset = data.load("omniglot", data_dir=shared_dir / "data" / "omniglot")
    train, validation, test = dataset.train, dataset.validation, dataset.test
    assert validation.group_names == (
        *("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"),
    )
    assert len(train.group_names) + len(validation.group_names) == 30
    assert train.num_classes + validation.num_classes == 964
    assert not set(train.class_names) & set(validation.class_names)
    for part in dataset.parts.values():
        check_real(part)
    check_real_evaluation(test, shared_dir)


def test_real_evaluation_archive(shared_dir, tmp_path):
    archive = shared_dir / "data" / "omniglot" / "images_evaluation_half.zip"
    (tmp_path / archive.name).symlink_to(archive)
    test = data.load("omniglot", data_dir=tmp_path, parts=("test",)).test
    check_real(test)
    check_real_evaluation(test, shared_dir)


def check_real(part):
    assert (part.counts == 20).all()
    assert part.image_shape == (28, 28, 1)
    assert 10 < part.images.mean() < 40  # ink is bright, paper is 0


def check_real_evaluation(test, shared_dir):
    """The published counts, and pixels of another copy of the drawings."""
    assert len(test.group_names) == 10
    assert test.num_classes == 346
    with np.load(shared_dir / "data" / "omniglot" / "omniglot_evaluation_half.npz") as twin:
        ink = np.unpackbits(twin["ink_bits"][:40], axis=1)[:, :11025]
    for image, pixels in zip(ink.reshape(-1, 105, 105), test.images, strict=False):
        np.testing.assert_array_equal(omniglot.shrink(image), pixels[..., 0])
