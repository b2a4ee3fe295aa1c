"""The application to mixtures of image sets."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from metalearn import apps, data
from metalearn.apps import MixedImages, Recipe, learners, sgd
from metalearn.apps.images.mixed import ImageSets
from metalearn.cli import console


def image_set(level, classes=4, side=16):
    rng = np.random.default_rng(level)
    pixels = rng.integers(level, level + 51, (classes * 4, side, side, 1), np.uint8)
    return data.from_arrays(pixels, np.repeat(np.arange(classes), 4))


def drawn(sampler, num, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.device_get(jax.jit(jax.vmap(sampler.sample, (None, 0)))(sampler.data, keys))


TINY = {
    "dataset": "glyphs+mine",
    "ways": 3,
    "queries": 2,
    "eval_queries": 2,
    "width": 4,
    "norm": "none",
    "styles": ("original", "inverted"),
}


def made():
    def one(level):
        part = image_set(level)
        return data.ImageDataset(
            name=f"set{level}", train=part, validation=part, test=part, info={}
        )

    return ImageSets({"glyphs": one(0), "mine": one(200)})


@pytest.mark.parametrize("name", ["maml", pytest.param("hsml", marks=pytest.mark.slow)])
def test_recipe_draws_and_learns(name, tmp_path):
    learner = learners.MAML(inner_opt=sgd(0.1))
    if name == "hsml":
        learner = learners.HSML(inner_opt=sgd(0.1), hidden=3, example_size=2)
    recipe = Recipe(app=MixedImages(**TINY), learner=learner)
    recipe.check()
    images = made()
    record = json.loads(json.dumps(recipe.app.describe(images)))
    assert record["name"] == "glyphs+mine"
    assert record["parts"]["test"]["classes"] == 8
    batch = drawn(recipe.app.tasks(images, "train"), 8)
    assert set(batch.info["family"]) == set(batch.info["style"]) == {0, 1}
    built = recipe.build(record)
    if name == "maml":
        app = dataclasses.replace(recipe.app, styles=("original",))
        assert "style" not in app.tasks(images, "test").first(jax.random.key(0)).info
        return
    variables = jax.jit(built.init)(jax.random.key(0), recipe.app.example(record))
    found = jax.jit(built.estimate)(variables, batch, key=jax.random.key(1))
    largest = lambda tree: max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(tree))
    assert np.isfinite(largest(found.grads))
    assert largest(found.grads["structure"]["features"]) > 0  # images shape the embedding
    predictor = recipe.predictor(record, variables, images)
    recipe.app.draw(tmp_path / "episode.png", record, images, predictor)
    assert (tmp_path / "episode.png").is_file()


def _folder(root, name, split):
    rng = np.random.default_rng(0)
    for number in range(6):
        (root / name / f"c{number}").mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"c{number}" / f"{i}.png")
    lists = {"train": ["c0", "c1"], "val": ["c2", "c3"], "test": ["c4", "c5"]}
    text = {"first": lists, "second": lists} if split else lists
    (root / name / "splits.json").write_text(json.dumps(text))


def test_recipe_finds_its_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    _folder(tmp_path, "one", split=False)
    _folder(tmp_path, "two", split=True)
    app = MixedImages(dataset="one+two:second", ways=2, shrink=2)
    images = app.load(str(tmp_path), ("test",))
    assert list(images.sets) == ["one", "two"]
    assert [part.images.shape[1:] for part in images.part("test")] == [(14, 14, 1)] * 2
    assert images.sets["two"].train is None
    assert app.describe(images)["parts"]["test"]["classes"] == 4
    app = dataclasses.replace(app, dataset="one+three")
    with pytest.raises(
        FileNotFoundError, match=r"'three'.*holds .*one, two.*--app.dataset one"
    ):
        app.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Give --data-dir DIR"):
        app.load(None)


def _animals(root):
    """Two folders: one tests a lion under a number, the other one trains on it."""
    lists = {
        "one": {
            "train": ["lion", "ant", "elk"],
            "val": ["cow", "pig"],
            "test": ["gnu", "x1"],
        },
        "two": {"train": ["c1", "c2"], "val": ["c3", "c4"], "test": ["n1", "c5"]},
    }
    for name, parts in lists.items():
        for number, names in enumerate(parts.values()):
            for place, class_name in enumerate(names):
                (root / name / class_name).mkdir(parents=True)
                pixels = np.full((8, 8), 50 * number + place, np.uint8)
                for i in range(3):
                    Image.fromarray(pixels + 10 * i).save(
                        root / name / class_name / f"{i}.png"
                    )
        words = {"n1": "lion, king of beasts", "c4": "gnu, wildebeest"}
        text = json.dumps({"split": parts, "names": words} if name == "two" else parts)
        (root / name / "splits.json").write_text(text)


def test_what_one_set_tests_is_in_no_training_part_of_another(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    _animals(tmp_path)
    app = MixedImages(dataset="one+two", ways=2, image_size=8)
    parts = ("train", "validation", "test")
    with pytest.raises(ValueError) as caught:
        app.load(str(tmp_path), parts)
    message = str(caught.value)
    assert "the name 'lion': 'lion' in train of one, 'n1' in test of two" in message
    assert "the name 'gnu': 'c4' in validation of two, 'gnu' in test of one" in message
    assert "--app.shared-classes leave_out" in message
    # A run of before is evaluated as it was; nothing is trained.
    whole = app.load(str(tmp_path), ("test",))
    assert "left_out" not in app.describe(whole)["parts"]["test"]
    kept = dataclasses.replace(app, shared_classes="keep").load(str(tmp_path), parts)
    assert [part.num_classes for part in kept.part("train")] == [3, 2]
    kept_record = app.describe(kept)
    assert "Kept although shared" in kept_record["sets"]["one"]["protocol"]

    app = dataclasses.replace(app, shared_classes="leave_out")
    with pytest.raises(ValueError, match="test of one has 2 classes and 1 without"):
        app.load(str(tmp_path), parts)  # one class is no task


def test_what_is_left_out_is_in_the_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    _animals(tmp_path)
    path = tmp_path / "two" / "splits.json"
    lists = json.loads(path.read_text())
    lists["names"] = {"n1": "lion, king of beasts"}
    path.write_text(json.dumps(lists))
    app = MixedImages(dataset="one+two", ways=2, image_size=8, shared_classes="leave_out")
    parts = ("train", "validation", "test")
    images = app.load(str(tmp_path), parts)
    assert images.part("train")[0].class_names == ("ant", "elk")
    record = json.loads(json.dumps(app.describe(images)))
    assert record["parts"]["train"]["left_out"] == 1
    assert record["parts"]["train"]["classes"] == 4
    assert "left_out" not in record["parts"]["test"]
    assert record["sets"]["one"]["left_out"] == {"train": ["lion"]}
    assert record["sets"]["two"]["left_out"] == {}
    assert "Left out: 1 of train (the name 'lion'" in record["sets"]["one"]["protocol"]
    console.say_data(record)
    assert "Left out, because other sets validate or test them: train 1" in (
        capsys.readouterr().out
    )
    # The images differ, so the fingerprint of a run's data does.
    kept = dataclasses.replace(app, shared_classes="keep")
    other = kept.describe(kept.load(str(tmp_path), parts))
    assert other["parts"]["train"]["sha256"] != record["parts"]["train"]["sha256"]
    assert other["parts"]["test"] == record["parts"]["test"]
    # The number of training classes is taken of what is left.
    fewer = dataclasses.replace(app, train_classes=2)
    assert fewer.load(str(tmp_path), parts).part("train")[0].class_names == ("ant", "elk")
    # Other words make other records: those of before are not taken from the cache.
    lists["names"] = {"n1": "ant, emmet"}
    path.write_text(json.dumps(lists))
    again = app.load(str(tmp_path), parts)
    assert again.part("train")[0].class_names == ("elk", "lion")
    lists["names"] = {"n1": "lion"}
    path.write_text(json.dumps(lists))
    # A test alone is as it is with training.
    assert app.describe(app.load(str(tmp_path), ("test",)))["parts"] == {
        "test": record["parts"]["test"]
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_classes": "leave"}, "expected one of refuse, leave_out, keep"),
        ({"dataset": "glyphs+glyphs"}, "different names"),
        ({"dataset": "glyphs+"}, "different names"),
        ({"split": "lake"}, "NAME:SPLIT"),
        ({"styles": ("old",)}, "expected some of original"),
        ({"styles": ()}, "expected some of original"),
        ({"channels": 3}, "expected one of 1"),
        ({"embedding": 8}, "read by learners that embed a task"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(
            app=MixedImages(**settings), learner=learners.MAML(inner_opt=sgd(0.1))
        ).check()


def test_registered_recipes_differ_in_the_learner_only():
    settings = [
        apps.find(f"mixed-{name}").recipe.settings()
        for name in ("maml", "mumomaml", "hsml")
    ]
    assert settings[0]["app"]["shared_classes"] == "leave_out"
    for name in ("styled-maml", "styled-hsml"):
        assert apps.find(name).recipe.app.shared_classes == "leave_out"
    for other in settings[1:]:
        changed = {k for k in other if other[k] != settings[0][k]}
        assert changed == {"learner"}
