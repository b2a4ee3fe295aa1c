"""DANN and its meta-steps by parts: reversal, limits, look-aheads by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import HIDDEN, INPUTS, WAYS, centred

import metalearn as ml
from metalearn.algorithms.joint.dann import domain_loss, reverse

pytestmark = pytest.mark.usefixtures("x64")
CE = ml.losses.cross_entropy
KEY = jax.random.key(3)
OPTIONS = {"num_ways": WAYS, "discriminator_width": 4}


def _encoder():
    """One tanh layer."""

    def init(key, x):
        return {"w": jax.random.normal(key, (x.shape[-1], HIDDEN)), "b": jnp.zeros(HIDDEN)}

    return ml.from_apply_fn(init, lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]))


ENCODER = _encoder()


def _rows(rng, num):
    x = jnp.asarray(rng.normal(size=(num, INPUTS)))
    return ml.Examples.of(x, jnp.asarray(rng.integers(0, WAYS, num)))


def _task():
    rng = np.random.default_rng(0)
    support, query = _rows(rng, 6), _rows(rng, 3)
    info = {"domains": jnp.asarray([2, 0]), "held_out": jnp.asarray(1, jnp.int32)}
    info["target"] = jnp.asarray(rng.normal(size=(4, INPUTS)) + 1)
    return ml.Task(support=support, query=query, info=info)


def _start(learner, task, step=0):
    found = jax.jit(learner.init)(KEY, task)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.01, found.params)
    state = {**found.state, "step": jnp.asarray(step, jnp.int32)}
    state["model"] = jax.tree.map(lambda s: s.astype(jnp.float64), state["model"])
    return ml.Variables(params=params, state=state)


@functools.cache
def _compiled(learner):
    def estimate(variables, task):
        batch = jax.tree.map(lambda leaf: leaf[None], task)
        return learner.estimate(variables, batch, key=jax.random.key(0))

    return jax.jit(estimate)


def _estimate(learner, variables, task):
    return _compiled(learner)(variables, task)


@functools.cache
def _dann(**options):
    return ml.dann(ENCODER, CE, **{**OPTIONS, **options})


@functools.cache
def _meta(**options):
    rate = {"inner_rate": 0.3} if options.get("ahead_steps", 1) else {}
    return ml.meta_dann(ENCODER, CE, **{**OPTIONS, **rate, **options})


def _same(found, expected, **tolerance):
    compare = functools.partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(compare if tolerance else np.testing.assert_array_equal, found, expected)


def _features(params, x):
    return jnp.tanh(x @ params["body"]["w"] + params["body"]["b"][None])


def _supervised(params, rows):
    features = _features(params, rows.x)
    head = params["head"]
    return CE(features @ head["kernel"] + head["bias"][None], rows)


def _domain(params, judge, rows, target):
    """The loss of the discriminator, side by side."""

    def logits(x):
        hidden, out = judge["hidden"], judge["out"]
        found = jax.nn.relu(_features(params, x) @ hidden["kernel"] + hidden["bias"][None])
        return (found @ out["kernel"] + out["bias"][None])[:, 0]

    ours = -jnp.log(1 - jax.nn.sigmoid(logits(rows.x)))
    theirs = -jnp.log(jax.nn.sigmoid(logits(target)))
    ours = jnp.where(rows.mask, ours, 0).sum() / rows.mask.sum()
    return (ours + theirs.mean()) / 2


def _joined(task):
    join = lambda one, other: jnp.concatenate([one, other])
    return jax.tree.map(join, task.support, task.query)


@jax.jit
def _by_parts(params, task):
    """Gradients of the two losses: of the classes; of the domains in model and judge."""
    rows = _joined(task)
    of_domain = jax.grad(_domain, argnums=(0, 1))
    both = params["model"], params["discriminator"]
    plain = jax.grad(_supervised)(params["model"], rows)
    return plain, *of_domain(*both, rows, task.info["target"])


# -- DANN ------------------------------------------------------------------------------


def test_features_ascend_what_the_discriminator_descends():
    weight, task = 0.7, _task()
    mask = jnp.asarray([True, False, True, True, True, True])
    support = ml.Examples.of(task.support.x, task.support.y, mask)
    task = ml.Task(support=support, query=task.query, info=task.info)
    learner = _dann(adversarial_weight=weight)
    variables = _start(learner, task)
    found = _estimate(learner, variables, task)
    plain, body, judge = _by_parts(variables.params, task)
    expected = jax.tree.map(lambda g, d: g - weight * d, plain, body)
    _same(found.grads["model"], expected, rtol=1e-9, atol=1e-12)
    _same(found.grads["discriminator"], judge, rtol=1e-9, atol=1e-12)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(body)) > 1e-2
    # What stands in a masked row is nothing.
    other = ml.Examples.of(jnp.where(mask[:, None], support.x, 7.0), support.y, mask)
    again = ml.Task(support=other, query=task.query, info=task.info)
    _same(_estimate(learner, variables, again).grads, found.grads, rtol=1e-12, atol=1e-14)


def test_without_a_weight_it_is_supervised_training():
    task = _task()
    learner = _dann(adversarial_weight=0.0)
    variables = _start(learner, task)
    found = _estimate(learner, variables, task).grads["model"]
    expected = _by_parts(variables.params, task)[0]
    _same(found, expected, rtol=1e-12, atol=1e-14)


def test_the_weight_grows_over_the_ramp():
    task, learner = _task(), _dann(adversarial_weight=2.0, ramp_steps=10)
    plain, body, _ = _by_parts(_start(learner, task).params, task)
    for step, done in ((0, 0), (5, 0.5), (10, 1), (50, 1)):
        weight = 2 * (2 / (1 + np.exp(-10 * done)) - 1)
        expected = jax.tree.map(lambda g, d, w=weight: g - w * d, plain, body)
        found = _estimate(learner, _start(learner, task, step), task)
        _same(found.grads["model"], expected, rtol=1e-5, atol=1e-7)


def test_both_sides_count_the_same():
    some = jnp.asarray([0.3, -0.2])
    far = jnp.asarray([9.0])
    one = domain_loss(jnp.concatenate([some, jnp.ones(1)]), jnp.ones(3, bool), 2)
    three = domain_loss(jnp.concatenate([some, jnp.ones(3)]), jnp.ones(5, bool), 2)
    assert float(one) == pytest.approx(float(three))
    masked = jnp.asarray([True, True, True, False])
    assert float(domain_loss(jnp.concatenate([some, jnp.ones(1), far]), masked, 2)) == one


def test_the_reversal_can_be_differentiated_again():
    squared = lambda x: jnp.sum(jax.grad(lambda v: reverse(v, 3.0 * jnp.ones(())) ** 3)(x))
    x = jnp.asarray(2.0)
    # The first derivative is -3 * 3 x^2; reversed again where x enters it.
    assert float(squared(x)) == -36.0
    assert abs(float(jax.grad(squared)(x))) > 1


def test_labels_of_the_target_are_nowhere():
    """A task has inputs of the target alone, and without them those of the query set."""
    task = _task()
    learner = _dann()
    variables = _start(learner, task)
    bare = ml.Task(support=task.support, query=task.query)
    seen = ml.Task(support=task.support, query=task.query, info={"target": task.query.x})
    found = [_estimate(learner, variables, one).grads for one in (bare, seen)]
    _same(*found)


# -- Meta-steps ------------------------------------------------------------------------


def _ahead(variables, task, seen, steps, rate=0.3):
    """Steps of the base method on the support set, by the learner of the base method."""
    cut = lambda a, b: jax.tree.map(lambda leaf: leaf[a:b], task.support)
    inner = ml.Task(support=cut(0, 4), query=cut(4, 6), info={"target": seen})
    learner = _dann()
    for _ in range(steps):
        grads = _estimate(learner, variables, inner).grads
        params = jax.tree.map(lambda p, g: p - rate * g, variables.params, grads)
        variables = ml.Variables(params=params, state=variables.state)
    return variables


def test_without_a_look_ahead_a_meta_step_is_supervised_training_on_the_held_out_source():
    task, learner = _task(), _meta(ahead_steps=0)
    variables = _start(learner, task)
    grads = _estimate(learner, variables, task).grads
    expected = jax.jit(jax.grad(_supervised))(variables.params["model"], task.query)
    _same(grads["model"], expected, rtol=1e-12, atol=1e-14)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["discriminator"]))


@pytest.mark.parametrize("towards", ["held_out", "target"])
def test_the_meta_gradient_is_that_at_the_end_of_the_look_ahead(towards):
    task, learner = _task(), _meta(ahead_steps=2, towards=towards)
    variables = _start(learner, task)
    seen = task.query.x if towards == "held_out" else task.info["target"]
    moved = _ahead(variables, task, seen, 2)
    expected = _estimate(_meta(ahead_steps=0), moved, task).grads
    _same(_estimate(learner, variables, task).grads, expected, rtol=1e-13, atol=1e-15)
    # And it depends on the look-ahead.
    here = _estimate(_meta(ahead_steps=0), variables, task).grads["model"]["body"]["w"]
    assert np.abs(here - expected["model"]["body"]["w"]).max() > 1e-3


def test_the_whole_derivative_goes_through_the_look_ahead():
    task, learner = _task(), _meta(ahead_steps=2, first_order=False)
    variables = _start(learner, task)
    grads = _estimate(learner, variables, task).grads
    rng = np.random.default_rng(1)
    to = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), variables.params)

    def judged(step):
        params = jax.tree.map(lambda p, d: p + step * d, variables.params, to)
        start = ml.Variables(params=params, state=variables.state)
        moved = _ahead(start, task, task.query.x, 2)
        return float(_supervised(moved.params["model"], task.query))

    slope = (judged(1e-5) - judged(-1e-5)) / 2e-5
    pairs = jax.tree.map(lambda g, d: float(jnp.vdot(g, d)), grads, to)
    assert sum(jax.tree.leaves(pairs)) == pytest.approx(slope, rel=1e-6)
    assert np.any(grads["discriminator"]["hidden"]["kernel"])


def test_meta_steps_take_turns_with_those_of_the_base_method():
    task, learner = _task(), _meta(da_steps=2)
    base = _dann()
    for step in range(4):
        variables = _start(learner, task, step)
        found = _estimate(learner, variables, task)
        same = found.grads["model"]["head"]["kernel"]
        expected = _estimate(base, variables, task).grads["model"]["head"]["kernel"]
        assert np.array_equal(same, expected) == (step % 3 != 0)
        assert int(found.state["step"]) == step + 1


def test_a_look_ahead_leaves_batch_statistics_and_ordinary_steps_move_them():
    task = _task()
    learner = ml.meta_dann(centred(None), CE, **OPTIONS)
    variables = _start(learner, task)
    found = _estimate(learner, variables, task)
    _same(found.state["model"], variables.state["model"])
    moved = _estimate(learner, _start(learner, task, 1), task).state["model"]["mean"]
    inputs = jnp.concatenate([task.support.x, task.query.x, task.info["target"]])
    body = variables.params["model"]["body"]["body"]
    mean = (inputs @ body["w"] + body["b"][None]).mean(0)
    _same(moved, 0.1 * mean, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (ml.dann, {"adversarial_weight": -1.0}, "adversarial_weight is -1.0"),
        (ml.dann, {"ramp_steps": -1}, "ramp_steps is -1"),
        (ml.dann, {"num_ways": 1}, "num_ways is 1"),
        (ml.meta_dann, {"inner_rate": float("nan")}, "inner_rate is nan"),
        (ml.meta_dann, {"da_steps": -1}, "da_steps is -1"),
        (ml.meta_dann, {"towards": "sources"}, "towards is 'sources'"),
        (ml.dann, {"adversarial_weight": 0, "ramp_steps": 9}, "ramp_steps is 9, .*no eff"),
        (
            ml.meta_dann,
            {"ahead_steps": 0, "inner_rate": 0.2},
            "inner_rate is 0.2, .*no eff",
        ),
        (
            ml.meta_dann,
            {"ahead_steps": 0, "towards": "target"},
            "towards is 'target', .*no",
        ),
    ],
)
def test_numbers_are_checked(make, options, said):
    with pytest.raises(ValueError, match=said):
        make(ENCODER, CE, **{**OPTIONS, **options})
