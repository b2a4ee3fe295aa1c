"""MAML++: every part switched by itself, and all of them off is MAML."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    DIM,
    INNER,
    RATE,
    TASKS,
    THETA,
    bench,
    close,
    descend,
    differs,
    grads_of,
    model_grads,
    network,
    of,
    quadratic_loss,
    quadratic_maml,
    quadratic_model,
    wide_blobs,
)
from tiny import blob_batch, linen, one, plain

import metalearn as ml
from metalearn.algorithms.gradient.maml_plus_plus import maml_plus_plus, step_weights
from metalearn.testing import check_learner

x64 = pytest.mark.usefixtures("x64")
OFF = dict(msl_steps=0, learned_rates=False, norm="support", task_chunk=9)
KEY = jax.random.key(0)


@functools.cache  # it keeps what was compiled for it
def quadratic(steps=3, **options):
    options = {**OFF, "initial_rate": RATE, **options}
    return maml_plus_plus(quadratic_model(), quadratic_loss, num_steps=steps, **options)


def rates(model, steps, rate=INNER):
    """Variables with one rate for every step and array."""
    return of(
        model, inner={"rates": jax.tree.map(lambda p: np.full((steps,), rate), model)}
    )


# -- Weights of the multi-step loss -----------------------------------------------------


@x64
@pytest.mark.parametrize("num_steps", [1, 2, 5, 10])
def test_weights_add_up_to_one(num_steps):
    weights = jax.vmap(lambda s: step_weights(s, 40, num_steps))(jnp.arange(60))
    close(weights.sum(-1), np.ones(60), rtol=1e-12)
    assert (weights >= 0).all()


@x64
def test_weights_follow_the_formula():
    k, until = 5, 200
    close(step_weights(0, until, k), np.full(k, 1 / k))
    for step in (50, 193, 194, 199):
        early = max(1 / k - step / (k * until), 0.03 / k)
        last = min(1 / k + step * (k - 1) / (k * until), 1 - (k - 1) * 0.03 / k)
        close(step_weights(step, until, k), np.array([early] * 4 + [last]))
    for step, until in ((200, 200), (10**6, 200), (0, 0), (7, 0)):
        close(step_weights(step, until, k), np.eye(k)[-1], rtol=0)


# -- Multi-step loss --------------------------------------------------------------------


@x64
@pytest.mark.parametrize("step", [30, 100])
def test_multi_step_loss_has_its_closed_form(step):
    """`sum_k w_k (I - alpha A)^k B (phi_k - e)`."""
    (a, c, b, e), tasks = bench()
    weights, eye = np.asarray(step_weights(step, 100, 3)), np.eye(DIM)
    expected = [
        sum(
            w
            * np.linalg.matrix_power(eye - RATE * m, k)
            @ n
            @ (descend(m, y, THETA, k) - f)
            for k, w in enumerate(weights, 1)
        )
        for m, y, n, f in zip(a, c, b, e)
    ]
    found = grads_of(quadratic(msl_steps=100), of(THETA, step), tasks)
    close(found.grads["model"], np.mean(expected, 0))
    assert found.state["step"] == step + 1


def test_multi_step_loss_predicts_as_learners_of_fewer_steps():
    """Under "support", batch norm has its statistics at the params of every step."""
    steps, tasks = 2, blob_batch()
    learner = maml_plus_plus(
        linen(), CE, num_steps=steps, initial_rate=0.5, **{**OFF, "msl_steps": 10}
    )
    variables = learner.init(KEY, one(tasks))
    found = jax.jit(learner.estimate)(variables, tasks, key=KEY).metrics

    def loss_after(k, task):
        shorter = ml.maml(linen(), CE, optax.sgd(0.5), num_steps=k)
        adapted = shorter.adapt(variables, task.support)
        return CE(shorter.predict(adapted, task.query.x), task.query)

    every = lambda task: [loss_after(k, task) for k in range(1, steps + 1)]
    losses = jax.jit(jax.vmap(every))(tasks)
    np.testing.assert_allclose(found["query/loss"], losses[-1], rtol=1e-5)
    expected = np.mean(losses, 0)
    np.testing.assert_allclose(found["query/multi_step_loss"], expected, rtol=1e-5)


# -- Learned rates ----------------------------------------------------------------------


@functools.cache
def maml_grads():
    """With one learned rate, in float64."""
    with jax.enable_x64(True):
        learner = ml.maml(
            plain(), CE, optax.sgd, num_steps=3, inner_hparams=INNER, task_chunk=9
        )
        return grads_of(learner, of(network(), inner=INNER), wide_blobs()).grads


@x64
def test_everything_off_is_maml():
    learner = maml_plus_plus(plain(), CE, num_steps=3, initial_rate=INNER, **OFF)
    close(model_grads(learner, network(), wide_blobs()).grads, maml_grads()["model"])


@x64
def test_equal_rates_are_maml_and_their_gradients_add_up():
    options = {**OFF, "learned_rates": True, "initial_rate": INNER}
    learner = maml_plus_plus(plain(), CE, num_steps=3, **options)
    found = grads_of(learner, rates(network(), 3), wide_blobs()).grads
    close(found["model"], maml_grads()["model"])
    slopes = jax.tree.leaves(found["inner"]["rates"])
    close(sum(s.sum() for s in slopes), maml_grads()["inner"])
    assert all(s.shape == (3,) and np.all(s != 0) for s in slopes)


@x64
def test_rate_of_each_step_has_its_closed_form():
    """`dL/dalpha_k = -grad L(phi_K; Q) . prod_{j > k} (I - alpha_j A) grad L(phi_k; S)`."""
    (a, c, b, e), tasks = bench()
    alphas = np.array([0.05, 0.2, 0.1])
    params = of(THETA, inner={"rates": alphas})
    found = grads_of(quadratic(learned_rates=True), params, tasks).grads["inner"]["rates"]
    expected = np.zeros((TASKS, 3))
    for t, (m, y, n, f) in enumerate(zip(a, c, b, e)):
        path = [THETA]
        for alpha in alphas:
            path.append(path[-1] - alpha * m @ (path[-1] - y))
        for k in range(3):
            effect = m @ (path[k] - y)
            for alpha in alphas[k + 1 :]:
                effect = effect - alpha * m @ effect
            expected[t, k] = -(n @ (path[-1] - f)) @ effect
    close(found, expected.mean(0))


def test_rates_for_another_number_of_steps_are_refused():
    task = one(blob_batch())
    trained, longer = (maml_plus_plus(plain(), CE, num_steps=k) for k in (2, 3))
    variables = trained.init(KEY, task)
    with pytest.raises(ValueError, match="2 inner steps, but num_steps=3"):
        longer.adapt(variables, task.support)


def test_rates_of_the_adapted_parameters_only():
    options = {**OFF, "learned_rates": True}
    head = lambda path, leaf: "head" in path
    learner = maml_plus_plus(plain(), CE, num_steps=2, adapt_filter=head, **options)
    variables = learner.init(KEY, one(blob_batch()))
    assert len(jax.tree.leaves(variables.params["inner"])) == 2
    moved = jax.jit(learner.adapt)(variables, one(blob_batch()).support).params
    np.testing.assert_array_equal(
        moved["body"]["w"], variables.params["model"]["body"]["w"]
    )
    assert differs(moved["head"], variables.params["model"]["head"])


# -- Annealing of the order -------------------------------------------------------------


@x64
def test_order_changes_the_gradient_and_not_the_loss():
    tasks, learner = bench()[1], quadratic(first_order_until=5)
    before, after = (grads_of(learner, of(THETA, s), tasks) for s in (4, 5))
    first, second = (
        grads_of(quadratic_maml(3, differentiation=d), of(THETA), tasks)
        for d in ("first_order", "reverse")
    )
    close(before.grads, first.grads)
    close(after.grads, second.grads)
    assert differs(before.grads, after.grads)
    close(before.metrics["query/loss"], after.metrics["query/loss"])


# -- Batch norm for every step ----------------------------------------------------------


@functools.cache  # it keeps what was compiled for it
def bn_learner(**options):
    options = {**OFF, "initial_rate": 0.5, **options}
    return maml_plus_plus(linen(), CE, num_steps=2, **options)


def test_statistics_of_steps_differ():
    tasks, learner = blob_batch(), bn_learner(norm="per_step")
    variables = learner.init(KEY, one(tasks))
    state = jax.jit(learner.estimate)(variables, tasks, key=KEY).state
    for leaf in jax.tree.leaves(state["model"]):
        assert leaf.shape[0] == 3
        assert all(differs(leaf[i], leaf[j]) for i, j in ((0, 1), (1, 2), (0, 2)))


def test_every_pass_of_evaluation_reads_the_averages_of_its_step():
    model, task = linen(), one(blob_batch())
    learner = bn_learner(norm="per_step")
    variables = jax.jit(learner.init)(KEY, task)
    keys = jax.random.split(jax.random.key(1), 2)
    shape = variables.state["model"]["batch_stats"]["BatchNorm_0"]["mean"].shape
    kept = {
        "mean": jax.random.normal(keys[0], shape),
        "var": jax.random.uniform(keys[1], shape, minval=0.5, maxval=2.0),
    }

    @jax.jit
    def outputs(params, step, x):
        averages = {"batch_stats": {"BatchNorm_0": {k: v[step] for k, v in kept.items()}}}
        return model.apply(ml.Variables(params=params, state=averages), x)[0]

    def loss(params, step):
        return CE(outputs(params, step, task.support.x), task.support)

    state = {**variables.state, "model": {"batch_stats": {"BatchNorm_0": kept}}}
    start = ml.Variables(params=variables.params, state=state)
    adapted = jax.jit(learner.adapt)(start, task.support)
    phi, slope = variables.params["model"], jax.jit(jax.grad(loss))
    for step in range(2):
        phi = jax.tree.map(lambda p, g: p - 0.5 * g, phi, slope(phi, step))
    close(adapted.params, phi, rtol=1e-5)
    found = jax.jit(learner.predict)(adapted, task.query.x)
    close(found, outputs(phi, 2, task.query.x), rtol=1e-5)


def test_equal_norm_weights_are_norm_weights_that_do_not_adapt():
    tasks, learner = blob_batch(), bn_learner(norm_weights="BatchNorm")
    variables = learner.init(KEY, one(tasks))
    found = jax.jit(learner.estimate)(variables, tasks, key=KEY)
    plain_learner = ml.maml(
        linen(),
        CE,
        optax.sgd(0.5),
        num_steps=2,
        adapt_filter=lambda path, leaf: "BatchNorm" not in path,
        task_chunk=9,
    )
    like = ml.Variables(params={"model": variables.params["model"]}, state=variables.state)
    expected = jax.jit(plain_learner.estimate)(like, tasks, key=KEY)
    np.testing.assert_allclose(
        found.metrics["query/loss"], expected.metrics["query/loss"], rtol=1e-5
    )
    slots, own = found.grads["inner"]["norm"], found.grads["model"]["BatchNorm_0"]
    per_step = jax.tree.leaves(slots)
    assert all(np.abs(g).max(-1).min() > 1e-5 for g in per_step if g.shape[0] == 2)
    total = jax.tree.map(
        lambda s, o: s.sum(0) + o, slots["BatchNorm_0"], own
    )  # of one set for all
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        total,
        expected.grads["model"]["BatchNorm_0"],
    )


def test_norm_weights_stand_for_the_pass_after_their_step():
    learner, task = bn_learner(norm_weights="BatchNorm"), one(blob_batch())
    variables = learner.init(KEY, task)
    norm = jax.tree.map(
        lambda n: n + jnp.asarray([[1.0], [2.0]]), variables.params["inner"]["norm"]
    )
    params = {**variables.params, "inner": {"norm": norm}}
    adapted = jax.jit(learner.adapt)(
        ml.Variables(params=params, state=variables.state), task.support
    )
    for found, start in zip(
        jax.tree.leaves(adapted.params["BatchNorm_0"]),
        jax.tree.leaves(variables.params["model"]["BatchNorm_0"]),
    ):
        np.testing.assert_allclose(found, start + 2.0, rtol=1e-5)


def test_unknown_norm_weights_list_the_paths():
    learner = bn_learner(norm_weights="LayerNorm")
    with pytest.raises(ValueError, match=r"LayerNorm.*BatchNorm_0/scale"):
        learner.init(KEY, one(blob_batch()))


# -- All together -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "inner"),
    [
        ({}, set()),
        ({"msl_steps": 3}, set()),
        ({"learned_rates": True}, {"rates"}),
        ({"norm_weights": "BatchNorm"}, {"norm"}),
        ({"first_order_until": 3}, set()),
        ({"learned_rates": True, "norm_weights": "BatchNorm"}, {"rates", "norm"}),
    ],
)
def test_switches_are_independent(options, inner):
    variables = jax.eval_shape(bn_learner(**options).init, KEY, one(blob_batch()))
    assert set(variables.params.get("inner", ())) == inner
    assert set(variables.params) - {"inner"} == {"model"}
    assert set(variables.state) == {"model", "step"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"msl_steps": -1}, "msl_steps is -1"),
        ({"initial_rate": -0.1}, "initial_rate is -0.1"),
        ({"initial_rate": "0.1"}, "initial_rate is '0.1'"),
        ({"initial_rate": True}, "initial_rate is True"),
        ({"first_order_until": -1}, "first_order_until is -1"),
        ({"norm": "epoch"}, "norm is 'epoch'"),
        ({"differentiation": ml.inner.Implicit()}, "maml_plus_plus cannot learn"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        maml_plus_plus(plain(), CE, **options)


@pytest.mark.slow  # a variant of what the registry checks
def test_keeps_the_contract(strict_dtypes):
    learner = maml_plus_plus(
        linen(),
        CE,
        num_steps=2,
        msl_steps=5,
        norm_weights="BatchNorm",
        task_chunk=8,
    )
    check_learner(learner, blob_batch())


def test_a_single_step_is_traced():
    """Its rates are of one step; whether an optimiser is differentiable takes two."""
    learner = ml.maml_plus_plus(plain(), CE, num_steps=1)
    assert jax.eval_shape(learner.init, jax.random.key(0), one(blob_batch())).params
