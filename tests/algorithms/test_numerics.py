"""Closed forms of every learner on the quadratic bench, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    DIM,
    MODES,
    RATE,
    TASKS,
    THETA,
    bench,
    close,
    descend,
    grads_of,
    model_grads,
    of,
    quadratic_loss,
    quadratic_maml,
    quadratic_model,
)
from tiny import blob_batch, one, plain

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_on_quadratics(steps, first_order):
    """`mean_i (I - alpha A)^K B (phi_K - e)`; FOMAML drops the power."""
    (a, c, b, e), tasks = bench()
    learner = quadratic_maml(steps, differentiation=MODES[first_order])
    expected = np.zeros(DIM)
    for i in range(TASKS):
        gradient = b[i] @ (descend(a[i], c[i], THETA, steps) - e[i])
        power = 0 if first_order else steps
        factor = np.linalg.matrix_power(np.eye(DIM) - RATE * a[i], power)
        expected += factor @ gradient / TASKS
    close(model_grads(learner, THETA, tasks).grads, expected)
    assert np.abs(expected).min() > 1e-3


def test_learned_rate_on_quadratics():
    """`dL/dalpha = -grad L_Q(phi) . grad L_S(theta)` for one step."""
    (a, c, b, e), tasks = bench()
    learner = ml.maml(
        quadratic_model(), quadratic_loss, optax.sgd, inner_hparams=RATE, task_chunk=TASKS
    )
    found = grads_of(learner, of(THETA, inner=RATE), tasks).grads
    support = [a[i] @ (THETA - c[i]) for i in range(TASKS)]
    query = [b[i] @ (descend(a[i], c[i], THETA, 1) - e[i]) for i in range(TASKS)]
    close(found["inner"], np.mean([-s @ q for s, q in zip(support, query)]))
    close(found["model"], model_grads(quadratic_maml(1), THETA, tasks).grads)


def test_meta_sgd_on_quadratics():
    """`dL/dalpha = -grad L_Q(phi) * grad L_S(theta)` elementwise; constant: MAML."""
    (a, c, b, e), tasks = bench()
    learner = ml.meta_sgd(quadratic_model(), quadratic_loss, task_chunk=TASKS)
    rates = np.full(DIM, RATE)
    found = grads_of(learner, of(THETA, inner=rates), tasks).grads
    support = [a[i] @ (THETA - c[i]) for i in range(TASKS)]
    query = [b[i] @ (descend(a[i], c[i], THETA, 1) - e[i]) for i in range(TASKS)]
    close(found["inner"], np.mean([-s * q for s, q in zip(support, query)], axis=0))
    close(found["model"], model_grads(quadratic_maml(1), THETA, tasks).grads)


def test_meta_sgd_draws_rates_from_its_range():
    learner = ml.meta_sgd(plain(), ml.losses.cross_entropy, initial_rate=(0.2, 0.3))
    start = jax.jit(learner.init)(jax.random.key(0), one(blob_batch()))
    rates = start.params["inner"]
    values = np.concatenate([np.ravel(r) for r in jax.tree.leaves(rates)])
    assert values.min() >= 0.2 and values.max() <= 0.3 and np.ptp(values) > 0.05


def test_fixed_points_of_maml_fomaml_and_reptile_differ():
    """With support = query the three weigh tasks by different matrices (section 0):
    `(I-aA)^K A (I-aA)^K`, `A (I-aA)^K` and `I - (I-aA)^K`."""
    steps = 5
    (a, c, _, _), tasks = bench(same=True)
    power = [np.linalg.matrix_power(np.eye(DIM) - RATE * m, steps) for m in a]
    weights = {
        "maml": [p @ m @ p for p, m in zip(power, a)],
        "fomaml": [m @ p for p, m in zip(power, a)],
        "reptile": [np.eye(DIM) - p for p in power],
    }
    learners = {
        "maml": quadratic_maml(steps),
        "fomaml": quadratic_maml(steps, differentiation="first_order"),
        "reptile": ml.reptile(
            quadratic_model(),
            quadratic_loss,
            optax.sgd(RATE),
            num_steps=steps,
            task_chunk=9,
        ),
    }
    points = {
        name: np.linalg.solve(sum(ms), sum(m @ x for m, x in zip(ms, c)))
        for name, ms in weights.items()
    }
    for name, learner in learners.items():
        for other, point in points.items():
            run = grads_of if name == "reptile" else model_grads
            size = np.abs(run(learner, point, tasks).grads).max()
            assert size < 1e-12 if name == other else size > 1e-4, (name, other, size)


def test_reptile_with_one_step_is_joint_training():
    (a, c, b, e), tasks = bench()
    learner = ml.reptile(
        quadratic_model(), quadratic_loss, optax.sgd(RATE), num_steps=1, task_chunk=TASKS
    )
    joint = [(a[i] @ (THETA - c[i]) + b[i] @ (THETA - e[i])) / 2 for i in range(TASKS)]
    close(grads_of(learner, THETA, tasks).grads, RATE * np.mean(joint, axis=0))


def test_reptile_with_two_batches():
    """`theta - phi_2 = alpha (g_1 + g_2 - alpha H_2 g_1)` (Nichol et al., section 5.1)."""
    (a, c, b, e), tasks = bench()
    learner = ml.reptile(
        quadratic_model(),
        quadratic_loss,
        optax.sgd(RATE),
        num_steps=2,
        batch_size=1,
    )
    seen = set()
    for i in range(TASKS):
        task = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], tasks)
        found = np.asarray(grads_of(learner, THETA, task).grads)
        g1, g2 = a[i] @ (THETA - c[i]), b[i] @ (THETA - e[i])
        options = [
            RATE * (g1 + g2 - RATE * b[i] @ g1),
            RATE * (g1 + g2 - RATE * a[i] @ g2),
        ]
        gaps = [np.abs(found - option).max() for option in options]
        assert min(gaps) < 1e-12 < max(gaps)
        seen.add(int(np.argmin(gaps)))
    assert seen <= {0, 1}


def test_reptile_with_epsilon_one_lands_on_the_adapted_parameters():
    _, tasks = bench(same=True)
    learner = ml.reptile(
        quadratic_model(), quadratic_loss, optax.sgd(RATE), num_steps=3, task_chunk=1
    )
    single = jax.tree.map(lambda leaf: leaf[:1], tasks)
    trainer = ml.meta_trainer(learner, optax.sgd(1.0))
    variables = ml.Variables(params=jnp.asarray(THETA), state={})
    start = trainer.init(jax.random.key(0), one(tasks))
    start = ml.TrainState(step=start.step, variables=variables, opt_state=start.opt_state)
    after, _ = jax.jit(trainer.step)(start, single, key=jax.random.key(0))
    adapted = learner.adapt(variables, one(tasks).support)
    close(after.variables.params, adapted.params, rtol=1e-14)


def test_zero_rate_is_joint_training_on_the_query_sets():
    """`alpha = 0`: MAML = FOMAML = no inner steps. A tiny rate stands for it."""
    (_, _, b, e), tasks = bench()
    expected = np.mean([b[i] @ (THETA - e[i]) for i in range(TASKS)], axis=0)
    model, opt = quadratic_model(), optax.sgd(1e-30)
    for first_order in (False, True):
        learner = ml.maml(
            model,
            quadratic_loss,
            opt,
            num_steps=3,
            differentiation=MODES[first_order],
            task_chunk=9,
        )
        close(model_grads(learner, THETA, tasks).grads, expected)


def test_scaling_the_loss_and_dividing_the_rate_scales_the_gradient():
    _, tasks = bench()
    scaled = ml.maml(
        quadratic_model(),
        lambda outputs, examples: 5 * quadratic_loss(outputs, examples),
        optax.sgd(RATE / 5),
        num_steps=3,
        task_chunk=TASKS,
    )
    plain_grads = model_grads(quadratic_maml(3), THETA, tasks).grads
    close(model_grads(scaled, THETA, tasks).grads, 5 * plain_grads)


def test_duplicating_the_support_set_changes_nothing():
    _, tasks = bench()
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x], 1), tasks.support)
    learner = quadratic_maml(2)
    doubled = ml.Task(support=twice, query=tasks.query)
    close(
        model_grads(learner, THETA, doubled).grads, model_grads(learner, THETA, tasks).grads
    )


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_inner_optimisers_follow_numpy(name):
    """Five steps by hand: Adam (Kingma and Ba 2015, algorithm 1) and momentum."""
    (a, c, _, _), tasks = bench()
    opt = {
        "adam": optax.adam(0.1, b1=0.8, b2=0.95, eps=1e-8, eps_root=1e-6),
        "momentum": optax.sgd(0.1, momentum=0.9),
    }[name]
    learner = ml.maml(quadratic_model(), quadratic_loss, opt, num_steps=5)
    variables = of(THETA)
    found = learner.adapt(variables, one(tasks).support).params
    phi, m, v = THETA, np.zeros(DIM), np.zeros(DIM)
    for t in range(1, 6):
        g = a[0] @ (phi - c[0])
        if name == "momentum":
            m = 0.9 * m + g
            phi = phi - 0.1 * m
            continue
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        root = np.sqrt(v / (1 - 0.95**t) + 1e-6) + 1e-8
        phi = phi - 0.1 * (m / (1 - 0.8**t)) / root
    close(found, phi)
