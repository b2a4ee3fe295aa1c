"""Meta-Baseline: each stage has the gradient of its own loss alone, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of
from frozen_tasks import (
    SIZES,
    arrays,
    as_they_are,
    lengths,
    logits_of,
    ragged,
    tanh_features,
    trained,
    variables,
)
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms import frozen

pytestmark = pytest.mark.usefixtures("x64")
SCALE = 4.0


def make(encoder, **options):
    options = {"pretrain_steps": 7, **options}
    return frozen.meta_baseline(encoder, **SIZES, **options)


def estimates(*steps):
    """Estimates of the learner at outer steps."""
    learner, (body, head) = make(tanh_features(), task_chunk=9), trained()
    tasks = ragged()  # kept by a cache, so not to be made within the trace
    run = jax.jit(lambda v: learner.estimate(v, tasks, key=jax.random.key(0)))
    scale = {"scale": jnp.asarray(SCALE)}
    return [run(variables(body, classifier=head, head=scale, step=i)) for i in steps]


def episodic_loss(w, b, scale, tasks=None, ways=WAYS):
    """Mean loss of the queries by cosines to class means, in NumPy."""
    tasks, losses = ragged() if tasks is None else tasks, []
    for i in range(3):
        x, y, queries = arrays(one(tasks, i))
        shown = np.asarray(tasks.query.mask[i])
        x, queries = np.tanh(x @ w + b), np.tanh(queries[shown] @ w + b)
        labels = np.asarray(tasks.query.y[i])[shown]
        means = np.stack([x[y == k].mean(0) for k in range(ways)])
        logits = scale * (queries / lengths(queries)) @ (means / lengths(means)).T
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        losses.append(-np.log(shares[np.arange(len(labels)), labels]).mean())
    return np.mean(losses)


def test_each_stage_has_the_gradient_of_its_own_loss():
    """Of a classifier until the last step before the switch, then of the queries."""
    first, last, later = estimates(0, 6, 7)
    body, head = trained()
    plain = frozen.nearest_centroid(tanh_features(), **SIZES, task_chunk=9)
    expected = grads_of(plain, variables(body, classifier=head), ragged())
    for found in (first, last):
        assert found.grads["head"]["scale"] == 0
        for part in ("encoder", "classifier"):
            close(found.grads[part], expected.grads[part])
    assert not any(np.any(g) for g in jax.tree.leaves(later.grads["classifier"]))
    w, b = np.asarray(body["w"]), np.asarray(body["b"])
    rng = np.random.default_rng(1)
    way = [rng.normal(size=np.shape(p)) for p in (w, b, SCALE)]
    ends = [
        episodic_loss(*(p + sign * 1e-6 * d for p, d in zip((w, b, SCALE), way)))
        for sign in (1, -1)
    ]
    slopes = [later.grads["encoder"]["w"], later.grads["encoder"]["b"]]
    slopes.append(later.grads["head"]["scale"])
    along = sum(np.sum(np.asarray(s) * d) for s, d in zip(slopes, way))
    close(along, (ends[0] - ends[1]) / 2e-6, rtol=1e-7)
    close(later.metrics["query/loss"].mean(), episodic_loss(w, b, SCALE))


def test_steps_are_counted_and_both_losses_reported_in_either_stage():
    first, later = estimates(0, 7)
    assert (first.state["step"], later.state["step"]) == (1, 8)
    names = {
        f"{part}/{name}" for part in ("joint", "query") for name in ("loss", "accuracy")
    }
    assert first.metrics.keys() == later.metrics.keys() == names
    for name in names:
        close(first.metrics[name], later.metrics[name])


def test_a_task_is_classified_with_the_learned_scale():
    task = one(ragged())
    x, y, queries = arrays(task)
    means = np.stack([x[y == k].mean(0) for k in range(WAYS)])
    cosines = (queries / lengths(queries)) @ (means / lengths(means)).T
    found = variables(head={"scale": jnp.asarray(SCALE)})
    close(logits_of(make(as_they_are(), scale=9.0), task, found), SCALE * cosines)
    made = make(as_they_are(), scale=9.0).init(jax.random.key(0), task)
    assert made.params["head"]["scale"] == 9


def test_absent_classes_have_no_part_in_episodes():
    """`fit` is told, since a query of such a class has no finite loss."""
    learner = make(tanh_features(), task_chunk=9)
    assert learner.masks_absent
    body, head = trained()
    tasks = ragged()
    mask = tasks.support.mask & (tasks.support.y != 2)
    support = ml.Examples(x=tasks.support.x, y=tasks.support.y, mask=mask)
    cut = ml.Task(support=support, query=tasks.query, info=tasks.info)
    start = variables(body, classifier=head, head={"scale": jnp.asarray(SCALE)}, step=7)
    found = grads_of(learner, start, cut)
    # The four valid queries are of the classes 0 and 1.
    expected = episodic_loss(np.asarray(body["w"]), np.asarray(body["b"]), SCALE, cut, 2)
    close(found.metrics["query/loss"].mean(), expected)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(found.grads))


def test_options_are_checked():
    with pytest.raises(ValueError, match="pretrain_steps is -1; expected an integer"):
        make(as_they_are(), pretrain_steps=-1)
