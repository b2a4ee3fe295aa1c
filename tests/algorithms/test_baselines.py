"""The baselines against NumPy: joint training, a new head, and no adaptation at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, INNER, as_list, close, grads_of, network, wide_blobs
from reference import steps as reference
from tiny import HIDDEN, WAYS, linen, one, plain

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")
CLASSES = WAYS + 1


def ragged():
    """The blobs, of which one support example and two queries are missing."""
    tasks = wide_blobs()
    rows = jnp.arange(tasks.support.mask.shape[1])
    cut = [
        ml.Examples(x=part.x, y=part.y, mask=part.mask & (rows < size)[None])
        for part, size in ((tasks.support, 5), (tasks.query, 4))
    ]
    return ml.Task(support=cut[0], query=cut[1], info=tasks.info)


def rows_of(tasks, i):
    """The valid examples of a task, support first, and its classes in training."""
    x, y = [], []
    for part in (tasks.support, tasks.query):
        keep = np.asarray(part.mask[i])
        x.append(np.asarray(part.x[i])[keep])
        y.append(np.asarray(part.y[i])[keep])
    return x, y, np.asarray(tasks.info["class_ids"][i])


def features():
    def init(key, x):
        del key
        return {"w": jnp.ones((x.shape[-1], HIDDEN)), "b": jnp.zeros(HIDDEN)}

    return ml.from_apply_fn(init, lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]))


def baseline(**options):
    sizes = dict(num_classes=CLASSES, num_ways=WAYS, num_steps=2, task_chunk=9)
    return ml.fine_tune(features(), CE, optax.sgd(INNER), **sizes, **options)


def trained():
    """Params with a classifier over all training classes."""
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(HIDDEN, CLASSES)), "bias": rng.normal(size=CLASSES)}
    return {"body": network()["body"], "head": jax.tree.map(jnp.asarray, head)}


def listed(params):
    return as_list({"body": params["body"], "head": _renamed(params["head"])})


def _renamed(head):
    return {"w": head["kernel"], "b": head["bias"]}


def test_joint_training_is_over_support_and_query_and_all_classes():
    found = grads_of(baseline(), trained(), ragged())
    total, losses = [], []
    for i in range(3):
        x, y, ids = rows_of(ragged(), i)
        rows = np.concatenate(x), ids[np.concatenate(y)]
        total.append(reference.gradient(listed(trained()), *rows))
        losses.append(reference.loss(listed(trained()), *rows))
    close(listed(found.grads), [np.mean(leaves, 0) for leaves in zip(*total)])
    close(found.metrics["joint/loss"], np.stack(losses))


@pytest.mark.parametrize("all_move", [False, True])
def test_a_new_head_is_fitted_to_the_support_set(all_move):
    """From zero, by two steps; the body moves only where it is told to."""
    learner = baseline(**({"adapt_filter": lambda path, leaf: True} if all_move else {}))
    variables = ml.Variables(params=trained(), state={})
    task = one(ragged())
    adapted = learner.adapt(variables, task.support)
    x, y, _ = rows_of(ragged(), 0)
    start = listed(trained())
    phi = [*start[:2], np.zeros((HIDDEN, WAYS)), np.zeros(WAYS)]
    for _ in range(2):
        slopes = reference.gradient(phi, x[0], y[0])
        moves = [all_move, all_move, True, True]
        phi = [p - INNER * m * g for p, m, g in zip(phi, moves, slopes)]
    close(listed(adapted.params), phi)
    expected = reference.forward(phi, np.asarray(task.query.x))[1]
    close(learner.predict(adapted, task.query.x), expected)


def test_a_fresh_classifier_prefers_no_class():
    params = jax.eval_shape(baseline().init, jax.random.key(0), one(wide_blobs())).params
    assert params["head"]["kernel"].shape == (HIDDEN, CLASSES)
    made = baseline().init(jax.random.key(0), one(wide_blobs())).params
    assert not np.any(made["head"]["kernel"]) and not np.any(made["head"]["bias"])


LEARNERS = {
    0: lambda: ml.no_adaptation(plain(), CE, task_chunk=9),
    2: lambda: ml.fine_tune(plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=9),
}


@pytest.mark.parametrize("steps", LEARNERS)
def test_without_classes_the_model_is_trained_and_adapts_as_it_is(steps):
    learner, params = LEARNERS[steps](), network()
    found = grads_of(learner, params, ragged())
    total = []
    for i in range(3):
        x, y, _ = rows_of(ragged(), i)
        rows = np.concatenate(x), np.concatenate(y)
        total.append(reference.gradient(as_list(params), *rows))
    close(as_list(found.grads), [np.mean(leaves, 0) for leaves in zip(*total)])
    x, y, _ = rows_of(ragged(), 1)
    end = reference.adapt(as_list(params), x[0], y[0], INNER, steps)[-1]
    variables = ml.Variables(params=params, state={})
    adapted = learner.adapt(variables, one(ragged(), 1).support)
    close(as_list(adapted.params), end, rtol=1e-9 if steps else 0)


@pytest.mark.parametrize("norm", ["running", "support", "batch"])
def test_averages_are_learned_where_they_are_read(norm):
    """By the mean over tasks of `0.9 old + 0.1 new`, in NumPy; else they stay."""
    learner = ml.no_adaptation(linen(), CE, norm=norm, task_chunk=9)
    variables = jax.jit(learner.init)(jax.random.key(0), one(wide_blobs()))
    found = jax.jit(lambda v, t: learner.estimate(v, t, key=jax.random.key(0)))(
        variables, ragged()
    )
    old = variables.state["batch_stats"]["BatchNorm_0"]
    dense, moved = variables.params["Dense_0"], norm == "running"
    means, spreads = [], []
    for i in range(3):
        rows = np.concatenate(rows_of(ragged(), i)[0])
        out = rows @ np.asarray(dense["kernel"], float) + np.asarray(dense["bias"], float)
        means.append(out.mean(0))
        spreads.append(out.var(0))
    new = found.state["batch_stats"]["BatchNorm_0"]
    for name, own in (("mean", means), ("var", spreads)):
        share = 0.1 * moved
        expected = (1 - share) * np.asarray(old[name]) + share * np.mean(own, 0)
        close(new[name], expected, rtol=1e-5)
