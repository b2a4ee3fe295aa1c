"""Reptile by hand: slots of the inner optimiser, steps and batches of evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    DIM,
    RATE,
    TASKS,
    THETA,
    bench,
    close,
    quadratic_loss,
    quadratic_model,
)
from tiny import blob_batch, linen, one

import metalearn as ml
from metalearn.core.task import concatenate

pytestmark = pytest.mark.usefixtures("x64")
EPSILON, B1, B2, EPS = 0.7, 0.6, 0.95, 1e-3


class Adam:
    """Kingma and Ba 2015, algorithm 1, with its slots."""

    def __init__(self, m=0.0, v=0.0, t=0):
        self.m, self.v, self.t = m + np.zeros(DIM), v + np.zeros(DIM), t

    def move(self, slope):
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * slope
        self.v = B2 * self.v + (1 - B2) * slope**2
        root = np.sqrt(self.v / (1 - B2**self.t)) + EPS
        return -RATE * self.m / (1 - B1**self.t) / root


def slope_of(i, phi, parts=("support", "query")):
    """The gradient of the mean loss over the examples of a task."""
    (a, c, b, e), _ = bench()
    slopes = {"support": a[i] @ (phi - c[i]), "query": b[i] @ (phi - e[i])}
    return np.mean([slopes[part] for part in parts], 0)


def learner_of(opt=None, num_steps=2, **options):
    opt = optax.adam(RATE, b1=B1, b2=B2, eps=EPS) if opt is None else opt
    options = {"task_chunk": TASKS, **options}
    model = quadratic_model()
    return ml.reptile(model, quadratic_loss, opt, num_steps=num_steps, **options)


def outer_steps(learner, num):
    """Variables at first and after each step of size epsilon."""
    tasks = bench()[1]
    made = learner.init(jax.random.key(0), one(tasks))
    found = [ml.Variables(params=jnp.asarray(THETA), state=made.state)]
    estimate = jax.jit(lambda v: learner.estimate(v, tasks, key=jax.random.key(0)))
    for _ in range(num):
        at = estimate(found[-1])
        params = found[-1].params - EPSILON * at.grads
        found.append(ml.Variables(params=params, state=at.state))
    return found


@pytest.mark.parametrize("carry", [True, False])
def test_two_steps_with_adam_by_hand(carry):
    """Slots go on as the mean over tasks where they are carried, and else start afresh."""
    learner = learner_of(carry_opt_state=carry, eval_steps=3)
    found = outer_steps(learner, 2)
    theta, slots = THETA, (0.0, 0.0, 0)
    for after in found[1:]:
        ends, used = [], [Adam(*slots) for _ in range(TASKS)]
        for i, adam in enumerate(used):
            phi = theta
            for _ in range(2):
                phi = phi + adam.move(slope_of(i, phi))
            ends.append(phi)
        theta = theta + EPSILON * (np.mean(ends, 0) - theta)
        close(after.params, theta)
        if carry:
            means = np.mean([u.m for u in used], 0), np.mean([u.v for u in used], 0)
            slots = (*means, used[0].t)
            kept = after.state["opt"][0]
            close((kept.mu, kept.nu, kept.count), slots)
        else:
            assert not jax.tree.leaves(after.state)

    phi, adam = theta, Adam(*slots)
    for _ in range(3):
        phi = phi + adam.move(slope_of(1, phi, ["support"]))
    close(learner.adapt(found[-1], one(bench()[1], 1).support).params, phi)


def test_steps_of_evaluation_are_their_own_number():
    learner = learner_of(optax.sgd(RATE), num_steps=2, eval_steps=5)
    variables = ml.Variables(params=jnp.asarray(THETA), state={})
    phi = THETA
    for _ in range(5):
        phi = phi - RATE * slope_of(0, phi, ["support"])
    close(learner.adapt(variables, one(bench()[1]).support).params, phi)


def test_batches_of_evaluation_are_their_own_size():
    """Batches of one in evaluation, of all in training: either order of two examples."""
    task = one(bench()[1])
    support = concatenate(task.support, task.query)
    learner = learner_of(optax.sgd(RATE), num_steps=2, eval_batch_size=1)
    variables = ml.Variables(params=jnp.asarray(THETA), state={})
    adapt = jax.jit(lambda k: learner.adapt(variables, support, key=k).params)
    ends = {}
    for order in (("support", "query"), ("query", "support")):
        phi = THETA
        for part in order:
            phi = phi - RATE * slope_of(0, phi, [part])
        ends[order] = phi
    for seed in range(4):
        end = adapt(jax.random.key(seed))
        assert min(np.abs(end - by_hand).max() for by_hand in ends.values()) < 1e-12
    full = outer_steps(learner, 1)[1].params  # all examples at once
    phis = []
    for i in range(TASKS):
        phi = THETA
        for _ in range(2):
            phi = phi - RATE * slope_of(i, phi)
        phis.append(phi)
    close(full, THETA + EPSILON * (np.mean(phis, 0) - THETA))


def test_losses_before_the_first_and_the_last_step_are_reported():
    (a, c, b, e), tasks = bench()
    learner = learner_of(optax.sgd(RATE), num_steps=2)
    variables = ml.Variables(params=jnp.asarray(THETA), state={})
    found = jax.jit(lambda v: learner.estimate(v, tasks, key=jax.random.key(0)))(variables)

    def loss(i, phi):
        halves = (phi - c[i]) @ a[i] @ (phi - c[i]), (phi - e[i]) @ b[i] @ (phi - e[i])
        return sum(halves) / 4

    after = [THETA - RATE * slope_of(i, THETA) for i in range(TASKS)]
    first, last = (
        [loss(i, p) for i, p in enumerate(ps)] for ps in ([THETA] * TASKS, after)
    )
    close(found.metrics["support/loss"], np.stack(first))
    close(found.metrics["fit/loss"], np.stack(last))


def test_averages_are_those_of_the_last_inner_step():
    """With "running", by the mean over tasks of what batch norm keeps at `phi_1`."""
    model, tasks = linen(), blob_batch()
    opt = optax.sgd(0.5)
    learner = ml.reptile(model, CE, opt, num_steps=2, norm="running", task_chunk=9)
    variables = jax.jit(learner.init)(jax.random.key(0), one(tasks))

    def outputs(params, examples):
        at = ml.Variables(params=params, state=variables.state)
        return model.apply(at, examples.x, train=True, mask=examples.mask)

    def after_a_step(task):
        everything = concatenate(task.support, task.query)
        slope = jax.grad(lambda p: CE(outputs(p, everything)[0], everything))
        moved = jax.tree.map(lambda p, g: p - 0.5 * g, params, slope(params))
        return outputs(moved, everything)[1]

    params = variables.params
    found = jax.jit(lambda v, t: learner.estimate(v, t, key=jax.random.key(0)).state)
    expected = jax.tree.map(lambda s: s.mean(0), jax.jit(jax.vmap(after_a_step))(tasks))
    close(found(variables, tasks), expected, rtol=1e-5)
