"""Wrong labels: pools that learners are given, losses of rare classes, whole runs."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from few_labels import write_own_labels

import metalearn as ml
from metalearn import runs
from metalearn.apps import NoisyLabels, Recipe, learners, sgd
from metalearn.apps.base import Predictor
from metalearn.apps.labels import RECIPES, batches, pictures
from metalearn.apps.labels.balance import adjusted_loss, balanced_loss
from metalearn.cli import main as cli
from metalearn.data.noisy import Labelled

TINY = NoisyLabels(dataset="own", batch=8, clean_batch=4, eval_batch=5, hidden=6)
PLAIN = learners.NoAdaptation()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_own_labels(tmp_path_factory.mktemp("labels")))


@pytest.fixture(scope="module")
def data(folder):
    return dataclasses.replace(TINY, flips=0.5).load(folder)


def _drawn(app, data, part="train", num=40):
    sampler = app.tasks(data, part)
    keys = jax.random.split(jax.random.key(0), num)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sampler))(keys))


def _known(part, examples):
    """Whether each drawn image is of the part, under the label it has there."""
    rows = {(i.tobytes(), int(y)) for i, y in zip(part.images, part.labels)}
    images = np.rint(255 * examples.x).astype(np.uint8)
    flat = images.reshape((-1, *images.shape[2:]))
    return [(i.tobytes(), int(y)) in rows for i, y in zip(flat, examples.y.ravel())]


def test_labels_are_made_wrong_in_training_alone(data, folder):
    clean = TINY.load(folder)
    assert (data.train.labels != clean.train.labels).sum() == 12
    np.testing.assert_array_equal(data.train.truth, clean.train.labels)
    for part in ("clean", "validation", "test"):
        np.testing.assert_array_equal(
            getattr(data, part).labels, getattr(clean, part).labels
        )


def test_noisy_images_are_support_and_clean_ones_queries(data):
    tasks = _drawn(TINY, data)
    assert all(_known(data.train, tasks.support)) and all(_known(data.clean, tasks.query))
    assert tasks.support.mask.all() and tasks.query.mask.all()
    # No image twice in a batch.
    assert all(len(np.unique(x, axis=0)) == 8 for x in tasks.support.x.reshape(40, 8, -1))


@pytest.mark.parametrize(("pool", "size"), [("mixed", 30), ("right", 18), ("clean", 6)])
def test_pools_of_baselines(data, pool, size):
    app = dataclasses.replace(TINY, pool=pool)
    drawn = app._pool(data)
    assert len(drawn) == size
    tasks = _drawn(app, data)
    for part in (tasks.support, tasks.query):
        assert all(a or not m for a, m in zip(_known(drawn, part), part.mask.ravel()))
    assert app.describe(data)["counts"] == np.bincount(drawn.labels).tolist()
    # Fewer clean images than a batch has rows: some rows are masked.
    assert tasks.support.mask.sum(1).tolist() == [min(8, size)] * 40


def test_what_nobody_knows_cannot_be_trained_on(folder):
    app = dataclasses.replace(TINY, pool="right")
    with pytest.raises(ValueError, match="which labels of own are right is not known"):
        app.tasks(app.load(folder), "train")


def test_each_test_image_is_judged_once_in_batches_that_are_mixed(data):
    sampler = TINY.tasks(data, "test")
    assert sampler.sample.num_tasks == 3
    each = [
        sampler.sample.one(sampler.data, jnp.int32(i), jax.random.key(i)) for i in range(3)
    ]
    assert [int(task.query.mask.sum()) for task in each] == [4, 4, 4]
    shown = np.concatenate([np.asarray(t.query.x)[np.asarray(t.query.mask)] for t in each])
    assert len(np.unique(shown.reshape(12, -1), axis=0)) == 12
    y = np.concatenate([np.asarray(t.query.y)[np.asarray(t.query.mask)] for t in each])
    assert np.bincount(y).tolist() == [4, 4, 4]
    assert all(np.bincount(t.query.y).max() == 2 for t in each)
    # As many of each class as can be, though classes and tasks do not divide.
    part = Labelled(
        images=np.zeros((97, 1, 1, 1), np.float32),
        labels=np.repeat([0, 1], [87, 10]).astype(np.int32),
    )
    sampler = batches.judging(part, part, num_support=2, num_query=20, name="uneven")
    each = [sampler.sample.one(sampler.data, i, jax.random.key(i)) for i in range(5)]
    assert sorted(int(t.query.mask.sum()) for t in each) == [19, 19, 19, 20, 20]
    assert [int((t.query.y * t.query.mask).sum()) for t in each] == [2] * 5


def test_plain_training_sees_the_rows_that_learners_see(data):
    apps = [RECIPES[f"labels-{n}"].recipe.app for n in ("plain", "l2rw", "meta-weight-net")]
    assert apps[0] == apps[1] == apps[2]
    drawn = [_drawn(dataclasses.replace(TINY, pool=app.pool), data) for app in apps]
    np.testing.assert_array_equal(drawn[0].support.x, drawn[1].support.x)
    np.testing.assert_array_equal(drawn[0].query.x, drawn[1].query.x)


def test_few_of_many_images_are_drawn():
    part = Labelled(
        images=np.zeros((901, 1, 1, 1), np.float32), labels=np.arange(901, dtype=np.int32)
    )
    sampler = batches.training(part, part, num_support=9, num_query=10, name="many")
    task = sampler(jax.random.key(0))
    assert task.support.mask.all() and len(np.unique(task.query.y)) == 10


def test_a_long_tail_of_ones_own_labels(folder):
    app = dataclasses.replace(TINY, imbalance=4.0)
    assert app.describe(app.load(folder))["counts"] == [8, 4, 2]


# -- Losses of rare classes ------------------------------------------------------------


def _examples():
    outputs = jnp.asarray([[1.0, -1.0], [0.5, 0.2], [2.0, 9.0]])
    mask = jnp.asarray([True, True, False])
    return outputs, ml.Examples.of(jnp.zeros((3, 1)), jnp.asarray([0, 1, 1]), mask)


def test_weights_of_classes_by_hand():
    loss = balanced_loss([90, 10], beta=0.9)
    number = [(1 - 0.9**90) / 0.1, (1 - 0.9**10) / 0.1]
    weights = np.asarray(loss.weights)
    assert weights[1] / weights[0] == pytest.approx(number[0] / number[1])
    assert 0.9 * weights[0] + 0.1 * weights[1] == pytest.approx(1)
    outputs, examples = _examples()
    each = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(0.3))]
    expected = np.dot(weights, each) / 2
    assert float(loss(outputs, examples)) == pytest.approx(expected, rel=1e-5)
    # Equal classes, or beta 0: plain cross-entropy.
    for same in (balanced_loss([5, 5], beta=0.9), balanced_loss([90, 10], beta=0.0)):
        assert same.weights == pytest.approx((1, 1))


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("made", [balanced_loss([9, 1], beta=0.9), adjusted_loss([9, 1])])
def test_a_label_outside_the_classes_is_no_number(made, label):
    outputs = jnp.zeros((2, 2))
    examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.asarray([0, label]))
    assert np.isnan(made(outputs, examples))
    masked = ml.Examples.of(examples.x, examples.y, jnp.asarray([True, False]))
    value, slope = jax.value_and_grad(made)(outputs, masked)
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_adjusted_logits_by_hand():
    loss = adjusted_loss([90, 10])
    outputs, examples = _examples()
    shifted = np.asarray(outputs[:2]) + np.log([0.9, 0.1])[None]
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    expected = -(logs[0, 0] + logs[1, 1]) / 2
    assert float(loss(outputs, examples)) == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_training_does_not_judge():
    record = {"image_shape": [8, 8, 1], "class_names": ["a", "b"], "counts": [9, 1]}
    app = dataclasses.replace(TINY, pool="mixed", balance="logits")
    offers = [app.offers(PLAIN, record, evaluating=e) for e in (False, True)]
    assert offers[0]["loss_fn"] == adjusted_loss([9, 1])
    assert offers[1]["loss_fn"] is ml.losses.cross_entropy


# -- Settings and runs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "learner", "said"),
    [
        ({}, learners.ProtoNet(), "does not fit batches of labels"),
        ({}, learners.CAVIA(rate=1.0, num_steps=1), "does not fit batches of labels"),
        ({"flips": 1.2}, PLAIN, "app.flips is 1.2; expected a share"),
        ({"flips": -0.1}, PLAIN, "app.flips is -0.1"),
        ({"imbalance": 0.5}, PLAIN, "app.imbalance is 0.5"),
        ({"beta": 1.0, "balance": "weights", "pool": "mixed"}, PLAIN, "app.beta is 1.0"),
        ({"balance": "logits"}, PLAIN, "app.pool mixed, right or clean"),
        ({"channels": 2}, PLAIN, "app.channels is 2"),
        ({"classes": ("4",)}, PLAIN, "app.classes"),
        ({"dataset": "mnist", "classes": ("4",)}, PLAIN, "expected two classes or more"),
        ({"dataset": "mnist", "test_share": 0.9}, PLAIN, "a sum below 1"),
        ({"flip_kind": "pair"}, PLAIN, "app.flip_kind='pair' has no effect"),
        ({"clean_per_class": 3}, PLAIN, "app.clean_per_class=3 has no effect"),
        ({"width": 3}, PLAIN, "app.width=3 has no effect"),
        ({}, learners.L2RW(norm="batch"), "learner.norm='batch' has no effect"),
        ({"pool": "mixed"}, learners.L2RW(), "apart from the support sets"),
    ],
)
def test_settings_are_checked(settings, learner, said):
    app = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=said):
        Recipe(app=app, learner=learner).check()


def test_other_networks_and_learners_fit():
    for network in ("lenet", "conv4"):
        app = dataclasses.replace(NoisyLabels(), network=network)
        Recipe(app=app, learner=learners.L2RW()).check()
    Recipe(app=TINY, learner=learners.MAML(inner_opt=sgd(0.1), num_steps=1)).check()


def test_recipes_are_of_labels_and_name_learners_that_fit():
    for name, entry in RECIPES.items():
        assert name.startswith("labels-")
        entry.recipe.check()


def test_momentum_is_that_of_sgd():
    rate, grads = 0.1, {"w": jnp.ones(())}
    opt = ml.apps.Outer(name="sgd", rate=rate, schedule="constant", momentum=0.5).build(9)
    state, moved = opt.init(grads), []
    for _ in range(3):
        updates, state = opt.update(grads, state, grads)
        moved.append(float(updates["w"]))
    np.testing.assert_allclose(moved, [-0.1, -0.15, -0.175], rtol=1e-6)


def test_weights_of_a_picture_are_those_of_a_clean_batch(data):
    """Of a run without a function of the loss; 1 is the weight of plain training."""
    record = TINY.describe(data)
    model = TINY.offers(PLAIN, record, evaluating=True)["model"]
    variables = jax.jit(model.init)(jax.random.key(0), TINY.example(record).support.x)
    predictor = Predictor(None, None, None, "", variables)
    found = pictures.training_examples(data, model, predictor, batch=8, clean_batch=6)
    assert found.curve is None and [len(g) for g in found.groups.values()] == [12, 12]
    np.testing.assert_allclose(found.weights.reshape(3, 8).sum(1), 8, rtol=1e-5)
    # The clean batch is all clean images, so only the noisy ones vary.
    rows = np.random.default_rng(0).permutation(24)[:8]
    images = lambda part: jnp.asarray(part.images, jnp.float32) / 255
    task = ml.Task(
        support=ml.Examples.of(images(data.train.rows(rows)), data.train.labels[rows]),
        query=ml.Examples.of(images(data.clean), data.clean.labels),
    )
    expected = jax.jit(
        lambda task: ml.clean_weights(
            model, variables, task, loss_fn=ml.losses.cross_entropy
        )
    )(task)
    np.testing.assert_allclose(found.weights[:8], 8 * expected, rtol=1e-3, atol=1e-4)


def test_a_run_from_the_command_line_is_judged_and_drawn(folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--app.dataset", "own", "--app.flips", "0.5", "--app.hidden", "6"]
    options += ["--app.batch", "8", "--app.clean-batch", "4", "--app.eval-batch", "5"]
    options += ["--steps", "2", "--validate-every", "2", "--log-every", "1"]
    options += ["--checkpoint-every", "2", "--devices", "1"]
    command = ["train", "labels-meta-weight-net", "--data-dir", folder, "--out", str(out)]
    assert cli.main([*command, *options]) == 0
    said = capsys.readouterr().out
    assert "50.0% of the labels wrong" in said and "macro_accuracy" in said
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {"query/accuracy", "query/macro_accuracy"} <= found.keys()
    assert found["num_tasks"] == 3 and not found["transductive"]
    assert (out / "episode.png").stat().st_size > 10_000
    run = runs.load(out)
    result = runs.judge(run, runs.best(run)[0], run.recipe.app.load(folder))
    assert result.summary()["query/accuracy"] == pytest.approx(found["query/accuracy"])
