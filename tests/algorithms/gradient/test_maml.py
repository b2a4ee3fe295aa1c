"""The relatives of MAML that are options of it, by hand and by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    INNER,
    RATE,
    TASKS,
    THETA,
    as_list,
    bench,
    close,
    descend,
    grads_of,
    model_grads,
    network,
    numpy_tasks,
    of,
    quadratic_loss,
    quadratic_model,
    wide_blobs,
)
from reference import steps as reference
from tiny import WAYS, blobs, one, plain

import metalearn as ml

x64 = pytest.mark.usefixtures("x64")


# -- First order ------------------------------------------------------------------------


def first_order(opt, **options):
    options = {"num_steps": 3, "task_chunk": TASKS, **options}
    return ml.fomaml(quadratic_model(), quadratic_loss, opt, **options)


@x64
def test_fomaml_is_the_query_gradient_at_the_end():
    """`mean_i B (phi_K - e)`, and no factor of the way there."""
    (a, c, b, e), tasks = bench()
    found = model_grads(first_order(optax.sgd(RATE)), THETA, tasks)
    ends = [descend(m, y, THETA, 3) for m, y in zip(a, c)]
    close(found.grads, np.mean([n @ (p - f) for n, p, f in zip(b, ends, e)], 0))
    losses = [0.5 * (p - f) @ n @ (p - f) for n, p, f in zip(b, ends, e)]
    close(found.metrics["query/loss"], np.stack(losses))


@x64
def test_fomaml_learns_a_rate_with_all_inner_gradients_held():
    """`dL/dalpha = -grad L(phi_K; Q) . sum_k grad L(phi_k; S)`."""
    (a, c, b, e), tasks = bench()
    learner = first_order(optax.sgd, inner_hparams=RATE)
    found = grads_of(learner, of(THETA, inner=RATE), tasks).grads
    terms = []
    for m, y, n, f in zip(a, c, b, e):
        slopes = [m @ (descend(m, y, THETA, k) - y) for k in range(3)]
        terms.append(-(n @ (descend(m, y, THETA, 3) - f)) @ np.sum(slopes, 0))
    close(found["inner"], np.mean(terms))


# -- Parts that adapt -------------------------------------------------------------------

PARTS = {"body": (True, True, False, False), "head": (False, False, True, True)}


def query_loss(params, moving):
    """The mean over tasks after two steps of the moving arrays, in NumPy."""
    losses = []
    for xs, ys, xq, yq in numpy_tasks():
        phi = params
        for _ in range(2):
            slopes = reference.gradient(phi, xs, ys)
            phi = [p - INNER * m * g for p, m, g in zip(phi, moving, slopes)]
        losses.append(reference.loss(phi, xq, yq))
    return np.mean(losses)


@x64
@pytest.mark.parametrize(
    ("make", "head", "moving"),
    [(ml.anil, "head", "head"), (ml.boil, "head", "body"), (ml.boil, "body", "head")],
)
def test_all_is_learned_where_a_part_adapts(make, head, moving):
    """Finite differences of the query loss, along the body and along the head."""
    learner = make(plain(), CE, optax.sgd(INNER), num_steps=2, head=head, task_chunk=9)
    found = model_grads(learner, network(), wide_blobs())
    grads, params, rng = as_list(found.grads), as_list(network()), np.random.default_rng(0)
    close(found.metrics["query/loss"].mean(), query_loss(params, PARTS[moving]))
    for part in PARTS:
        way = [m * rng.normal(size=p.shape) for p, m in zip(params, PARTS[part])]
        ends = [
            query_loss([p + h * w for p, w in zip(params, way)], PARTS[moving])
            for h in (1e-5, -1e-5)
        ]
        slope = sum(np.sum(g * w) for g, w in zip(grads, way))
        close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def test_boil_is_near_chance_until_its_body_adapts():
    """Its head is the same for all tasks, whose classes are in no order."""
    options = dict(num_steps=3, differentiation="first_order", task_chunk=16)
    learner = ml.boil(plain(), CE, optax.sgd(0.5), **options)
    outer = optax.adam(0.03)
    draw = lambda key, num: jax.vmap(blobs)(jax.random.split(key, num))
    tasks = draw(jax.random.key(1), 200)
    start = learner.init(jax.random.key(0), one(tasks))

    def step(carry, key):
        variables, opt_state = carry
        found = learner.estimate(variables, draw(key, 16), key=key)
        updates, opt_state = outer.update(found.grads, opt_state)
        params = optax.apply_updates(variables.params, updates)
        return (ml.Variables(params=params, state=found.state), opt_state), None

    def shares(variables, task):
        adapted = learner.adapt(variables, task.support)
        before = adapted.replace(params=variables.params["model"])
        scores = [
            ml.metrics.accuracy(learner.predict(a, task.query.x), task.query)
            for a in (before, adapted)
        ]
        return scores, adapted.params["head"]

    @jax.jit
    def run(start, tasks):
        keys = jax.random.split(jax.random.key(2), 40)
        carry = (start, outer.init(start.params))
        (variables, _), _ = jax.lax.scan(step, carry, keys)
        return variables, jax.vmap(shares, in_axes=(None, 0))(variables, tasks)

    trained, ((before, after), heads) = run(start, tasks)
    assert abs(before.mean() - 1 / WAYS) < 0.08
    assert after.mean() > 0.85
    for head, own in zip(*map(jax.tree.leaves, (heads, trained.params["model"]["head"]))):
        assert np.array_equal(head, np.broadcast_to(own, head.shape))


def test_boil_without_a_head_is_refused():
    learner = ml.boil(plain(), CE, optax.sgd(0.1), head="classifier")
    with pytest.raises(ValueError, match=r"head='classifier' occurs in no.*body/b"):
        learner.init(jax.random.key(0), blobs(jax.random.key(0)))


# -- Rates of Meta-SGD ------------------------------------------------------------------


def test_meta_sgd_draws_other_rates_for_other_arrays():
    model = ml.from_apply_fn(
        lambda key, x: {"a": jnp.ones((4, WAYS)), "b": jnp.ones((4, WAYS))},
        lambda params, x: x @ (params["a"] * params["b"]),
    )
    rates = ml.meta_sgd(model, CE).init(jax.random.key(0), blobs(jax.random.key(0))).params
    first, second = rates["inner"]["a"], rates["inner"]["b"]
    assert not np.any(first == second)
    assert np.ptp(first) > 0.02


@x64
def test_meta_sgd_rates_may_be_negative():
    (a, c, _, _), tasks = bench()
    rates = np.array([0.2, -0.3, 0.05])
    learner = ml.meta_sgd(quadratic_model(), quadratic_loss)
    found = learner.adapt(of(THETA, inner=rates), one(tasks).support).params
    close(found, THETA - rates * (a[0] @ (THETA - c[0])))
