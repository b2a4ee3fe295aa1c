"""Alpha MAML: hypergradients of both rates against closed forms and differences."""

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
    descend,
    grads_of,
    of,
    quadratic_loss,
    quadratic_maml,
    quadratic_model,
)
from tiny import blobs, plain

import metalearn as ml
from metalearn.algorithms.gradient.alpha_maml import (
    alpha_maml,
    alpha_maml_optimiser,
    hypergradient_descent,
)

x64 = pytest.mark.usefixtures("x64")
EYE = np.eye(DIM)


def quadratic(steps=1, rate=RATE, **options):
    return alpha_maml(
        quadratic_model(),
        quadratic_loss,
        initial_rate=rate,
        num_steps=steps,
        task_chunk=TASKS,
        **options,
    )


def at(alpha, theta=THETA):
    return of(theta, inner=np.asarray(alpha))


def query_loss(alpha, steps):
    (a, c, b, e), _ = bench()
    ends = [descend(m, y, THETA, steps, rate=alpha) for m, y in zip(a, c)]
    return np.mean([0.5 * (p - f) @ n @ (p - f) for p, n, f in zip(ends, b, e)])


@x64
def test_one_step_gives_the_product_of_two_gradients():
    """`dL/dalpha = -grad L(phi; Q) . grad L(theta; S)`."""
    (a, c, b, e), tasks = bench()
    found = grads_of(quadratic(), at(RATE), tasks).grads["inner"]
    inner = [m @ (THETA - y) for m, y in zip(a, c)]
    query = [n @ (THETA - RATE * g - f) for n, g, f in zip(b, inner, e)]
    close(found, -np.mean([q @ g for q, g in zip(query, inner)]))


@x64
@pytest.mark.parametrize("steps", [1, 4])
def test_rate_has_its_exact_derivative(steps):
    found = grads_of(quadratic(steps), at(RATE), bench()[1]).grads["inner"]
    step = 1e-6
    difference = query_loss(RATE + step, steps) - query_loss(RATE - step, steps)
    close(found, difference / (2 * step), rtol=1e-7)


@x64
def test_first_order_derivative_of_the_rate_is_another_one_for_several_steps():
    found = [
        grads_of(quadratic(4, differentiation=d), at(RATE), bench()[1]).grads
        for d in ("reverse", "first_order")
    ]
    assert abs(found[0]["inner"] - found[1]["inner"]) > 1e-3


def trained(learner, opt, variables, num_steps=20, tasks=None):
    """Variables and optimiser state after every outer step."""
    tasks = bench()[1] if tasks is None else tasks

    def step(carry, _):
        variables, opt_state = carry
        found = learner.estimate(variables, tasks, key=jax.random.key(0))
        updates, opt_state = opt.update(found.grads, opt_state, variables.params)
        new = ml.Variables(
            params=optax.apply_updates(variables.params, updates), state=found.state
        )
        return (new, opt_state), (new.params, opt_state, found.grads)

    start = (variables, opt.init(variables.params))
    return jax.jit(lambda s: jax.lax.scan(step, s, length=num_steps)[1])(start)


@x64
@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
def test_without_hyper_rates_it_is_maml(rule):
    outer = alpha_maml_optimiser(0.05, alpha_rate=0.0, beta_rate=0.0, rule=rule)
    found, _, _ = trained(quadratic(2), outer, at(RATE))
    expected, _, _ = trained(quadratic_maml(2), optax.sgd(0.05), of(THETA))
    close(found["model"], expected["model"], rtol=1e-13)
    close(found["inner"], np.full(20, RATE), rtol=0)


@x64
@pytest.mark.parametrize(("rule", "rate"), [("additive", 1e-3), ("multiplicative", 0.02)])
def test_rate_that_starts_too_small_grows(rule, rate):
    """Support and query agree, and a tenth of a good rate is too little."""
    tasks = bench(same=True)[1]
    opt = alpha_maml_optimiser(1e-3, alpha_rate=rate, beta_rate=0.0, rule=rule)
    found, _, _ = trained(quadratic(), opt, at(RATE / 10), tasks=tasks)
    alphas = np.concatenate([[RATE / 10], found["inner"]])
    assert (np.diff(alphas) > 0).all()


@x64
def test_outer_rate_is_updated_before_it_is_applied():
    """A NumPy replica with momentum as inner rule."""
    beta, hyper, decay = 0.05, 1e-3, 0.9
    opt = hypergradient_descent(beta, hyper, optax.trace(decay))
    gradients = np.random.default_rng(0).normal(size=(5, 2, 3))
    theta, direction = np.ones((2, 3)), np.zeros((2, 3))
    params = jnp.asarray(theta)
    state = opt.init(params)
    for g in gradients:
        beta = beta + hyper * np.sum(g * direction)
        direction = g + decay * direction
        theta = theta - beta * direction
        updates, state = opt.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        close(params, theta, rtol=1e-12)
        close(state.rate, beta, rtol=1e-12)
        close(state.direction, direction, rtol=1e-12)


@x64
def test_hypergradient_of_the_outer_rate_by_finite_differences():
    """Of the second loss with respect to the rate of the first step."""
    a = jnp.asarray([1.0, 4.0])
    loss = lambda p: 0.5 * jnp.sum(a * (p - 1) ** 4)
    gradient = jax.jit(jax.grad(loss))
    start, beta, hyper = jnp.asarray([2.0, 0.2]), 0.02, 1e-3
    after = lambda beta: start - beta * gradient(start)
    slope = (loss(after(beta + 1e-6)) - loss(after(beta - 1e-6))) / 2e-6
    opt = hypergradient_descent(beta, hyper)
    state = opt.init(start)
    updates, state = opt.update(gradient(start), state)
    close(start + updates, after(beta), rtol=1e-12)
    close(state.rate, beta, rtol=0)
    _, state = opt.update(gradient(start + updates), state)
    close(state.rate, beta - hyper * slope, rtol=1e-8)


@x64
def test_multiplicative_outer_rate_ignores_the_size_of_the_loss_and_stays_positive():
    gradients = np.random.default_rng(0).normal(size=(200, 4))
    rates = []
    for scale in (1.0, 1e6):
        opt = hypergradient_descent(0.1, 0.9, rule="multiplicative")
        state = opt.init(jnp.zeros(4))

        def step(state, g, opt=opt):
            state = opt.update(g, state)[1]
            return state, state.rate

        rates.append(jax.lax.scan(step, state, jnp.asarray(scale * gradients))[1])
    close(*rates, rtol=1e-9)
    assert rates[0].min() > 0
    assert np.ptp(rates[0]) > 0.01


@x64
def test_multiplicative_inner_rate_follows_the_latest_slopes():
    """`alpha exp(-rate h / rms)`: a mean square that halves in six or seven steps."""
    opt = alpha_maml_optimiser(0.1, alpha_rate=0.3, beta_rate=0.0, rule="multiplicative")
    params = {"model": jnp.ones(2), "inner": jnp.asarray(0.5)}
    state, alpha, square = opt.init(params), 0.5, 0.0
    for t, slope in enumerate([0.2, -3.0, 1.0, 1.0], 1):
        grads = {"model": jnp.zeros(2), "inner": jnp.asarray(slope)}
        updates, state = opt.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        square = 0.9 * square + 0.1 * slope**2
        alpha *= np.exp(-0.3 * slope / np.sqrt(square / (1 - 0.9**t)))
        close(params["inner"], alpha)


def test_multiplicative_rates_without_any_gradient_stay():
    opt = alpha_maml_optimiser(0.1, alpha_rate=0.5, beta_rate=0.5, rule="multiplicative")
    params = {"model": jnp.ones(2), "inner": jnp.asarray(0.3)}
    state = opt.init(params)
    for _ in range(2):
        updates, state = opt.update(jax.tree.map(jnp.zeros_like, params), state, params)
        assert not any(np.any(u) for u in jax.tree.leaves(updates))
    np.testing.assert_allclose(optax.tree.get(state, "rate"), 0.1)


def test_both_rates_move_while_training():
    learner = alpha_maml(plain(), CE, initial_rate=0.01, num_steps=2, task_chunk=4)
    outer = alpha_maml_optimiser(
        1e-3,
        alpha_rate=0.02,
        beta_rate=0.02,
        inner=optax.scale_by_adam(),
        rule="multiplicative",
    )
    result = ml.fit(
        ml.meta_trainer(learner, outer),
        blobs,
        num_steps=30,
        tasks_per_step=4,
        key=jax.random.key(0),
        progress=False,
    )
    alpha = float(result.state.variables.params["inner"])
    beta = float(optax.tree.get(result.state.opt_state, "rate"))
    assert alpha > 0.011
    assert beta > 1.1e-3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: alpha_maml(plain(), CE, initial_rate=-1.0), "initial_rate is -1.0"),
        (lambda: alpha_maml(plain(), CE, num_steps=-1), "num_steps is -1"),
        (lambda: hypergradient_descent(optax.constant_schedule(1.0), 0.1), "schedule"),
        (lambda: hypergradient_descent(0.1, float("nan")), "hyper_rate is nan"),
        (lambda: hypergradient_descent(0.1, 0.1, rule="cosine"), "additive, multi"),
        (lambda: hypergradient_descent(0.1, 1.0, rule="multiplicative"), "less than 1"),
        (
            lambda: alpha_maml_optimiser(0.1, alpha_rate=-0.1, beta_rate=0.1),
            "alpha_rate is -0.1",
        ),
        (
            lambda: alpha_maml_optimiser(0.1, alpha_rate=0.1, beta_rate=0.1).init(
                {"head": jnp.ones(2)}
            ),
            r"'inner': alpha.*alpha_maml",
        ),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
