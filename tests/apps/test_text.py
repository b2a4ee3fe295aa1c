"""Few-shot text: what a learner is given, and where it starts from."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few_texts import WORDS, sentences, write_own, write_wordllama

import metalearn as ml
from metalearn.apps import Recipe, learners, sgd
from metalearn.apps.text import RECIPES, FewShotText, few_shot
from metalearn.core import optional
from metalearn.models.residual import ResidualMLP

TINY = FewShotText(dataset="own", dim=32, ways=2, queries=2, eval_queries=2, widths=(8,))
PROTONET = learners.ProtoNet(scale=10.0)


@pytest.fixture
def folder(tmp_path):
    return str(write_own(tmp_path / "texts"))


@pytest.fixture
def data(folder):
    return TINY.load(folder)


def first_task(app, data, part="test"):
    return app.tasks(data, part).first(jax.random.key(3))


# -- Where learners start --------------------------------------------------------------


def test_protonet_starts_as_the_nearest_centroid(data):
    app = dataclasses.replace(TINY, shots=2)
    recipe, record = Recipe(app=app, learner=PROTONET), app.describe(data)
    task = first_task(app, data)
    learner = recipe.build_judged(record)
    variables = learner.init(jax.random.key(0), task)
    logits = learner.predict(learner.adapt(variables, task.support), task.query.x)
    x, y = np.float64(task.support.x), np.asarray(task.support.y)
    means = np.stack([x[y == way].mean(0) for way in range(2)])
    far = ((np.float64(task.query.x)[:, None] - means[None]) ** 2).sum(-1)
    # But for what is common to all classes of a query.
    np.testing.assert_allclose(
        logits[:, 0] - logits[:, 1], -10 * (far[:, 0] - far[:, 1]), rtol=1e-4, atol=1e-4
    )


def test_maml_starts_with_products_with_the_means_of_classes(data):
    """One step of a head of zero: its weights become a mean minus the mean of all."""
    maml = learners.MAML(inner_opt=sgd(3.0), num_steps=1)
    recipe, record = Recipe(app=TINY, learner=maml), TINY.describe(data)
    task = first_task(TINY, data)
    learner = recipe.build_judged(record)
    variables = learner.init(jax.random.key(0), task)
    adapted = learner.adapt(variables, task.support)
    logits = learner.predict(adapted, task.query.x)
    x, y = np.float64(task.support.x), np.eye(2)[np.asarray(task.support.y)]
    weights = 3.0 * x.T @ (y - 1 / 2) / len(x)
    expected = np.float64(task.query.x) @ weights  # the offsets are equal for two classes
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_network_drops_in_training_alone_and_learns_from_the_start():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    model = ml.from_linen(ResidualMLP(None, (7, 3), 0.5))
    variables = model.init(jax.random.key(0), x)
    np.testing.assert_array_equal(model.apply(variables, x)[0], x)

    def loss(params, train):
        out, _ = model.apply(
            ml.Variables(params=params, state={}), x, key=jax.random.key(1), train=train
        )
        return jnp.square(out - 1).sum()

    grads = jax.grad(loss)(variables.params, False)
    assert jnp.abs(grads["out_0"]["kernel"]).max() > 0
    assert jnp.abs(grads["out_1"]["kernel"]).max() > 0
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, variables.params, grads)
    assert loss(moved, False) < loss(variables.params, False)
    assert loss(moved, True) != loss(moved, False)
    # By hand, without dropping.
    h = x
    for block in range(2):
        inner, outer = moved[f"in_{block}"], moved[f"out_{block}"]
        hidden = jnp.maximum(h @ inner["kernel"] + inner["bias"][None], 0)
        h = h + hidden @ outer["kernel"]
    np.testing.assert_allclose(loss(moved, False), jnp.square(h - 1).sum(), rtol=1e-4)


def test_the_head_of_the_network_is_zero():
    x = jnp.ones((2, 6))
    model = ml.from_linen(ResidualMLP(3, (4,)))
    variables = model.init(jax.random.key(0), x)
    np.testing.assert_array_equal(model.apply(variables, x)[0], jnp.zeros((2, 3)))
    assert variables.params["head"]["kernel"].shape == (6, 3)
    for settings in ({"dropout": 1.0}, {"dropout": -0.1}, {"widths": (0,)}):
        with pytest.raises(ValueError, match=next(iter(settings))[:5]):
            ml.from_linen(ResidualMLP(**settings)).init(jax.random.key(0), x)


# -- Data ------------------------------------------------------------------------------


def test_tasks_are_of_the_classes_of_their_part(data):
    app = dataclasses.replace(TINY, eval_ways=2, eval_shots=3)
    train, test = first_task(app, data, "train"), first_task(app, data, "test")
    assert train.support.x.shape == (2, 32) and train.query.x.shape == (4, 32)
    assert test.support.x.shape == (6, 32) and test.query.x.shape == (4, 32)
    rows = {row.tobytes() for row in data.parts["test"].images}
    assert {np.asarray(row).tobytes() for row in test.query.x} <= rows
    sampler = app.tasks(data, "test")
    assert sampler.sample.class_names == ("limit", "topup")
    assert sampler.name == "own 01 test 2-way 3-shot"
    like = jax.tree.map(lambda leaf: leaf.shape, app.example(app.describe(data)))
    del train.info["num_ways"]
    assert like == jax.tree.map(lambda leaf: leaf.shape, train)


def test_vectors_are_fitted_to_the_training_texts(folder, data):
    again = TINY.load(folder, ("test",))
    assert list(again.parts) == ["test"]
    np.testing.assert_array_equal(again.parts["test"].images, data.parts["test"].images)
    texts = data.texts.parts
    expected = few_shot.hashed_texts(texts["train"].texts, dim=32)(texts["test"].texts)
    np.testing.assert_array_equal(data.parts["test"].images, expected)


def test_the_record_tells_other_data_apart(folder, data, tmp_path):
    record = TINY.describe(data)
    assert json.loads(json.dumps(record)) == record
    assert record["num_features"] == 32 and record["num_classes"] == 3
    assert record["parts"]["train"]["classes"] == 3
    rows = [("my text", label) for label in ("lost", "pin", "rate", "fee", "cash", "limit")]
    other = TINY.load(str(write_own(tmp_path / "b", rows=[*rows, ("another", "topup")])))
    assert TINY.describe(other)["parts"]["train"] != record["parts"]["train"]


def test_word_vectors_are_features_too(folder, tmp_path, monkeypatch):
    write_wordllama(tmp_path / "wordllama")
    (tmp_path / "wordllama" / "__init__.py").touch()
    monkeypatch.setitem(optional.PACKAGES, "wordllama", ("wordllama", "text"))
    monkeypatch.syspath_prepend(str(tmp_path))
    app = dataclasses.replace(TINY, features="wordllama", dim=3)
    with pytest.warns(UserWarning, match="do not know the language"):
        data = app.load(folder)  # the tiny vocabulary has eight letters
    assert data.parts["test"].images.shape == (12, 3)
    record = app.describe(data)
    assert record["features"]["name"] == "wordllama" and len(record["features"]["sha256"])


def test_too_many_numbers_are_refused(folder, monkeypatch):
    monkeypatch.setattr(few_shot, "_MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"length 32 of 18 texts take .* Lower app.dim"):
        TINY.load(folder)


# -- Settings --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid(name):
    recipe = RECIPES[name].recipe
    recipe.check()
    settings = json.loads(json.dumps(recipe.settings()))
    assert Recipe.from_settings(settings, {"text": FewShotText}) == recipe
    record = {"num_features": 8, "num_classes": 25}
    jax.eval_shape(lambda: recipe.app.example(record))
    recipe.check_builds(record)


@pytest.mark.parametrize(
    ("app", "learner", "message"),
    [
        ({"ways": 1}, PROTONET, "app.ways is 1; expected 2 or more"),
        ({"eval_ways": 1}, PROTONET, "app.eval_ways is 1; expected 2 or more"),
        (
            {"eval_ways": 6},
            learners.MAML(inner_opt=sgd(0.1)),
            "Train with --app.ways 6",
        ),
        ({"dropout": 1.0}, PROTONET, "app.dropout is 1.0; expected a share below 1"),
        ({"dropout": -0.5}, PROTONET, "app.dropout is -0.5"),
        ({"widths": (0,)}, PROTONET, "app.widths is .* residual blocks"),
        ({"widths": (), "dropout": 0.2}, PROTONET, "read by app.widths of one block"),
        ({"dataset": "banking"}, PROTONET, "expected one of banking77, hwu64"),
        ({"features": "bert"}, PROTONET, "expected one of hashed, wordllama"),
        ({"shots": 0}, PROTONET, "app.shots is 0"),
        ({"dim": 0}, PROTONET, "app.dim is 0"),
        ({"dim": 1}, PROTONET, "app.dim is 1; .* hashed vectors from 2 to 65536"),
        ({"dim": 512, "features": "wordllama"}, PROTONET, "wordllama vectors .* 256"),
        ({}, learners.RNN(hidden=0), "hidden is 0"),
        ({}, learners.MANN(decay=2.0), "decay is 2.0"),
        ({}, learners.EMO(recall=500), "recall is 500; expected at most 200"),
        ({}, learners.ProtoNet(norm="batch"), "networks with batch norm"),
        ({"dropout": 0.2}, learners.CAVIA(), "without layers of their own"),
        ({"widths": (3,)}, learners.LEO(), "learners of a model or an encoder"),
    ],
)
def test_nonsense_is_refused(app, learner, message):
    with pytest.raises(ValueError, match=message):
        Recipe(app=FewShotText(**app), learner=learner).check()


def test_a_class_with_one_text_is_named(tmp_path):
    rows = [
        (t, label) for label in WORDS for t in sentences(label, 1 + 5 * (label != "pin"))
    ]
    data = TINY.load(write_own(tmp_path, rows=rows))
    with pytest.raises(ValueError, match="class pin has 1 examples, but support and query"):
        TINY.tasks(data, "train")


def test_settings_without_effect_are_named():
    assert FewShotText().unread(PROTONET) == {}
    assert set(FewShotText().unread(learners.LEO())) == {"widths", "dropout"}
    assert set(FewShotText().unread(learners.CAVIA())) == {"dropout"}
    Recipe(app=FewShotText(), learner=learners.CAVIA()).check()
    Recipe(app=FewShotText(eval_ways=20), learner=PROTONET).check()
