"""Learners, tasks and streams that tables of mistakes share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny import WAYS, blob_batch, one, plain

import metalearn as ml

CE, MSE = ml.losses.cross_entropy, ml.losses.mse
SGD = optax.sgd(0.1)
TASKS = blob_batch()
TASK = one(TASKS)
KEY = jax.random.key(0)


def numbers(task=TASK, dtype=int):
    """A task whose masks are numbers."""
    part = lambda e: ml.Examples(x=e.x, y=e.y, mask=jnp.asarray(e.mask, dtype))
    return ml.Task(support=part(task.support), query=part(task.query))


def maml(**options):
    return ml.maml(plain(), CE, SGD, num_steps=1, **options)


def variables(learner=None):
    return (learner or maml()).init(KEY, TASK)


def dict_model():
    return ml.from_apply_fn(
        lambda key, x: {"w": jnp.ones((x.shape[-1], WAYS))},
        lambda params, x: {"logits": x @ params["w"]},
    )


def short(num_tasks, start, share=None):
    """A stream that gives two tasks, however many are asked for."""
    while True:
        yield jax.tree.map(lambda leaf: np.asarray(leaf[:2]), TASKS)


STREAM = ml.TaskStream(short)
NAMED = {"Dense_0": True}
ADAM = optax.scale_by_adam()


def step_of(outer):
    trainer = ml.meta_trainer(maml(), outer)
    return trainer.init(KEY, TASK)


def maml_of(loss_fn):
    learner = ml.maml(plain(), loss_fn, SGD, num_steps=1)
    return learner.adapt(learner.init(KEY, TASK), TASK.support)
