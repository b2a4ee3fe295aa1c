"""The lattice of reductions between learners, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    INNER,
    MODES,
    RATE,
    close,
    differs,
    grads_of,
    model_grads,
    network,
    of,
    wide_blobs,
)
from tiny import one, plain, tanh_net

import metalearn as ml
from metalearn.inner import unroll
from metalearn.testing import assert_differentiable

pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def maml_grads():
    with jax.enable_x64(True):
        learner = ml.maml(plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=9)
        return model_grads(learner, network(), wide_blobs()).grads


REDUCTIONS = {
    "anil of all parameters": lambda: ml.anil(
        plain(), CE, optax.sgd(INNER), num_steps=2, head=".*", task_chunk=9
    ),
    "rematerialised": lambda: ml.maml(
        plain(), CE, optax.sgd(INNER), num_steps=2, differentiation="remat", task_chunk=9
    ),
    "one task at a time": lambda: ml.maml(
        plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=1
    ),
    "absent classes masked": lambda: ml.maml(
        plain(), CE, optax.sgd(INNER), num_steps=2, mask_absent_classes=True, task_chunk=9
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduces_to_maml(name):
    close(model_grads(REDUCTIONS[name](), network(), wide_blobs()).grads, maml_grads())


def test_meta_sgd_with_constant_rates_is_maml():
    learner = ml.meta_sgd(plain(), CE, num_steps=2, task_chunk=9)
    rates = jax.tree.map(lambda p: jnp.full_like(p, INNER), network())
    found = grads_of(learner, of(network(), inner=rates), wide_blobs())
    close(found.grads["model"], maml_grads())


def test_no_inner_steps_is_joint_training():
    learner = ml.maml(plain(), CE, optax.sgd(INNER), num_steps=0, task_chunk=9)
    tasks = wide_blobs()

    def joint(params):
        per_task = jax.vmap(lambda q: CE(tanh_net(params, q.x), q))(tasks.query)
        return per_task.mean()

    found = model_grads(learner, network(), tasks).grads
    close(found, jax.jit(jax.grad(joint))(network()))
    assert differs(found, maml_grads())


def test_fomaml_is_maml_for_a_linear_loss():
    """Without curvature, `H = 0`, there is nothing to drop."""
    model = ml.from_apply_fn(
        lambda key, x: jnp.zeros((x.shape[-1], 1)), lambda params, x: x @ params
    )

    def linear(outputs, examples):
        signs = jnp.cos(examples.y)[:, None].astype(outputs.dtype)
        return ml.masked_mean((outputs * signs)[:, 0], examples.mask)

    params = np.ones((4, 1))
    both = [
        model_grads(
            ml.maml(
                model,
                linear,
                optax.sgd(INNER),
                num_steps=2,
                differentiation=MODES[f],
                task_chunk=9,
            ),
            params,
            wide_blobs(),
        ).grads
        for f in (True, False)
    ]
    close(*both)
    assert np.abs(both[0]).max() > 1e-3


def test_anil_and_boil_move_complementary_parameters():
    variables = of(network())
    support = one(wide_blobs()).support
    for make, moving, fixed in ((ml.anil, "head", "body"), (ml.boil, "body", "head")):
        learner = make(plain(), CE, optax.sgd(INNER), num_steps=2)
        params = learner.adapt(variables, support).params
        close(params[fixed], variables.params["model"][fixed], rtol=0)
        assert differs(params[moving], variables.params["model"][moving])


def test_first_order_anil_drops_the_body_terms_of_inner_gradients():
    """The body gets the query gradient at the adapted head and nothing else."""
    options = dict(num_steps=2, differentiation="first_order", task_chunk=9)
    learner = ml.anil(plain(), CE, optax.sgd(INNER), **options)
    params, tasks = network(), wide_blobs()

    def at_adapted(params, task):
        head = learner.adapt(of(network()), task.support).params["head"]
        return CE(
            tanh_net({"body": params["body"], "head": head}, task.query.x), task.query
        )

    per_task = jax.vmap(jax.grad(at_adapted), in_axes=(None, 0))
    expected = jax.tree.map(lambda g: g.mean(0), jax.jit(per_task)(params, tasks))
    close(model_grads(learner, params, tasks).grads["body"], expected["body"])


def test_unroll_returns_its_trajectory():
    def loss(params, step):
        del step
        return 0.5 * jnp.sum(params**2), {}

    start = jnp.asarray([1.0, -2.0])
    for num_steps in (1, 3):
        result = unroll(loss, start, optax.sgd(RATE), num_steps=num_steps, trajectory=True)
        expected = [start * (1 - RATE) ** k for k in range(num_steps + 1)]
        close(result.trajectory, np.stack(expected))
        close(result.params, expected[-1])
        losses = [0.5 * np.sum(np.square(p)) for p in expected[:-1]]
        close(result.losses, np.stack(losses))


def test_adam_without_eps_root_is_refused_in_second_order_only():
    model, opt = plain(), optax.adam(0.1)
    with pytest.raises(ValueError, match="eps_root"):
        ml.maml(model, CE, opt)
    with pytest.raises(AssertionError, match="eps_root"):
        assert_differentiable(opt)
    ml.fomaml(model, CE, opt)
    ml.reptile(model, CE, opt, num_steps=2)
    for good in (optax.adam(0.1, eps_root=1e-8), optax.sgd(0.1, momentum=0.9)):
        assert_differentiable(good)
