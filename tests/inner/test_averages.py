"""State under the policy "support": averages get the batch's value, others are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import INPUTS, linen, nnx_net

import metalearn as ml
from metalearn.inner.averages import batch_statistics, kinds

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(1.0, 2.0, (6, INPUTS)).astype(np.float32)
MASK = np.array([True, True, True, True, True, True])
EXAMPLES = ml.Examples.of(X, np.zeros(6, np.int32))
MEAN, VAR = X.astype(np.float64).mean(0), X.astype(np.float64).var(0)


def own(state, training, evaluation, params=None):
    """A model of one's own; `training(params, state, x) -> (outputs, state)`."""

    def init(key, x):
        made = jax.tree.map(jnp.asarray, state)
        return ml.Variables(params={"scale": jnp.ones(INPUTS)}, state=made)

    def apply(variables, x, *, key=None, train=False, mask=None):
        args = (variables.params, variables.state, x)
        if train:
            return training(*args)
        return evaluation(*args), variables.state

    del params
    return ml.Model(init, apply)


def normalised(params, mean, var, x):
    return params["scale"][None] * (x - mean[None]) / jnp.sqrt(var[None] + 1e-5)


ZEROS, ONES = np.zeros(INPUTS, np.float32), np.ones(INPUTS, np.float32)


def plain_batch_norm():
    def training(params, state, x):
        mean, var = x.mean(0), x.var(0)
        new = {
            "mean": 0.9 * state["mean"] + 0.1 * mean,
            "var": state["var"] + 0.1 * (var - state["var"]),
        }
        return normalised(params, mean, var, x), new

    def evaluation(params, state, x):
        return normalised(params, state["mean"], state["var"], x)

    return own({"mean": ZEROS, "var": ONES}, training, evaluation)


def learned_decay():
    """The decay is an array that the program computes: numbers have to tell."""

    def training(params, state, x):
        mean, var = x.mean(0), x.var(0)
        decay = jax.nn.sigmoid(jnp.float32(2.0) + 0 * jnp.sum(params["scale"]))
        mix = lambda old, new: decay * old + (1 - decay) * new
        new = {"mean": mix(state["mean"], mean), "var": mix(state["var"], var)}
        return normalised(params, mean, var, x), new

    def evaluation(params, state, x):
        return normalised(params, state["mean"], state["var"], x)

    return own({"mean": ZEROS, "var": ONES}, training, evaluation)


def unbiased():
    """As in PyTorch: the running variance is that of n - 1."""

    def training(params, state, x):
        mean, var = x.mean(0), x.var(0)
        n = x.shape[0]
        new = {
            "mean": 0.9 * state["mean"] + 0.1 * mean,
            "var": 0.9 * state["var"] + 0.1 * var * n / (n - 1),
            "num_batches": state["num_batches"] + 1,
        }
        return normalised(params, mean, var, x), new

    def evaluation(params, state, x):
        return normalised(params, state["mean"], state["var"], x)

    state = {"mean": ZEROS, "var": ONES, "num_batches": np.int32(0)}
    return own(state, training, evaluation)


def first_time():
    """The first batch sets the averages, as in equinox."""

    def training(params, state, x):
        mean, var = x.mean(0), x.var(0)

        def mix(old, new):
            return jnp.where(state["first"], new, 0.9 * old + 0.1 * new)

        new = {
            "mean": mix(state["mean"], mean),
            "var": mix(state["var"], var),
            "first": jnp.zeros((), bool),
        }
        return normalised(params, mean, var, x), new

    def evaluation(params, state, x):
        return normalised(params, state["mean"], state["var"], x)

    state = {"mean": ZEROS, "var": ONES, "first": np.array(True)}
    return own(state, training, evaluation)


def debiased():
    """Averages that are corrected for their start, as in haiku."""

    def training(params, state, x):
        mean, var = x.mean(0), x.var(0)
        count = state["count"] + 1

        def mix(part, new):
            hidden = 0.9 * part["hidden"] + 0.1 * new
            return {"hidden": hidden, "average": hidden / (1 - 0.9**count)}

        new = {"mean": mix(state["mean"], mean), "var": mix(state["var"], var)}
        return normalised(params, mean, var, x), {**new, "count": count}

    def evaluation(params, state, x):
        averages = (state["mean"]["average"], state["var"]["average"])
        return normalised(params, *averages, x)

    part = {"hidden": ZEROS, "average": ZEROS}
    state = {"mean": part, "var": part, "count": np.int32(0)}
    return own(state, training, evaluation)


def renorm():
    """Batch renormalisation (Ioffe 2017): the pass itself reads the averages."""

    def training(params, state, x):
        mean, std = x.mean(0), jnp.sqrt(x.var(0) + 1e-5)
        r = jax.lax.stop_gradient(jnp.clip(std / state["std"], 1 / 3, 3))
        d = jax.lax.stop_gradient(jnp.clip((mean - state["mean"]) / state["std"], -5, 5))
        outputs = (x - mean[None]) / std[None] * r[None] + d[None]
        new = {
            "mean": state["mean"] + 0.01 * (mean - state["mean"]),
            "std": state["std"] + 0.01 * (std - state["std"]),
        }
        return params["scale"][None] * outputs, new

    def evaluation(params, state, x):
        return params["scale"][None] * (x - state["mean"][None]) / state["std"][None]

    return own({"mean": ZEROS, "std": ONES}, training, evaluation)


def no_momentum():
    def training(params, state, x):
        return x - x.mean(0)[None], {"mean": x.mean(0)}

    return own({"mean": ZEROS}, training, lambda p, s, x: x - s["mean"][None])


def counting():
    """A counter of floats knows nothing of the batch."""

    def training(params, state, x):
        new = {
            "mean": 0.5 * state["mean"] + 0.5 * x.mean(0),
            "calls": state["calls"] + 1,
        }
        return x - x.mean(0)[None], new

    def evaluation(params, state, x):
        return x - state["mean"][None]

    return own({"mean": ZEROS, "calls": np.float32(3)}, training, evaluation)


STD = np.sqrt(VAR + 1e-5)
AVERAGES = {
    "plain": (plain_batch_norm, {"mean": MEAN, "var": VAR}),
    "learned decay": (learned_decay, {"mean": MEAN, "var": VAR}),
    "unbiased": (unbiased, {"mean": MEAN, "var": VAR * 6 / 5, "num_batches": 0}),
    "first time": (first_time, {"mean": MEAN, "var": VAR, "first": True}),
    "debiased": (
        debiased,
        {
            "mean": {"hidden": MEAN, "average": MEAN},
            "var": {"hidden": VAR, "average": VAR},
            "count": 0,
        },
    ),
    "renorm": (renorm, {"mean": MEAN, "std": STD}),
    "no momentum": (no_momentum, {"mean": MEAN}),
    "counting": (counting, {"mean": MEAN, "calls": 3.0}),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_become_the_statistics_of_the_batch(name):
    make, expected = AVERAGES[name]
    model = make()
    variables = model.init(KEY, X)
    run = jax.jit(lambda v, e: batch_statistics(model, v.params, v.state, e))
    found = run(variables, EXAMPLES)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found,
        expected,
    )
    nothing = ml.Examples.of(X, EXAMPLES.y, jnp.zeros(6, bool))
    assert jax.tree.structure(run(variables, nothing)) == jax.tree.structure(found)


@pytest.mark.parametrize("make", [linen, nnx_net])
def test_batch_norm_of_flax_is_told_from_its_program(make, count_compilations):
    model = make()
    variables = model.init(KEY, X)
    count_compilations()
    found = kinds(model, variables.params, variables.state, X)
    assert count_compilations() == 0
    assert "average" in found and "fresh" not in found


# -- What is no running average -----------------------------------------------------


def running_maximum():
    def training(params, state, x):
        largest = jnp.maximum(state["largest"], jnp.abs(x).max(0))
        return x / largest[None], {"largest": largest}

    return own({"largest": ZEROS}, training, lambda p, s, x: x / s["largest"][None])


def decaying_maximum():
    def training(params, state, x):
        largest = jnp.maximum(0.9 * state["largest"], jnp.abs(x).max(0))
        return x / largest[None], {"largest": largest}

    return own({"largest": ONES}, training, lambda p, s, x: x / s["largest"][None])


def running_sum():
    def training(params, state, x):
        new = {"total": state["total"] + x.sum(0), "count": state["count"] + x.shape[0]}
        return x - x.mean(0)[None], new

    def evaluation(params, state, x):
        return x - state["total"][None] / state["count"]

    return own({"total": ZEROS, "count": np.float32(1)}, training, evaluation)


def geometric():
    def training(params, state, x):
        new = jnp.exp(0.9 * jnp.log(state["size"]) + 0.1 * jnp.log(x.var(0)))
        return x / jnp.sqrt(x.var(0))[None], {"size": new}

    return own({"size": ONES}, training, lambda p, s, x: x / jnp.sqrt(s["size"])[None])


def decay_of_the_data():
    def training(params, state, x):
        decay = jax.nn.sigmoid(5 * x.mean())
        new = decay * state["mean"] + (1 - decay) * x.mean(0)
        return x - x.mean(0)[None], {"mean": new}

    return own({"mean": ZEROS}, training, lambda p, s, x: x - s["mean"][None])


def average_of_weights():
    def training(params, state, x):
        new = 0.99 * state["slow"] + 0.01 * params["scale"]
        return params["scale"][None] * x, {"slow": new}

    return own({"slow": ONES}, training, lambda p, s, x: s["slow"][None] * x)


def corrected_in_evaluation():
    """The correction reads a count, which no support set moves."""

    def training(params, state, x):
        new = {
            "hidden": 0.9 * state["hidden"] + 0.1 * x.mean(0),
            "count": state["count"] + 1,
        }
        return x - x.mean(0)[None], new

    def evaluation(params, state, x):
        return x - (state["hidden"] / (1 - 0.9 ** state["count"]))[None]

    state = {"hidden": ZEROS, "count": np.int32(0)}
    return own(state, training, evaluation)


def growing():
    def training(params, state, x):
        new = {"mean": 1.5 * state["mean"] + 0.1 * x.mean(0)}
        return x - x.mean(0)[None], new

    return own({"mean": ZEROS}, training, lambda p, s, x: x - s["mean"][None])


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.SpectralNorm(nn.Dense(3))(x, update_stats=train)


OTHERS = {
    "running maximum": (running_maximum, "largest"),
    "decaying maximum": (decaying_maximum, "largest"),
    "running sum": (running_sum, "total"),
    "geometric mean": (geometric, "size"),
    "decay of the data": (decay_of_the_data, "mean"),
    "average of weights": (average_of_weights, "slow"),
    "corrected in evaluation": (corrected_in_evaluation, "count"),
    "growing": (growing, "mean"),
    "spectral norm": (lambda: ml.from_linen(Spectral()), "batch_stats/SpectralNorm_0"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_average_is_refused_by_its_name(name):
    make, leaf = OTHERS[name]
    task = ml.Task(support=EXAMPLES, query=EXAMPLES)
    learner = ml.maml(make(), ml.losses.cross_entropy, optax.sgd(0.1))
    with pytest.raises(ValueError, match=rf"{leaf}.* is none.*norm='running'"):
        jax.jit(learner.init)(KEY, task)
    for norm in ("running", "batch"):
        other = ml.maml(make(), ml.losses.cross_entropy, optax.sgd(0.1), norm=norm)
        jax.eval_shape(other.init, KEY, task)


def test_the_answer_is_kept_with_the_model(count_compilations):
    model = debiased()
    variables = model.init(KEY, X)
    first = kinds(model, variables.params, variables.state, X)
    count_compilations()
    assert kinds(model, variables.params, variables.state, X) is first
    assert count_compilations() == 0


class Streams(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(INPUTS, momentum=0.7, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dropout(x))


def test_a_state_with_random_streams_is_taken_without_their_noise():
    model = ml.from_nnx(Streams)
    variables = model.init(KEY, X)
    found = batch_statistics(model, variables.params, variables.state, EXAMPLES, key=KEY)
    np.testing.assert_allclose(found["nnx"]["norm"]["mean"], MEAN, rtol=1e-4)
    np.testing.assert_allclose(found["nnx"]["norm"]["var"], VAR, rtol=1e-3)
    assert set(found) == {"nnx", "rng"}
