"""BMAML and EMAML: the chaser loss, closed forms, reductions to MAML."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, close, differs, of, wide_blobs
from tiny import INPUTS, WAYS, blob_batch, linen, nnx_net, one, plain, sine_batch

import metalearn as ml
from metalearn.algorithms.bayesian.bmaml import bmaml, emaml
from metalearn.algorithms.bayesian.ensemble import joint_loss, members
from metalearn.algorithms.bayesian.posterior import CLASSIFICATION, REGRESSION, Gamma
from metalearn.testing import check_learner

x64 = pytest.mark.usefixtures("x64")
MSE = ml.losses.mse
FLAT = dataclasses.replace(CLASSIFICATION, weight_precision=0.0)
LEARNED = dataclasses.replace(CLASSIFICATION, weight_precision=Gamma(2.0, 2.0, start=1.0))
RATE, N = 0.03, 2 * WAYS  # support examples of the blobs
KEY = jax.random.key(0)


# -- The learner: reductions ------------------------------------------------------------


@functools.cache
def wide_sines():
    with jax.enable_x64(True):
        wide = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        return jax.tree.map(wide, sine_batch())


def classifier(posterior=FLAT, num=3, **options):
    options = {"objective": "query", "task_chunk": 9, "num_steps": 2, **options}
    opt = optax.sgd(RATE / N)
    return bmaml(plain(), CE, opt, num_particles=num, posterior=posterior, **options)


def chaser(num=3, **options):
    options = {"task_chunk": 9, "num_steps": 2, "leader_steps": 2, **options}
    opt = options.pop("opt", optax.sgd(1e-3))
    return bmaml(plain(1), MSE, opt, num_particles=num, **options)


@functools.cache
def wide_variables(regression):
    learner, tasks = (
        (chaser(), wide_sines()) if regression else (classifier(), wide_blobs())
    )
    with jax.enable_x64(True):
        return jax.tree.map(
            lambda p: p.astype(jnp.float64), jax.jit(learner.init)(KEY, one(tasks))
        )


def estimate(learner, variables, tasks):
    return jax.jit(lambda v: learner.estimate(v, tasks, key=KEY))(variables)


def adapted(learner, variables, support):
    return jax.jit(learner.adapt)(variables, support)


def member(variables, m):
    return jax.tree.map(lambda leaf: leaf[m], variables)


def maml(**options):
    return ml.maml(plain(), CE, optax.sgd(RATE), num_steps=2, task_chunk=9, **options)


@x64
def test_one_particle_under_a_flat_prior_is_maml():
    variables, tasks = wide_variables(False), wide_blobs()
    first = jax.tree.map(lambda leaf: leaf[:1], variables)
    found = estimate(classifier(num=1), first, tasks)
    expected = estimate(maml(), of(member(variables, 0).params), tasks)
    close(member(found.grads, 0), expected.grads["model"])
    for name in ("query/loss", "query/accuracy", "support/loss"):
        close(found.metrics[name], expected.metrics[name])


@x64
def test_one_particle_ascends_the_posterior():
    """MAP of a linear Gaussian model in closed form, and one step of it."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 3)), rng.normal(size=3)
    y = x @ w + 0.1 * rng.normal(size=8)
    support = ml.Examples.of(jnp.asarray(x), jnp.asarray(y)[:, None])
    model = ml.from_apply_fn(lambda key, x: jnp.ones((3, 1)), lambda p, x: x @ p)
    data, prior = 4.0, 0.5
    posterior = dataclasses.replace(REGRESSION, data_precision=data, weight_precision=prior)
    variables = ml.Variables(params=jnp.ones((1, 3, 1)), state={})

    def after(steps):
        options = dict(num_particles=1, num_steps=steps, posterior=posterior)
        learner = bmaml(model, MSE, optax.sgd(0.02), **options)
        return np.asarray(adapted(learner, variables, support).params)[0, :, 0]

    hessian = data * x.T @ x + prior * np.eye(3)
    close(after(1), np.ones(3) - 0.02 * (hessian @ np.ones(3) - data * x.T @ y))
    close(after(400), np.linalg.solve(hessian, data * x.T @ y))


@x64
def test_emaml_is_maml_for_each_member():
    variables, tasks = wide_variables(False), wide_blobs()
    learner = emaml(
        plain(), CE, optax.sgd(RATE), num_particles=3, num_steps=2, task_chunk=9
    )
    found = estimate(learner, variables, tasks)
    run = jax.jit(lambda v: maml().estimate(v, tasks, key=KEY).grads["model"])
    singles = [run(of(member(variables, m).params)) for m in range(3)]
    close(found.grads, jax.tree.map(lambda *g: np.stack(g), *singles))
    task = one(tasks)
    ends = adapted(learner, variables, task.support)

    def logits(params):
        return plain().apply(ml.Variables(params=params, state={}), task.query.x)[0]

    each = jnp.stack([logits(member(ends.params, m)) for m in range(3)])
    mixture = jnp.log(jnp.mean(jax.nn.softmax(each), axis=0))
    close(learner.predict(ends, task.query.x), mixture)


# -- The learner: the chaser loss -------------------------------------------------------


@x64
def test_meta_gradient_is_that_of_a_leader_that_stands_still(monkeypatch):
    """By finite differences of the whole objective with leader and bandwidth held."""
    monkeypatch.setattr(
        "metalearn.algorithms.bayesian.svgd.median_bandwidth", lambda d, floor: 30.0
    )
    variables, task = wide_variables(True), one(wide_sines())
    learner, tasks = chaser(), jax.tree.map(lambda leaf: leaf[None], task)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.support, task.query)

    adapt = jax.jit(lambda p, s: learner.adapt(ml.Variables(params=p, state={}), s))
    ends = adapt(variables.params, task.support)
    led = adapt({"model": ends.params, "log_precision": ends.info}, both).params

    def distance(params):
        after = adapt(params, task.support).params
        gaps = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), after, led)
        return sum(jax.tree.leaves(gaps))

    found = estimate(learner, variables, tasks)
    close(found.metrics["chaser/loss"][0], distance(variables.params))
    rng = np.random.default_rng(0)
    way = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), variables.params)

    def along(scale):
        return distance(jax.tree.map(lambda p, d: p + scale * d, variables.params, way))

    slope = jax.tree.map(lambda g, d: jnp.sum(g * d), found.grads, way)
    difference = (along(1e-6) - along(-1e-6)) / 2e-6
    close(sum(jax.tree.leaves(slope)), difference, rtol=1e-6)
    for name in ("data", "weights"):
        assert np.abs(found.grads["log_precision"][name]).min() > 0


@x64
def test_a_leader_that_does_not_move_gives_zero_loss():
    still = chaser(leader_opt=optax.sgd(1e-200))
    found = estimate(still, wide_variables(True), wide_sines())
    assert not np.any(found.metrics["chaser/loss"])
    assert not any(np.any(g) for g in jax.tree.leaves(found.grads))


@x64
def test_leader_keeps_the_state_of_the_optimiser_unless_it_has_its_own():
    opt = optax.sgd(1e-3, momentum=0.9)
    runs = [
        estimate(learner, wide_variables(True), wide_sines()).metrics["chaser/loss"]
        for learner in (chaser(opt=opt), chaser(opt=opt, leader_opt=opt))
    ]
    assert differs(*runs, least=1e-6 * np.abs(runs[0]).max())
    assert (runs[0] > runs[1]).all()  # momentum carries it further


@x64
@pytest.mark.slow  # `tests/inner/test_differentiation.py` has the ways
def test_ways_through_the_inner_loop_agree_and_the_order_of_particles_is_free():
    variables, tasks = wide_variables(True), wide_sines()
    run = jax.jit(lambda v: chaser().estimate(v, tasks, key=KEY).grads)
    plainly = run(variables)
    close(estimate(chaser(differentiation="mixed"), variables, tasks).grads, plainly)
    first = estimate(chaser(differentiation="first_order"), variables, tasks).grads
    assert differs(first, plainly)
    order = np.array([1, 2, 0])

    def turned(tree):
        return jax.tree.map(lambda leaf: leaf[order], tree)

    close(run(turned(variables)), turned(plainly))


def test_particles_start_apart_and_features_can_be_shared():
    task = one(blob_batch())
    learner = classifier(LEARNED, adapt_filter=lambda path, leaf: "head" in path)
    variables = jax.jit(learner.init)(KEY, task)
    model = variables.params["model"]
    assert model["body"]["w"].shape == (INPUTS, 5) and model["head"]["w"].shape[0] == 3
    assert differs(model["head"]["w"][0], model["head"]["w"][1])
    close(variables.params["log_precision"]["weights"], np.zeros(3))
    after = adapted(learner, variables, task.support)
    close(after.params["body"], model["body"], rtol=0)
    assert differs(after.params["head"], model["head"], least=1e-4)
    assert differs(after.info, variables.params["log_precision"], least=1e-4)
    grads = estimate(learner, variables, blob_batch()).grads
    assert np.abs(grads["model"]["body"]["w"]).max() > 0


def test_absent_classes_are_masked():
    task = one(blob_batch())
    keep = task.support.mask & (task.support.y != 2)
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=keep)
    learner = classifier(CLASSIFICATION, mask_absent_classes=True)
    after = adapted(learner, jax.jit(learner.init)(KEY, task), support)
    assert after.present.tolist() == [True, True, False]
    assert (learner.predict(after, task.query.x).argmax(-1) != 2).all()
    each = members(learner, after, task.query.x)
    assert each.shape[0] == 3 and (each.argmax(-1) != 2).all()
    mixture = jax.nn.logsumexp(each, 0) - jnp.log(3)
    close(mixture[:, :2], learner.predict(after, task.query.x)[:, :2], 1e-5)
    shared = after.replace(params=jax.tree.map(lambda leaf: leaf[0], after.params))
    with pytest.raises(ValueError, match="expected one number of samples on every leaf"):
        members(learner, shared, task.query.x)


@x64
def test_the_joint_objective_averages_products():
    """Over the members the likelihood of all queries, which log-sums must not lose."""
    variables, tasks = wide_variables(False), wide_blobs()
    learner, task = classifier(objective="joint"), one(tasks)
    found = jax.jit(lambda v: learner.estimate(v, tasks, key=KEY))(variables)
    after = adapted(learner, variables, task.support)
    logs = np.asarray(members(learner, after, task.query.x, key=KEY))  # [M, Q, W]
    own = np.take_along_axis(logs, np.asarray(task.query.y)[None, :, None], -1)[..., 0]
    product = np.prod(np.exp(own), axis=1).mean()
    close(found.metrics["joint/loss"][0], -np.log(product) / own.shape[1])
    alone = np.array([0.3, 0.3, 0.3])
    close(joint_loss(alone, 5), np.array(0.3))
    assert joint_loss(np.zeros(3), 0) == 0  # of no query
    assert joint_loss(np.array([0.1, 9.0]), 1000) < 0.101  # the better of two decides


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_particles": 0}, "num_particles is 0"),
        ({"num_particles": 2.5}, r"num_particles is 2\.5"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"leader_steps": 0}, "leader_steps is 0"),
        ({"leader_steps": True}, "leader_steps is True"),
        ({"repulsion": -1.0}, r"repulsion is -1\.0"),
        ({"repulsion": float("nan")}, "repulsion is nan"),
        ({"objective": "chase"}, "objective is 'chase'.*chaser, query"),
        ({"objective": "query", "leader_opt": optax.sgd(0.1)}, "has no leader"),
        ({"leader_opt": optax.sgd(0.0)}, "leader_opt: .*its rate is 0"),
        ({"leader_opt": optax.sgd(-0.1)}, "leader_opt: .*rate is negative"),
        ({"leader_opt": optax.sgd(float("nan"))}, "leader_opt: .*not a finite number"),
        ({"posterior": MSE}, "posterior is a function"),
        ({"differentiation": ml.inner.Implicit()}, "bmaml cannot learn"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"task_chunk": 0}, "task_chunk is 0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        bmaml(plain(), CE, optax.sgd(0.1), **options)


def test_bad_posteriors_and_losses_are_refused():
    def own(outputs, examples):
        return CE(outputs, examples)

    with pytest.raises(ValueError, match=r"posterior is not given.*Give posterior="):
        bmaml(plain(), own, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"combine is not given.*Give combine="):
        emaml(plain(), own, optax.sgd(0.1))
    with pytest.raises(ValueError, match="combine is 'vote'"):
        emaml(plain(), own, optax.sgd(0.1), combine="vote")
    with pytest.raises(TypeError, match="inner_opt is a float"):
        bmaml(plain(), CE, 0.1)
    with pytest.raises(TypeError, match="leader_opt is a float"):
        bmaml(plain(), CE, optax.sgd(0.1), leader_opt=0.1)
    with pytest.raises(TypeError, match=r"leader_opt: .*needs value"):
        bmaml(plain(), CE, optax.sgd(0.1), leader_opt=optax.lbfgs())


def test_a_choice_of_weights_by_their_shapes_is_refused():
    learner = classifier(adapt_filter=lambda path, leaf: leaf.ndim == 2)
    with pytest.raises(ValueError, match="depends on shapes"):
        learner.init(KEY, one(blob_batch()))


def test_probabilities_of_a_single_output_are_refused():
    """They would be 1, whatever the network says."""
    learner = chaser(posterior=dataclasses.replace(REGRESSION, combine="probabilities"))
    task = one(sine_batch())
    variables = learner.init(KEY, task)
    after = jax.eval_shape(learner.adapt, variables, task.support)
    with pytest.raises(ValueError, match=r"two classes or more.*combine='mean'"):
        jax.eval_shape(learner.predict, after, task.query.x)


@pytest.mark.slow  # a variant of what the registry checks
def test_keeps_the_contract(strict_dtypes):
    options = dict(num_particles=2, repulsion=0.5, task_chunk=8, posterior=LEARNED)
    learner = bmaml(linen(), CE, optax.sgd(0.01), **options)
    assert ml.describe(learner)["weight_precision"].startswith("Gamma(shape=2.0")
    assert ml.describe(learner)["repulsion"] == 0.5
    check_learner(learner, blob_batch())


@pytest.mark.slow
def test_keeps_the_contract_in_regression(strict_dtypes):
    check_learner(chaser(2, num_steps=1), sine_batch())


@pytest.mark.parametrize(
    ("norm", "net"),
    [("per_step", linen), pytest.param("running", nnx_net, marks=pytest.mark.slow)],
)
def test_batch_norm_of_each_particle(norm, net):
    """Statistics have an axis M; a leader may take more steps than there are of them."""
    options = dict(num_particles=2, num_steps=1, leader_steps=3, norm=norm, task_chunk=8)
    learner = bmaml(net(), CE, optax.sgd(0.01), **options)
    task = one(blob_batch())
    variables = jax.jit(learner.init)(KEY, task)
    found = estimate(learner, variables, blob_batch())
    assert (found.metrics["chaser/loss"] > 0).all()
    assert differs(found.state, variables.state)
    assert all(leaf.shape[-2] == 2 for leaf in jax.tree.leaves(found.state))
    after = adapted(learner, variables, task.support)
    outputs = jax.jit(learner.predict)(after, task.query.x)
    assert np.isfinite(outputs).all() and outputs.shape == (N, WAYS)
