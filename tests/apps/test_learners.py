"""Settings of a learner are made from its constructor."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn import apps
from metalearn.algorithms import registry
from metalearn.algorithms.record import parameters
from metalearn.apps import Curves, FewShotImages, Recipe, adam, learners, sgd
from metalearn.core import trees

RECORDS = {"images": {"name": "made", "image_shape": [28, 28, 1], "num_classes": 12}}


@pytest.mark.parametrize("record", registry.RECORDS, ids=lambda record: record.name)
def test_settings_of_every_learner_have_types_and_help(record):
    kind = learners.settings_of(record.name)
    told = learners.arguments(kind)
    for field in dataclasses.fields(kind):
        assert told.get(field.name), f"{record.name} says nothing of {field.name}"
    taken = parameters(record.build)
    assert {field.name for field in dataclasses.fields(kind)} <= taken.keys()
    offered = set(learners.FROM_APPLICATION) | {"model", "encoder", "loss_fn", "features"}
    offered |= {"environment", "policy"}
    for name in taken.keys() - offered - {field.name for field in dataclasses.fields(kind)}:
        # What only code can give has a default.
        assert taken[name].default is not taken[name].empty, f"{record.name}: {name}"


REQUIRED = {
    "inner_opt": sgd(0.1),
    "opt": sgd(0.1),
    "num_steps": 2,
    "pretrain_steps": 1,
    "combine": "mean",
}


def test_every_constructor_is_asked_before_there_are_data():
    """None runs its network while it is built, which would raise here."""
    for record in registry.RECORDS:
        kind = learners.settings_of(record.name)
        given = {
            field.name: REQUIRED[field.name]
            for field in dataclasses.fields(kind)
            if field.default is dataclasses.MISSING or record.name == "es_maml"
            if field.name in REQUIRED
        }
        kind(**given).check_builds()


def test_settings_are_those_of_the_constructor():
    made = learners.HSML(inner_opt=sgd(1e-3), tree=(2, 1), hidden=4)
    assert made.aggregator == "gru"
    with pytest.raises(TypeError, match="leaves"):
        learners.HSML(leaves=3)
    built = made.build({"model": ml.from_linen(ml.models.MLP(1)), "loss_fn": ml.losses.mse})
    assert ml.describe(built)["tree"] == "(2, 1)"
    assert ml.describe(built)["name"] == "hsml"


def test_titles_are_attributes():
    assert learners.ProtoNet.record.name == "protonet"
    with pytest.raises(AttributeError, match="Protonets"):
        _ = learners.Protonets


def own_learner(model, loss_fn, inner_opt, *, num_steps: int = 3, loud: bool = False):
    """A learner of the user's.

    Args:
      num_steps: Inner steps.
      loud: Whether it shouts.
    """
    del loud
    return ml.maml(model, loss_fn, inner_opt, num_steps=num_steps, name="own")


def test_a_learner_of_the_users_own():
    name = f"{__name__}:own_learner"
    kind = learners.settings_of(name)
    recipe = Recipe(app=Curves(), learner=kind(inner_opt=sgd(0.01), num_steps=2))
    recipe.check()
    assert ml.describe(recipe.build({"name": "sinusoid"}))["name"] == "own"
    assert apps.recipe_of(json.loads(json.dumps(recipe.settings()))) == recipe
    assert learners.arguments(kind)["loud"] == "Whether it shouts."


def test_what_a_constructor_requires_is_required():
    with pytest.raises(TypeError, match="inner_opt"):
        learners.MAML()
    assert learners.ESMAML().inner_opt.name == "none"


def unannotated(encoder, loss_fn=None, inner_opt=None, num_steps=3, beta=0.5, *args, **kw):
    """A learner without annotations, which makes a head of its own."""
    return ml.protonet(encoder, num_ways=5)


def with_reserved_name(model, loss_fn, *, steps: int = 1):
    return ml.maml(model, loss_fn, optax.sgd(0.1), num_steps=steps)


def test_constructors_as_users_write_them():
    kind = learners.settings_of(f"{__name__}:unannotated")
    made = kind()
    assert (made.num_steps, made.beta, made.inner_opt.name) == (3, 0.5, "none")
    assert not kind.record.fixed_head and not kind.record.start
    built = Recipe(app=FewShotImages(eval_ways=7), learner=made)
    built.check()
    params = built.state_like(RECORDS["images"]).variables.params
    assert not any("head" in path for path in trees.leaf_paths(params))
    with pytest.raises(ValueError, match="'steps', which settings of a learner use"):
        learners.settings_of(f"{__name__}:with_reserved_name")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hsmll", "Did you mean hsml"),
        ("no_such_package:f", "cannot be imported"),
        (f"{__name__}:nothing", "cannot be imported"),
        (f"{__name__}:RECORDS", "is a dict; expected a function"),
    ],
)
def test_unknown_learners_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        learners.settings_of(name)


def test_reptile_is_judged_with_its_own_steps():
    recipe = apps.find("glyphs-reptile").recipe
    assert recipe.learner.steps(7) == {"eval_steps": 7}
    with pytest.raises(ValueError, match="takes no number of inner steps"):
        learners.ProtoNet().steps(3)


def test_adam_inside_is_differentiable_unless_said_otherwise():
    """Second-order learners differentiate the square root of the second moment."""
    assert ml.testing.assert_differentiable(adam(0.1).build()) is None
    recipe = Recipe(app=Curves(), learner=learners.MAML(inner_opt=adam(0.1)))
    recipe.build({"name": "sinusoid"})
    recipe = Recipe(app=Curves(), learner=learners.MAML(inner_opt=adam(0.1, eps_root=0.0)))
    with pytest.raises(ValueError, match="eps_root"):
        recipe.build({"name": "sinusoid"})


def test_a_pretraining_that_leaves_no_episodes_is_refused():
    learner = learners.MetaBaseline(pretrain_steps=20)
    Recipe(app=FewShotImages(), learner=learner, steps=21).check()
    with pytest.raises(ValueError, match=r"pretrain_steps is 20 and steps is 20; .* Lower"):
        Recipe(app=FewShotImages(), learner=learner, steps=20).check()


@pytest.mark.parametrize("record", registry.RECORDS, ids=lambda record: record.name)
def test_every_learner_takes_tasks_of_fewer_ways(record):
    """A fixed head can leave out classes that a task does not have.

    Where nothing adapts the classes of a task are not known, and a vector of an item knows
    of no classes.
    """
    knows = record.batches in ("", "planned") and record.name not in (
        "no_adaptation",
        "meta_embedding",
    )
    assert record.fits_fewer_ways == knows


def test_a_constructor_that_cannot_leave_classes_out_is_refused_fewer_ways():
    own = learners.settings_of(f"{__name__}:own_learner")(inner_opt=sgd(0.1))
    Recipe(app=FewShotImages(ways=3), learner=own).check()
    Recipe(app=FewShotImages(eval_ways=3), learner=learners.MAML(inner_opt=sgd(1))).check()
    with pytest.raises(
        ValueError, match=r"3-way tasks .*own_learner has logits \(5\).*ways 3,"
    ):
        Recipe(app=FewShotImages(eval_ways=3), learner=own).check()


def test_reptile_with_fewer_ways_predicts_none_of_the_absent_classes():
    settings = learners.Reptile(inner_opt=sgd(0.1), num_steps=2)
    app = FewShotImages(eval_ways=3)
    offers = app.offers(settings, RECORDS["images"], evaluating=True)
    assert offers["mask_absent_classes"]
    offers |= {"model": ml.from_linen(ml.models.MLP(5)), "loss_fn": ml.losses.cross_entropy}
    learner = settings.build(offers)
    x = jax.random.normal(jax.random.key(0), (30, 4))
    part = ml.Examples.of(x, jnp.arange(30, dtype=jnp.int32) % 3)
    variables = learner.init(jax.random.key(1), ml.Task(support=part, query=part))
    adapted = learner.adapt(variables, part)
    logits = learner.predict(adapted, 100 * x)
    assert set(np.asarray(logits.argmax(-1)).tolist()) <= {0, 1, 2}
    full = settings.build(offers | {"mask_absent_classes": False})
    assert set(
        np.asarray(full.predict(adapted.replace(present=None), 100 * x).argmax(-1)).tolist()
    ) - {0, 1, 2}


@pytest.mark.parametrize("name", ["families-hsml", "families-mumomaml"])
def test_a_run_from_before_an_option_has_what_the_learner_did_then(name):
    settings = apps.find(name).recipe.settings()
    assert settings["learner"]["ordered"] and apps.recipe_of(settings).learner.ordered
    del settings["learner"]["ordered"]
    assert not apps.recipe_of(settings).learner.ordered
