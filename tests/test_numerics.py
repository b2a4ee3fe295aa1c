"""Closed forms, reductions and finite differences of every learner, in float64.

The quadratic bench: support loss `(phi - c)' A (phi - c) / 2`, query loss
`(phi - e)' B (phi - e) / 2`, for which all meta-gradients have closed forms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import steps as reference
from tiny import WAYS, blob_batch, one, plain, plain_init, tanh_net

import metalearn as ml
from metalearn.inner import unroll
from metalearn.testing import assert_differentiable

DIM, TASKS, RATE = 3, 4, 0.1

pytestmark = pytest.mark.usefixtures("x64")


def quadratic_loss(outputs, examples):
    """Mean over examples of `(phi - y)' x (phi - y) / 2`."""
    apart = outputs - examples.y
    values = 0.5 * jnp.einsum("nd,nde,ne->n", apart, examples.x, apart)
    return ml.masked_mean(values, examples.mask)


def quadratic_model():
    return ml.from_apply_fn(
        lambda key, x: jnp.zeros(x.shape[-1]),
        lambda params, x: jnp.broadcast_to(params[None], x.shape[:2]),
    )


def matrices(seed, num=TASKS):
    root = np.random.default_rng(seed).normal(size=(num, DIM, DIM))
    return np.einsum("tij,tkj->tik", root, root) / DIM + 0.3 * np.eye(DIM)


def bench(same=False):
    """`(A, c, B, e)` as NumPy arrays, and the tasks."""
    rng = np.random.default_rng(5)
    a, c = matrices(1), rng.normal(size=(TASKS, DIM))
    b, e = (a, c) if same else (matrices(2), rng.normal(size=(TASKS, DIM)))

    def part(x, y):
        x, y = jnp.asarray(x)[:, None], jnp.asarray(y)[:, None]
        return ml.Examples(x=x, y=y, mask=jnp.ones((TASKS, 1), bool))

    return (a, c, b, e), ml.Task(support=part(a, c), query=part(b, e))


THETA = np.array([0.7, -1.2, 0.4])


def grads_of(learner, params, tasks):
    variables = ml.Variables(params=jax.tree.map(jnp.asarray, params), state={})
    run = jax.jit(lambda v, t: learner.estimate(v, t, key=jax.random.key(0)))
    return run(variables, tasks)


def quadratic_maml(steps=1, **options):
    options = {"task_chunk": TASKS, **options}
    opt = optax.sgd(RATE)
    return ml.maml(quadratic_model(), quadratic_loss, opt, num_steps=steps, **options)


def descend(a, c, theta, steps, rate=RATE):
    for _ in range(steps):
        theta = theta - rate * a @ (theta - c)
    return theta


def close(actual, expected, rtol=1e-9):
    """Equal up to rounding, relative to the largest number of a leaf."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for a, e in zip(actual, expected, strict=True):
        scale = np.abs(np.asarray(e)).max() or 1.0
        np.testing.assert_allclose(a, e, rtol=0, atol=rtol * scale)


def differs(first, second, least=1e-3):
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    return any(np.abs(a - b).max() > least for a, b in zip(first, second))


# -- Quadratic bench ----------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_on_quadratics(steps, first_order):
    """`mean_i (I - alpha A)^K B (phi_K - e)`; FOMAML drops the power."""
    (a, c, b, e), tasks = bench()
    learner = quadratic_maml(steps, first_order=first_order)
    expected = np.zeros(DIM)
    for i in range(TASKS):
        gradient = b[i] @ (descend(a[i], c[i], THETA, steps) - e[i])
        power = 0 if first_order else steps
        factor = np.linalg.matrix_power(np.eye(DIM) - RATE * a[i], power)
        expected += factor @ gradient / TASKS
    close(grads_of(learner, THETA, tasks).grads, expected)
    assert np.abs(expected).min() > 1e-3


def test_learned_rate_on_quadratics():
    """`dL/dalpha = -grad L_Q(phi) . grad L_S(theta)` for one step."""
    (a, c, b, e), tasks = bench()
    learner = ml.maml(
        quadratic_model(), quadratic_loss, optax.sgd, inner_hparams=RATE, task_chunk=TASKS
    )
    found = grads_of(learner, {"model": THETA, "inner": RATE}, tasks).grads
    support = [a[i] @ (THETA - c[i]) for i in range(TASKS)]
    query = [b[i] @ (descend(a[i], c[i], THETA, 1) - e[i]) for i in range(TASKS)]
    close(found["inner"], np.mean([-s @ q for s, q in zip(support, query)]))
    close(found["model"], grads_of(quadratic_maml(1), THETA, tasks).grads)


def test_meta_sgd_on_quadratics():
    """`dL/dalpha = -grad L_Q(phi) * grad L_S(theta)` elementwise; constant: MAML."""
    (a, c, b, e), tasks = bench()
    learner = ml.meta_sgd(quadratic_model(), quadratic_loss, task_chunk=TASKS)
    rates = np.full(DIM, RATE)
    found = grads_of(learner, {"model": THETA, "inner": rates}, tasks).grads
    support = [a[i] @ (THETA - c[i]) for i in range(TASKS)]
    query = [b[i] @ (descend(a[i], c[i], THETA, 1) - e[i]) for i in range(TASKS)]
    close(found["inner"], np.mean([-s * q for s, q in zip(support, query)], axis=0))
    close(found["model"], grads_of(quadratic_maml(1), THETA, tasks).grads)


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
        "fomaml": quadratic_maml(steps, first_order=True),
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
            size = np.abs(grads_of(learner, point, tasks).grads).max()
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
    """`alpha = 0`: MAML = FOMAML = no inner steps."""
    (_, _, b, e), tasks = bench()
    expected = np.mean([b[i] @ (THETA - e[i]) for i in range(TASKS)], axis=0)
    model, opt = quadratic_model(), optax.sgd(0.0)
    for first_order in (False, True):
        learner = ml.maml(
            model, quadratic_loss, opt, num_steps=3, first_order=first_order, task_chunk=9
        )
        close(grads_of(learner, THETA, tasks).grads, expected)


def test_scaling_the_loss_and_dividing_the_rate_scales_the_gradient():
    _, tasks = bench()
    scaled = ml.maml(
        quadratic_model(),
        lambda outputs, examples: 5 * quadratic_loss(outputs, examples),
        optax.sgd(RATE / 5),
        num_steps=3,
        task_chunk=TASKS,
    )
    plain_grads = grads_of(quadratic_maml(3), THETA, tasks).grads
    close(grads_of(scaled, THETA, tasks).grads, 5 * plain_grads)


def test_duplicating_the_support_set_changes_nothing():
    _, tasks = bench()
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x], 1), tasks.support)
    learner = quadratic_maml(2)
    doubled = ml.Task(support=twice, query=tasks.query)
    close(grads_of(learner, THETA, doubled).grads, grads_of(learner, THETA, tasks).grads)


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_inner_optimisers_follow_numpy(name):
    """Five steps by hand: Adam (Kingma and Ba 2015, algorithm 1) and momentum."""
    (a, c, _, _), tasks = bench()
    opt = {
        "adam": optax.adam(0.1, b1=0.8, b2=0.95, eps=1e-8, eps_root=1e-6),
        "momentum": optax.sgd(0.1, momentum=0.9),
    }[name]
    learner = ml.maml(quadratic_model(), quadratic_loss, opt, num_steps=5)
    variables = ml.Variables(params=jnp.asarray(THETA), state={})
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


# -- Networks against NumPy ------------------------------------------------------------

CE = ml.losses.cross_entropy
INNER = 0.5


@functools.cache
def wide_blobs():
    """The blobs in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, blob_batch()
        )


def network(outputs=WAYS):
    params = plain_init(jax.random.key(3), jnp.zeros((1, 4)), outputs)
    return jax.tree.map(lambda p: p.astype(jnp.float64), params)


def as_list(params):
    parts = (params["body"]["w"], params["body"]["b"], params["head"]["w"])
    return [np.asarray(p) for p in (*parts, params["head"]["b"])]


def numpy_tasks():
    tasks = wide_blobs()
    arrays = (tasks.support.x, tasks.support.y, tasks.query.x, tasks.query.y)
    return [tuple(np.asarray(a[i]) for a in arrays) for i in range(3)]


@pytest.mark.parametrize("first_order", [False, True])
def test_maml_step_equals_numpy(first_order):
    learner = ml.maml(
        plain(), CE, optax.sgd(INNER), num_steps=3, first_order=first_order, task_chunk=9
    )
    params = network()
    found = as_list(grads_of(learner, params, wide_blobs()).grads)
    arguments = (as_list(params), numpy_tasks(), INNER, 3)
    close(found, reference.maml_gradient(*arguments, first_order), rtol=1e-6)
    assert differs(found, reference.maml_gradient(*arguments, not first_order))


def test_reptile_step_equals_numpy():
    learner = ml.reptile(plain(), CE, optax.sgd(INNER), num_steps=3, task_chunk=9)
    params = network()
    grads = grads_of(learner, params, wide_blobs()).grads
    after = jax.tree.map(lambda p, g: p - 0.7 * g, params, grads)
    close(
        as_list(after),
        reference.reptile_step(as_list(params), numpy_tasks(), INNER, 3, epsilon=0.7),
    )


def embedding():
    return ml.from_apply_fn(
        lambda key, x: jax.random.normal(key, (x.shape[-1], 5)),
        lambda params, x: jnp.tanh(x @ params),
    )


def test_protonet_step_equals_numpy():
    learner = ml.protonet(embedding(), num_ways=WAYS, task_chunk=9)
    w = np.random.default_rng(0).normal(size=(4, 5))
    found = grads_of(learner, w, wide_blobs()).grads
    close(found, reference.protonet_gradient(w, numpy_tasks(), WAYS))


# -- Finite differences -------------------------------------------------------------


def _adam_maml():
    opt = optax.adam(0.05, eps_root=1e-4)
    return ml.maml(plain(), CE, opt, num_steps=2, task_chunk=9), {}


def _learned(learner):
    inner = jax.tree.map(lambda p: jnp.full_like(p, 0.2), network())
    return learner, {"inner": inner}


OBJECTIVES = {
    "maml": lambda: (ml.maml(plain(), CE, optax.sgd(INNER), num_steps=3, task_chunk=9), {}),
    "maml_adam": _adam_maml,
    "anil": lambda: (ml.anil(plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=9), {}),
    "boil": lambda: (ml.boil(plain(), CE, optax.sgd(INNER), task_chunk=9), {}),
    "meta_sgd": lambda: _learned(ml.meta_sgd(plain(), CE, num_steps=2, task_chunk=9)),
    "fine_tune": lambda: (
        ml.fine_tune(plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=9),
        {},
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_meta_gradient_equals_finite_differences(name):
    learner, inner = OBJECTIVES[name]()
    params = {"model": network(), **inner} if inner else network()
    run = jax.jit(lambda v, t: learner.estimate(v, t, key=jax.random.key(0)))

    def at(params):
        found = run(ml.Variables(params=params, state={}), wide_blobs())
        losses = found.metrics.get("query/loss", found.metrics.get("joint/loss"))
        return losses.mean(), found.grads

    grads = at(params)[1]
    leaves, treedef = jax.tree.flatten(params)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = treedef.unflatten(
            [jnp.asarray(rng.normal(size=p.shape)) for p in leaves]
        )
        moved = [
            at(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction))[0]
            for s in (1e-5, -1e-5)
        ]
        slope = float(moved[0] - moved[1]) / 2e-5
        products = jax.tree.map(lambda g, d: jnp.vdot(g, d), grads, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=2e-6)


# -- Reductions ---------------------------------------------------------------------


@functools.cache
def maml_grads():
    with jax.enable_x64(True):
        learner = ml.maml(plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=9)
        return grads_of(learner, network(), wide_blobs()).grads


REDUCTIONS = {
    "anil of all parameters": lambda: ml.anil(
        plain(), CE, optax.sgd(INNER), num_steps=2, head=".*", task_chunk=9
    ),
    "rematerialised": lambda: ml.maml(
        plain(), CE, optax.sgd(INNER), num_steps=2, remat=True, task_chunk=9
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
    close(grads_of(REDUCTIONS[name](), network(), wide_blobs()).grads, maml_grads())


def test_meta_sgd_with_constant_rates_is_maml():
    learner = ml.meta_sgd(plain(), CE, num_steps=2, task_chunk=9)
    rates = jax.tree.map(lambda p: jnp.full_like(p, INNER), network())
    found = grads_of(learner, {"model": network(), "inner": rates}, wide_blobs())
    close(found.grads["model"], maml_grads())


def test_no_inner_steps_is_joint_training():
    learner = ml.maml(plain(), CE, optax.sgd(INNER), num_steps=0, task_chunk=9)
    tasks = wide_blobs()

    def joint(params):
        per_task = jax.vmap(lambda q: CE(tanh_net(params, q.x), q))(tasks.query)
        return per_task.mean()

    found = grads_of(learner, network(), tasks).grads
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
        grads_of(
            ml.maml(
                model, linear, optax.sgd(INNER), num_steps=2, first_order=f, task_chunk=9
            ),
            params,
            wide_blobs(),
        ).grads
        for f in (True, False)
    ]
    close(*both)
    assert np.abs(both[0]).max() > 1e-3


def test_anil_and_boil_move_complementary_parameters():
    variables = ml.Variables(params=network(), state={})
    support = one(wide_blobs()).support
    for make, moving, fixed in ((ml.anil, "head", "body"), (ml.boil, "body", "head")):
        learner = make(plain(), CE, optax.sgd(INNER), num_steps=2)
        params = learner.adapt(variables, support).params
        close(params[fixed], variables.params[fixed], rtol=0)
        assert differs(params[moving], variables.params[moving])


def test_first_order_anil_drops_the_body_terms_of_inner_gradients():
    """The body gets the query gradient at the adapted head and nothing else."""
    options = dict(num_steps=2, first_order=True, task_chunk=9)
    learner = ml.anil(plain(), CE, optax.sgd(INNER), **options)
    params, tasks = network(), wide_blobs()

    def at_adapted(params, task):
        start = ml.Variables(params=network(), state={})
        head = learner.adapt(start, task.support).params["head"]
        return CE(
            tanh_net({"body": params["body"], "head": head}, task.query.x), task.query
        )

    per_task = jax.vmap(jax.grad(at_adapted), in_axes=(None, 0))
    expected = jax.tree.map(lambda g: g.mean(0), jax.jit(per_task)(params, tasks))
    close(grads_of(learner, params, tasks).grads["body"], expected["body"])


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


# -- Prototypical networks ------------------------------------------------------------


def identity_protonet(ways=WAYS, offset=0.0):
    encoder = ml.from_apply_fn(
        lambda key, x: {"unused": jnp.zeros(1)}, lambda params, x: x + offset
    )
    return ml.protonet(encoder, num_ways=ways)


def logits_of(learner, task):
    variables = ml.Variables(params={"unused": jnp.zeros(1)}, state={})
    episode = lambda s, x: learner.predict(learner.adapt(variables, s), x)
    return np.asarray(jax.jit(episode)(task.support, task.query.x))


def test_protonet_is_a_linear_classifier_and_a_distance():
    """`w_k = 2 c_k`, `b_k = -|c_k|^2`; both equal `-|f - c|^2` up to a row constant."""
    task = one(wide_blobs())
    x, y = np.asarray(task.support.x), np.asarray(task.support.y)
    query = np.asarray(task.query.x)
    means = np.stack([x[y == k].mean(0) for k in range(WAYS)])
    centre = lambda rows: rows - rows.mean(-1, keepdims=True)
    found = centre(logits_of(identity_protonet(), task))
    close(found, centre(2 * query @ means.T - (means**2).sum(-1)))
    close(found, centre(-((query[:, None] - means) ** 2).sum(-1)))


def test_protonet_with_one_shot_is_the_nearest_neighbour():
    task = one(wide_blobs())
    rows = np.array([0, 2, 4])
    support = jax.tree.map(lambda leaf: leaf[rows], task.support)
    found = logits_of(identity_protonet(), ml.Task(support=support, query=task.query))
    apart = np.asarray(task.query.x)[:, None] - np.asarray(support.x)
    nearest = np.asarray(support.y)[(apart**2).sum(-1).argmin(-1)]
    assert (found.argmax(-1) == nearest).all()


def test_protonet_ignores_a_shift_of_all_embeddings():
    task = one(wide_blobs())
    found = [
        np.asarray(jax.nn.log_softmax(logits_of(identity_protonet(offset=o), task)))
        for o in (0.0, 3.0)
    ]
    close(*found)


def test_protonet_with_ragged_classes_equals_a_loop():
    task = one(wide_blobs())
    mask = jnp.array([True, False, True, True, False, False])  # 1, 2 and 0 shots
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=mask)
    found = logits_of(identity_protonet(), ml.Task(support=support, query=task.query))
    x, y, keep = (np.asarray(a) for a in (support.x, support.y, mask))
    for k in (0, 1):
        mean = np.mean([x[i] for i in range(6) if keep[i] and y[i] == k], axis=0)
        close(found[:, k], 2 * np.asarray(task.query.x) @ mean - mean @ mean)
    assert (found[:, 2] < -1e8).all()
