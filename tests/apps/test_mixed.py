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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
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
    for other in settings[1:]:
        changed = {k for k in other if other[k] != settings[0][k]}
        assert changed == {"learner"}
