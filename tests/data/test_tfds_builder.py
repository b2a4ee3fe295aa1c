"""A set of TFDS from the images to training, without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from tiny import plain

import metalearn as ml
from metalearn.data import builders, catalogue
from metalearn.data.records import VERSION

ROOT = Path(ml.__file__).parents[1]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 8, 8, 1), np.uint8)
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setenv("METALEARN_CACHE", str(root))
    return root


def toy():
    def part(*classes):
        return builders.PartSource(
            class_names=tuple(NAMES[c] for c in classes),
            class_groups=("all",) * len(classes),
            images=lambda i: iter(PIXELS[classes[i]]),
        )

    return builders.RecordSource(
        name="toy",
        config="plain-8x8",
        description="A toy.",
        image_shape=(8, 8, 1),
        parts={"train": part(0, 2, 4), "test": part(1, 3, 5)},
        info={"split": "by hand", "source": "here", "protocol": "by hand"},
    )


def check(dataset):
    for part, classes in (("train", (0, 2, 4)), ("test", (1, 3, 5))):
        found = dataset.part(part)
        assert found.class_names == tuple(NAMES[c] for c in classes)
        np.testing.assert_array_equal(
            found.images.reshape(3, 4, 8, 8, 1), PIXELS[list(classes)]
        )


@pytest.mark.parametrize("name", ["toy", "toy/plain-8x8", f"toy:{VERSION}"])
def test_a_set_of_this_library_is_a_set_of_tfds(cache, name):
    builders.prepare_records(toy())
    check(ml.data.load(f"tfds:{name}", data_dir=cache))
    # Other lists pool all examples.
    other = ml.data.load(
        f"tfds:{name}", data_dir=cache, splits={"test": ["ant"], "train": ["bee", "elk"]}
    )
    assert other.train.class_names == ("bee", "elk")
    np.testing.assert_array_equal(other.test.images, PIXELS[0])
    with pytest.raises(ValueError, match=r"24 images of 8x8x1 .* max_bytes=9"):
        ml.data.load(f"tfds:{name}", data_dir=cache, splits={"test": ["ant"]}, max_bytes=9)


def test_examples_without_a_label_are_no_class(cache):
    """TFDS marks the test sets of competitions by -1; the last class is not meant."""
    import tensorflow_datasets as tfds

    directory = builders.prepare_records(toy())
    (directory / "metadata.json").unlink()
    real = tfds.core.GeneratorBasedBuilder.as_data_source

    def hiding(self, split, decoders):
        rows = real(self, split=split, decoders=decoders)
        return [{**r, "label": -1 if r["label"] == 4 else r["label"]} for r in rows]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.DatasetBuilder, "as_data_source", hiding)
        dataset = ml.data.load("tfds:toy", data_dir=cache)
    names = [name for part in dataset.parts.values() for name in part.class_names]
    # Labels are in the order of the parts, so 4 is the second class of "test".
    assert sorted(names) == ["ant", "bee", "cat", "elk", "fox"]
    assert all((part.counts == 4).all() for part in dataset.parts.values())
    assert "4 examples without a label" in dataset.info["protocol"]


def test_images_of_floats_are_refused(cache):
    directory = builders.prepare_records(toy())
    (directory / "metadata.json").unlink()
    file = directory / "features.json"
    file.write_text(file.read_text().replace('"uint8"', '"float32"'))
    with pytest.raises(ValueError, match="are float32; expected uint8"):
        ml.data.load("tfds:toy", data_dir=cache)


def test_training_on_it(cache):
    builders.prepare_records(toy())
    dataset = ml.data.load("tfds:toy", data_dir=cache)
    rows = dataset.train.images.reshape(12, -1)  # the network takes vectors
    tasks = ml.data.few_shot(rows, dataset.train.labels, num_ways=3, num_query=2)
    learner = ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.01))
    result = ml.fit(
        ml.meta_trainer(learner, optax.adam(1e-2)),
        tasks,
        num_steps=2,
        tasks_per_step=2,
        key=jax.random.key(0),
        progress=False,
    )
    assert int(result.state.step) == 2


WITHOUT = """
import json, sys
import metalearn as ml
folder, cache = sys.argv[1:]
ml.data.prepare(folder, split="random")
found = ml.data.load("tfds:folder_images", data_dir=cache)
tasks = ml.data.few_shot(found.train, num_ways=3, num_query=1)
print(json.dumps([
    [module for module in sys.modules if module.split(".")[0] == "tensorflow"],
    {name: list(part.class_names) for name, part in found.parts.items()},
    tasks.sample.class_names,
]))
"""


def test_tensorflow_is_not_imported(tmp_path, cache):
    from PIL import Image

    folder = tmp_path / "images"
    for name, images in zip(NAMES, PIXELS, strict=True):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(folder / name / f"{i}.png")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(folder), str(cache)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    modules, parts, names = json.loads(run.stdout.splitlines()[-1])
    assert modules == []
    assert {part: len(found) for part, found in parts.items()} == {
        "train": 4,
        "validation": 1,
        "test": 1,
    }
    assert sorted(name for found in parts.values() for name in found) == sorted(NAMES)
    assert names == parts["train"]


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc", "..", "a/../b", "a/b/c", "*", "toy/*", "to?", "[t]oy", " toy"),
        *("toy:", "toy:1", "toy:latest", "huggingface:toy", "toy/", "~", "a\\b", "tøy"),
    ],
)
def test_names_that_are_paths_or_patterns_are_refused(cache, name):
    builders.prepare_records(toy())
    with pytest.raises(ValueError, match="expected tfds:NAME"):
        ml.data.load(f"tfds:{name}", data_dir=cache)


@pytest.mark.parametrize("name", ["", "  ", "folder:", "tfds:", "a\0b"])
def test_names_that_mean_nothing_are_refused(name):
    for function in (ml.data.load, ml.data.open_records, ml.data.prepare):
        with pytest.raises(ValueError, match=r"Unknown data set|was given to"):
            function(name)


@pytest.mark.parametrize("name", [None, 3, b"glyphs", ["glyphs"]])
def test_names_that_are_no_text_are_refused(name):
    with pytest.raises(TypeError, match="the name of a data set is"):
        ml.data.load(name)


def test_one_part_may_be_given_as_text(cache):
    folder = builders.prepare_records(toy())
    dataset = ml.data.load("tfds:toy", data_dir=folder.parents[2], parts="test")
    assert list(dataset.parts) == ["test"]


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "array_record"])
@pytest.mark.parametrize("damage", ["cut", "gone", "zero"])
def test_damaged_sets_end_in_one_message(cache, file, damage):
    directory = builders.prepare_records(toy())
    (directory / "metadata.json").unlink()  # as a set that others wrote
    for path in directory.glob(f"*{file}*"):
        if damage == "gone":
            path.unlink()
        else:
            data = path.read_bytes()
            cut = data[: len(data) // 3]
            path.write_bytes(cut if damage == "cut" else bytes(len(data)))
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        ml.data.load("tfds:toy", data_dir=cache)
    assert "'toy'" in str(raised.value) or "of toy" in str(raised.value)


def test_open_records_says_that_tfds_is_read_whole():
    with pytest.raises(ValueError, match=r"open_records; .* read whole"):
        ml.data.open_records("tfds:toy")


def test_a_failed_download_keeps_what_is_there(cache, monkeypatch):
    """Of two archives one is there, the second fails; then both come."""
    folder = cache / "archives" / "omniglot"
    folder.mkdir(parents=True)
    (folder / "images_background.zip").write_bytes(b"good")
    (folder / "notes.txt").write_bytes(b"mine")
    found = types_of_downloads(fails=True)
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr("metalearn.data.images.tfds_sets._tfds", lambda: found)
    with pytest.raises(FileNotFoundError, match="could not download it: no network"):
        catalogue._downloaded_omniglot({})
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert kept == {"images_background.zip": b"good", "notes.txt": b"mine"}
    found.download.DownloadManager.fails = False
    assert catalogue._downloaded_omniglot({}) == folder
    assert (folder / "images_evaluation.zip").read_bytes() == b"images_evaluation.zip"
    assert (folder / "images_background.zip").read_bytes() == b"good"
    # With both archives nothing is needed any more.
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    assert catalogue._downloaded_omniglot({}) == folder


def types_of_downloads(fails):
    """What `download_omniglot` uses of TFDS."""
    from types import SimpleNamespace

    class DownloadManager:
        def __init__(self, download_dir):
            self.folder = Path(download_dir)

        def download(self, wanted):
            if self.fails:
                raise OSError("no network")
            found = {}
            for name in wanted:
                found[name] = self.folder / f"{name}.tmp"
                found[name].write_bytes(name.encode())
            return found

    DownloadManager.fails = fails
    return SimpleNamespace(download=SimpleNamespace(DownloadManager=DownloadManager))
