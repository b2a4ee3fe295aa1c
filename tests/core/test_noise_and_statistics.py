"""Noise apart from batch statistics, in whatever model they are under one flag."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import INPUTS, WAYS, blob_batch, one

import metalearn as ml
from metalearn.core.model import run

KEY = jax.random.key(0)
CE = ml.losses.cross_entropy
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, INPUTS)), jnp.float32)


class Linen(nn.Module):
    """Batch norm and dropout under one flag."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class LinenByCall(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic, use_running_average):
        x = nn.BatchNorm(momentum=0.5)(x, use_running_average)
        return nn.Dropout(0.5)(x, deterministic=deterministic)


class OwnNoise(nn.Module):
    """Noise that no interceptor knows, beside a batch norm that it knows."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        if train:
            x = x * jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape)
        return x


class OwnStream(OwnNoise):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        if train:
            x = x * jax.random.bernoulli(self.make_rng("drop_path"), 0.5, x.shape)
        return x


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(INPUTS, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(x))


class NnxOwn(nnx.Module):
    """Noise under an attribute of its own."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(INPUTS, momentum=0.5, rngs=rngs)
        self.rngs = rngs
        self.training = False

    def __call__(self, x):
        x = self.norm(x)
        if self.training:
            x = x * jax.random.bernoulli(self.rngs.dropout(), 0.5, x.shape)
        return x


class NnxByCall(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(INPUTS, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train: bool):
        x = self.norm(x, use_running_average=not train)
        return self.dropout(x, deterministic=not train)


BOTH = {
    "linen": lambda: ml.from_linen(Linen()),
    "linen by call": lambda: ml.from_linen(LinenByCall()),
    "linen, own noise": lambda: ml.from_linen(OwnNoise()),
    "linen, own stream": lambda: ml.from_linen(OwnStream()),
    "nnx": lambda: ml.from_nnx(Nnx),
    "nnx, own noise": lambda: ml.from_nnx(NnxOwn),
}


@pytest.mark.parametrize("name", BOTH)
def test_noise_and_batch_statistics_are_had_apart(name):
    model = BOTH[name]()
    variables = model.init(KEY, X)
    x = np.asarray(X, np.float64)
    by_batch = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    def of(noise, batch, key=KEY):
        return run(model, variables, X, key=key, noise=noise, batch=batch)

    outputs, state = of(False, True)
    np.testing.assert_allclose(outputs, by_batch, rtol=1e-3, atol=1e-4)
    mean = next(s for s in jax.tree.leaves(state) if np.shape(s) == (INPUTS,))
    np.testing.assert_allclose(mean, 0.5 * x.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(outputs, of(False, True, jax.random.key(5))[0])
    still, same = of(False, False)
    np.testing.assert_allclose(still, x, rtol=1e-3, atol=1e-4)
    noisy, same_too = of(True, False)
    assert same is variables.state and same_too is variables.state
    dropped = np.asarray(noisy) == 0
    assert dropped.any() and not dropped.all()
    scale = np.asarray(noisy)[~dropped] / x[~dropped]
    np.testing.assert_allclose(scale, scale[0], rtol=1e-3)  # averages of 0 and 1
    everything = np.asarray(of(True, True)[0])
    scale = everything[everything != 0] / by_batch[everything != 0]
    np.testing.assert_allclose(scale, scale[0], rtol=1e-2)


class OwnNorm(nn.Module):
    """A norm that no interceptor knows, beside a dropout that it knows."""

    @nn.compact
    def __call__(self, x, train=False):
        mean = self.variable("averages", "mean", jnp.zeros, x.shape[-1])
        if train:
            mean.value = 0.5 * mean.value + 0.5 * x.mean(0)
        x = x - (x.mean(0) if train else mean.value)[None]
        return nn.Dropout(0.5, deterministic=not train)(x)


class NnxOwnNorm(nnx.Module):
    def __init__(self, rngs):
        self.mean = nnx.BatchStat(jnp.zeros(INPUTS))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.is_training = False

    def __call__(self, x):
        mean = self.mean[...]
        if self.is_training:
            self.mean[...] = 0.5 * mean + 0.5 * x.mean(0)
            mean = x.mean(0)
        return self.dropout(x - mean[None])


@pytest.mark.parametrize("make", [OwnNorm, NnxOwnNorm])
def test_norms_of_ones_own_are_had_without_dropout(make):
    model = ml.from_linen(make()) if make is OwnNorm else ml.from_nnx(make)
    variables = model.init(KEY, X)
    x = np.asarray(X, np.float64)
    outputs, state = run(model, variables, X, key=KEY, noise=False, batch=True)
    np.testing.assert_allclose(outputs, x - x.mean(0), rtol=1e-4, atol=1e-5)
    mean = next(s for s in jax.tree.leaves(state) if np.shape(s) == (INPUTS,))
    np.testing.assert_allclose(mean, 0.5 * x.mean(0), rtol=1e-4, atol=1e-6)
    outputs, state = run(model, variables, X, key=KEY, noise=True, batch=False)
    assert state is variables.state
    # Averages of linen take no orders, so dropout cannot be had with them: evaluation it
    # is. A flag of nnx is an attribute of each layer.
    dropped = np.asarray(outputs) == 0
    assert dropped.any() == (make is NnxOwnNorm)
    scale = 2 if make is NnxOwnNorm else 1
    np.testing.assert_allclose(outputs[~dropped], scale * x[~dropped], rtol=1e-5)


class LayerNormed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = nn.LayerNorm()(nn.Dense(8)(x))
        return nn.Dense(WAYS)(nn.Dropout(0.5, deterministic=not train)(x))


class BatchNormed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(WAYS)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxLayerNormed(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(INPUTS, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, WAYS, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


def function(params, x, key=None, training=False):
    x = jnp.tanh(x @ params["a"])
    if training:
        x = x * jax.random.bernoulli(key, 0.5, x.shape)
    return x @ params["b"]


MODELS = {
    "layer norm": lambda: ml.from_linen(LayerNormed()),
    "batch norm": lambda: ml.from_linen(BatchNormed()),
    "nnx": lambda: ml.from_nnx(NnxLayerNormed),
    "function": lambda: ml.from_apply_fn(
        lambda key, x: {
            "a": jax.random.normal(key, (INPUTS, 8)),
            "b": jax.random.normal(key, (8, WAYS)),
        },
        function,
    ),
}


OF_DROPOUT = [(name, "support") for name in MODELS]
OF_DROPOUT += [("batch norm", policy) for policy in ("batch", "running")]


@pytest.mark.parametrize(("name", "policy"), OF_DROPOUT)
def test_dropout_is_on_in_meta_training_and_off_at_test(name, policy):
    learner = ml.fomaml(MODELS[name](), CE, optax.sgd(0.5), norm=policy, task_chunk=8)
    tasks = blob_batch()
    variables = jax.jit(learner.init)(KEY, one(tasks))
    keys = [jax.random.key(1), jax.random.key(2), None]

    @jax.jit
    def predicted(key):
        adapted = learner.adapt(variables, one(tasks).support, key=key)
        return learner.predict(adapted, one(tasks).query.x, key=key)

    found = [predicted(key) for key in keys[:2]]
    np.testing.assert_array_equal(found[0], found[1])
    learner.adapt(variables, one(tasks).support)  # and without a key
    estimate = jax.jit(lambda key: learner.estimate(variables, tasks, key=key).metrics)
    first, second = (estimate(key) for key in keys[:2])
    for metric in ("query/loss", "support/loss"):
        assert not np.allclose(first[metric], second[metric]), f"no dropout in {metric}"


def test_a_model_of_two_functions_that_cannot_have_one_without_the_other_is_refused():
    def init(key, x):
        return ml.Variables(params={}, state={"mean": jnp.zeros(x.shape[-1])})

    def apply(variables, x, *, key=None, train=False, mask=None):
        if not train:
            return x - variables.state["mean"][None], variables.state
        mean = x.mean(0)
        key = jax.random.key(0) if key is None else key
        outputs = (x - mean[None]) * jax.random.bernoulli(key, 0.5, x.shape)
        return outputs, {"mean": 0.9 * variables.state["mean"] + 0.1 * mean}

    def split(variables, x, *, key=None, noise=False, batch=False, mask=None):
        mean = x.mean(0) if batch else variables.state["mean"]
        outputs = x - mean[None]
        if noise:
            outputs = outputs * jax.random.bernoulli(key, 0.5, x.shape)
        new = 0.9 * variables.state["mean"] + 0.1 * mean
        return outputs, {"mean": new} if batch else variables.state

    task = one(blob_batch())
    for norm in ("support", "batch"):
        make = lambda *fns, norm=norm: ml.reptile(
            ml.Model(*fns), CE, optax.sgd(0.1), num_steps=1, norm=norm
        )
        with pytest.raises(ValueError, match=rf"{norm}.*draws at random.*running"):
            jax.eval_shape(make(init, apply).init, KEY, task)
        jax.eval_shape(make(init, apply, split).init, KEY, task)
    running = ml.reptile(
        ml.Model(init, apply), CE, optax.sgd(0.1), num_steps=1, norm="running"
    )
    jax.eval_shape(running.init, KEY, task)


class OwnNormAndNoise(nn.Module):
    """What no way of asking tells apart."""

    @nn.compact
    def __call__(self, x, train=False):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        if not train:
            return x - mean.value[None]
        mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
        x = x - x.mean(0)[None]
        return x * jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape)


def test_layers_of_ones_own_under_one_flag_are_refused_where_it_matters():
    model = ml.from_linen(OwnNormAndNoise())
    with pytest.raises(ValueError, match=r"batch_stats/mean.*deterministic"):
        ml.protonet(model, num_ways=3)  # nothing wrong with running averages
        jax.eval_shape(ml.maml(model, CE, optax.sgd(0.1)).init, KEY, one(blob_batch()))


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(WAYS)(x))
        self.sow("intermediates", "hidden", x)
        self.sow("losses", "size", jnp.sum(x))
        self.sow("sums", "size", jnp.sum(x), reduce_fn=jnp.add, init_fn=lambda: 0.0)
        count = self.variable("counts", "calls", lambda: jnp.zeros((), jnp.int32))
        if train:
            count.value += 1
        return self.perturb("seen", x)


class NnxSowing(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(INPUTS, rngs=rngs)

    def __call__(self, x):
        self.sow(nnx.Intermediate, "inputs", x)
        return self.norm(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make", [lambda: ml.from_linen(Sowing()), lambda: ml.from_nnx(NnxSowing)]
)
def test_sown_values_are_no_state(make):
    model = make()
    variables = model.init(KEY, X)
    assert set(variables.state) in ({"batch_stats", "counts"}, {"nnx"})
    for _ in range(2):
        _, state = model.apply(variables, X, train=True, key=KEY)
        assert jax.tree.structure(state) == jax.tree.structure(variables.state)
        variables = ml.Variables(params=variables.params, state=state)
    if "counts" in state:
        assert int(state["counts"]["calls"]) == 2


def test_models_say_what_they_are():
    assert repr(ml.from_linen(Linen())) == "Model(linen Linen, train=True in training)"
    both = "deterministic=False in training, use_running_average=False in training"
    assert repr(ml.from_linen(LinenByCall())) == f"Model(linen LinenByCall, {both})"
    assert "no training flag" in repr(ml.from_linen(nn.Dense(2)))
    assert "nnx NnxByCall, train() and eval(), train=True" in repr(ml.from_nnx(NnxByCall))
    assert "function function, training=True" in repr(MODELS["function"]())
    assert "functions of your own" in repr(ml.Model(None, None))
