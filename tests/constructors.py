"""All constructors of learners, and arguments that would do for each."""

import inspect

import optax

import metalearn as ml
from metalearn import algorithms

CONSTRUCTORS = sorted(
    name
    for name in algorithms.__all__
    if inspect.signature(getattr(ml, name)).return_annotation
    in (ml.MetaLearner, "MetaLearner")
)


def required(name):
    """Positional arguments that would do, but for a model that must not be run."""

    def init(*args):
        raise AssertionError("something was computed")

    model = ml.Model(init, init)
    known = {"model": model, "encoder": model, "loss_fn": ml.losses.cross_entropy}
    known |= {"inner_opt": optax.sgd(0.1), "opt": optax.sgd(0.1), "num_steps": 1}
    known |= {"combine": "probabilities", "num_ways": 3, "num_classes": 4}
    known |= {"pretrain_steps": 1, "environment": ml.environments.navigation()}
    known |= {"policy": ml.policies.gaussian_policy()}
    found = inspect.signature(getattr(ml, name)).parameters.values()
    needed = [p.name for p in found if p.default is p.empty or p.name == "inner_opt"]
    return {name: known[name] for name in needed}


def make(name, /, **options):
    return getattr(ml, name)(**{**required(name), **options})
