"""What the float64 tests share: the quadratic bench, a network, comparisons.

The quadratic bench: support loss `(phi - c)' A (phi - c) / 2`, query loss
`(phi - e)' B (phi - e) / 2`, for which all meta-gradients have closed forms.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny import WAYS, blob_batch, plain, plain_init

import metalearn as ml

CE = ml.losses.cross_entropy
INNER = 0.5
DIM, TASKS, RATE = 3, 4, 0.1
MODES = {False: "reverse", True: "first_order"}  # by whether first order


def quadratic_loss(outputs, examples):
    """Mean over examples of `(phi - y)' x (phi - y) / 2`."""
    apart = outputs - examples.y
    values = 0.5 * jnp.einsum("nd,nde,ne->n", apart, examples.x, apart)
    return ml.masked_mean(values, examples.mask)


def quadratic_model():
    return ml.from_apply_fn(
        lambda key, x: jnp.zeros(x.shape[-1]),
        lambda params, x: jnp.broadcast_to(params[None], x.shape[:2]),
    )


def matrices(seed, num=TASKS):
    root = np.random.default_rng(seed).normal(size=(num, DIM, DIM))
    return np.einsum("tij,tkj->tik", root, root) / DIM + 0.3 * np.eye(DIM)


def bench(same=False):
    """`(A, c, B, e)` as NumPy arrays, and the tasks."""
    rng = np.random.default_rng(5)
    a, c = matrices(1), rng.normal(size=(TASKS, DIM))
    b, e = (a, c) if same else (matrices(2), rng.normal(size=(TASKS, DIM)))

    def part(x, y):
        x, y = jnp.asarray(x)[:, None], jnp.asarray(y)[:, None]
        return ml.Examples(x=x, y=y, mask=jnp.ones((TASKS, 1), bool))

    return (a, c, b, e), ml.Task(support=part(a, c), query=part(b, e))


THETA = np.array([0.7, -1.2, 0.4])


def compiled(learner):
    """A learner whose functions but `init` are compiled.

    Operation by operation a test compiles a program for each of hundreds of them.
    """
    names = ("adapt", "predict", "estimate")  # `init` runs once
    return learner._replace(**{name: jax.jit(getattr(learner, name)) for name in names})


def of(model, step=0, **learned):
    """Variables of a learner that `bilevel` builds, of a model without state."""
    params = jax.tree.map(jnp.asarray, {"model": model, **learned})
    state = {"model": {}, "step": jnp.asarray(step, jnp.int32)}
    return ml.Variables(params=params, state=state)


def grads_of(learner, params, tasks):
    """The estimate at params of a learner without state, or at its variables."""
    variables = params
    if not isinstance(params, ml.Variables):
        variables = ml.Variables(params=jax.tree.map(jnp.asarray, params), state={})
    return jax.jit(learner.estimate)(variables, tasks, key=jax.random.key(0))


def model_grads(learner, model, tasks):
    """The estimate of a learner that `bilevel` builds, with the model's gradients alone."""
    found = grads_of(learner, of(model), tasks)
    return dataclasses.replace(found, grads=found.grads["model"])


@functools.cache  # it keeps what was compiled for it
def quadratic_maml(steps=1, **options):
    options = {"task_chunk": TASKS, **options}
    opt = optax.sgd(RATE)
    return ml.maml(quadratic_model(), quadratic_loss, opt, num_steps=steps, **options)


@functools.cache
def network_maml(**options):
    """MAML on the tiny network, with what was compiled for it."""
    options = {"num_steps": 2, "task_chunk": 9, **options}
    return ml.maml(plain(), CE, optax.sgd(INNER), **options)


def descend(a, c, theta, steps, rate=RATE):
    for _ in range(steps):
        theta = theta - rate * a @ (theta - c)
    return theta


def close(actual, expected, rtol=1e-9):
    """Equal up to rounding, relative to the largest number of a leaf."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, e in zip(actual, expected, strict=True):
        scale = np.abs(np.asarray(e)).max() or 1.0
        np.testing.assert_allclose(a, e, rtol=0, atol=rtol * scale)


def differs(first, second, least=1e-3):
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    return any(np.abs(a - b).max() > least for a, b in zip(first, second))


@functools.cache
def wide_blobs():
    """The blobs in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, blob_batch()
        )


def network(outputs=WAYS):
    params = plain_init(jax.random.key(3), jnp.zeros((1, 4)), outputs)
    return jax.tree.map(lambda p: p.astype(jnp.float64), params)


def as_list(params):
    parts = (params["body"]["w"], params["body"]["b"], params["head"]["w"])
    return [np.asarray(p) for p in (*parts, params["head"]["b"])]


def numpy_tasks():
    tasks = wide_blobs()
    arrays = (tasks.support.x, tasks.support.y, tasks.query.x, tasks.query.y)
    return [tuple(np.asarray(a[i]) for a in arrays) for i in range(3)]
