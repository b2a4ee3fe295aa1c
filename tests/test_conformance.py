"""The mechanisms with every kind of model against `metalearn.testing.check_learner`.

Every learner of the registry stands in `tests/algorithms/test_registry.py`.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from tiny import WAYS, blob_batch, centred, linen, nnx_net, plain, sine_batch

import metalearn as ml
from metalearn.testing import check_learner

CE, MSE = ml.losses.cross_entropy, ml.losses.mse
MODELS = {"apply_fn": plain, "linen": linen, "nnx": nnx_net, "centred": centred}


def _maml(model, **options):
    return ml.maml(model(), CE, optax.sgd(0.1), num_steps=2, **options)


def _reptile(model, **options):
    # With a large eps: Adam would turn the rounding of zero gradients into full steps.
    opt = optax.adam(0.01, b1=0.0, eps=1e-3)
    return ml.reptile(model(), CE, opt, num_steps=2, **options)


# Name: (learner of a model, its properties).
LEARNERS = {
    "maml": (_maml, {}),
    "reptile_batches": (
        lambda m, **o: ml.reptile(m(), CE, optax.sgd(0.1), num_steps=2, batch_size=3, **o),
        {"order_invariant": False, "padding_invariant": False},
    ),
    # Adam turns the rounding of a gradient that is zero (a bias before batch norm) into
    # steps, hence the wider tolerance.
    "reptile_carry": (
        lambda m, **o: _reptile(m, carry_opt_state=True, **o),
        {"tolerance": 1e-3},
    ),
    "protonet": (
        lambda m, **o: ml.protonet(m(None), num_ways=WAYS, **o),
        {"relabelling": True},
    ),
    "maml_transductive": (
        lambda m, **o: _maml(m, norm="batch", **o),
        {"transductive": True},
    ),
    "protonet_transductive": (
        lambda m, **o: ml.protonet(m(None), num_ways=WAYS, norm="batch", **o),
        {"transductive": True, "relabelling": True},
    ),
}
# A kind of model goes through the same adapter whoever calls it: the mechanisms with all
# three kinds, every learner with one; the cheapest that has a state, where that is enough.
KINDS = {"maml": ("linen", "apply_fn", "nnx"), "protonet": ("linen", "nnx")}
# Those whose adapter or whose mechanism another case has as well.
FURTHER = (("maml", "nnx"), ("reptile_carry", "centred"))
CASES = [
    pytest.param(name, model, marks=[pytest.mark.slow] * ((name, model) in FURTHER))
    for name in LEARNERS
    for model in KINDS.get(name, ("centred",))
]
# The three mechanisms.
CHUNKED = (("maml", "apply_fn"), ("reptile_batches", "centred"), ("protonet", "linen"))


@pytest.mark.parametrize(("name", "model"), CASES)
def test_learner_keeps_the_contract(name, model, request):
    if name != "reptile_carry":  # it uses optax.adam
        request.getfixturevalue("strict_dtypes")
    make, properties = LEARNERS[name]
    network = MODELS[model]
    with_chunk = None
    if (name, model) in CHUNKED:
        with_chunk = lambda chunk: make(network, task_chunk=chunk)
    learner = make(network, task_chunk=8)
    if model == "apply_fn":  # no batch norm: nothing looks across queries
        properties = {k: v for k, v in properties.items() if k != "transductive"}
    check_learner(learner, blob_batch(), with_chunk=with_chunk, **properties)


@pytest.mark.slow  # the registry has learners of curves
def test_regression_learner_keeps_the_contract(strict_dtypes):
    learner = ml.maml(plain(1), MSE, optax.sgd(0.01), num_steps=2, task_chunk=8)
    check_learner(learner, sine_batch())


# -- The suite can fail -----------------------------------------------------------------


def _prototypes(centre):
    """A learner in a few lines, with the mean over support rows as an option."""

    def init(key, task):
        return ml.Variables(params=jnp.ones((task.support.x.shape[-1],)), state={})

    def adapt(variables, support, *, key=None):
        x = support.x * variables.params[None]
        return jnp.stack([centre(x, (support.y == k), support.mask) for k in range(WAYS)])

    def predict(adapted, x, *, key=None, mask=None):
        return -jnp.sum((x[:, None] - adapted[None]) ** 2, -1)

    def objective(variables, task, *, key):
        logits = predict(adapt(variables, task.support), task.query.x)
        loss = CE(logits, task.query)
        return loss, (variables.state, {"query/loss": loss})

    return ml.MetaLearner(init, adapt, predict, ml.gradient_estimator(objective))


def _mean(x, member, mask):
    return ml.masked_mean(x, member & mask)


def _unmasked(x, member, mask):
    return ml.masked_mean(x, member)


def _first(x, member, mask):
    return x[jnp.argmax(member & mask)]


def _leaking(x, member, mask):
    """Right values; the gradient of a square root of zero is infinite."""
    apart = jnp.where((member & mask)[:, None], x, 0)
    norms = jnp.sqrt(jnp.sum((apart - apart) ** 2, -1, keepdims=True))
    return ml.masked_mean(x, member & mask) + 0 * norms.sum()


def test_custom_learner_keeps_the_contract():
    check_learner(_prototypes(_mean), blob_batch(), relabelling=True)


def _zero_gradient(learner):
    def estimate(variables, tasks, *, key):
        found = learner.estimate(variables, tasks, key=key)
        zeros = jax.tree.map(jnp.zeros_like, found.grads)
        return ml.Estimate(grads=zeros, state=found.state, metrics=found.metrics)

    return learner._replace(estimate=estimate)


def _transductive(learner):
    def predict(adapted, x, *, key=None, mask=None):
        return learner.predict(adapted, x - x.mean(0, keepdims=True), key=key)

    return learner._replace(predict=predict)


def _renamed(learner):
    return learner._replace(adapt=lambda variables, examples, *, key=None: None)


def _growing(learner):
    def estimate(variables, tasks, *, key):
        found = learner.estimate(variables, tasks, key=key)
        state = {"seen": jnp.zeros((), jnp.int32)}
        return ml.Estimate(grads=found.grads, state=state, metrics=found.metrics)

    return learner._replace(estimate=estimate)


def _weak(learner):
    def init(key, task):
        return ml.Variables(params={"rate": jnp.asarray(0.1)}, state={})

    return learner._replace(init=init)


BROKEN = {
    "mask ignored": (lambda: _prototypes(_unmasked), "support.mask"),
    "order matters": (lambda: _prototypes(_first), "reversed"),
    "gradient leaks": (lambda: _prototypes(_leaking), "not finite"),
    "gradient cut": (lambda: _zero_gradient(_prototypes(_mean)), "zero everywhere"),
    "transductive": (lambda: _transductive(_prototypes(_mean)), "transductive"),
    "argument renamed": (lambda: _renamed(_prototypes(_mean)), "support"),
    "state grows": (lambda: _growing(_prototypes(_mean)), "estimate.state"),
    "weak type": (lambda: _weak(_prototypes(_mean)), "weakly typed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_learner_is_caught(name):
    make, words = BROKEN[name]
    with pytest.raises(AssertionError, match=words):
        check_learner(make(), blob_batch())


def test_wrong_declarations_are_caught():
    with pytest.raises(AssertionError, match="renaming"):
        learner = ml.maml(plain(), CE, optax.sgd(0.1), task_chunk=8)
        check_learner(learner, blob_batch(), relabelling=True)
    with pytest.raises(AssertionError, match="declared transductive"):
        check_learner(_prototypes(_mean), blob_batch(), transductive=True)
