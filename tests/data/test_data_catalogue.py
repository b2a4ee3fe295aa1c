"""Names, the listing, the cache's place, and prepared TFDS sets."""

import io

import numpy as np
import pytest
from PIL import Image

from metalearn import data
from metalearn.data import builders, records
from metalearn.data.images import splits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("METALEARN_CACHE", str(root))
    return root


def test_unknown_names():
    with pytest.raises(ValueError, match="Did you mean 'omniglot'"):
        data.load("omnigot")
    with pytest.raises(ValueError, match="expected one of glyphs, omniglot, folder:PA"):
        data.load("zzz")
    with pytest.raises(ValueError, match="Did you mean 'glyphs'"):
        data.prepare("glyph")
    with pytest.raises(TypeError, match="embedded and takes neither"):
        data.load("glyphs", split="x")
    with pytest.raises(ValueError, match="TFDS prepares its own sets"):
        data.prepare("tfds:mnist")


def test_listing_of_an_empty_cache(cache):
    rows = {row.name: row for row in data.available()}
    assert set(rows) == {"glyphs", "omniglot"}
    for row in rows.values():
        assert not row.prepared
        assert row.classes is None
        assert row.images is None
        assert row.needs
        assert row.description
    assert not cache.exists()


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.delenv("METALEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert records.cache_root() == tmp_path / "xdg" / "metalearn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records.cache_root() == tmp_path / ".cache" / "metalearn"


def _source(**changes):
    part = builders.PartSource(
        class_names=("a", "b"),
        class_groups=("g", "g"),
        images=lambda index: iter([np.full((8, 8, 1), index, np.uint8)] * 2),
    )
    fields = {"class_names": part.class_names, "images": part.images, **changes}
    part = builders.PartSource(class_groups=part.class_groups, **fields)
    return builders.RecordSource(
        name="toy",
        config="plain",
        description="A toy.",
        image_shape=(8, 8, 1),
        parts={"train": part},
        info={"split": "none"},
    )


def test_records_are_an_ordinary_tfds_set(cache):
    import tensorflow_datasets as tfds

    directory = builders.prepare_records(_source())
    assert directory == cache / "toy" / "plain" / records.VERSION
    rows = tfds.builder_from_directory(directory).as_data_source(split="train")
    assert len(rows) == 4
    assert rows[3]["image"].shape == (8, 8, 1)
    assert rows[3]["label"] == 1
    loaded = records.load_records(directory)
    assert loaded.name == "toy"
    assert loaded.train.images[:, 0, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a", "a")}, "'a' of 'toy' is in 'train' and again"),
        ({"class_names": ("a", "b\nc")}, "expected text without line breaks"),
        ({"images": lambda i: iter(())}, "'a' of 'toy' .train. has no image"),
        ({"images": lambda i: iter([np.zeros((8, 8, 1))])}, "is float64 .8, 8, 1."),
        ({"images": lambda i: iter([np.zeros((9, 8, 1), np.uint8)])}, "9, 8, 1"),
    ],
)
def test_bad_sources_leave_nothing_behind(cache, changes, message):
    with pytest.raises(ValueError, match=message):
        builders.prepare_records(_source(**changes))
    assert list(cache.rglob("*")) == []


def test_stale_scratch_folders_go(cache):
    import os

    for name, age in ((".building-old", 2 * 86400), (".building-new", 60)):
        (cache / name).mkdir(parents=True)
        then = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (then, then))
    builders.prepare_records(_source())
    assert [p.name for p in cache.glob(".building-*")] == [".building-new"]


def test_random_split_is_of_the_classes_only():
    names = [f"c{i}" for i in range(100)]
    parts = splits.random_split(names, 0)
    assert [len(part) for part in parts.values()] == [64, 16, 20]
    assert splits.random_split(names[::-1], 0) == parts
    assert [len(p) for p in splits.random_split("abc", 0).values()] == [1, 1, 1]
    with pytest.raises(ValueError, match="expected at least 3"):
        splits.random_split("ab", 0)


@pytest.fixture
def tfds_dir(tmp_path):
    """A small set in the array_record format, as TFDS would have prepared it."""
    import tensorflow_datasets as tfds

    def png(i):
        stream = io.BytesIO()
        Image.fromarray(np.full((6, 6), i, np.uint8)).save(stream, "png")
        stream.seek(0)
        return stream

    with tfds.core.registered.skip_registration():

        class Shapes(tfds.core.GeneratorBasedBuilder):
            """Shapes."""

            name = "shapes"
            VERSION = tfds.core.Version("1.0.0")
            code_path = None
            url_infos = None

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(
                        {
                            "picture": tfds.features.Image(shape=(6, 6, 1)),
                            "label": tfds.features.ClassLabel(names=list("vwxyz")),
                        }
                    ),
                )

            def _split_generators(self, dl_manager):
                return {
                    "train": self._generate_examples(0),
                    "test": self._generate_examples(1),
                }

            def _generate_examples(self, offset):
                for i in range(10):
                    yield i, {"picture": png(10 * (i % 5) + offset), "label": i % 5}

    folder = tmp_path / "tfds"
    Shapes(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_set(tfds_dir, monkeypatch):
    dataset = data.load("tfds:shapes", data_dir=tfds_dir)
    assert [p.num_classes for p in dataset.parts.values()] == [3, 1, 1]
    for part in dataset.parts.values():
        assert (part.counts == 4).all()
        for image, label in zip(part.images, part.labels, strict=True):
            expected = "vwxyz".index(part.class_names[label])
            assert image[0, 0, 0] // 10 == expected
    assert "Not a published few-shot split" in dataset.info["protocol"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    chosen = data.load("tfds:shapes", splits={"train": ["z", "v"], "test": ["w"]})
    assert chosen.train.class_names == ("v", "z")
    assert chosen.validation is None
    assert data.load("tfds:shapes:1.0.0", seed=1).train.num_classes == 3
    with pytest.raises(ValueError, match=r"1 classes .*\['q'\]"):
        data.load("tfds:shapes", splits={"train": ["q"]})
    with pytest.raises(FileNotFoundError, match=r"'shapes:2\.0\.0' is not prepared"):
        data.load("tfds:shapes:2.0.0")


def test_tfds_set_that_is_not_prepared(tmp_path, tfds_dir):
    with pytest.raises(FileNotFoundError, match=r"not prepared .*metalearn-jax\[tf\]"):
        data.load("tfds:mnist", data_dir=tmp_path)
    info = tfds_dir / "shapes" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(FileNotFoundError, match=r"only as \['tfrecord'\] prepared"):
        data.load("tfds:shapes", data_dir=tfds_dir)
