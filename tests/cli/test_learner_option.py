"""`metalearn train RECIPE --learner NAME`: what is taken over, and what is not."""

import dataclasses

import pytest

from metalearn import apps
from metalearn.algorithms import registry
from metalearn.apps import learners
from metalearn.cli.train_options import parse_train, with_learner


@pytest.mark.parametrize("name", ["glyphs-maml", "glyphs-protonet", "sinusoid-maml"])
@pytest.mark.parametrize("record", registry.RECORDS, ids=lambda record: record.name)
def test_what_the_recipe_does_not_set_is_the_new_learners_own(name, record):
    recipe = apps.find(name).recipe
    old = {f.name: f.default for f in dataclasses.fields(recipe.learner)}
    given = {k: v for k, v in vars(recipe.learner).items() if v != old[k]}
    found = with_learner(recipe, record.name).learner
    assert found.record is record
    for field in dataclasses.fields(found):
        if field.name not in given and field.default is not dataclasses.MISSING:
            assert getattr(found, field.name) == field.default, field.name


def test_the_rate_of_the_inner_loop_is_taken_over():
    recipe = with_learner(apps.find("glyphs-maml").recipe, "anil")
    assert recipe.learner == learners.ANIL(inner_opt=apps.sgd(0.4))
    recipe.check()


def test_an_outer_optimiser_of_its_own_comes_and_goes():
    words = ["glyphs-maml", "--learner", "alpha_maml", "--outer.alpha-rate=0.1"]
    name, _, recipe = parse_train(
        [*words, "--outer.beta-rate=0", "--outer.learning-rate=1"]
    )
    assert name == "glyphs-maml"
    assert type(recipe.outer) is learners.AlphaMAMLOuter
    recipe.check()
    back = with_learner(apps.find("small-alpha-maml").recipe, "maml")
    assert type(back.outer) is apps.Outer


def test_hill_climbing_is_reached():
    words = ["sinusoid-maml", "--learner=es_maml", "--learner.adaptation=hill_climbing"]
    recipe = parse_train([*words, "--learner.inner-opt.name=none"])[2]
    assert recipe.learner.adaptation == "hill_climbing"
    assert recipe.learner.inner_opt.build() is None
