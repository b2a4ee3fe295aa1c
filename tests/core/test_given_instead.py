"""What is given where a model or a loss is wanted, and what to write instead."""

import inspect
import re

import flax.linen as nn
import jax.numpy as jnp
import optax
import pytest
from constructors import CONSTRUCTORS, make, required
from flax import nnx
from tiny import BatchNormNet, NnxNet, plain

import metalearn as ml

CE = ml.losses.cross_entropy


def imitation(home, name="Net", base="Module"):
    """A class whose base is of another library."""
    parent = type(base, (), {"__module__": home, "__call__": lambda self, x: x})
    return type(name, (parent,), {"__module__": "mine"})


INSTEAD = {
    "linen module": (
        BatchNormNet(),
        r"BatchNormNet of flax.linen.*ml.from_linen\(module\)",
    ),
    "linen class": (BatchNormNet, r"class BatchNormNet.*ml.from_linen\(BatchNormNet\("),
    "network": (ml.models.Conv4(5), r"ml.from_linen\(module\)"),
    "nnx module": (NnxNet(3, nnx.Rngs(0)), r"flax.nnx.*ml.from_nnx\(lambda rngs: NnxNet"),
    "nnx class": (NnxNet, r"flax.nnx.*ml.from_nnx\(lambda rngs: NnxNet"),
    "torch": (imitation("torch.nn.modules.module")(), "torch.*flax"),
    "torch class": (imitation("torch.nn.modules.module"), "torch.*flax"),
    "keras": (imitation("keras.src.models")(), "keras.*flax"),
    "equinox": (imitation("equinox._module")(), "equinox.*from_apply_fn.*partition"),
    "string": ("conv4", r"'conv4'.*ml.from_linen\(ml.models.Conv4"),
    "None": (None, "model is None|encoder is None"),
    "function": (lambda params, x: x, r"function.*ml.from_apply_fn\(init, apply\)"),
    "init and apply": ((lambda k, x: {}, lambda p, x: x), "tuple.*from_apply_fn"),
    "dictionary": ({"w": 1.0}, "dict.*from_linen"),
    "loss": (CE, "function.*from_apply_fn"),
    "learner": (ml.protonet(plain(), num_ways=3), "MetaLearner.*from_apply_fn"),
}


@pytest.mark.parametrize("given", INSTEAD)
def test_what_is_no_model_is_told_what_makes_one(given):
    value, words = INSTEAD[given]
    with pytest.raises(TypeError, match=r"expected an ml.Model") as caught:
        ml.maml(value, CE, optax.sgd(0.1))
    assert re.search(words, str(caught.value)), caught.value


OF_MODELS = [n for n in CONSTRUCTORS if {"model", "encoder"} & required(n).keys()]


@pytest.mark.parametrize("name", OF_MODELS)
def test_every_learner_refuses_a_raw_module_and_a_word(name):
    argument = "encoder" if "encoder" in required(name) else "model"
    optional = "None" in str(inspect.signature(getattr(ml, name)).parameters[argument])
    for value in (nn.Dense(3), nn.Dense, "conv4", *([] if optional else [None])):
        with pytest.raises(TypeError, match=f"{argument} is .*expected an ml.Model"):
            make(name, **{argument: value})


LOSSES = {
    "word": ("mse", "'mse'.*without quotes: ml.losses.mse"),
    "unknown word": ("rmse", "'rmse'.*such as ml.losses.mse"),
    "None": (None, "None; .*such as ml.losses.mse"),
    "number": (0.5, "0.5"),
    "module": (ml.losses, "module"),
    "array": (jnp.zeros(()), "ArrayImpl"),
    "class": (type("Loss", (), {}), "the class Loss"),
    "model": (plain(), "a Model.*model comes first"),
    "optimiser": (optax.sgd(0.1), "optimiser comes after the loss"),
}


@pytest.mark.parametrize("given", LOSSES)
def test_what_is_no_loss_is_told_what_is_one(given):
    value, words = LOSSES[given]
    with pytest.raises(TypeError, match=rf"loss_fn is .*{words}"):
        ml.maml(plain(), value, optax.sgd(0.1))


OF_LOSSES = [name for name in CONSTRUCTORS if "loss_fn" in required(name)]


@pytest.mark.parametrize("name", OF_LOSSES)
def test_every_learner_refuses_a_word_as_its_loss(name):
    for value in ("mse", None):
        with pytest.raises(TypeError, match=r"loss_fn is .*ml.losses.mse"):
            make(name, loss_fn=value)


def test_features_of_a_context_are_a_model():
    with pytest.raises(TypeError, match=r"features is .*expected an ml.Model"):
        ml.hsml(plain(), CE, optax.sgd(0.1), features=nn.Dense(3))
