"""Meta-curvature: reductions to MAML, and explicit Kronecker products."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, INNER, close, differs, grads_of, model_grads, network, of, wide_blobs
from tiny import WAYS, blob_batch, one, plain

import metalearn as ml
from metalearn.algorithms.gradient.kronecker import transform
from metalearn.algorithms.gradient.meta_curvature import meta_curvature
from metalearn.testing import check_learner


def learner_of(model=None, **options):
    options = {"rate": INNER, "num_steps": 2, "task_chunk": 9, **options}
    return meta_curvature(plain() if model is None else model, CE, **options)


def identities(params=None):
    """Factors of the network as `init` makes them, in float64."""
    made = learner_of().init(jax.random.key(0), one(wide_blobs())).params["inner"]
    return jax.tree.map(lambda f: f.astype(jnp.float64), made)


def maml_grads(rate=INNER):
    learner = ml.maml(plain(), CE, optax.sgd(rate), num_steps=2, task_chunk=9)
    return model_grads(learner, network(), wide_blobs()).grads


# -- Against MAML -----------------------------------------------------------------------


def test_identity_factors_are_maml(x64):
    found = grads_of(learner_of(), of(network(), inner=identities()), wide_blobs())
    close(found.grads["model"], maml_grads())
    assert differs(found.grads["inner"], jax.tree.map(jnp.zeros_like, identities()))


def test_one_scaled_mode_scales_the_rate(x64):
    """Once on inputs, once on outputs: which mode does not matter."""
    inner = identities()
    for layer, mode in (("body", "inputs"), ("head", "outputs")):
        inner["factors"][layer]["w"][mode] *= 0.3
        inner["factors"][layer]["b"]["outputs"] *= 0.3
    found = grads_of(learner_of(), of(network(), inner=inner), wide_blobs())
    close(found.grads["model"], maml_grads(0.3 * INNER))


def test_only_adapted_parameters_have_factors():
    learner = learner_of(adapt_filter=lambda path, leaf: path.startswith("head"))
    variables = learner.init(jax.random.key(0), one(blob_batch()))
    factors = variables.params["inner"]["factors"]
    assert factors["body"] == {"w": None, "b": None}
    assert set(factors["head"]["w"]) == {"inputs", "outputs"}
    adapted = learner.adapt(variables, one(blob_batch()).support)
    close(adapted.params["body"], variables.params["model"]["body"], rtol=0)
    assert differs(adapted.params["head"], variables.params["model"]["head"])


# -- Against Kronecker products ---------------------------------------------------------

HEIGHT, WIDTH, INPUTS, OUTPUTS = 2, 3, 2, 4  # all sizes differ, to catch exchanged axes
SHAPES = {
    "conv": (HEIGHT, WIDTH, INPUTS, OUTPUTS),
    "dense": (OUTPUTS, WAYS),
    "bias": (WAYS,),
    "scale": (),
}
MODES = {
    "conv": {"taps": HEIGHT * WIDTH, "inputs": INPUTS, "outputs": OUTPUTS},
    "dense": {"inputs": OUTPUTS, "outputs": WAYS},
    "bias": {"outputs": WAYS},
    "scale": {"outputs": 1},
}


def conv_apply(params, x):
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    hidden = jnp.tanh(x).mean((1, 2)) * params["scale"]
    return hidden @ params["dense"] + params["bias"][None]


def conv_model():
    def init(key, x):
        del x
        return {name: jax.random.normal(key, shape) for name, shape in SHAPES.items()}

    return ml.from_apply_fn(init, conv_apply)


def conv_bench():
    """Parameters, factors that are neither symmetric nor orthogonal, and a task."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    factors = {
        name: {
            mode: jnp.asarray(np.eye(size) + 0.3 * rng.normal(size=(size, size)))
            for mode, size in modes.items()
        }
        for name, modes in MODES.items()
    }
    y = jnp.arange(WAYS, dtype=jnp.int32)
    parts = [
        ml.Examples.of(jnp.asarray(rng.normal(size=(WAYS, 4, 5, INPUTS))), y)
        for _ in range(2)
    ]
    return params, factors, ml.Task(support=parts[0], query=parts[1])


def by_kronecker(gradient, factors):
    """One matrix for the gradient as a vector: HWIO, row-major."""
    matrix = jnp.ones((1, 1))
    for mode in ("taps", "inputs", "outputs"):
        if mode in factors:
            matrix = jnp.kron(matrix, factors[mode])
    return (matrix @ gradient.reshape(-1)).reshape(gradient.shape)


def test_equals_explicit_kronecker_products(x64):
    params, factors, _ = conv_bench()
    for name in SHAPES:
        gradient = jnp.cos(params[name])
        close(
            transform(gradient, factors[name]),
            by_kronecker(gradient, factors[name]),
            rtol=1e-12,
        )
    tap = jnp.zeros(SHAPES["conv"]).at[1, 0, 0, 0].set(1.0)  # tap 3 of the rows first
    moved = transform(tap, {"taps": factors["conv"]["taps"]})
    close(moved[..., 0, 0].reshape(-1), factors["conv"]["taps"][:, WIDTH])


def test_meta_gradients_match_an_explicit_step(x64):
    """Of the model, of the factors and of a learned rate, through one step."""
    params, factors, task = conv_bench()
    learner = learner_of(conv_model(), num_steps=1, learn_rate=True)

    def explicit(learned):
        gradients = jax.grad(lambda p: CE(conv_apply(p, task.support.x), task.support))(
            learned["model"]
        )
        curved = {
            name: by_kronecker(g, learned["inner"]["factors"][name])
            for name, g in gradients.items()
        }
        rate = learned["inner"]["rate"]
        phi = jax.tree.map(lambda p, g: p - rate * g, learned["model"], curved)
        return CE(conv_apply(phi, task.query.x), task.query)

    learned = {
        "model": params,
        "inner": {"factors": factors, "rate": jnp.asarray(INNER)},
    }
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    found = grads_of(learner, of(**learned), batch)
    close(found.grads, jax.jit(jax.grad(explicit))(learned))


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 2, 2, 3, 4)])
def test_unclear_layers_are_refused_by_name(shape):
    def init(key, x):
        del key
        return {"odd": {"kernel": jnp.ones(shape)}, "w": jnp.ones((x.shape[-1], WAYS))}

    model = ml.from_apply_fn(init, lambda params, x: x @ params["w"])
    task, key = one(blob_batch()), jax.random.key(0)
    with pytest.raises(ValueError, match="'odd/kernel' of shape") as caught:
        learner_of(model).init(key, task)
    assert "adapt_filter=lambda path, leaf: path != 'odd/kernel'" in str(caught.value)
    rest = learner_of(model, adapt_filter=lambda path, leaf: path != "odd/kernel")
    assert set(rest.init(key, task).params["inner"]["factors"]["w"]) == {
        "inputs",
        "outputs",
    }


def test_rate_has_to_be_a_number():
    with pytest.raises(ValueError, match="rate is a GradientTransformation"):
        meta_curvature(plain(), CE, rate=optax.sgd(0.1))
    with pytest.raises(ValueError, match="rate is nan; expected a finite number"):
        meta_curvature(plain(), CE, rate=float("nan"))


@pytest.mark.slow  # a variant of what the registry checks
def test_keeps_the_contract(strict_dtypes):
    learner = meta_curvature(plain(), CE, rate=0.1, learn_rate=True, task_chunk=8)
    assert ml.describe(learner)["name"] == "meta_curvature"
    check_learner(learner, blob_batch())
