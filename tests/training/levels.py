"""Sequences of tasks for a scalar quadratic model, for the tests of online learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalearn as ml
from metalearn.training.online import follow_the_meta_leader

KEY = jax.random.key(3)
INNER, OUTER = 0.25, 0.5
SIZES = (4, 3, 4)  # of a task of level c all targets are c; the second is padded
LEVELS = (1.0, -2.0, 0.5)


def scalar():
    """One parameter that is the prediction; its loss is half the squared error."""
    return ml.from_apply_fn(
        lambda key, x: {"w": 3.0 * jnp.ones(1)},
        lambda params, x: jnp.broadcast_to(params["w"][None], x.shape),
    )


def half_mse(outputs, examples):
    return 0.5 * ml.losses.mse(outputs, examples)


def level_task(level, size, room=4):
    x = jnp.zeros((room, 1))
    held_out = ml.Examples.of(jnp.zeros((2, 1)), jnp.full((2, 1), level))
    valid = jnp.arange(room) < size
    y = jnp.where(valid[:, None], level, 0.0)
    return ml.Task(support=ml.Examples.of(x, y, valid), query=held_out)


def levels():
    return [level_task(c, n) for c, n in zip(LEVELS, SIZES, strict=True)]


@functools.cache
def trainer(kind="maml", rate=OUTER):
    model = scalar()
    if kind == "maml":
        learner = ml.maml(model, half_mse, optax.sgd(INNER), num_steps=1)
    elif kind == "fine_tune":
        learner = ml.fine_tune(model, half_mse, optax.sgd(INNER), num_steps=1)
    else:
        learner = ml.no_adaptation(model, half_mse)
    return ml.meta_trainer(learner, optax.sgd(rate))


SETTINGS = {"tasks_per_step": 1, "num_support": 2, "num_query": 2, "key": KEY}


def play(tasks=None, kind="maml", **options):
    options = {"batch_size": 2, "meta_steps": 2, "progress": False, **SETTINGS, **options}
    options.setdefault("loss_fn", half_mse)
    return follow_the_meta_leader(trainer(kind), tasks or levels(), **options)


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def same(first, second):
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
