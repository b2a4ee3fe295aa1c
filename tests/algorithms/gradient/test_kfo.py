"""KFO: reductions to MAML, Kronecker products, and the inner steps written out again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    INNER,
    close,
    differs,
    grads_of,
    model_grads,
    network,
    network_maml,
    of,
    wide_blobs,
)
from tiny import WAYS, blob_batch, one, plain, tanh_net

import metalearn as ml
from metalearn.algorithms.gradient.kfo import identities, kfo, kronecker_sgd

RNG = np.random.default_rng


@functools.cache  # it keeps what was compiled for it
def learner_of(model=None, **options):
    options = {"rate": INNER, "num_steps": 2, "task_chunk": 9, **options}
    return kfo(plain() if model is None else model, CE, **options)


def turned(factors, size=0.3):
    """Factors that are neither symmetric nor orthogonal."""
    rng = RNG(0)
    return jax.tree.map(lambda f: f + size * rng.normal(size=f.shape), factors)


def estimate(factors, **options):
    variables = of(network(), inner=factors)
    return grads_of(learner_of(**options), variables, wide_blobs())


# -- Against MAML -----------------------------------------------------------------------


@pytest.mark.parametrize("psd", [pytest.param(False, marks=pytest.mark.slow), True])
def test_identities_that_keep_still_are_maml(x64, psd):
    expected = model_grads(network_maml(), network(), wide_blobs())
    still = estimate(identities(network()), adapt_transform=False, psd=psd)
    close(still.grads["model"], expected.grads)
    close(still.metrics["query/loss"], expected.metrics["query/loss"])
    adapting = estimate(identities(network()), psd=psd)
    assert differs(adapting.grads["model"], expected.grads)
    assert differs(adapting.metrics, expected.metrics)


def test_init_starts_at_identities(x64):
    learner, task = learner_of(), one(wide_blobs())
    made = jax.jit(learner.init)(jax.random.key(0), task).params
    close(made["inner"], identities(made["model"]), rtol=0)


def test_only_adapted_parameters_have_factors():
    learner = learner_of(adapt_filter=lambda path, leaf: path.startswith("head"))
    variables = jax.jit(learner.init)(jax.random.key(0), one(blob_batch()))
    assert variables.params["inner"]["body"] == {"w": None, "b": None}
    adapted = jax.jit(learner.adapt)(variables, one(blob_batch()).support)
    close(adapted.params["body"], variables.params["model"]["body"], rtol=0)
    assert differs(adapted.params["head"], variables.params["model"]["head"])


# -- The map of a gradient --------------------------------------------------------------

HEIGHT, WIDTH, INPUTS, OUTPUTS = 2, 3, 5, 4  # all sizes differ, to catch exchanged axes
PARAMS = {
    "conv": jnp.zeros((HEIGHT, WIDTH, INPUTS, OUTPUTS)),
    "dense": jnp.zeros((OUTPUTS, WAYS)),
    "bias": jnp.zeros(WAYS),
    "scale": jnp.zeros(()),
}


def mapped(gradient, factors, psd=False):
    """`u` of one gradient, by the first update of the optimiser."""
    opt = kronecker_sgd(factors, 1.0, psd=psd)
    return -opt.update(gradient, opt.init(gradient))[0]


def drawn(name):
    gradient = jnp.asarray(RNG(1).normal(size=PARAMS[name].shape))
    return gradient, turned(identities(gradient))


def as_matrices(gradient):
    """`[n, m]` for each output filter of a convolution, else one; by the paper's words."""
    if gradient.ndim < 4:
        return [gradient.reshape((*gradient.shape, 1, 1)[:2])]
    filters = np.moveaxis(np.asarray(gradient), -1, 0)
    return [np.stack([f[..., i].ravel() for i in range(INPUTS)]) for f in filters]


@pytest.mark.parametrize("name", PARAMS)
def test_equals_an_explicit_kronecker_product(x64, name):
    """`vec(L G R) = (R' kron L) vec(G)`, vec stacking columns."""
    gradient, factors = drawn(name)
    left = factors["inputs" if gradient.ndim > 1 else "outputs"]
    others = {"conv": "taps", "dense": "outputs", "bias": "inputs", "scale": "inputs"}
    right = factors[others[name]].T
    assert set(factors) == {others[name], "inputs" if gradient.ndim > 1 else "outputs"}
    pairs = zip(as_matrices(gradient), as_matrices(mapped(gradient, factors)), strict=True)
    for matrix, found in pairs:
        product = np.kron(right.T, left) @ np.ravel(matrix, order="F")
        close(np.ravel(found, order="F"), product, rtol=1e-12)
        close(found, left @ matrix @ right, rtol=1e-12)


def test_filters_of_a_convolution_share_their_map(x64):
    gradient, factors = drawn("conv")
    order = np.array([2, 0, 3, 1])
    found = mapped(gradient[..., order], factors)
    close(found, mapped(gradient, factors)[..., order], rtol=1e-14)
    alone = mapped(gradient.at[..., 1:].set(0.0), factors)
    assert not alone[..., 1:].any()
    close(alone[..., 0], mapped(gradient, factors)[..., 0], rtol=1e-14)


@pytest.mark.parametrize("name", PARAMS)
def test_psd_maps_keep_the_angle_to_the_gradient_acute(x64, name):
    gradient, factors = drawn(name)
    first = next(iter(factors))
    against = {**factors, first: -factors[first]}
    assert jnp.vdot(gradient, mapped(gradient, against)) < 0
    found = mapped(gradient, against, psd=True)
    assert jnp.vdot(gradient, found) > 0
    close(found, mapped(gradient, jax.tree.map(lambda f: f.T @ f, against)), rtol=1e-14)


# -- The inner steps, written out again -------------------------------------------------


def by_hand(params, factors, task, steps, psd):
    """Model after the inner steps, factors of each, by `jax.grad` of the loss itself."""

    def support(w):
        return CE(tanh_net(w, task.support.x), task.support)

    def moved(w, g, phi):
        def layer(w, g, of):
            left, right = of["inputs"], of["outputs"].T
            if w.ndim == 1:
                left, right = right.T, left.T
            if psd:
                left, right = left.T @ left, right @ right.T
            matrix = g.reshape(left.shape[0], right.shape[0])
            return w - INNER * (left @ matrix @ right).reshape(w.shape)

        return {
            part: {k: layer(w[part][k], g[part][k], phi[part][k]) for k in w[part]}
            for part in w
        }

    w, phi, before, used = params, factors, None, []
    for k in range(steps):
        if k:
            slope = jax.grad(lambda f: support(moved(*before, f)))(phi)  # noqa: B023
            phi = jax.tree.map(lambda f, s: f - INNER * s, phi, slope)
        before = (w, jax.grad(support)(w))
        w = moved(*before, phi)
        used.append(phi)
    return w, used


def by_optimiser(factors, task, steps, psd):
    """The same from the optimiser of the learner."""

    def support(w):
        return CE(tanh_net(w, task.support.x), task.support)

    opt = kronecker_sgd(factors, INNER, psd=psd)
    w, used = network(), []
    state = opt.init(w)
    for _ in range(steps):
        updates, state = opt.update(jax.grad(support)(w), state, w)
        w = optax.apply_updates(w, updates)
        used.append(state.factors)
    return w, used


@pytest.mark.parametrize("psd", [False, True])
def test_factors_descend_the_loss_of_the_step_they_made(x64, psd):
    """phi_1 and phi_2, then differences of `L(w_1)` along a direction of phi_0."""
    task, first = one(wide_blobs()), turned(identities(network()))
    run = jax.jit(functools.partial(by_optimiser, steps=3, psd=psd))
    direct = jax.jit(functools.partial(by_hand, steps=3, psd=psd))
    w, phi = run(first, task)
    close((w, phi), direct(network(), first, task))
    slope = jax.tree.map(lambda a, b: (a - b) / INNER, first, phi[1])

    @jax.jit
    def after_one(factors):
        w, _ = by_hand(network(), factors, task, 1, psd)
        return CE(tanh_net(w, task.support.x), task.support)

    check_slope(after_one, first, slope)


def check_slope(function, at, slope, step=2e-6):
    """A gradient against central differences along a direction in all of its leaves."""
    rng = RNG(3)
    along = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), at)

    def value(size):
        return function(jax.tree.map(lambda a, d: a + size * d, at, along))

    products = jax.tree.map(lambda s, d: jnp.sum(s * d), slope, along)
    difference = (value(step) - value(-step)) / (2 * step)
    close(sum(jax.tree.leaves(products)), difference, rtol=1e-7)


def test_one_step_adapts_no_factor(x64):
    factors = turned(identities(network()))
    still = estimate(factors, num_steps=1, adapt_transform=False)
    adapting = estimate(factors, num_steps=1)
    close(adapting.grads, still.grads, rtol=1e-13)
    close(adapting.metrics, still.metrics, rtol=1e-13)
    run = jax.jit(functools.partial(by_optimiser, steps=1, psd=False))
    (first,) = run(factors, one(wide_blobs()))[1]
    close(first, factors, rtol=0)


@pytest.mark.parametrize("psd", [pytest.param(False, marks=pytest.mark.slow), True])
def test_meta_gradients_match_the_steps_by_hand(x64, psd):
    """Of the model and of the factors, through three steps; and by differences."""
    learned = {"model": network(), "inner": turned(identities(network()))}
    tasks = wide_blobs()

    def loss(learned):
        def of_task(task):
            w, _ = by_hand(learned["model"], learned["inner"], task, 3, psd)
            return CE(tanh_net(w, task.query.x), task.query)

        return jax.vmap(of_task)(tasks).mean()

    found = estimate(learned["inner"], num_steps=3, psd=psd)
    run = jax.jit(jax.value_and_grad(loss))
    value, expected = run(learned)
    close(found.metrics["query/loss"].mean(), value)
    close(found.grads, expected)
    check_slope(lambda learned: run(learned)[0], learned, found.grads)
    still = estimate(learned["inner"], num_steps=3, psd=psd, adapt_transform=False)
    assert differs(found.grads["inner"], still.grads["inner"])


def test_mixed_derivatives_are_the_same(x64):
    factors = turned(identities(network()))
    mixed = estimate(factors, num_steps=3, differentiation="mixed")
    close(mixed.grads, estimate(factors, num_steps=3).grads)


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 2, 2, 3, 4)])
def test_unclear_layers_are_refused_by_name(shape):
    def init(key, x):
        del key
        return {"odd": {"kernel": jnp.ones(shape)}, "w": jnp.ones((x.shape[-1], WAYS))}

    model = ml.from_apply_fn(init, lambda params, x: x @ params["w"])
    task, key = one(blob_batch()), jax.random.key(0)
    with pytest.raises(ValueError, match="kfo got the parameter 'odd/kernel'") as caught:
        learner_of(model).init(key, task)
    assert "adapt_filter=lambda path, leaf: path != 'odd/kernel'" in str(caught.value)
    rest = learner_of(model, adapt_filter=lambda path, leaf: path != "odd/kernel")
    assert rest.init(key, task).params["inner"]["odd"] == {"kernel": None}


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="rate is a GradientTransformation"):
        kfo(plain(), CE, rate=optax.sgd(0.1))
    with pytest.raises(ValueError, match="rate is nan; expected a finite number"):
        kfo(plain(), CE, rate=float("nan"))
    with pytest.raises(ValueError, match="num_steps is -1"):
        kfo(plain(), CE, num_steps=-1)
    with pytest.raises(TypeError, match="Did you mean adapt_transform"):
        kfo(plain(), CE, adapt_transforms=True)


def test_casts_nothing_silently_and_tells_its_settings(strict_dtypes):
    learner = learner_of(num_steps=3, psd=True, rate=1)
    variables = learner.init(jax.random.key(0), one(blob_batch()))
    grads = jax.eval_shape(learner.estimate, variables, blob_batch(), key=jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(grads.grads)} == {jnp.float32.dtype}
    told = ml.describe(learner)
    assert told["name"] == "kfo"
    assert (told["rate"], told["psd"], told["adapt_transform"]) == (1.0, True, True)
