"""Features as they are, and variables of the frozen family, for its tests."""

import jax
import jax.numpy as jnp
import numpy as np
from bench import network, wide_blobs
from tiny import HIDDEN, INPUTS, WAYS

import metalearn as ml

CLASSES = WAYS + 1
SIZES = {"num_classes": CLASSES, "num_ways": WAYS}


def as_they_are():
    """An encoder whose embeddings are its inputs."""
    return ml.from_apply_fn(lambda key, x: {"unused": jnp.zeros(1)}, lambda params, x: x)


def tanh_features():
    """The encoder of the tanh network of `tests/reference`."""
    return ml.from_apply_fn(
        lambda key, x: {"w": jnp.ones((INPUTS, HIDDEN)), "b": jnp.zeros(HIDDEN)},
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]),
    )


def variables(encoder=None, *, mean=None, step=0, classifier=None, **more):
    """Variables of a learner of the family, of an encoder without state."""
    width = INPUTS if encoder is None else HIDDEN
    params = {
        "encoder": {"unused": jnp.zeros(1)} if encoder is None else encoder,
        "classifier": {} if classifier is None else classifier,
        **more,
    }
    state = {
        "model": {},
        "mean": jnp.zeros(width) if mean is None else jnp.asarray(mean),
        "step": jnp.asarray(step, jnp.int32),
    }
    return ml.Variables(params=params, state=state)


def trained():
    """Params of the tanh features and of a linear classifier of all training classes."""
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(HIDDEN, CLASSES)), "bias": rng.normal(size=CLASSES)}
    return network()["body"], jax.tree.map(jnp.asarray, head)


def ragged():
    """The blobs, of which the last support example and two queries are missing."""
    tasks = wide_blobs()
    rows = jnp.arange(tasks.support.mask.shape[1])
    cut = [
        ml.Examples(
            # What a masked row holds must not matter.
            x=jnp.where((rows < size)[None, :, None], part.x, 50.0),
            y=part.y,
            mask=part.mask & (rows < size)[None],
        )
        for part, size in ((tasks.support, 5), (tasks.query, 4))
    ]
    return ml.Task(support=cut[0], query=cut[1], info=tasks.info)


def logits_of(learner, task, found=None, key=None):
    """Logits of the queries, in NumPy."""
    found = variables() if found is None else found

    def episode(found, support, x):
        return learner.predict(learner.adapt(found, support, key=key), x)

    return np.asarray(jax.jit(episode)(found, task.support, task.query.x))


def lengths(x):
    return np.linalg.norm(x, axis=-1, keepdims=True)


def arrays(task):
    """Valid support rows, their labels, and the queries of a task, in NumPy."""
    keep = np.asarray(task.support.mask)
    x, y = np.asarray(task.support.x)[keep], np.asarray(task.support.y)[keep]
    return x, y, np.asarray(task.query.x)
