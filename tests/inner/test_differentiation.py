"""All ways through an inner loop: equal derivatives, and what each keeps in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import close
from tiny import blob_batch, linen, one

import metalearn as ml
from metalearn.inner import Implicit, unroll

SAME = ("remat", "nested", "mixed")


def outer(differentiation, num_steps):
    """An objective that reads every output of an inner loop with every kind of input."""
    order = jnp.arange(max(num_steps, 1), dtype=jnp.int32)[
        ::-1
    ]  # integers that the loss reads

    def objective(start, hyper, x):
        def loss(params, step):
            row = x[order[step]]
            out = jnp.tanh(row @ params["w"]) @ params["v"]
            loss = jnp.mean((out - hyper["target"]) ** 2)
            loss += hyper["decay"] * sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
            return loss, {"mean": out.mean(), "count": step + 1}

        opt = optax.adam(hyper["rate"], eps_root=1e-6)
        result = unroll(
            loss,
            start,
            opt,
            num_steps=num_steps,
            differentiation=differentiation,
            trajectory=True,
        )
        ends = sum(jnp.sum(jnp.sin(p)) for p in jax.tree.leaves(result.params))
        path = sum(jnp.sum(p**3) for p in jax.tree.leaves(result.trajectory))
        return ends + jnp.sum(result.losses**2) + jnp.sum(result.aux["mean"] ** 2) + path

    return objective


def arguments(num_steps, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    start = {"w": draw(3, 4), "v": draw(4)}
    hyper = {"target": draw(), "decay": draw() ** 2, "rate": jnp.asarray(0.1, dtype)}
    return start, hyper, draw(max(num_steps, 1), 6, 3)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 7])
@pytest.mark.parametrize("how", SAME)
def test_gradients_equal_those_of_reverse_mode(x64, how, num_steps):
    close(slopes(how, num_steps), slopes("reverse", num_steps))


@functools.cache
def slopes(how, num_steps):
    run = jax.jit(jax.value_and_grad(outer(how, num_steps), argnums=(0, 1, 2)))
    return run(*arguments(num_steps))


def test_mixed_mode_under_vmap_and_differentiated_again(x64):
    inputs = arguments(3)
    several = jax.tree.map(lambda a: jnp.stack([a, 1.1 * a]), inputs)

    def sharpness(how):
        grad = jax.grad(outer(how, 3), argnums=1)
        return lambda *args: sum(jnp.sum(g**2) for g in jax.tree.leaves(grad(*args)))

    for make in (lambda how: outer(how, 3), sharpness):
        expected, found = (
            jax.jit(jax.vmap(jax.grad(make(how))))(*several) for how in ("reverse", "mixed")
        )
        close(found, expected, rtol=1e-8)


@pytest.mark.parametrize(
    "norm", ["support", pytest.param("per_step", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("how", SAME)
def test_maml_with_batch_norm_is_the_same_in_all_modes(how, norm):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        estimate_with_batch_norm("reverse", norm),
        estimate_with_batch_norm(how, norm),
    )


@functools.cache
def estimate_with_batch_norm(differentiation, norm):
    tasks, key = blob_batch(), jax.random.key(0)
    learner = ml.maml(
        linen(),
        ml.losses.cross_entropy,
        optax.sgd(0.1),
        num_steps=2,
        norm=norm,
        differentiation=differentiation,
        task_chunk=9,
    )
    variables = jax.jit(learner.init)(key, one(tasks))
    return jax.jit(learner.estimate)(variables, tasks, key=key)


def test_implicit_gradient_on_a_quadratic_has_its_closed_form(x64):
    """`phi = argmin (phi - c)' A (phi - c) / 2 + lam |phi - theta|^2 / 2` (iMAML)."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    a, c, e = root @ root.T / 4, rng.normal(size=4), rng.normal(size=4)
    theta, lam = rng.normal(size=4), 2.0

    def query_loss(theta, lam, num_steps):
        def loss(phi, step):
            del step
            value = 0.5 * (phi - c) @ a @ (phi - c)
            return value + 0.5 * lam * jnp.sum((phi - theta) ** 2), {}

        found = unroll(
            loss,
            jnp.zeros(4),
            optax.sgd(0.2),
            num_steps=num_steps,
            differentiation=Implicit(cg_steps=4),
        )
        return 0.5 * jnp.sum((found.params - e) ** 2)

    hessian = a + lam * np.eye(4)
    phi = np.linalg.solve(hessian, a @ c + lam * theta)
    back = np.linalg.solve(hessian, phi - e)
    found = jax.jit(jax.grad(query_loss, argnums=(0, 1)), static_argnums=2)(theta, lam, 200)
    close(found, (lam * back, -(phi - theta) @ back), rtol=1e-8)
    # Damping shortens the solve, the length of the path changes nothing but its end.
    close(jax.grad(query_loss)(theta, lam, 300), found[0], rtol=1e-8)


@pytest.mark.parametrize("lam", [0.1, 2.0, 30.0])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_implicit_gradient_at_no_minimum(lam, damping, x64):
    """Of the scale of the dense solve, not `lam` times the first-order gradient."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    a = -(root @ root.T / 4) - (lam + damping + 0.5) * np.eye(4)  # bent down everywhere
    e, theta = rng.normal(size=(2, 4))

    def query_loss(theta, scale=1.0):
        def loss(phi, step):
            del step
            value = 0.5 * phi @ a @ phi + 0.5 * lam * jnp.sum((phi - theta) ** 2)
            return scale * value, {}

        how = Implicit(cg_steps=4, damping=scale * damping)
        start, opt = jnp.ones(4), optax.sgd(0.0)
        phi = unroll(loss, start, opt, num_steps=1, differentiation=how).params
        return 0.5 * jnp.sum((phi - e) ** 2)

    v = np.ones(4) - e  # the first-order gradient
    curved = a + (lam + damping) * np.eye(4)
    found = np.asarray(jax.jit(jax.grad(query_loss))(theta))
    close(found, lam * v * np.linalg.norm(v) / np.linalg.norm(curved @ v), rtol=1e-8)
    exact = lam * np.linalg.solve(curved, v)
    assert 0 < np.linalg.norm(found) <= np.linalg.norm(exact)
    # Units of the loss do not matter, as they do not for the exact one.
    close(jax.grad(query_loss)(theta, 100.0), found, rtol=1e-8)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("forward", r"'forward'.*mixed"),
        (Implicit(), "proximal term"),
    ],
)
def test_choices_that_cannot_learn_are_refused(choice, words):
    with pytest.raises(ValueError, match=words):
        ml.maml(linen(), ml.losses.cross_entropy, optax.sgd(0.1), differentiation=choice)


@pytest.mark.parametrize("how", [Implicit(cg_steps=0), Implicit(damping=-1.0)])
def test_settings_of_the_implicit_solve_are_checked(how):
    with pytest.raises(ValueError, match=r"cg_steps is 0; |damping is -1"):
        unroll(
            lambda p, step: (p**2, {}),
            jnp.ones(()),
            optax.sgd(0.1),
            num_steps=1,
            differentiation=how,
        )


def temporary_bytes(how, num_steps, rows=512, width=64):
    """Of the meta-gradient of Adam steps on a network whose activations are large."""

    def query_loss(start, x):
        def loss(params, step):
            hidden = x * (1 + step)
            for w in params:
                hidden = jnp.tanh(hidden @ w)
            apart = sum(jnp.sum((p - q) ** 2) for p, q in zip(params, start, strict=True))
            return jnp.mean(hidden**2) + apart, {}

        opt = optax.adam(1e-2, eps_root=1e-8)
        found = unroll(loss, start, opt, num_steps=num_steps, differentiation=how)
        return sum(jnp.sum(p**2) for p in found.params)

    start = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * 4
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    compiled = jax.jit(jax.grad(query_loss)).lower(start, x).compile()
    assert "while" in compiled.as_text()  # there is something to measure
    return compiled.memory_analysis().temp_size_in_bytes, 4 * width * width * 4


def test_memory_of_every_mode():
    reverse, carried = temporary_bytes("reverse", 16)
    mixed, _ = temporary_bytes("mixed", 16)
    assert 5 * mixed < reverse
    carried *= 3  # parameters and two moments
    few, _ = temporary_bytes("remat", 8)
    many, _ = temporary_bytes("remat", 40)
    assert (many - few) / 32 < 1.5 * carried
    few, _ = temporary_bytes("nested", 16)
    many, _ = temporary_bytes("nested", 64)
    assert many - few < 1.5 * carried * 8  # 4 more segments, 4 more steps in one
    few, _ = temporary_bytes(Implicit(), 8)
    many, _ = temporary_bytes(Implicit(), 64)
    assert many <= 1.1 * few
