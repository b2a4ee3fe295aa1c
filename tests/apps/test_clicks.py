"""Clicks as tasks of items: the split, the phases, settings, a run and its benchmark."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from few_ratings import write_own_ratings

import metalearn as ml
from benchmarks import warm_up
from metalearn import runs
from metalearn.apps import ItemClicks, Recipe, learners, sgd
from metalearn.apps.recommendation import RECIPES
from metalearn.cli import main as cli
from metalearn.runs import folder as run_folder

TINY = ItemClicks(
    dataset="own",
    validation_items=0.25,
    test_items=0.25,
    shots=2,
    eval_shots=2,
    most_shots=6,
    eval_queries=3,
    dim=3,
    widths=(4,),
)

ROWS = ("user", "item", "history")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_own_ratings(tmp_path_factory.mktemp("clicks")))


@pytest.fixture(scope="module")
def data(folder):
    return TINY.load(folder)


def _every(app, data, part):
    every = ml.tasks.in_order(app.tasks(data, part))
    return jax.tree.map(np.asarray, next(iter(every.batches(every.num_tasks, 0))))


def test_parts_have_different_items_and_clicks_are_high_ratings(data):
    ratings, seen = data.ratings, []
    one = {(u, i): r for u, i, r in zip(data.user, ratings.item, ratings.rating)}
    for number, part in enumerate(("train", "validation", "test")):
        batch = _every(TINY, data, part)
        items = batch.info["task"]
        assert (data.item_part[items] == number).all()
        seen.append(set(items.tolist()))
        assert (batch.query.x["item"] == -1).all() == (part != "train")
        for t, item in enumerate(items):
            for user, y in zip(batch.query.x["user"][t], batch.query.y[t, :, 0]):
                assert user == -1 or y == (one[user, item] >= 4)
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_numbers_of_training_are_all_used(data):
    train = data.item_part[data.ratings.item] == 0
    for numbers, count in ((data.user, data.num_users), (data.item, data.num_items)):
        assert sorted(set(numbers[train].tolist())) == list(range(count))
    assert (data.item[~train] == -1).all()


def test_phases_have_the_same_queries_and_support_sets_grow(data):
    batches = [
        _every(dataclasses.replace(TINY, eval_shots=num), data, "test") for num in (2, 4, 6)
    ]
    for few, more in itertools.pairwise(batches):
        for a, b in zip(jax.tree.leaves(few.query), jax.tree.leaves(more.query)):
            np.testing.assert_array_equal(a, b)
        num = few.support.y.shape[1]
        np.testing.assert_array_equal(few.support.y, more.support.y[:, :num])
        assert few.support.mask.all() and more.support.mask.all()


def test_shapes_follow_from_the_record(data):
    record = json.loads(json.dumps(TINY.describe(data)))
    like = jax.tree.map(lambda a: (a.shape, a.dtype), TINY.example(record))
    task = TINY.tasks(data, "train").first(jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), task) == like


@pytest.mark.parametrize(
    ("settings", "learner", "said"),
    [
        ({}, learners.ProtoNet(), "does not fit a network of clicks"),
        ({"widths": ()}, learners.NoAdaptation(), "app.widths is"),
        ({"eval_shots": 9}, learners.NoAdaptation(), "app.most_shots is 6"),
        ({"positive": 9.0}, learners.NoAdaptation(), "app.positive is 9.0"),
        ({"positive": 1.0}, learners.NoAdaptation(), "app.positive is 1.0"),
        ({"test_items": 0.9}, learners.NoAdaptation(), "leave none of the items"),
        ({"shots": 0}, learners.NoAdaptation(), "app.shots is 0"),
        ({"network": "fm", "widths": (9,)}, learners.NoAdaptation(), "has no effect"),
        ({"network": "dcn"}, learners.NoAdaptation(), "app.network is 'dcn'"),
        ({"history": 9}, learners.NoAdaptation(), "app.history=9 has no effect"),
        (
            {"network": "din"},
            learners.MetaEmbedding(inner_opt=sgd(0.1), pretrain_steps=2, apart=0.5),
            "learner.apart is 0.5 with app.network 'din'",
        ),
    ],
)
def test_settings_are_checked(settings, learner, said):
    app = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=said):
        Recipe(app=app, learner=learner).check()


def test_histories_are_clicks_of_training_and_of_the_split(data):
    app = dataclasses.replace(TINY, network="din", history=4)
    high = data.ratings.rating >= 4
    clicked = set(zip(data.user[high].tolist(), data.item[high].tolist()))
    for part in ("train", "test"):
        x = _every(app, data, part).query.x
        for user, item, history in zip(*map(np.concatenate, map(x.get, ROWS))):
            there = history[history >= 0].tolist()
            assert all((user, other) in clicked for other in there) and item not in there
        assert (x["history"] >= 0).any()
    others = dataclasses.replace(app, split_number=2).tasks(data, "train")
    one = app.tasks(data, "train")
    assert (others.data["x"]["history"] != one.data["x"]["history"]).any()


def test_an_interest_network_is_built_and_warmed_up(data):
    app = dataclasses.replace(TINY, network="din", history=4, attention=5)
    record = json.loads(json.dumps(app.describe(data)))
    like = jax.tree.map(lambda a: (a.shape, a.dtype), app.example(record))
    tasks = app.tasks(data, "train")
    task = tasks.first(jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), task) == like
    options = app.offers(learners.NoAdaptation(), record, evaluating=False)
    # One step of the base model, then two of the generator.
    learner = ml.meta_embedding(inner_opt=optax.sgd(0.1), pretrain_steps=1, **options)
    trainer = ml.meta_trainer(learner, optax.adam(0.01))
    found = ml.fit(trainer, tasks, key=jax.random.key(1), num_steps=3, tasks_per_step=2)
    frozen = found.state.variables.state["frozen"]
    assert frozen["of_both"].shape == (3, 5)
    adapted = learner.adapt(found.state.variables, task.support)
    assert np.isfinite(learner.predict(adapted, task.query.x)).all()
    assert not np.allclose(adapted.params["new_item"], frozen["new_item"])


def test_too_few_ratings_of_items_are_said(data):
    app = dataclasses.replace(TINY, most_shots=500)
    with pytest.raises(ValueError, match=r"none of .* groups has .*--app.eval-queries"):
        app.tasks(data, "test")


def test_a_run_is_drawn_judged_again_and_compared_in_all_phases(
    folder, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    sizes = ("shots", "eval-shots", "most-shots", "eval-queries", "dim")
    options = [f"--app.{name}" for name in sizes]
    values = ["2", "2", "6", "3", "3"]
    own = [word for pair in zip(options, values) for word in pair]
    command = ["train", "clicks-meta-embedding", "--data-dir", folder, "--out", str(out)]
    command += ["--app.dataset", "own", "--app.validation-items", "0.25", *own]
    command += ["--app.network", "fm", "--steps", "4", "--learner.pretrain-steps", "2"]
    command += ["--tasks-per-step", "3", "--validate-every", "4", "--log-every", "1"]
    command += ["--validation-tasks", "2", "--test-tasks", "2", "--devices", "1"]
    assert cli.main(command) == 0, capsys.readouterr()
    assert (out / "episode.png").stat().st_size > 5_000
    capsys.readouterr()
    with pytest.raises(SystemExit, match="when no generator was trained yet"):
        early = runs.best(run_folder.load(out))
        early[0].state["step"] = 2
        monkeypatch.setattr(warm_up.runs, "best", lambda run: early)
        warm_up.judged([out], (1,), folder)
    monkeypatch.undo()
    found = warm_up.judged([out], (1,), folder)
    assert list(found["phases"]) == ["cold", "warm a", "warm b", "warm c"]
    for phase, rows in found["phases"].items():
        assert list(rows) == list(warm_up.FIRSTS)
        for first, row in rows.items():
            assert row["steps"] == [0 if phase == "cold" else 1]
            assert ("auc_gain" in row) == (first != "generated")
    row = {
        **{"name": "own", "about": "few", "seeds": 1, "overrides": ["app.network=fm"]},
        "networks": {"fm": {**found, "settings": {}}},
    }
    assert len([line for line in warm_up.table_rows(row) if line.startswith("| fm")]) == 4


def test_validation_chooses_the_number_of_steps():
    y = np.array([[[1.0], [0.0]], [[0.0], [1.0]]])
    part = ml.Examples(x=y, y=y, mask=np.ones((2, 2), bool))
    validation = ml.Task(support=part, query=part)
    test = ml.Task(support=part, query=dataclasses.replace(part, y=1 - y))
    # Of 1, 5 and 20 steps, 5 are right for validation and wrong for the test.
    predict = [lambda v, tasks, s=s: s * (2 * y[..., 0] - 1) for s in (0.0, 3.0, -3.0)]
    found = warm_up._judge(predict, (1, 5, 20), None, validation, test)
    assert found["steps"] == 5 and found["auc"] == 0.0
    np.testing.assert_allclose(found["losses"], np.logaddexp(0, 3.0))


def test_the_rate_falls_over_both_phases_as_the_recipe_says():
    """What the documents of the learner say of its outer optimiser, in numbers."""
    recipe = RECIPES["clicks-meta-embedding"].recipe
    first, rate = recipe.learner.pretrain_steps, recipe.outer.rate
    opt = recipe.outer_opt()

    def step(state, grad):
        update, state = opt.update(grad, state)
        return state, -update / rate

    # The gradients of the generator are 0 in the first phase.
    grads = (jnp.arange(recipe.steps) >= first).astype(jnp.float32)
    _, sizes = jax.jit(lambda g: jax.lax.scan(step, opt.init(g[0]), g))(grads)
    sizes = np.asarray(sizes)
    assert (sizes[:first] == 0).all() and 2.5 < sizes.max() < 3
    assert sizes[first : first + 50].argmax() < 20 and sizes[-1] < 0.01
    schedule = optax.cosine_decay_schedule(rate, recipe.steps)
    assert float(schedule(first)) / rate == pytest.approx(0.79, abs=0.005)


def test_pooled_metrics_by_hand():
    y = np.array([[[1.0], [0.0]], [[1.0], [1.0]]])
    mask = np.ones((2, 2), bool)
    part = ml.Examples(x=y, y=y, mask=mask)
    tasks = ml.Task(support=part, query=part)
    logits = np.array([[0.5, 1.0], [2.0, 0.0]])
    assert warm_up.auc(logits, tasks) == pytest.approx(1 / 3)
    chance = 1 / (1 + np.exp(-logits))
    first = -(np.log(chance[0, 0]) + np.log(1 - chance[0, 1])) / 2
    assert warm_up.losses(logits, tasks)[0] == pytest.approx(first)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"networks": ()}, "expected some"),
        ({"steps": (0,)}, "--steps is"),
        ({"seeds": 0}, "--seeds is"),
        ({"json": "/"}, "a folder"),
        ({"set": ("app.most_shots=30",)}, "three times as many"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(monkeypatch, asked, said):
    monkeypatch.setattr(warm_up._runs, "trained", lambda *args: pytest.fail("it trains"))
    with pytest.raises(SystemExit, match=said):
        warm_up.WarmUp(**asked).run_benchmark()


def test_learners_that_know_no_generator_fit_too():
    app = dataclasses.replace(TINY, network="fm", widths=(64, 64))
    Recipe(app=app, learner=learners.MeLU(inner_opt=sgd(0.1))).check()


def test_a_part_with_one_item_is_refused_before_training(folder, tmp_path, capsys):
    command = [
        "train",
        "clicks-meta-embedding",
        "--data-dir",
        folder,
        "--app.dataset",
        "own",
    ]
    command += ["--app.shots", "2", "--app.eval-shots", "2", "--app.most-shots", "6"]
    command += ["--app.eval-queries", "3", "--app.test-items", "0.03", "--devices", "1"]
    command += ["--app.validation-items", "0.4", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "has 1 task; expected 2 or more" in said or "test 0" in said, said
    assert not (tmp_path / "run").exists()
