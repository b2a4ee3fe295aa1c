"""Recipes: every setting is read, every entry builds, nonsense is refused."""

import dataclasses
import json
import sys

import jax
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn import apps, data, runs
from metalearn.apps import (
    Curves,
    FewShotFeatures,
    FewShotImages,
    MixedImages,
    Outer,
    Recipe,
    learners,
    sgd,
)
from metalearn.apps.images import few_shot
from metalearn.apps.records import changed
from metalearn.runs import run as run_module

RECORDS = {
    "text": {"num_features": 6, "num_classes": 25},
    "images": {"name": "made", "image_shape": [28, 28, 1], "num_classes": 12},
    "sinusoid": {"name": "sinusoid"},
    "mixed_images": {"name": "made", "image_shape": [28, 28, 1]},
    "features": {"name": "features", "num_features": 8},
    "domains": {
        "name": "made",
        "image_shape": [28, 28, 1],
        "num_classes": 3,
        "sources": ["a", "b", "c"],
    },
    "graphs": {"name": "made", "num_features": 6, "num_classes": 4, "nodes": 5},
    "ratings": {"name": "made", "fields": [[2, 1], [3, 2]], "offset": 3.5},
    "clicks": {
        "name": "made",
        "fields": [[2, 1], [3, 2]],
        "of_users": 1,
        "users": 4,
        "items": 5,
    },
    "places": {
        "name": "made",
        "categories": 3,
        "order": [1, 0, 3, 2, 4, 6, 5, 7],
        "most_users": 4,
    },
    "distillation": {"input_shape": [28, 28, 1], "class_names": ["a", "b"]},
    "control": {"name": "made"},
    "labels": {"image_shape": [28, 28, 1], "class_names": ["a", "b"], "counts": [3, 1]},
}
MAML = learners.MAML(inner_opt=sgd(0.1))


def _kinds(recipe):
    """What decides which Python is traced: names and switches, but no number."""

    def words(value):
        if isinstance(value, dict):
            return tuple((name, words(each)) for name, each in sorted(value.items()))
        return value if isinstance(value, str | bool | None) else type(value).__name__

    settings = recipe.settings()
    app = {**settings["app"], "dataset": None, "split": None}
    return {("app", words(app)), ("learner", words(settings["learner"]))}


def _traced():
    """Recipes that have every kind of application and of learner between them."""
    found = set()
    # Published recipes come last: what others have as well is traced there.
    for name in sorted(apps.RECIPES, key=lambda name: name.endswith("-paper")):
        entry = apps.RECIPES[name]
        if not _kinds(entry.recipe) <= found:
            found |= _kinds(entry.recipe)
            yield name


TRACED = list(_traced())


@pytest.mark.parametrize("name", apps.RECIPES)
def test_recipe_is_valid(name):
    entry = apps.find(name)
    entry.recipe.check()
    assert entry.description
    settings = json.loads(json.dumps(entry.recipe.settings()))
    assert apps.recipe_of(settings) == entry.recipe


# Published recipes differ from the others by switches that other recipes have as well.
BUILT = [pytest.param(n, marks=[pytest.mark.slow] * n.endswith("-paper")) for n in TRACED]


# Without inner steps, for the picture of an episode, the network alone is asked.
START = ("glyphs-maml", "mixed-hsml", "sinusoid-maml")
assert set(START) <= set(TRACED)


@pytest.mark.parametrize("name", BUILT)
def test_recipe_builds(name):
    recipe = apps.find(name).recipe
    record = RECORDS[recipe.app.kind]
    state = recipe.state_like(record)
    task = jax.eval_shape(lambda: recipe.app.example(record))
    judged = []
    # Of learners that take any network the contract is checked with another one.
    if recipe.learner.record.networks or name in START:
        judged.append(recipe.build_judged(record))
    if name in START:
        judged.append(recipe.build_judged(record, steps=0))
    for learner in judged:
        outputs = jax.eval_shape(
            lambda v, t, learner=learner: learner.predict(
                learner.adapt(v, t.support, key=jax.random.key(0)), t.query.x
            ),
            state.variables,
            task,
        )
        assert outputs.shape[0] == task.query.mask.shape[0]


@pytest.mark.parametrize("name", ["graphs-meta-gnn", "ratings-joint", "labels-l2rw"])
def test_learners_of_other_batches_are_refused(name):
    recipe = apps.RECIPES[name].recipe
    with pytest.raises(ValueError, match=r"mldg trains on tasks .* another domain"):
        dataclasses.replace(recipe, learner=learners.MLDG()).check()


def test_default_is_a_recipe():
    assert apps.DEFAULT in apps.RECIPES


# -- Every setting is read, or said to be idle ------------------------------------------


def _dataset():
    rng = np.random.default_rng(0)

    def part(rotations):
        pixels = rng.integers(0, 256, (24, 28, 28, 1), np.uint8)
        labels = np.repeat(np.arange(6), 4)
        return data.from_arrays(pixels, labels, rotations=rotations)

    return data.ImageDataset(
        name="made", train=part(True), validation=part(False), test=part(False), info={}
    )


CHECKS = (
    "check",
    "unread",
    "_check_styles",
    "check_values",
    "_refuse_idle",
    "_check_learner",
    # So do those that tell equal settings.
    "__hash__",
    "__eq__",
    "__repr__",
)


def _watched(record):
    """The record, and the set of fields that anything but its own checks has read."""
    seen = set()

    class Watched(type(record)):
        def __getattribute__(self, name):
            code = sys._getframe(1).f_code
            if code.co_name not in CHECKS:
                seen.add(name)
            return super().__getattribute__(name)

    watched = object.__new__(Watched)
    object.__getattribute__(watched, "__dict__").update(vars(record))
    seen.clear()
    return watched, seen


READ = {
    "images": (FewShotImages(), MAML),
    "protonet": (FewShotImages(), learners.ProtoNet()),
    "reptile": (FewShotImages(), learners.Reptile(inner_opt=sgd(0.1), num_steps=1)),
    "fine_tune": (FewShotImages(), learners.FineTuning(opt=sgd(0.1), num_steps=1)),
    "group": (FewShotImages(norm="group"), MAML),
    "resnet12": (FewShotImages(model="resnet12"), MAML),
    "curves": (Curves(), MAML),
    "families": (
        Curves(functions="families"),
        learners.HSML(inner_opt=sgd(0.1), tree=(3, 1)),
    ),
    "mixed": (MixedImages(dataset="glyphs+mine"), MAML),
    "mixed_hsml": (
        MixedImages(dataset="glyphs+mine"),
        learners.HSML(inner_opt=sgd(0.1), tree=(3, 1)),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_fields_are_read_or_said_to_be_idle(name, tmp_path, monkeypatch):
    """MAML++'s reference code has a setting that nothing reads; ours has none."""
    app, learner = READ[name]
    if isinstance(app, FewShotImages):
        app = dataclasses.replace(app, shots=1, queries=1, eval_queries=1)
    watched, seen = _watched(app)
    outer, outer_seen = _watched(Outer())
    recipe = Recipe(app=watched, learner=learner, outer=outer)
    top, top_seen = _watched(recipe)
    top.check()
    monkeypatch.setattr(few_shot.image_data, "load", lambda name, **_: _dataset())
    monkeypatch.setattr(run_module, "fit", lambda *_, **__: None)
    monkeypatch.setattr(run_module, "evaluate", lambda *_, **__: None)
    (tmp_path / "mine").mkdir()
    data_dir = str(tmp_path) if isinstance(app, MixedImages) else None
    loaded = watched.load(data_dir, ("train", "validation", "test"))
    record = watched.describe(loaded)
    run = runs.Run(folder=tmp_path, name="n", recipe=top, seed=0, record=record)
    watched.example(record)
    runs.train(run, loaded)
    runs.judge(run, None, loaded)
    fields = {field.name for field in dataclasses.fields(app)}
    assert fields - seen == set(app.unread(learner))
    fields = {field.name for field in dataclasses.fields(Outer)}
    assert fields - outer_seen == set(Outer().unread())
    assert {field.name for field in dataclasses.fields(Recipe)} <= top_seen


RECIPE = Recipe(app=FewShotImages(), learner=MAML)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"outer.halve_every": 5}, "outer.halve_every=5 has no effect"),
        ({"learner.inner_opt.b1": 0.5}, "read by name adam"),
        ({"app.embedding": 5}, "learners that embed a task"),
        ({"app.model": "resnet12", "app.downsample": "stride"}, "read by app.model conv4"),
        ({"app.model": "resnet12", "learner": learners.CAVIA()}, "Leave it at conv4"),
        ({"app.shrink": 0}, "app.shrink is 0; expected 1 or more"),
        ({"app.norm": "group", "learner.norm": "batch"}, "read by app.norm batch"),
        ({"app.norm": "bach"}, "expected one of batch"),
        ({"app.channels": 2}, "expected one of 1, 3"),
        ({"app.width": 2.5}, "app.width is 2.5; expected an integer"),
        ({"outer.name": "lion"}, "expected one of adam, sgd"),
        ({"learner.inner_opt.name": "lion"}, "expected one of sgd, adam"),
        ({"steps": 0}, "expected 1 or more"),
        ({"steps": 2.5}, "expected an integer"),
        ({"steps": True}, "expected an integer"),
        ({"eval_steps": -1}, "expected 0 or more"),
        ({"nonfinite": "halt"}, "expected one of stop, skip"),
        ({"learner.inner_opt.rate": float("nan")}, "expected a finite number"),
        ({"outer.rate": -1.0}, "expected a finite number"),
        ({"test_tasks": 1}, "expected 2 or more"),
        ({"app.ways": 1}, "expected 2 or more"),
        ({"app.eval_ways": 6}, "Train with --app.ways 6"),
        ({"learner": learners.ProtoNet(), "eval_steps": 2}, "no number of inner steps"),
        ({"learner.norm": "per_step", "eval_steps": 3}, "statistics for num_steps=1"),
        (
            {
                "outer": learners.AlphaMAMLOuter(
                    learning_rate=1.0, alpha_rate=0, beta_rate=0
                )
            },
            "which does not belong to maml; expected Outer",
        ),
        ({"learner": learners.AlphaMAML()}, r"alpha_maml; expected AlphaMAMLOuter"),
        ({"learner": "maml"}, "learner is a str; expected settings"),
        ({"learner": learners.MAML}, "learner is a type"),
        ({"app": None}, "app is a NoneType; expected an application"),
        ({"outer": sgd(0.1)}, "outer is a Optimiser"),
        ({"outer.rate": None}, "outer.rate is None; expected a number"),
        ({"app.shots": None}, "app.shots is None; expected an integer"),
        ({"app": Curves(widths=(1.5,))}, "widths is .*; expected a tuple, each an integer"),
        ({"app": Curves(widths=(0,))}, "widths is .*; expected units of hidden layers"),
        ({"app": Curves(), "learner.norm": "batch"}, "read by networks with batch norm"),
        ({"learner.num_steps": None}, "learner.num_steps is None; expected an integer"),
        ({"learner.inner_opt": 0.1}, "learner.inner_opt is 0.1"),
        ({"learner.inner_opt.name": "none"}, "read by name sgd or adam"),
        (
            {
                "learner": learners.Reptile(inner_opt=sgd(1.0), num_steps=1, eval_steps=5),
                "eval_steps": 3,
            },
            "twice",
        ),
        ({"app": Curves(), "learner": learners.ProtoNet()}, "does not regress curves"),
        (
            {"app": FewShotFeatures(), "learner": learners.RelationNetwork()},
            "needs a network",
        ),
        (
            {
                "app": MixedImages(),
                "learner": learners.FineTuning(opt=sgd(0.1), num_steps=1),
            },
            "classifier",
        ),
        ({"app.ambiguous_styles": ("original", "inverted")}, "for 5-way training"),
        ({"app.ways": 2, "app.ambiguous_styles": ("edges", "edges")}, "different one"),
        ({"app.ways": 2, "app.ambiguous_styles": ("original", "loud")}, "loud"),
        ({"app.train_classes": 0}, "train_classes is 0; expected 1 or more"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        recipe = RECIPE
        for path, value in settings.items():
            recipe = changed(recipe, path, value)
        recipe.check()


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (learners.HSML(inner_opt=sgd(0.1), tree=(4, 2)), "one node as the root"),
        (learners.HSML(inner_opt=sgd(0.1), hidden="many"), "hidden"),
        (learners.BMG(inner_opt=sgd(0.1), target_rate=float("nan")), "target_rate is nan"),
        (learners.BMG(inner_opt=sgd(0.1), match="l3"), "match"),
        (learners.MAML(inner_opt=sgd(0.1), task_chunk=0), "task_chunk is 0"),
        (learners.MAML(inner_opt=sgd(0.1), task_chunk="all"), "task_chunk is 'all'"),
        (learners.MAML(inner_opt=sgd(0.1), num_steps=-1), "num_steps"),
    ],
)
def test_bad_settings_of_a_learner_are_refused_when_it_is_built(learner, message):
    recipe = Recipe(app=Curves(), learner=learner)
    with pytest.raises((TypeError, ValueError), match=message):
        recipe.state_like({"name": "sinusoid"})


def test_changed_suggests():
    with pytest.raises(ValueError, match="Did you mean ways"):
        changed(RECIPE, "app.wais", 3)


def test_only_npz_files_are_features(tmp_path):
    for name, write in (("a.npy", np.save), ("a.npz", lambda p, x: p.write_text("a"))):
        write(tmp_path / name, np.ones(3))
        with pytest.raises(ValueError, match=f"{name} is no .npz file; expected"):
            FewShotFeatures().load(str(tmp_path / name))


def test_the_outer_optimiser_of_a_learner_has_settings_of_its_own():
    """Alpha MAML's learner and its optimiser both have settings; each gets its own."""
    outer = learners.AlphaMAMLOuter(
        learning_rate=0.1, rule="multiplicative", alpha_rate=0.5, beta_rate=0.0, clip=1.0
    )
    recipe = Recipe(app=Curves(), learner=learners.AlphaMAML(), outer=outer)
    recipe.check()
    state = recipe.state_like({"name": "sinusoid"})
    expected = optax.chain(
        optax.clip_by_global_norm(1.0),
        ml.alpha_maml_optimiser(
            0.1,
            alpha_rate=0.5,
            beta_rate=0.0,
            rule="multiplicative",
            inner=optax.scale_by_adam(),
        ),
    )
    like = jax.eval_shape(expected.init, state.variables.params)
    assert jax.tree.structure(like) == jax.tree.structure(state.opt_state)
    assert apps.recipe_of(json.loads(json.dumps(recipe.settings()))) == recipe


def test_hill_climbing_takes_no_inner_optimiser():
    learner = learners.ESMAML(adaptation="hill_climbing")
    built = Recipe(app=Curves(), learner=learner).build({"name": "sinusoid"})
    assert "hill_climbing" in str(built.config)


@pytest.mark.parametrize("name", ["ProtoNet", "FineTuning"])
def test_any_number_of_ways_without_a_fixed_head(name):
    kind = getattr(learners, name)
    needed = {"opt": sgd(0.1), "num_steps": 1} if name == "FineTuning" else {}
    Recipe(app=FewShotImages(eval_ways=20), learner=kind(**needed)).check()


def test_settings_of_another_version_are_named():
    for path in ("app", "learner", "outer", None):
        settings = RECIPE.settings()
        (settings if path is None else settings[path])["unheard_of"] = 1
        with pytest.raises(ValueError, match="unheard_of"):
            apps.recipe_of(settings)


def test_find_suggests():
    with pytest.raises(ValueError, match=r"Did you mean .*glyphs-maml"):
        apps.find("glyph-maml")
