"""Tiny tasks and networks that the tests share."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import metalearn as ml

WAYS, INPUTS, HIDDEN = 3, 4, 5


def blobs(key, shots=2, queries=2):
    """Classes are Gaussian blobs around random centres; labels are `0..WAYS-1`."""
    k_centre, k_noise = jax.random.split(key)
    centres = jax.random.normal(k_centre, (WAYS, 1, INPUTS))
    noise = jax.random.normal(k_noise, (WAYS, shots + queries, INPUTS))
    x = centres + 0.3 * noise
    y = jnp.broadcast_to(
        jnp.arange(WAYS, dtype=jnp.int32)[:, None], (WAYS, shots + queries)
    )

    def part(rows):
        return ml.Examples.of(x[:, rows].reshape(-1, INPUTS), y[:, rows].reshape(-1))

    return ml.Task(
        support=part(slice(0, shots)),
        query=part(slice(shots, None)),
        info={"class_ids": jnp.arange(WAYS, dtype=jnp.int32) + 1},
    )


@functools.cache
def blob_batch(num=3):
    with jax.enable_x64(False):  # the first caller may be a float64 test
        return jax.vmap(blobs)(jax.random.split(jax.random.key(7), num))


@functools.cache
def sine_batch(num=3):
    sampler = ml.tasks.sinusoid(num_support=5, num_query=4)
    with jax.enable_x64(False):
        return jax.vmap(sampler)(jax.random.split(jax.random.key(7), num))


def episode_batch(environment, num=3):
    sampler = ml.environments.episodes(environment, num_support=3, num_query=2)
    with jax.enable_x64(False):
        return jax.vmap(sampler)(jax.random.split(jax.random.key(7), num))


def one(tasks, i=0):
    return jax.tree.map(lambda leaf: leaf[i], tasks)


def plain_init(key, x, outputs, hidden=HIDDEN):
    body, head = (x.shape[-1], hidden), (hidden, outputs)
    # The numbers of a draw for each, whose first ones do not depend on how many there are.
    # One draw takes half as long to compile, and hundreds of tests do.
    num = max(math.prod(body), math.prod(head))
    draws = jax.vmap(lambda k: jax.random.normal(k, (num,)))(jax.random.split(key))
    w1, w2 = (d[: math.prod(s)].reshape(s) for d, s in zip(draws, (body, head)))
    return {
        "body": {"w": w1, "b": jnp.zeros(hidden)},
        "head": {"w": w2, "b": jnp.zeros(outputs)},
    }


def tanh_net(params, x):
    """Two-layer tanh network."""
    body, head = params["body"], params["head"]
    hidden = jnp.tanh(x @ body["w"] + body["b"][None])
    return hidden @ head["w"] + head["b"][None]


def plain(outputs=WAYS):
    """`from_apply_fn`."""
    return ml.from_apply_fn(lambda key, x: plain_init(key, x, outputs), tanh_net)


def centred(outputs=WAYS):
    """`plain` less a masked mean over the batch, of which it keeps a running average.

    Its state goes through a learner as that of batch norm does, in a few equations: for
    tests in which the state matters and the model does not. Without a head if `None`.
    """

    def init(key, x):
        params = plain_init(key, x, outputs or WAYS)
        if outputs is None:
            del params["head"]
        return ml.Variables(params=params, state={"mean": jnp.zeros(HIDDEN)})

    def apply(variables, x, *, key=None, train=False, mask=None):
        params, mean, state = variables.params, variables.state["mean"], variables.state
        x = x @ params["body"]["w"] + params["body"]["b"][None]
        if train:
            valid = jnp.ones(x.shape[:1], bool) if mask is None else mask
            rows = jnp.where(valid[:, None], x, 0).sum(0)
            mean = rows / jnp.maximum(valid.sum(), 1).astype(x.dtype)
            state = {"mean": 0.9 * state["mean"] + 0.1 * mean}
        x = jnp.tanh(x - mean[None])
        if outputs is None:
            return x, state
        return x @ params["head"]["w"] + params["head"]["b"][None], state

    return ml.Model(init, apply)


class BatchNormNet(nn.Module):
    """Dense, masked batch norm, ReLU, linear head."""

    outputs: int | None = WAYS

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = nn.Dense(HIDDEN)(x)
        rows = None if mask is None else jnp.broadcast_to(mask[:, None], x.shape)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x, mask=rows)
        x = nn.relu(x)
        return x if self.outputs is None else nn.Dense(self.outputs, name="head")(x)


def linen(outputs=WAYS):
    return ml.from_linen(BatchNormNet(outputs))


class NnxNet(nnx.Module):
    def __init__(self, outputs, rngs):
        self.body = nnx.Linear(INPUTS, HIDDEN, rngs=rngs)
        self.norm = nnx.BatchNorm(HIDDEN, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, outputs, rngs=rngs) if outputs else None

    def __call__(self, x, mask=None):
        x = self.body(x)
        rows = None if mask is None else jnp.broadcast_to(mask[:, None], x.shape)
        x = jax.nn.relu(self.norm(x, mask=rows))
        return x if self.head is None else self.head(x)


def nnx_net(outputs=WAYS):
    return ml.from_nnx(lambda rngs: NnxNet(outputs, rngs))
