"""WarpGrad: single steps, states held constant, and two objectives that keep apart."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, INNER, close, differs, grads_of, model_grads, of, wide_blobs
from tiny import INPUTS, WAYS, blob_batch, one, plain

import metalearn as ml
from metalearn.algorithms.gradient.tnet import t_net
from metalearn.algorithms.gradient.warpgrad import warpgrad
from metalearn.models.tnet import TNetMLP
from metalearn.models.warp import Warp, WarpConv4, WarpMLP
from metalearn.testing import check_learner

WIDTH, STEPS = 5, 3
x64 = pytest.mark.usefixtures("x64")


def model_of(warp="nonlinear", norm="none"):
    return ml.from_linen(WarpMLP(WAYS, (WIDTH,), norm, warp))


def learner_of(opt=None, model=None, **options):
    opt = optax.sgd(INNER) if opt is None else opt
    options = {"num_steps": STEPS, "task_chunk": 9, **options}
    return warpgrad(model or model_of(), CE, opt, **options)


@functools.cache
def params_of(warp="nonlinear", shift=0.3):
    with jax.enable_x64(True):
        made = model_of(warp).init(jax.random.key(1), jnp.zeros((1, INPUTS))).params
        rng = np.random.default_rng(2)

        def value(path, leaf):
            leaf = leaf.astype(jnp.float64)
            moved = "warp" in str(path[0])
            return leaf + shift * moved * rng.normal(size=leaf.shape)

        return jax.tree_util.tree_map_with_path(value, made)


def parts(params):
    """theta and omega."""
    theta = {k: v for k, v in params.items() if "warp" not in k}
    return theta, {k: v for k, v in params.items() if "warp" in k}


def loss_of(theta, omega, examples):
    variables = ml.Variables(params={**theta, **omega}, state={})
    return CE(model_of().apply(variables, examples.x)[0], examples)


slope_of = jax.jit(jax.value_and_grad(loss_of))


def states_of(params, task, opt=None, steps=STEPS):
    """`theta_0..theta_K` and the states of the optimiser, by plain gradients."""
    opt = optax.sgd(INNER) if opt is None else opt
    theta, omega = parts(params)
    states = [(theta, opt.init(theta))]
    for _ in range(steps):
        theta, opt_state = states[-1]
        grads = slope_of(theta, omega, task.support)[1]
        updates, opt_state = opt.update(grads, opt_state, theta)
        states.append((optax.apply_updates(theta, updates), opt_state))
    return states


def expected_of_omega(params, tasks, opt=None, approximate=False):
    """The mean over tasks and states of the gradient through one step, written out."""
    opt = optax.sgd(INNER) if opt is None else opt

    @jax.jit
    @jax.grad
    def after_a_step(omega, theta, opt_state, task):
        grads = jax.grad(loss_of)(theta, omega, task.support)
        if approximate:
            grads = jax.lax.stop_gradient(grads)
        updates = opt.update(grads, opt_state, theta)[0]
        return loss_of(optax.apply_updates(theta, updates), omega, task.query)

    found = [
        after_a_step(parts(params)[1], *state, task)
        for task in (one(tasks, i) for i in range(3))
        for state in states_of(params, task, opt)[:-1]
    ]
    return jax.tree.map(lambda *g: sum(g) / len(g), *found)


# -- The objective of omega -------------------------------------------------------------


@x64
@pytest.mark.parametrize(
    ("opt", "approximate"),
    [(None, False), (None, True), (optax.sgd(INNER, momentum=0.9), False)],
)
def test_omega_is_learned_through_single_steps(opt, approximate):
    """States, and the momentum at them, are constants; so nothing before step k counts."""
    params, tasks = params_of(), wide_blobs()
    learner = learner_of(opt, initialisation="fixed", approximate=approximate)
    found = grads_of(learner, params, tasks)
    close(parts(found.grads)[1], expected_of_omega(params, tasks, opt, approximate))
    other = expected_of_omega(params, tasks, opt, not approximate)
    assert differs(parts(found.grads)[1], other, least=1e-4)
    assert not any(np.any(g) for g in jax.tree.leaves(parts(found.grads)[0]))
    states = states_of(params, one(tasks), opt)
    omega = parts(params)[1]
    losses = [slope_of(theta, omega, one(tasks).query)[0] for theta, _ in states]
    close(found.metrics["warp/loss"][0], np.mean(losses[1:]))
    close(found.metrics["query/loss"][0], losses[-1])
    first = slope_of(states[0][0], omega, one(tasks).support)[0]
    close(found.metrics["support/loss"][0], first)


@x64
def test_closed_form_of_a_scalar():
    """`L = (omega theta - y)^2 / 2` on both sets: every term by hand."""
    omega, theta, rate, target, asked = 1.5, 0.4, 0.2, 1.0, -0.5
    model = ml.from_apply_fn(
        lambda key, x: {"task": jnp.ones(1), "warp": jnp.ones(1)},
        lambda p, x: x * (p["task"] * p["warp"])[None],
    )

    def half_square(outputs, examples):
        return 0.5 * ml.losses.mse(outputs, examples)

    learner = warpgrad(model, half_square, optax.sgd(rate), num_steps=2, task_chunk=1)
    ones = jnp.ones((1, 1))
    task = ml.Task(
        support=ml.Examples.of(ones, target * ones),
        query=ml.Examples.of(ones, asked * ones),
    )
    params = {"task": jnp.array([theta]), "warp": jnp.array([omega])}
    found = grads_of(learner, params, ml.stack_tasks([task])).grads
    terms, at = [], theta
    for _ in range(2):
        after = at - rate * omega * (omega * at - target)
        slope = -rate * (2 * omega * at - target)  # of `after` in omega
        terms.append((omega * after - asked) * (after + omega * slope))
        at = after
    close(found["warp"], np.array([np.mean(terms)]))
    shrink = (1 - rate * omega**2) ** 2
    close(found["task"], np.array([(omega * at - asked) * omega * shrink]))


@x64
def test_finite_differences_of_single_steps():
    params, tasks = params_of(), wide_blobs()
    learner = learner_of(num_steps=1, initialisation="maml")
    run = jax.jit(
        lambda p: learner.estimate(
            ml.Variables(params=p, state={}), tasks, key=jax.random.key(0)
        )
    )
    rng = np.random.default_rng(0)
    way = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

    def loss(scale):
        moved = jax.tree.map(lambda p, d: p + scale * d, params, way)
        return run(moved).metrics["query/loss"].mean()

    along = jax.tree.map(lambda g, d: jnp.sum(g * d), run(params).grads, way)
    close(sum(jax.tree.leaves(along)), (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-6)


# -- The initialisation -----------------------------------------------------------------


@x64
@pytest.mark.parametrize("how", ["reverse", "first_order"])
def test_initialisation_gets_the_gradient_of_maml_only(how):
    params, tasks = params_of(), wide_blobs()
    options = dict(num_steps=STEPS, task_chunk=9, differentiation=how)
    maml = ml.maml(
        model_of(),
        CE,
        optax.sgd(INNER),
        adapt_filter=lambda path, leaf: "warp" not in path,
        **options,
    )
    expected = model_grads(maml, params, tasks).grads
    found = grads_of(learner_of(differentiation=how), params, tasks).grads
    close(parts(found)[0], parts(expected)[0])
    alone = grads_of(learner_of(initialisation="fixed"), params, tasks).grads
    close(parts(found)[1], parts(alone)[1])
    assert differs(parts(found)[1], parts(expected)[1])


@x64
def test_leap_shortens_the_path_with_its_losses():
    params, tasks = params_of(), wide_blobs()
    omega = parts(params)[1]
    # A rate at which some losses rise, so that the stabiliser has work.
    opt, pulls, lengths, rises = optax.sgd(6.0), [], [], 0
    for task in (one(tasks, i) for i in range(3)):
        path = [theta for theta, _ in states_of(params, task, opt)]
        length = 0.0
        for here, there in itertools.pairwise(path):
            loss, slope = slope_of(here, omega, task.support)
            change = slope_of(there, omega, task.support)[0] - loss
            rises += change > 0
            step = jax.tree.map(jnp.subtract, there, here)
            size = jnp.sqrt(change**2 + optax.tree.norm(step) ** 2)
            change = -jnp.abs(change)
            pulls.append(
                jax.tree.map(lambda s, d: -(change * s + d) / size, slope, step)  # noqa: B023
            )
            length += size
        lengths.append(length)
    assert 0 < rises < 9
    found = grads_of(learner_of(opt, initialisation="leap"), params, tasks)
    expected = jax.tree.map(lambda *g: sum(g) / 3, *pulls)
    close(parts(found.grads)[0], expected)
    close(found.metrics["path/length"], np.array(lengths))
    close(parts(found.grads)[1], expected_of_omega(params, tasks, opt), rtol=1e-8)


@x64
def test_a_path_without_length_has_no_pull():
    # A rate of 0 that only the parameters tell; a plain one is refused.
    still = optax.masked(optax.set_to_zero(), lambda p: dict.fromkeys(p.keys(), True))
    found = grads_of(learner_of(still, initialisation="leap"), params_of(), wide_blobs())
    assert not any(np.any(g) for g in jax.tree.leaves(parts(found.grads)[0]))


# -- Reductions -------------------------------------------------------------------------


@x64
def test_identity_warps_are_plain_descent():
    params, support = params_of("linear", shift=0.0), one(wide_blobs()).support
    theta = parts(params)[0]
    learner = learner_of(model=model_of("linear"))
    found = jax.jit(learner.adapt)(ml.Variables(params=params, state={}), support).params
    mlp = ml.from_linen(ml.models.MLP(WAYS, (WIDTH,)))
    plain_steps = ml.maml(mlp, CE, optax.sgd(INNER), num_steps=STEPS)
    expected = jax.jit(plain_steps.adapt)(of(theta), support).params
    close(parts(found)[0], expected)
    close(parts(found)[1], parts(params)[1], rtol=0)


@x64
def test_linear_warps_are_the_metric_of_a_t_net():
    """`A = W T`: `A' - A = -alpha grad_A L T'T`, and the steps are those of `t_net`."""
    model = ml.from_linen(TNetMLP(WAYS, ()))
    rng = np.random.default_rng(1)
    shapes = {"kernel": (INPUTS, WAYS), "bias": (WAYS,), "transform": (WAYS, WAYS)}
    head = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
    variables = ml.Variables(params={"head": head}, state={})
    support = one(wide_blobs()).support
    learner = learner_of(model=model, warp=r"(^|/)transform$", num_steps=1)
    after = jax.jit(learner.adapt)(variables, support).params["head"]
    other = jax.jit(t_net(model, CE, optax.sgd(INNER)).adapt)(of({"head": head}), support)
    close(after, other.params["head"])
    matrix = head["transform"]
    composite = head["kernel"] @ matrix
    shift = (head["bias"] @ matrix)[None]
    slope = jax.grad(lambda a: CE(support.x @ a + shift, support))(composite)
    close(after["kernel"] @ matrix - composite, -INNER * slope @ matrix.T @ matrix)


# -- Networks ---------------------------------------------------------------------------


def test_linear_warps_start_as_the_identity():
    for shape in ((2, 4), (2, 5, 4, 3)):
        x = jax.random.normal(jax.random.key(0), shape)
        out, variables = Warp().init_with_output(jax.random.key(1), x)
        close(out, x, rtol=1e-6)
        assert any(leaf.any() for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_warp_conv4_has_a_warp_after_every_block(kind):
    net = WarpConv4(WAYS, width=3, norm="layer", downsample="stride", warp=kind)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    params = jax.jit(net.init)(jax.random.key(1), x)["params"]
    assert sorted(k for k in params if "warp" in k) == [f"warp_{i}" for i in range(4)]
    out = jax.jit(net.apply)({"params": params}, x)
    assert out.shape == (2, WAYS)
    if kind == "linear":
        conv4 = ml.models.Conv4(WAYS, width=3, norm="layer", downsample="stride")
        rest = {k: v for k, v in params.items() if "warp" not in k}
        close(out, jax.jit(conv4.apply)({"params": rest}, x), rtol=1e-5)
    with pytest.raises(ValueError, match="warp is 'affine'"):
        WarpMLP(warp="affine").init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"shape \(2, 16, 16\); expected \[N, C\]"):
        ml.models.Warp().init(jax.random.key(0), x[..., 0])


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": True}, "num_steps is True"),
        ({"initialisation": "reptile"}, "initialisation is 'reptile'"),
        ({"approximate": 1}, "approximate is 1"),
        ({"norm": "per_step"}, "per_step.*'support'"),
        ({"differentiation": "implicit"}, "differentiation is 'implicit'"),
        ({"task_chunk": 0}, "task_chunk is 0"),
        ({"opt": optax.adam(0.1)}, "eps_root"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        learner_of(**options)


def test_models_without_warps_are_refused():
    task, key = one(blob_batch()), jax.random.key(0)
    with pytest.raises(ValueError, match=r"occurs in no parameter path.*head/b"):
        learner_of(model=plain()).init(key, task)
    with pytest.raises(ValueError, match="occurs in every parameter path"):
        learner_of(warp=".*").init(key, task)
    with pytest.raises(TypeError, match="inner_opt is a float"):
        learner_of(0.1)


def test_adam_inside_is_allowed_where_no_step_is_differentiated():
    learner_of(optax.adam(0.1), approximate=True, initialisation="leap")


@pytest.mark.slow  # with batch norm; the registry checks it on curves
@pytest.mark.parametrize("initialisation", ["maml", "leap"])
def test_keeps_the_contract(strict_dtypes, initialisation):
    learner = learner_of(
        model=model_of(norm="batch"),
        initialisation=initialisation,
        num_steps=1 if initialisation == "maml" else 2,
        norm="support" if initialisation == "maml" else "running",
    )
    assert ml.describe(learner)["initialisation"] == initialisation
    check_learner(learner, blob_batch(), tolerance=1e-3)  # batch norm of few examples
