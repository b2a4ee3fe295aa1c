"""Recipes: every field is read, every entry builds, nonsense is refused."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml
from metalearn import apps, data, runs
from metalearn.apps import ImageRecipe, SinusoidRecipe
from metalearn.apps.base import WITHOUT_START
from metalearn.apps.images import recipe as images
from metalearn.apps.images.features import FeatureRecipe
from metalearn.apps.images.mixed import MixedImageRecipe
from metalearn.apps.learners import learner_options

RECORDS = {
    "images": {"name": "made", "image_shape": [28, 28, 1], "num_classes": 12},
    "sinusoid": {"name": "sinusoid"},
    "mixed_images": {"name": "made", "image_shape": [28, 28, 1]},
    "features": {"name": "features", "num_features": 8},
}
# One setting for each algorithm and for each condition under which a field is read.
VARIANTS = {
    **{a: {"algorithm": a} for a in (*("maml", "fomaml", "anil", "boil", "meta_sgd"),)},
    **{a: {"algorithm": a} for a in ("reptile", "fine_tune", "no_adaptation")},
    "adam": {"inner_optimizer": "adam"},
    "halving": {"schedule": "halving"},
    "alpha_maml": {
        "algorithm": "alpha_maml",
        "options": ("alpha_rate=0.1", "beta_rate=0."),
    },
}
# Idle fields of a mixture: one set that needs no folder and one that is a folder.
MIXED_VARIANTS = {
    f"mixed_{name}": {"algorithm": name, "dataset": "glyphs+mine"}
    for name in ("maml", "hsml", "protonet")
}
CURVE_VARIANTS = {
    "hsml": {"algorithm": "hsml", "functions": "families", "options": ("tree=(3, 1)",)}
}
IMAGE_VARIANTS = {
    **VARIANTS,
    "protonet": {"algorithm": "protonet"},
    "group": {"norm": "group"},
    "resnet12": {"model": "resnet12"},
}


@pytest.mark.parametrize("name", apps.RECIPES)
def test_recipe_is_valid_and_builds(name):
    entry = apps.find(name)
    recipe = entry.recipe
    recipe.check()
    assert entry.description
    record = RECORDS[recipe.kind]
    state = recipe.state_like(record)
    task = jax.eval_shape(lambda: recipe.example(record))
    learners = [recipe.evaluation_learner(record)]
    if recipe.algorithm not in WITHOUT_START:  # for the picture of an episode
        learners.append(recipe.evaluation_learner(record, steps=0))
    for learner in learners:
        outputs = jax.eval_shape(
            lambda v, t, learner=learner: learner.predict(
                learner.adapt(v, t.support, key=jax.random.key(0)), t.query.x
            ),
            state.variables,
            task,
        )
        assert outputs.shape[0] == task.query.mask.shape[0]
    settings = json.loads(json.dumps(recipe.settings()))
    assert type(recipe).from_settings(settings) == recipe


def test_default_is_a_recipe():
    assert apps.DEFAULT in apps.RECIPES


def _dataset():
    rng = np.random.default_rng(0)

    def part(rotations):
        pixels = rng.integers(0, 256, (24, 28, 28, 1), np.uint8)
        labels = np.repeat(np.arange(6), 4)
        return data.from_arrays(pixels, labels, rotations=rotations)

    return data.ImageDataset(
        name="made", train=part(True), validation=part(False), test=part(False), info={}
    )


def _watched(recipe):
    """The recipe, and the set of fields that anything but its own checks has read."""
    seen = set()

    class Watched(type(recipe)):
        def __getattribute__(self, name):
            if sys._getframe(1).f_code.co_name not in ("check", "unread"):
                seen.add(name)
            return super().__getattribute__(name)

    watched = object.__new__(Watched)
    vars(recipe)  # a dataclass without slots
    object.__getattribute__(watched, "__dict__").update(vars(recipe))
    seen.clear()
    return watched, seen


@pytest.mark.parametrize(
    "kind, variant",
    [
        *itertools.product([ImageRecipe], IMAGE_VARIANTS),
        *itertools.product([SinusoidRecipe], [*VARIANTS, "hsml"]),
        *itertools.product([MixedImageRecipe], MIXED_VARIANTS),
    ],
)
def test_fields_are_read_or_said_to_be_idle(kind, variant, tmp_path, monkeypatch):
    """MAML++'s reference code has a setting that nothing reads; ours has none."""
    recipe = kind(**(IMAGE_VARIANTS | CURVE_VARIANTS | MIXED_VARIANTS)[variant])
    if issubclass(kind, ImageRecipe):
        recipe = dataclasses.replace(recipe, shots=1, queries=1, eval_queries=1)
    recipe.check()
    watched, seen = _watched(recipe)
    monkeypatch.setattr(images.image_data, "load", lambda name, **_: _dataset())
    monkeypatch.setattr(runs, "fit", lambda *_, **__: None)
    monkeypatch.setattr(runs, "evaluate", lambda *_, **__: None)
    (tmp_path / "mine").mkdir()
    data_dir = str(tmp_path) if kind is MixedImageRecipe else None
    loaded = watched.load_data(data_dir, ("train", "validation", "test"))
    record = watched.describe_data(loaded)
    run = runs.Run(folder=tmp_path, name="n", recipe=watched, seed=0, record=record)
    watched.example(record)
    runs.train(run, loaded)
    runs.judge(run, None, loaded)
    fields = {field.name for field in dataclasses.fields(kind)}
    assert fields - seen == set(recipe.unread())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"algorithm": "protonet", "inner_rate": 0.1}, "inner_rate=0.1 has no effect"),
        ({"inner_batch": 5}, "read by algorithm reptile"),
        ({"inner_b1": 0.5}, "read by inner_optimizer adam"),
        ({"halve_every": 5}, "read by schedule halving"),
        ({"scale": 2.0}, "read by algorithm protonet"),
        ({"model": "resnet12", "downsample": "stride"}, "read by model conv4"),
        ({"model": "resnet12", "algorithm": "cavia"}, "Leave it at conv4"),
        ({"algorithm": "alpha_maml", "schedule": "linear"}, "every other algorithm"),
        ({"shrink": 0}, "expected 1 or more"),
        ({"norm": "group", "norm_policy": "batch"}, "read by norm batch"),
        ({"algorithm": "mamal"}, "expected one of maml"),
        ({"norm": "bach"}, "expected one of batch"),
        ({"channels": 2}, "expected one of 1, 3"),
        ({"task_chunk": "all"}, "expected one of auto"),
        ({"task_chunk": 0}, "expected 1 or more"),
        ({"steps": 0}, "expected 1 or more"),
        ({"steps": 2.5}, "expected an integer"),
        ({"inner_steps": -1}, "expected 0 or more"),
        ({"inner_rate": float("nan")}, "expected a finite number"),
        ({"outer_rate": -1.0}, "expected a finite number"),
        ({"test_tasks": 1}, "expected 2 or more"),
        ({"ways": 1}, "expected 2 or more"),
        ({"eval_ways": 6}, "Train with --ways 6"),
        ({"algorithm": "protonet", "norm_policy": "support"}, "running and batch"),
        (
            {"norm_policy": "per_step", "eval_inner_steps": 3, "inner_steps": 2},
            "keeps statistics for inner_steps=2",
        ),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageRecipe(**settings).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("leaves=3",), "'leaves=3'; expected NAME=VALUE with one of tree"),
        (("tree",), "NAME=VALUE"),
        (("tree=(4, 2)",), "one node as the root"),
        (("hidden=many",), "hidden"),
    ],
)
def test_bad_options_of_a_learner(options, message):
    recipe = SinusoidRecipe(algorithm="hsml", options=options)
    with pytest.raises((TypeError, ValueError), match=message):
        recipe.learner(recipe.describe_data(None))


@pytest.mark.parametrize(
    ("algorithm", "words", "message"),
    [
        ("imaml", ("lam=1", "lam=2"), "'lam' twice"),
        ("imaml", ("pull_back=no",), "'pull_back=no'; expected pull_back=True or =False"),
        ("imaml", ("pull_back=1",), "pull_back=True or =False"),
        ("bmg", ("around=wrap",), "'around=wrap'; expected NAME=VALUE"),
        ("es_maml", ("objective_fn=accuracy",), "expected NAME=VALUE"),
        ("bmg", ("target_rate=nan",), "target_rate is 'nan'"),
    ],
)
def test_bad_words_of_options(algorithm, words, message):
    recipe = SinusoidRecipe(algorithm=algorithm, options=words)
    with pytest.raises(ValueError, match=message):
        recipe.learner(recipe.describe_data(None))


@pytest.mark.parametrize("word", ["false", "False"])
def test_a_switch_is_no_word(word):
    """As a word, false would switch it on."""
    recipe = SinusoidRecipe(algorithm="imaml", options=(f"pull_back={word}",))
    assert learner_options(recipe) == {"pull_back": False}


def test_only_npz_files_are_features(tmp_path):
    for name, write in (("a.npy", np.save), ("a.npz", lambda p, x: p.write_text("a"))):
        write(tmp_path / name, np.ones(3))
        with pytest.raises(ValueError, match=f"{name} is no .npz file; expected"):
            FeatureRecipe().load_data(str(tmp_path / name))


def test_options_reach_the_outer_optimiser():
    """Alpha MAML's learner and its optimiser both have settings; each gets its own."""
    words = ("rule=multiplicative", "alpha_rate=0.5", "beta_rate=0", "first_order_until=3")
    recipe = ImageRecipe(algorithm="alpha_maml", options=words)
    found = recipe.outer_options()
    assert found == {"rule": "multiplicative", "alpha_rate": 0.5, "beta_rate": 0}
    assert learner_options(recipe) == {"first_order_until": 3}


def test_every_learner_has_a_row_in_the_table_of_systems():
    names = [system.name for system in apps.SYSTEMS]
    assert len(set(names)) == len(names)
    drivers = {"follow_the_meta_leader"}
    assert set(names) == set(ml.algorithms.__all__) | drivers
    for system in apps.SYSTEMS:
        assert not system.published or system.published.endswith(("[P]", "[S]"))


def test_results_of_the_table_of_systems_are_stored():
    stored = Path(__file__).parents[2] / "benchmarks" / "results"
    found = {path.stem for path in stored.glob("*.json")}
    missing = [s.name for s in apps.SYSTEMS if s.result not in found]
    assert missing == ["fine_tune", "no_adaptation"]  # baselines without a comparison


def test_hill_climbing_takes_no_inner_optimiser():
    recipe = SinusoidRecipe(algorithm="es_maml", options=("adaptation=hill_climbing",))
    settings = recipe.learner(recipe.describe_data(None)).config
    assert "hill_climbing" in str(settings)


@pytest.mark.parametrize("algorithm", ["protonet", "fine_tune"])
def test_any_number_of_ways_without_a_fixed_head(algorithm):
    ImageRecipe(algorithm=algorithm, eval_ways=20).check()


def test_settings_of_another_version_are_named():
    with pytest.raises(ValueError, match="unheard_of"):
        ImageRecipe.from_settings({"unheard_of": 1})


def test_find_suggests():
    with pytest.raises(ValueError, match=r"Did you mean .*glyphs-maml"):
        apps.find("glyph-maml")


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("cosine", [1.0, 0.5, 0.0]),
        ("linear", [1.0, 0.5, 0.0]),
        ("halving", [1.0, 0.25, 0.0625]),
    ],
)
def test_schedules(schedule, expected):
    options = {"halve_every": 2} if schedule == "halving" else {}
    recipe = ImageRecipe(
        outer_optimizer="sgd", outer_rate=1.0, schedule=schedule, steps=8, **options
    )
    opt = recipe.outer_opt()
    params = {"w": jnp.zeros(())}
    state, rates = opt.init(params), []
    for _ in range(9):
        updates, state = opt.update({"w": jnp.ones(())}, state, params)
        rates.append(-float(updates["w"]))
    np.testing.assert_allclose([rates[0], rates[4], rates[8]], expected, atol=1e-6)


def test_clipping_bounds_the_norm():
    recipe = ImageRecipe(
        outer_optimizer="sgd", outer_rate=1.0, schedule="constant", clip=2.0
    )
    opt, grads = recipe.outer_opt(), {"w": jnp.asarray([30.0, 40.0])}
    updates, _ = opt.update(grads, opt.init(grads), grads)
    np.testing.assert_allclose(updates["w"], [-1.2, -1.6], rtol=1e-6)


def test_published_settings():
    maml = apps.find("omniglot-maml-paper").recipe
    assert (maml.inner_rate, maml.tasks_per_step, maml.steps) == (2.0, 32, 60_000)
    assert (maml.inner_steps, maml.norm_policy, maml.width) == (1, "batch", 64)
    protonet = apps.find("omniglot-protonet-paper").recipe
    assert (protonet.ways, protonet.queries, protonet.halve_every) == (60, 5, 2000)
    assert (protonet.downsample, protonet.schedule) == ("pool", "halving")
    reptile = apps.find("omniglot-reptile-paper").recipe
    assert (reptile.inner_optimizer, reptile.inner_b1) == ("adam", 0.0)
    assert (reptile.inner_batch, reptile.inner_steps) == (10, 5)
    assert (reptile.eval_inner_batch, reptile.eval_inner_steps) == (5, 50)
    assert reptile.shots + reptile.queries == 10
    assert (reptile.outer_rate, reptile.schedule, reptile.steps) == (1.0, "linear", 100_000)
