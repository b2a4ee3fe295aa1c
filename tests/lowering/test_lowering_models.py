"""The lowering of whole models, around loops and conditions, and its own manners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from lowered import NHWC, assert_close, convolution, jit, normal, num_convolutions

import metalearn as ml
from metalearn.lowering import lower

# -- Whole models -------------------------------------------------------------------


class LinenNet(nn.Module):
    """Two blocks with every kind of state that a flax model may carry."""

    padding: str = "SAME"

    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            x = nn.Conv(4, (3, 3), padding=self.padding)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_linen_model(x64, padding):
    model = LinenNet(padding)
    images = normal(0, 2, 10, 10, 1)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), images, False)
    keys = {"dropout": jax.random.key(7)}

    def train(fun, variables):
        return fun(variables, images, True, rngs=keys, mutable=["batch_stats"])

    def everything(fun, variables):
        # One positional flag, no mutable collection: another structure of outputs.
        evaluated = fun(variables, images, False)
        grads = jax.grad(lambda v: jnp.sum(train(fun, v)[0] ** 2))(variables)
        return train(fun, variables), evaluated, grads

    original = functools.partial(everything, model.apply)
    lowered = functools.partial(everything, lower(model.apply))
    assert num_convolutions(original, variables) > 0
    assert num_convolutions(lowered, variables) == 0
    assert_close(jit(lowered)(variables), jit(original)(variables))


@pytest.mark.parametrize("of", ["linen", "nnx", "function"])
def test_a_model_of_which_only_pooling_is_lowered(of):
    """The primitives of a model by what of it is exchanged; its values stay."""
    images = normal(0, 2, 6, 6, 1, dtype=jnp.float32)

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.max_pool(nn.Conv(2, (3, 3))(x), (2, 2), (2, 2)).sum((1, 2))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)

        def __call__(self, x):
            return nnx.max_pool(self.conv(x), (2, 2), (2, 2)).sum((1, 2))

    makers = {
        "linen": lambda how: ml.from_linen(Linen(), lower=how),
        "nnx": lambda how: ml.from_nnx(lambda rngs: Nnx(rngs), lower=how),
        "function": lambda how: ml.from_apply_fn(Linen().init, Linen().apply, lower=how),
    }
    found = {}
    for how in (True, "pooling", False):
        model = makers[of](how)
        variables = model.init(jax.random.key(0), images)
        run = lambda v, model=model: model.apply(v, images)[0]
        pooled = "reduce_window_max" in str(jax.make_jaxpr(run)(variables))
        found[how] = num_convolutions(run, variables), pooled
        plain = makers[of](False).apply(variables, images)[0]
        assert_close(run(variables), plain, rtol=1e-5)
    assert found == {True: (0, False), "pooling": (1, False), False: (1, True)}
    with pytest.raises(TypeError, match="lower is 'convolutions'; expected"):
        makers[of]("convolutions")


def test_nnx_model():
    class NnxNet(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.head = nnx.Linear(36, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            x = nnx.max_pool(x, (2, 2), (2, 2))
            return self.head(x.reshape(x.shape[0], -1))

    graphdef, state = nnx.split(NnxNet(nnx.Rngs(0)))
    images = normal(0, 2, 6, 6, 1, dtype=jnp.float32)

    def apply(state, images):
        model = nnx.merge(graphdef, state)
        outputs = model(images)
        return outputs, nnx.state(model)

    assert num_convolutions(apply, state, images) == 1
    assert num_convolutions(lower(apply), state, images) == 0
    assert_close(lower(apply)(state, images), apply(state, images), rtol=1e-5, atol=1e-5)


def residual(conv):
    return lambda x, w: x + jnp.tanh(conv(x, w))


def in_scan(conv):
    def fun(x, w):
        def body(carry, scale):
            return residual(conv)(carry, scale * w), jnp.sum(carry)

        return lax.scan(body, x, jnp.linspace(0.5, 1.0, 3))

    return fun


def in_while(conv):
    def fun(x, w):
        state = (0, x)
        state = lax.while_loop(
            lambda s: jnp.logical_and(s[0] < 3, jnp.sum(conv(s[1], w)) < 1e6),
            lambda s: (s[0] + 1, residual(conv)(s[1], w)),
            state,
        )
        return state[1]

    return fun


def in_cond(conv):
    def fun(x, w):
        return lax.cond(jnp.sum(x) > 0, conv, lambda x, w: 2 * conv(x, w), x, w)

    return fun


STRUCTURES = {
    "jit": lambda conv: jax.jit(residual(conv)),
    "nested_jit": lambda conv: jax.jit(lambda x, w: jax.jit(conv)(x, w) * 2),
    "remat": lambda conv: jax.checkpoint(residual(conv)),
    "remat_policy": lambda conv: jax.checkpoint(
        residual(conv), policy=jax.checkpoint_policies.dots_saveable
    ),
    "scan": in_scan,
    "scan_of_remat": lambda conv: in_scan(jax.checkpoint(conv)),
    "while": in_while,
    "cond": in_cond,
    "grad": lambda conv: jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2), argnums=1),
    "vmap": lambda conv: lambda x, w: jax.vmap(conv)(x[None], w[None])[0],
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_around_a_convolution(x64, name):
    fun = STRUCTURES[name](convolution(NHWC, {}))
    x, w = normal(0, 2, 5, 5, 3), normal(1, 3, 3, 3, 3) / 5
    lowered = lower(fun)
    assert num_convolutions(fun, x, w) >= 1
    assert num_convolutions(lowered, x, w) == 0
    assert_close(jit(lowered)(x, w), jit(fun)(x, w))
    if name == "while":  # no reverse mode through while_loop
        return

    def gradient(fun):
        def loss(x, w):
            return sum(jnp.sum(y**2) for y in jax.tree.leaves(fun(x, w)))

        return jax.grad(loss, argnums=(0, 1))

    assert num_convolutions(gradient(lowered), x, w) == 0
    assert_close(jit(gradient(lowered))(x, w), jit(gradient(fun))(x, w))


def test_eager_calls(x64):
    fun = in_scan(jax.jit(convolution(NHWC, {})))
    x, w = normal(0, 2, 5, 5, 3), normal(1, 3, 3, 3, 3) / 5
    assert_close(lower(fun)(x, w), fun(x, w))


def test_custom_rules_stay_in_force():
    conv = convolution(NHWC, {})

    @jax.custom_vjp
    def straight(x, w):
        return conv(x, w)

    straight.defvjp(
        lambda x, w: (straight(x, w), (x, w)),
        lambda saved, g: (7.0 * saved[0], 11.0 * saved[1]),
    )

    @jax.custom_jvp
    def tripled(x, w):
        return conv(x, w)

    tripled.defjvp(lambda p, t: (tripled(*p), 3.0 * tripled(t[0], p[1])))

    x, w = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)

    def fun(x, w):
        return straight(conv(x, w), w) + tripled(x, w)

    lowered = lower(fun)
    assert num_convolutions(fun, x, w) == 3
    assert num_convolutions(lowered, x, w) == 2
    for f in (fun, lowered):
        grads = jax.grad(lambda x, w, f=f: jnp.sum(f(x, w)), argnums=(0, 1))(x, w)
        inner = conv(x, w)
        from_conv = jax.vjp(conv, x, w)[1](7.0 * inner)
        from_tripled = jax.vjp(lambda x: 3.0 * conv(x, w), x)[1](jnp.ones_like(inner))
        expected = (from_conv[0] + from_tripled[0], from_conv[1] + 11.0 * w)
        assert_close(grads, expected, rtol=1e-4, atol=1e-4)


# -- The transform itself -----------------------------------------------------------


@pytest.mark.parametrize("exchanged", [False, True])
def test_the_python_of_a_function_runs_once_a_call(exchanged):
    conv, runs = convolution(NHWC, {}), []

    def fun(x, w):
        runs.append(x)
        return jnp.sin(conv(x, w) if exchanged else x)

    x, w = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)
    found = lower(fun)(x, w)
    assert len(runs) == 1
    np.testing.assert_allclose(found, fun(x, w), rtol=1e-5, atol=1e-5)
    jax.jit(lower(fun)).lower(x, w)
    assert len(runs) == 3


def test_leaves_that_are_no_arrays_pass_through():
    conv = convolution(NHWC, {})
    x, w = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)

    def fun(x, weights, repeat, missing, *, mode, key, scale=None):
        assert type(repeat) is int and missing is None and mode == "twice"
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        for _ in range(repeat):
            x = conv(x, weights["w"])
        noise = jax.random.normal(key, x.shape)
        return {"y": x + noise, "none": None, "key": key, "n": (jnp.int32(repeat),)}

    args = (x, {"w": w, "none": None}, 2, None)
    kwargs = {"mode": "twice", "key": jax.random.key(3)}
    actual, expected = lower(fun)(*args, **kwargs), fun(*args, **kwargs)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert actual["key"] == expected["key"] and actual["n"] == expected["n"]
    np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-5, atol=1e-5)


def test_keys_cross_loops_and_vmap():
    conv = convolution(NHWC, {})

    def fun(key, x, w):
        def body(key, _):
            key, now = jax.random.split(key)
            return key, conv(x, w) * jax.random.bernoulli(now, 0.5, x.shape)

        return lax.scan(body, key, None, length=3)

    keys = jax.random.split(jax.random.key(0), 2)
    x, w = normal(0, 2, 1, 4, 4, 2), normal(1, 2, 3, 3, 2, 2)
    assert num_convolutions(jax.vmap(lower(fun)), keys, x, w) == 0
    actual, expected = jax.vmap(lower(fun))(keys, x, w), jax.vmap(fun)(keys, x, w)
    assert jnp.all(actual[0] == expected[0])
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, atol=1e-5)


def test_closed_over_tracers_and_values_read_at_call_time(x64):
    conv = convolution(NHWC, {})
    x, w = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)

    def loss(transform, w):
        return jnp.sum(transform(lambda x: conv(x, w))(x) ** 2)

    expected = jax.grad(functools.partial(loss, lambda f: f))(w)
    assert_close(jax.grad(functools.partial(loss, lower))(w), expected)

    box = {"w": w}
    lowered = lower(lambda x: conv(x, box["w"]))
    before = lowered(x)
    box["w"] = 2 * w
    assert_close(lowered(x), 2 * before)


def test_collectives_and_effects_inside():
    conv = convolution(NHWC, {})
    seen = []

    def fun(x, w):
        y = conv(x, w)
        jax.debug.callback(lambda v: seen.append(float(v)), jnp.sum(w))
        return lax.pmean(y, "tasks")

    x, w = normal(0, 2, 1, 4, 4, 2), normal(1, 2, 3, 3, 2, 2)
    actual = jax.vmap(lower(fun), axis_name="tasks")(x, w)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), sorted(w.sum((1, 2, 3, 4))), rtol=1e-5)
    expected = jnp.mean(jax.vmap(conv)(x, w), axis=0)
    np.testing.assert_allclose(actual[1], expected, rtol=1e-4, atol=1e-5)


def test_name_and_documentation_are_kept():
    def fun(x):
        """Says something."""
        return x

    assert lower(fun).__name__ == "fun"
    assert lower(fun).__doc__ == "Says something."
