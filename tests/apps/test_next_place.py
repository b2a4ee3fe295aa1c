"""The next place: what learners of areas are given, and a whole run of CHAML."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_visits import write_own_visits

import metalearn as ml
from benchmarks import places as benchmark
from metalearn.apps import NextPlace, Recipe, find, learners, sgd
from metalearn.apps.places import RECIPES, easy_to_hard, next_place
from metalearn.cli import main as cli
from metalearn.data.places import areas_of, place_tasks, visit_table

TINY = NextPlace(
    dataset="own",
    least_visits=1,
    least_users=4,
    users=3,
    negatives=2,
    validation_areas=0.34,
    new_areas=0.33,
    place_dim=3,
    dim=2,
    attention=2,
    widths=(4,),
)
CHAML = learners.CHAML(inner_opt=sgd(0.1), easy_share=1.0)
SETTINGS = {
    **{"dataset": "own", "least-visits": 1, "least-users": 4, "users": 3, "negatives": 2},
    **{"validation-areas": 0.34, "new-areas": 0.33, "place-dim": 3, "dim": 2},
    **{"attention": 2, "widths": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_own_visits(tmp_path_factory.mktemp("visits")))


@pytest.fixture(scope="module")
def data(folder):
    return TINY.load(folder)


@pytest.fixture(scope="module")
def record(data):
    return Recipe(app=TINY, learner=CHAML, tasks_per_step=2).describe(data)


def test_parts_share_no_area_no_place_and_no_user(data):
    ids = [{i for a in part for i in a.ids} for part in data.areas.values()]
    assert [len(part) for part in data.areas.values()] == [2, 2, 2]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])


def test_the_record_is_json_and_orders_the_training_areas(data, record):
    assert json.loads(json.dumps(record)) == record
    assert sorted(record["order"]) == [0, 1] and record["most_users"] == 6
    for app in (TINY, dataclasses.replace(TINY, returns=True)):
        like = jax.tree.map(lambda a: (a.shape, a.dtype), app.example(record))
        tasks = app.tasks(data, "train")
        task = jax.eval_shape(tasks.sample, tasks.data, jax.random.key(0))
        assert jax.tree.map(lambda a: (a.shape, a.dtype), task) == like


@pytest.mark.parametrize(
    "learner",
    [
        learners.MAML(inner_opt=sgd(0.1)),
        learners.NoAdaptation(),
        learners.CHAML(inner_opt=sgd(0.1), curriculum=False),
        learners.CHAML(inner_opt=sgd(0.1), easy_steps=0),
    ],
)
def test_no_order_is_computed_for_learners_that_read_none(data, learner, monkeypatch):
    monkeypatch.setattr(next_place, "easy_to_hard", lambda *args: pytest.fail("computed"))
    recipe = Recipe(app=TINY, learner=learner, tasks_per_step=2)
    record = recipe.describe(dataclasses.replace(data, orders={}))
    assert "order" not in record and record["areas"] == 2
    recipe.build(record)


def test_too_few_areas_for_a_step_are_said_before_the_order_is_computed(data, monkeypatch):
    monkeypatch.setattr(next_place, "easy_to_hard", lambda *args: pytest.fail("computed"))
    recipe = Recipe(app=TINY, learner=dataclasses.replace(CHAML, easy_share=0.5))
    fresh = dataclasses.replace(data, orders={})
    for num, least in ((16, 1), (2, 1)):
        asks_more = dataclasses.replace(recipe, tasks_per_step=num)
        with pytest.raises(ValueError, match=rf"has {num} tasks, .* {least} of 2 areas"):
            asks_more.describe(fresh)


def test_a_description_without_an_order_trains_nobody_who_reads_it(data):
    recipe = Recipe(app=TINY, learner=CHAML, tasks_per_step=2)
    with pytest.raises(ValueError, match=r"chaml begins on easy areas.*Recipe\.describe"):
        recipe.trainer(TINY.describe(data))


def test_hit_rates_that_every_order_has_are_not_reported():
    few, more = (dataclasses.replace(TINY, negatives=n) for n in (4, 9))
    gains = ["query/choice_ndcg@5", "query/choice_ndcg@10"]
    assert list(few.measures) == gains and few.metric in few.measures
    assert list(more.measures) == ["query/hit_rate@5", *gains]
    assert list(NextPlace(negatives=10).measures)[:2] == [
        "query/hit_rate@5",
        "query/hit_rate@10",
    ]


def test_easy_areas_come_first(data):
    """Users of one area alternate between two places; those of the other go at random."""
    random = np.random.default_rng(0)
    rows = [
        (area, user, random.integers(40) if area == 0 else user % 2, float(visit))
        for area in range(2)
        for user in range(8)
        for visit in range(14)
    ]
    area, user, place, time = zip(*rows, strict=True)
    table = {
        "user": [f"{a}-{u}" for a, u in zip(area, user, strict=True)],
        "place": [f"{a}-{p}" for a, p in zip(area, place, strict=True)],
        "time": list(time),
        "area": list(map(str, area)),
    }
    # Places that nobody of the second area goes to but once.
    for number in range(6):
        once = (f"1-{number % 8}", f"1-far{number}", -1.0, "1")
        for column, value in zip(table.values(), once, strict=True):
            column.insert(0, value)
    made = areas_of(visit_table(table), least_visits=1, least_users=2, negatives=2, dim=3)
    told = {"categories": 1, "most_users": 8, "order": [0]}
    model = TINY.offers(CHAML, told, evaluating=False)
    tasks = place_tasks(made, num_users=4)
    loss_fn = ml.losses.binary_cross_entropy
    order, found = easy_to_hard(model["model"], loss_fn, tasks, rate=0.02, judged=5)
    assert order == [1, 0] and found[1] < found[0]


@pytest.mark.parametrize(
    ("settings", "learner", "said"),
    [
        ({}, learners.ProtoNet(), "does not fit a network of places"),
        ({"widths": ()}, learners.NoAdaptation(), "app.widths is"),
        ({"users": 5}, learners.NoAdaptation(), "in this order"),
        ({"new_areas": 0.9}, learners.NoAdaptation(), "a sum below 1"),
        ({"place_dim": 1}, learners.NoAdaptation(), "app.place_dim is 1"),
        ({"dropout": 1.0}, learners.NoAdaptation(), "app.dropout is 1.0"),
    ],
)
def test_settings_are_checked(settings, learner, said):
    app = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=said):
        Recipe(app=app, learner=learner).check()


def test_chaml_is_refused_where_tasks_cannot_be_chosen():
    curves, chosen = find("sinusoid-maml").recipe, learners.CHAML(inner_opt=sgd(0.1))
    with pytest.raises(ValueError, match="areas and users that it chooses"):
        dataclasses.replace(curves, learner=chosen).check()


def test_too_few_areas_are_said(folder):
    app = dataclasses.replace(TINY, new_areas=0.1)
    with pytest.raises(ValueError, match="1 for the test; expected 1, 2 and 2"):
        app.load(folder)


def test_recipes_name_learners_that_fit():
    for name, entry in RECIPES.items():
        assert name.startswith("places-")
        entry.recipe.check()


def applied(model, x):
    """The network with drawn variables, compiled: function `x -> outputs`."""
    variables = jax.jit(model.init)(jax.random.key(1), x)
    return jax.jit(lambda x: model.apply(variables, x)[0])


def test_masked_records_and_users_do_not_count(data, record):
    """Network and loss: another history behind the mask, another user who is not there."""
    model = TINY.offers(CHAML, record, evaluating=False)["model"]
    task = TINY.tasks(data, "train").first(jax.random.key(0))
    x = task.query.x
    apply = applied(model, x)
    found = apply(x)
    assert found.shape == task.query.y.shape

    def hidden(leaf):
        seen = x["seen"].reshape(*x["seen"].shape, *[1] * (leaf.ndim - 2))
        return jnp.where(seen, leaf, 1).astype(leaf.dtype)

    other = {**x, "history": jax.tree.map(hidden, x["history"])}
    np.testing.assert_allclose(apply(other), found, rtol=1e-6)
    nothing = {**x, "seen": jnp.zeros_like(x["seen"])}
    assert np.isfinite(apply(nothing)).all()
    unknown = {**x["candidates"], "category": x["candidates"]["category"] + 99}
    assert np.isnan(apply({**x, "candidates": unknown})).all()


def test_order_of_a_history_does_not_matter_to_who_is_not_told_of_returns(data, record):
    model = TINY.offers(CHAML, record, evaluating=False)["model"]
    tasks = TINY.tasks(data, "test")
    x = jax.jit(tasks.sample.one)(tasks.data, 0, jax.random.key(0)).query.x
    apply = applied(model, x)
    found = apply(x)
    turned = {
        "history": jax.tree.map(lambda leaf: leaf[:, ::-1], x["history"]),
        "seen": x["seen"][:, ::-1],
        "candidates": jax.tree.map(lambda leaf: leaf[:, ::-1], x["candidates"]),
    }
    np.testing.assert_allclose(apply(turned), found[:, ::-1], rtol=1e-4, atol=1e-6)


def test_a_network_that_is_told_of_returns_reads_them(data, record):
    app = dataclasses.replace(TINY, returns=True)
    learner = learners.NoAdaptation()
    recipe = Recipe(app=app, learner=learner, tasks_per_step=2)
    tasks = app.tasks(data, "train")
    result = ml.fit(
        recipe.trainer(app.describe(data)),
        tasks,
        num_steps=2,
        tasks_per_step=2,
        key=jax.random.key(0),
        progress=False,
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.variables))
    model = app.offers(learner, record, evaluating=False)["model"]
    x = tasks.first(jax.random.key(0)).query.x
    apply = jax.jit(lambda x: model.apply(result.variables, x)[0])
    none = {**x, "returns": jnp.zeros_like(x["returns"])}
    assert (apply({**x, "returns": ~none["returns"]}) != apply(none)).all()


def _loop_of_counts(area):
    """Places of the right answers by each baseline, in plain loops of lists."""
    found = {name: [] for name in benchmark.COUNTS}
    paths = [
        [*area.earlier_place[area.earlier_user == u].tolist(), *area.place[u].tolist()]
        for u in range(area.num_users)
    ]
    for user, path in enumerate(paths):
        for number in range(3):
            upto = len(path) - 3 + number
            told = [p[:-3] if u != user else path[:upto] for u, p in enumerate(paths)]
            everyone = [place for p in told for place in p]
            pairs = [pair for p in told for pair in itertools.pairwise(p)]
            asked = [path[upto], *area.ranked[user, number].tolist()]
            here, own = path[upto - 1], path[:upto]
            worth = {
                "popularity": [everyone.count(p) for p in asked],
                "Markov chain": [
                    (pairs.count((here, p)), everyone.count(p)) for p in asked
                ],
                "own visits, then popularity": [
                    (own.count(p), everyone.count(p)) for p in asked
                ],
            }
            for name, values in worth.items():
                found[name].append(sum(v >= values[0] for v in values))
    return found


def test_counts_rank_as_a_loop_does(data):
    """A query counts the visits known before it: also those since the first query."""
    area = data.areas["test"][0]
    found = benchmark.by_counts([area])
    for name, places in _loop_of_counts(area).items():
        gain = np.mean(1 / np.log2(1 + np.asarray(places)))
        np.testing.assert_allclose(found[name]["query/choice_ndcg@5"], [[gain]])
        assert found[name]["query/hit_rate@5"] == 1  # of three candidates
    small = benchmark._ranked(np.zeros((2, 3, 3)))
    assert small["query/hit_rate@5"] == 1 and small["query/choice_ndcg@5"] == 0.5


def test_a_run_from_the_command_line_trains_and_is_judged(folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = [f"--app.{k}={v}" for k, v in SETTINGS.items()]
    command = ["train", "places-chaml", "--data-dir", folder, "--out", str(out)]
    command += ["--steps", "4", "--learner.easy-steps", "2", "--learner.easy-share", "1"]
    command += ["--tasks-per-step", "2", "--validate-every", "4", "--log-every", "2"]
    command += ["--checkpoint-every", "4", "--devices", "1"]
    command += ["--learner.differentiation", "first_order"]  # compiles sooner
    assert cli.main([*command, *options]) == 0
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {"query/choice_ndcg@10", "query/loss"} <= found.keys()
    assert not any("hit_rate" in name for name in found)  # among two others
    said = capsys.readouterr().out
    assert "areas: train 2 (12 users)" in said and "choice_ndcg@10" in said
    assert list(out.glob("*.png"))
