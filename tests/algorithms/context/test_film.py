"""FiLM at a context that is not zero: the whole network in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close
from tiny import WAYS

import metalearn as ml
from metalearn.models.context import FilmConv4

WIDTH, CONTEXT = 2, 3


def convolved(x, kernel, stride):
    """A convolution of 3 x 3 with "SAME" padding of even sides."""
    low = 1 if stride == 1 else 0
    x = np.pad(x, [(0, 0), (low, 1), (low, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], kernel)


def by_hand(params, x, *, pool, film_at):
    film = params["film"]
    made = params["context"] @ film["kernel"] + film["bias"]
    gamma, beta = made[:WIDTH], made[WIDTH:]
    for block in range(1, 5):
        layer = params[f"Conv_{block - 1}"]
        x = convolved(x, layer["kernel"], 1 if pool else 2) + layer["bias"]
        if pool:
            num, side = len(x), x.shape[1] // 2
            x = x.reshape(num, side, 2, side, 2, WIDTH).max((2, 4))
        if block == film_at:
            x = gamma * x + beta
        x = np.maximum(x, 0)
    x = x.reshape(len(x), -1) if pool else x.mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    ("downsample", "film_at"), [("pool", 3), ("stride", 1), ("stride", 4)]
)
def test_film_of_any_context_is_that_of_numpy(x64, downsample, film_at):
    """Scale and offset of both signs, between pooling and ReLU."""
    pool = downsample == "pool"
    options = dict(width=WIDTH, norm="none", downsample=downsample, film_at=film_at)
    model = ml.from_linen(FilmConv4(WAYS, num_context=CONTEXT, **options))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 16, 16, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x)).params
    params = jax.tree.map(lambda p: rng.normal(size=p.shape), shapes)
    film, context = params["film"]["kernel"], np.array([0.0, 2.0, -1.0])
    bias = np.array([-0.5, 1.2, 0.8, -0.3]) - context @ film  # gammas and betas to get
    params |= {"film": {"kernel": film, "bias": bias}, "context": context}

    def outputs(params):
        made = ml.Variables(params=jax.tree.map(jnp.asarray, params), state={})
        return jax.jit(lambda v: model.apply(v, jnp.asarray(x))[0])(made)

    expected = by_hand(params, x, pool=pool, film_at=film_at)
    close(outputs(params), expected)
    assert np.ptp(expected, axis=0).min() > 1e-3  # no block is dead
