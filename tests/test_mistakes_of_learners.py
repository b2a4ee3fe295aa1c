"""What is easily given in place of models, losses and options of learners: a table.

Each row was accepted once, or failed in the words of another library.
"""

import flax.linen as nn
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from flax import nnx
from slips import (
    CE,
    KEY,
    SGD,
    TASK,
    dict_model,
    maml,
    maml_of,
    variables,
)
from tiny import linen, plain

import metalearn as ml

MISTAKES = {
    # Numbers.
    "scale": (
        lambda: ml.protonet(linen(None), num_ways=3, scale=-1.0),
        ValueError,
        r"scale is -1\.0",
    ),
    "scale of text": (
        lambda: ml.protonet(linen(None), num_ways=3, scale="1"),
        ValueError,
        "scale is '1'",
    ),
    "rate of text": (
        lambda: ml.meta_sgd(plain(), CE, initial_rate="0.1"),
        ValueError,
        "initial_rate is '0.1'",
    ),
    "range of one": (
        lambda: ml.meta_sgd(plain(), CE, initial_rate=(0.1,)),
        ValueError,
        r"a range \(low, high\)",
    ),
    "turned range": (
        lambda: ml.meta_sgd(plain(), CE, initial_rate=(0.1, 0.005)),
        ValueError,
        r"a range \(low, high\)",
    ),
    "classes of floats": (
        lambda: ml.fine_tune(
            linen(None), CE, SGD, num_steps=1, num_classes=5.0, num_ways=5
        ),
        ValueError,
        r"num_classes is 5\.0",
    ),
    "classes below one": (
        lambda: ml.fine_tune(linen(None), CE, SGD, num_steps=1, num_classes=-5, num_ways=5),
        ValueError,
        "num_classes is -5",
    ),
    "damping": (
        lambda: ml.maml(
            plain(),
            CE,
            SGD,
            num_steps=1,
            differentiation=ml.inner.Implicit(damping=float("nan")),
        ),
        ValueError,
        "damping is nan|Implicit",
    ),
    # Flags.
    "flag of options": (
        lambda: maml(mask_absent_classes="no"),
        TypeError,
        "mask_absent_classes is 'no'",
    ),
    "rate for a flag": (
        lambda: ml.meta_curvature(plain(), CE, rate=0.1, learn_rate=0.1),
        TypeError,
        r"learn_rate is 0\.1",
    ),
    "lower": (lambda: ml.from_linen(nn.Dense(3), lower="no"), TypeError, "lower is 'no'"),
    # Models and losses.
    "loss of outputs alone": (
        lambda: ml.maml(plain(), lambda o: o.mean(), SGD),
        TypeError,
        r"loss_fn takes \(o\); expected a function \(outputs, examples\)",
    ),
    "functions of numbers": (
        lambda: ml.maml(ml.Model(5, 5), CE, SGD),
        TypeError,
        r"model\.init is a int.*from_linen",
    ),
    "apply of one argument": (
        lambda: ml.from_apply_fn(lambda key, x: {}, lambda x: x),
        TypeError,
        r"apply takes \(x\); expected \(params, x\)",
    ),
    "init of one argument": (
        lambda: ml.from_apply_fn(lambda x: {}, lambda params, x: x),
        TypeError,
        r"init takes \(x\); expected a function \(key, x\)",
    ),
    "nnx instance": (
        lambda: ml.from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0))),
        TypeError,
        r"make is a Linear of flax\.nnx; .*from_nnx\(lambda rngs",
    ),
    "nnx number": (lambda: ml.from_nnx(5), TypeError, "make is a int"),
    "linen as nnx": (
        lambda: ml.from_nnx(nn.Dense(3)),
        TypeError,
        r"flax\.linen; .*from_linen",
    ),
    "lower a number": (lambda: ml.lower(5), TypeError, "fun is a int"),
    "lower a model": (lambda: ml.lower(plain()), TypeError, r"lower\(model\.apply\)"),
    "dict masked": (
        lambda: (
            variables(ml.maml(dict_model(), CE, SGD, num_steps=1, mask_absent_classes=True))
            and ml.maml(dict_model(), CE, SGD, num_steps=1, mask_absent_classes=True).adapt(
                ml.maml(dict_model(), CE, SGD, num_steps=1).init(KEY, TASK), TASK.support
            )
        ),
        TypeError,
        "output of the network is a dict",
    ),
    "dict of an encoder": (
        lambda: ml.protonet(dict_model(), num_ways=3).adapt(
            variables(ml.protonet(dict_model(), num_ways=3)), TASK.support
        ),
        TypeError,
        "output of the encoder is a dict",
    ),
    "dict of features": (
        lambda: variables(
            ml.fine_tune(dict_model(), CE, SGD, num_steps=1, num_classes=4, num_ways=3)
        ),
        TypeError,
        "output of the model is a dict",
    ),
    "loss of a value a row": (
        lambda: maml_of(lambda o, e: (o**2).sum(-1)),
        TypeError,
        r"loss_fn gave float32\[6\]; expected one real number",
    ),
    "loss of a tuple": (
        lambda: maml_of(lambda o, e: (o.mean(), 1)),
        TypeError,
        "loss_fn gave a tuple",
    ),
    "loss of an integer": (
        lambda: maml_of(lambda o, e: jnp.argmax(o)),
        TypeError,
        r"loss_fn gave int32\[\]",
    ),
    "objective": (lambda: ml.gradient_estimator(5), TypeError, "objective is a int"),
    "parts of a learner": (
        lambda: ml.meta_trainer(ml.MetaLearner(5, 5, 5, 5), SGD),
        TypeError,
        r"learner\.init is a int; expected a function",
    ),
    "steps that wait, inside": (
        lambda: ml.maml(plain(), CE, optax.MultiSteps(SGD, 2), num_steps=1),
        TypeError,
        "adds up the gradients of several calls",
    ),
    "steps that wait, as a transformation": (
        lambda: ml.maml(
            plain(),
            CE,
            optax.MultiSteps(SGD, 2).gradient_transformation(),
            num_steps=1,
        ),
        ValueError,
        "an inner step that waits adapts nothing",
    ),
    "steps that wait, outside": (
        lambda: ml.meta_trainer(maml(), optax.MultiSteps(SGD, 2)),
        TypeError,
        r"MultiSteps.*tasks_per_step",
    ),
    "a leaf of maml": (
        lambda: ml.algorithms.add_leaf(variables(), KEY),
        ValueError,
        "expected those of hsml",
    ),
    "rate of nothing": (
        lambda: ml.kfo(plain(), CE, num_steps=1, rate=0.0),
        ValueError,
        "above 0",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_learners_are_named(name):
    call, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        call()
