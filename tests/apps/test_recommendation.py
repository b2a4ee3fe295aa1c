"""Few ratings: what a learner is given in each state, and which items are asked about."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from few_ratings import write_own_ratings

import metalearn as ml
from metalearn import runs
from metalearn.apps import FewRatings, Recipe, learners, sgd
from metalearn.apps.recommendation import RECIPES, candidates
from metalearn.apps.recommendation.candidates import movements
from metalearn.cli import main as cli

TINY = FewRatings(
    dataset="own", queries=2, least_support=2, most_support=8, dim=3, widths=(4,)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_own_ratings(tmp_path_factory.mktemp("ratings")))


@pytest.fixture(scope="module")
def data(folder):
    return TINY.load(folder)


def _users(app, data, part):
    sampler = app.tasks(data, part)
    keys = jax.random.split(jax.random.key(0), 200)
    return sampler, jax.tree.map(np.asarray, jax.jit(jax.vmap(sampler))(keys))


def test_training_and_each_state_have_their_users_and_items(data):
    ratings, split = data.ratings, data.split
    train, batch = _users(TINY, data, "train")
    assert train.name == "own training"
    assert (split.user_part[batch.support.x["user"]] == 0).all()
    seen = set(zip(batch.query.x["user"].ravel(), batch.query.x["item"].ravel()))
    for state in ("warm", "user", "item", "both"):
        app = dataclasses.replace(TINY, state=state)
        if state == "item":  # users have four new items at most
            app = dataclasses.replace(app, queries=1, least_support=1)
        if state == "both":
            app = dataclasses.replace(app, queries=1, least_support=1)
        _, test = _users(app, data, "test")
        users, items = test.query.x["user"], test.query.x["item"]
        assert (split.user_part[users] == (2 if state in ("user", "both") else 0)).all()
        assert (split.new_item[items] == (state in ("item", "both"))).all()
        asked = set(zip(users.ravel(), items.ravel()))
        assert not asked & seen
        # Ratings and codes are those of the user and the item.
        one = {(u, i): r for u, i, r in zip(ratings.user, ratings.item, ratings.rating)}
        for u, i, y in zip(users.ravel(), items.ravel(), test.query.y.ravel()):
            assert one[u, i] == y
        codes = np.concatenate([ratings.users.codes[users], ratings.items.codes[items]], -1)
        np.testing.assert_array_equal(test.query.x["content"], codes)


def test_validation_is_on_new_users_whatever_the_test(data):
    for state in ("warm", "both"):
        app = dataclasses.replace(TINY, state=state)
        _, batch = _users(app, data, "validation")
        assert (data.split.user_part[batch.query.x["user"]] == 1).all()
        assert not data.split.new_item[batch.query.x["item"]].any()


def test_the_network_starts_at_the_mean_of_training(data):
    record = TINY.describe(data)
    train = data.split.mask(data.ratings, "train")
    assert record["offset"] == pytest.approx(data.ratings.rating[train].mean(), abs=1e-4)
    assert json.loads(json.dumps(record)) == record
    like = jax.tree.map(lambda a: (a.shape, a.dtype), TINY.example(record))
    task = TINY.tasks(data, "train").first(jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), task) == like


@pytest.mark.parametrize(
    ("settings", "learner", "said"),
    [
        ({}, learners.ProtoNet(), "does not fit a network of ratings"),
        ({"widths": ()}, learners.NoAdaptation(), "app.widths is"),
        ({"least_support": 9}, learners.NoAdaptation(), "in this order"),
        ({"queries": 0}, learners.NoAdaptation(), "app.queries is 0"),
        ({"test_users": -0.5}, learners.NoAdaptation(), "app.test_users is -0.5"),
        ({"test_users": 0.95}, learners.NoAdaptation(), "leave none of the users"),
        (
            {"new_items": 0.0, "state": "both"},
            learners.NoAdaptation(),
            "app.new_items is 0",
        ),
        ({}, learners.HSML(inner_opt=sgd(0.1)), "does not fit a network of ratings"),
    ],
)
def test_settings_are_checked(settings, learner, said):
    app = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=said):
        Recipe(app=app, learner=learner).check()


def test_too_few_ratings_are_said_before_training(data):
    app = dataclasses.replace(TINY, queries=20)
    with pytest.raises(ValueError, match=r"has 20 query rows.*--app\.queries"):
        app.tasks(data, "train")


def test_recipes_are_of_ratings_and_name_learners_that_fit():
    for name, entry in RECIPES.items():
        assert name.startswith(f"{entry.recipe.app.kind}-")
        entry.recipe.check()


def test_a_run_from_the_command_line_is_judged_drawn_and_judged_again(
    folder, tmp_path, capsys
):
    out = tmp_path / "run"
    options = ["--app.dataset", "own", "--app.dim", "3", "--app.widths", "4"]
    options += ["--app.queries", "2", "--app.least-support", "2", "--app.most-support", "8"]
    options += ["--steps", "2", "--tasks-per-step", "4", "--validate-every", "2"]
    options += ["--validation-tasks", "4", "--test-tasks", "6", "--log-every", "1"]
    options += ["--learner.num-steps", "1", "--devices", "1"]
    command = ["train", "ratings-melu", "--data-dir", folder, "--out", str(out)]
    assert cli.main([*command, *options]) == 0
    said = capsys.readouterr().out
    assert "users: train " in said and "mae" in said
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {"query/mae", "query/ndcg@3", "query/loss"} <= found.keys()
    assert (out / "episode.png").stat().st_size > 10_000
    run = runs.load(out)
    variables, _ = runs.best(run)
    data = run.recipe.app.load(folder)
    result = runs.judge(run, variables, data)
    assert result.summary()["query/mae"] == pytest.approx(found["query/mae"], rel=1e-6)
    # Each user once, for there are fewer of them than tasks were asked for.
    asked = dataclasses.replace(run.recipe, test_tasks=10_000)
    again = runs.judge(run, variables, data, recipe=asked)
    assert again.num_tasks == run.recipe.app.tasks(data, "test").sample.num_tasks
    # Another state of the same run.
    assert cli.main(["evaluate", str(out), "--state", "warm", "--json"]) == 0
    warm = json.loads(capsys.readouterr().out)
    assert warm["tasks"].startswith("own test, users and items of training")
    # Tables with other values are other codes.
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    items = (changed / "items.csv").read_text(encoding="utf-8")
    (changed / "items.csv").write_text(items.replace("a|b", "c|b"), encoding="utf-8")
    assert cli.main(["evaluate", str(out), "--data-dir", str(changed)]) == 2
    assert "have other values" in capsys.readouterr().err


# -- Items to ask about ----------------------------------------------------------------


def test_candidates_follow_the_two_scores_by_hand(data):
    ratings = data.ratings
    rows = np.flatnonzero(data.split.mask(ratings, "train"))
    rng = np.random.default_rng(1)
    norms = rng.uniform(1, 2, len(rows))
    item = ratings.item[rows]
    means = {i: norms[item == i].mean() for i in set(item.tolist())}
    counts = {i: int((item == i).sum()) for i in means}
    score = {
        i: means[i] / max(means.values()) * counts[i] / max(counts.values()) for i in means
    }
    found = candidates(ratings, rows, num=5, norms=norms)
    assert [c.item for c in found] == sorted(score, key=lambda i: -score[i])[:5]
    np.testing.assert_allclose([c.score for c in found], sorted(score.values())[:-6:-1])
    assert [c.num_raters for c in found] == [counts[c.item] for c in found]
    scaled = candidates(ratings, rows, num=5, norms=1e3 * norms)
    assert [c.item for c in scaled] == [c.item for c in found]
    popular = candidates(ratings, rows, num=5, kind="popular")
    assert [c.num_raters for c in popular] == sorted(counts.values())[:-6:-1]
    mask = data.split.mask(ratings, "train")
    assert candidates(ratings, mask, num=5, norms=norms) == found
    nothing = candidates(ratings, rows, num=3, norms=np.zeros(len(rows)))
    assert len(nothing) == 3 and {c.item for c in nothing} <= set(means)
    random = candidates(ratings, rows, num=99, kind="random", seed=1)
    assert {c.item for c in random} == set(means)  # no item that nobody rated


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "best"}, "kind is 'best'"),
        ({"num": 0}, "num is 0"),
        ({}, "norms are missing"),
        ({"norms": [1.0]}, "norms are of shape"),
        ({"norms": [1.0, 2, -1, 2, 1]}, "norms have -1.0 for row 2"),
        ({"norms": [1.0, 2, 1, np.nan, 1]}, "norms have nan for row 3"),
        ({"rows": np.zeros(0, int), "kind": "popular"}, "rows name no rating"),
        ({"rows": np.asarray([-1]), "kind": "popular"}, "expected numbers of ratings"),
        ({"rows": np.asarray([10**6]), "kind": "popular"}, "expected numbers of ratings"),
        ({"rows": np.zeros(5, bool), "kind": "popular"}, "expected numbers of ratings"),
        ({"num": 1.5}, "num is 1.5"),
    ],
)
def test_candidates_are_checked(data, given, said):
    options = {"rows": np.arange(5), **given}
    with pytest.raises(ValueError, match=said):
        candidates(data.ratings, **options)


def test_movements_are_of_each_rating_whatever_the_batch(data):
    record = TINY.describe(data)
    melu = learners.MeLU(inner_opt=sgd(0.1))
    model = TINY.offers(melu, record, evaluating=False)["model"]
    variables = model.init(jax.random.key(0), TINY.example(record).support.x)

    def norm_of(examples):
        return ml.evidence(model, variables, examples, loss_fn=ml.losses.mse)

    rows = np.arange(7)
    whole = movements(norm_of, data.ratings, rows, batch=7)
    assert whole.shape == (7,) and (whole > 0).all()
    np.testing.assert_allclose(
        movements(norm_of, data.ratings, rows, batch=4), whole, rtol=1e-5
    )
