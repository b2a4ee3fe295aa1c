"""CAVIA: what moves, what does not, and the freedom of scale of the context."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, close, compiled, differs, model_grads, of, wide_blobs
from scipy import stats
from tiny import INPUTS, WAYS, blob_batch, one, plain

import metalearn as ml
from metalearn.algorithms.context.cavia import cavia
from metalearn.models.context import ContextMLP, FilmConv4

WIDTH = 6


def model_of(num_context=WIDTH):
    return ml.from_linen(ContextMLP(WAYS, (WIDTH,), num_context=num_context))


@functools.cache
def params_of():
    with jax.enable_x64(True):
        made = model_of().init(jax.random.key(1), jnp.zeros((1, INPUTS))).params
        return jax.tree.map(lambda p: p.astype(jnp.float64), made)


@functools.cache  # it keeps what was compiled for it
def learner_of(**options):
    return compiled(cavia(model_of(), CE, **{"num_steps": 2, "task_chunk": 9, **options}))


def adapted(learner, params, support):
    return learner.adapt(of(params), support)


def logits(learner, params, task):
    return learner.predict(adapted(learner, params, task.support), task.query.x)


# -- What adapts ------------------------------------------------------------------------


def test_only_the_context_moves(x64):
    params = params_of()
    after = dict(adapted(learner_of(), params, one(wide_blobs()).support).params)
    context = after.pop("context")
    close(after, {k: v for k, v in params.items() if k != "context"}, rtol=0)
    assert context.shape == (WIDTH,) and np.abs(context).min() > 1e-6


def test_the_context_is_no_meta_parameter(x64):
    """No gradient, and whatever stands there, every task starts at zero."""
    params, tasks = params_of(), wide_blobs()
    other = {**params, "context": jnp.full(WIDTH, 3.0)}
    found = [model_grads(learner_of(), p, tasks).grads for p in (params, other)]
    close(found[0], found[1], rtol=0)
    assert not np.any(found[0]["context"])
    support = one(tasks).support
    pair = [adapted(learner_of(), p, support).params["context"] for p in (params, other)]
    close(pair[0], pair[1], rtol=0)
    assert not np.any(
        learner_of().init(jax.random.key(0), one(tasks)).params["model"]["context"]
    )


def test_the_scale_of_the_context_is_free(x64):
    """`s` times the context with `1/s` of its weights, at `s^2` of the rate."""
    params, task, scale = params_of(), one(wide_blobs()), 4.0
    kernel = params["Dense_0"]["kernel"]
    other = {
        **params,
        "Dense_0": {
            **params["Dense_0"],
            "kernel": kernel.at[INPUTS:].divide(scale),
        },
    }
    wide = learner_of(rate=scale**2)
    close(logits(wide, other, task), logits(learner_of(), params, task), rtol=1e-6)
    close(
        adapted(wide, other, task.support).params["context"],
        scale * adapted(learner_of(), params, task.support).params["context"],
        rtol=1e-6,
    )
    assert differs(logits(wide, params, task), logits(learner_of(), params, task))


def test_identity_weights_are_maml_of_the_first_bias(x64):
    params, tasks = params_of(), wide_blobs()
    kernel = params["Dense_0"]["kernel"].at[INPUTS:].set(jnp.eye(WIDTH))
    bias = params["Dense_0"]["bias"] + 0.1
    params = {**params, "Dense_0": {"kernel": kernel, "bias": bias}}
    small = {
        "Dense_0": {"kernel": kernel[:INPUTS], "bias": bias},
        "head": params["head"],
    }
    maml = ml.maml(
        ml.from_linen(ml.models.MLP(WAYS, (WIDTH,))),
        CE,
        optax.sgd(1.0),
        num_steps=2,
        adapt_filter=lambda path, leaf: path == "Dense_0/bias",
        task_chunk=9,
    )
    task = one(tasks)
    close(
        logits(learner_of(), params, task), logits(compiled(maml), small, task), rtol=1e-6
    )
    found = model_grads(learner_of(), params, tasks).grads
    expected = model_grads(maml, small, tasks).grads
    close(found["head"], expected["head"], rtol=1e-6)
    close(found["Dense_0"]["bias"], expected["Dense_0"]["bias"], rtol=1e-6)
    first = found["Dense_0"]["kernel"][:INPUTS]
    close(first, expected["Dense_0"]["kernel"], rtol=1e-6)


def test_clips_each_task_before_the_mean(x64):
    params, tasks = params_of(), wide_blobs()
    start = of(params)
    estimate = lambda t: learner_of().estimate(start, t, key=jax.random.key(0))
    batches = [ml.stack_tasks([one(tasks, i)]) for i in range(3)]
    single = [estimate(batch).grads["model"] for batch in batches]
    limit = 0.05
    stacked = jax.tree.map(lambda *g: np.stack(g), *single)
    expected = jax.tree.map(lambda g: np.clip(g, -limit, limit).mean(0), stacked)
    of_mean = jax.tree.map(lambda g: np.clip(g.mean(0), -limit, limit), stacked)
    found = model_grads(learner_of(clip=limit, task_chunk=9), params, tasks).grads
    close(found, expected)
    assert differs(expected, of_mean)
    loose = model_grads(learner_of(clip=100.0, task_chunk=9), params, tasks).grads
    close(loose, jax.tree.map(lambda g: g.mean(0), stacked))


# -- FiLM -------------------------------------------------------------------------------


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_film_of_no_context_that_scales_by_one_is_conv4(downsample):
    options = dict(width=3, norm="layer", downsample=downsample)
    film = FilmConv4(WAYS, num_context=2, **options)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    params = jax.jit(film.init)(jax.random.key(1), x)["params"]
    bias = np.repeat([1.0, 0.0], 3)
    params = {**params, "film": {**params["film"], "bias": bias}}
    shared = {k: v for k, v in params.items() if k not in ("context", "film")}
    plain_net = ml.models.Conv4(WAYS, **options)
    expected = jax.jit(plain_net.apply)({"params": shared}, x)
    close(jax.jit(film.apply)({"params": params}, x), expected, rtol=1e-5)


@pytest.mark.parametrize("num_context", [100, 4])
def test_film_starts_as_the_released_layer(num_context):
    """ "kaiming" weights, `±sqrt(3 / n)`, and the default bias of a linear layer there."""
    film = FilmConv4(width=16, norm="none", downsample="stride", num_context=num_context)
    keys = jax.random.split(jax.random.key(1), 30)
    draw = lambda key: film.init(key, jnp.zeros((1, 8, 8, 1)))["params"]["film"]
    made = jax.jit(jax.vmap(draw))(keys)
    bounds = {"kernel": (3 / num_context) ** 0.5, "bias": num_context**-0.5}
    for name, bound in bounds.items():
        drawn = np.ravel(made[name]) / bound
        assert np.abs(drawn).max() <= 1
        assert stats.kstest(drawn, "uniform", args=(-1, 2)).pvalue > 0.01
    scale = np.sqrt(np.mean(np.square(made["bias"][:, :16])))  # gamma of no context
    np.testing.assert_allclose(scale, (3 * num_context) ** -0.5, rtol=0.1)
    if num_context == 100:
        np.testing.assert_allclose(scale, 0.06, atol=0.005)


@pytest.mark.parametrize("times", [3.0, 17.0])
def test_a_larger_start_of_film_takes_shorter_steps(times):
    """Convolution and norm undo its scale, so that steps shrink as it grows."""
    film = FilmConv4(WAYS, width=4, downsample="stride", num_context=3)
    learner = cavia(ml.from_linen(film), CE, num_steps=1, norm="batch")
    x = jax.random.normal(jax.random.key(0), (WAYS, 16, 16, 1))
    part = ml.Examples.of(x, jnp.arange(WAYS, dtype=jnp.int32))
    variables = jax.jit(learner.init)(jax.random.key(1), ml.Task(support=part, query=part))
    adapt = jax.jit(lambda v: learner.adapt(v, part).params["context"])
    step = adapt(variables)
    net = variables.params["model"]
    larger = {**net["film"], "bias": times * net["film"]["bias"]}
    params = {**variables.params, "model": {**net, "film": larger}}
    found = adapt(ml.Variables(params=params, state=variables.state))
    close(found, step / times, rtol=0.02)  # the norm's epsilon


def test_film_gives_the_context_a_gradient():
    model = ml.from_linen(
        FilmConv4(WAYS, width=3, norm="layer", downsample="stride", num_context=2)
    )
    learner = cavia(model, CE, num_steps=1)
    x = jax.random.normal(jax.random.key(0), (WAYS, 16, 16, 1))
    part = ml.Examples.of(x, jnp.arange(WAYS, dtype=jnp.int32))
    variables = jax.jit(learner.init)(jax.random.key(1), ml.Task(support=part, query=part))
    assert variables.params["model"]["film"]["kernel"].shape == (2, 6)
    after = jax.jit(learner.adapt)(variables, part).params
    assert np.abs(after["context"]).min() > 1e-6
    close(after["film"], variables.params["model"]["film"], rtol=0)


# -- Contract ---------------------------------------------------------------------------


class OnlyContext(nn.Module):
    @nn.compact
    def __call__(self, x):
        context = self.param("context", nn.initializers.zeros, (WAYS,))
        return jnp.broadcast_to(context[None], (x.shape[0], WAYS))


def test_bad_input_is_refused():
    task, key = one(blob_batch()), jax.random.key(0)
    with pytest.raises(ValueError, match=r"occurs in no parameter path.*body/b"):
        cavia(plain(), CE).init(key, task)
    with pytest.raises(ValueError, match="occurs in every parameter path"):
        cavia(ml.from_linen(OnlyContext()), CE).init(key, task)
    for clip in (0, -10.0, "10", True):
        with pytest.raises(ValueError, match="clip is"):
            learner_of(clip=clip)
    with pytest.raises(ValueError, match="rate is a GradientTransformation"):
        learner_of(rate=optax.sgd(1.0))
    with pytest.raises(ValueError, match="rate is nan; expected a finite number"):
        learner_of(rate=float("nan"))
    for num in (0, True, 2.0):
        with pytest.raises(ValueError, match=f"num_context is {num}"):
            model_of(num_context=num).init(key, task.support.x)
    images = jnp.zeros((1, 16, 16, 1))
    for options, words in (
        ({"film_at": 5}, "film_at is 5"),
        ({"downsample": "mean"}, "downsample is 'mean'"),
    ):
        with pytest.raises(ValueError, match=words):
            FilmConv4(WAYS, **options).init(key, images)
    with pytest.raises(ValueError, match="FilmConv4 got inputs"):
        FilmConv4(WAYS).init(key, task.support.x)


def test_any_parameter_can_be_the_context(x64):
    """ANIL whose head starts at zero, for example."""
    support = one(wide_blobs()).support
    learner = cavia(plain(), CE, context="^head/")
    params = learner.init(jax.random.key(0), one(wide_blobs())).params["model"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params["head"]))
    anil = ml.anil(plain(), CE, optax.sgd(1.0))
    expected = adapted(anil, params, support).params
    close(adapted(learner, params, support).params, expected, rtol=1e-6)
