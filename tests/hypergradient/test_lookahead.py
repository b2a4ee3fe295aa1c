"""The one-step look-ahead against gradients of single examples and a written-out step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close

import metalearn as ml

hg = ml.hypergradient
pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(2)
N, D, H, RATE = 6, 3, 4, 0.3
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
X_CLEAN, Y_CLEAN = RNG.normal(size=(5, D)), RNG.normal(size=5)
PARAMS = {"in": RNG.normal(size=(D, H)), "out": RNG.normal(size=H)}
WEIGHTS = RNG.random(N)


def squares(params, x, y):
    return (jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2


def losses(params):
    return squares(params, X, Y), {"rows": N}


def clean_loss(params, hparams):
    return jnp.mean(squares(params, X_CLEAN, Y_CLEAN)), jnp.sum(params["out"])


def stepped(weights):
    """The virtual parameters by automatic differentiation of the weighted sum."""
    grads = jax.grad(lambda p: jnp.sum(weights * losses(p)[0]))(PARAMS)
    return jax.tree.map(lambda p, g: p - RATE * g, PARAMS, grads), grads


def flat(tree, rows=()):
    leaves = [np.reshape(leaf, (*rows, -1)) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=-1)


def test_each_weight_has_the_product_of_two_gradients():
    """At weights of zero (learning to reweight) and at others; a traced rate."""

    @jax.jit
    def run(weights, rate):
        virtual, grads = stepped(weights)
        each = jax.jacrev(lambda p: losses(p)[0])(PARAMS)
        value, slope = jax.value_and_grad(lambda p: clean_loss(p, None)[0])(virtual)
        found = hg.lookahead(losses, clean_loss, PARAMS, weights, rate=rate)
        return found, each, slope, virtual, value, grads

    for weights in (np.zeros(N), WEIGHTS):
        found, each, slope, virtual, value, grads = run(weights, RATE)
        close(found.gradient, -RATE * flat(each, (N,)) @ flat(slope))
        close(found.state, virtual)
        close(found.value, value)
        close(found.residual, np.linalg.norm(flat(grads)))
        close(found.outer_aux, virtual["out"].sum())
        assert found.inner_aux == {"rows": N}


def weigh(hparams, losses):
    """A network from losses to weights, as in Meta-Weight-Net."""
    hidden = jnp.tanh(losses[:, None] * hparams["in"][None] + hparams["bias"][None])
    return jax.nn.sigmoid(hidden @ hparams["out"]) / N


NETWORK = {name: RNG.normal(size=5) for name in ("in", "bias", "out")}


def test_weights_of_a_network_against_the_derivative_through_the_step():
    """The losses that the network sees are constants; the outer loss has a direct term."""

    def outer(params, hparams):
        return clean_loss(params, hparams)[0] + jnp.sum(hparams["bias"] ** 2)

    def reference(hparams):
        constants = jax.lax.stop_gradient(losses(PARAMS)[0])
        return outer(stepped(weigh(hparams, constants))[0], hparams)

    @jax.jit
    def both(hparams):
        found = hg.lookahead(losses, outer, PARAMS, hparams, rate=RATE, weigh=weigh)
        return found.gradient, jax.grad(reference)(hparams)

    close(*both(NETWORK))


def test_weights_of_groups_add_up_those_of_their_members():
    groups = np.array([0, 2, 1, 0, 2, 2])

    @jax.jit
    def both(values):
        of_groups = hg.lookahead(
            losses,
            clean_loss,
            PARAMS,
            values,
            rate=RATE,
            weigh=lambda values, losses: hg.by_group(values, groups),
        )
        return of_groups.gradient, hg.lookahead(
            losses, clean_loss, PARAMS, values[groups], rate=RATE
        ).gradient

    of_groups, of_members = both(np.array([0.1, 0.4, 0.2]))
    close(of_groups, np.bincount(groups, of_members))


def test_no_gradient_of_a_single_example_is_stored():
    run = lambda w: hg.lookahead(losses, clean_loss, PARAMS, w, rate=RATE).gradient
    text = str(jax.make_jaxpr(run)(WEIGHTS))
    assert f"[{D},{H}]" in text
    assert f"[{N},{D},{H}]" not in text
    each = str(jax.make_jaxpr(jax.vmap(jax.grad(squares), (None, 0, 0)))(PARAMS, X, Y))
    assert f"[{N},{D},{H}]" in each  # what is looked for is found where it is


def test_rules_for_reverse_mode_alone_are_enough():
    """Of `jax.custom_vjp`, which has no forward derivative."""

    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent,))
    through = lambda p: same(losses(p)[0])
    run = lambda losses: hg.lookahead(losses, clean_loss, PARAMS, WEIGHTS, rate=RATE)
    one, other = jax.jit(lambda: [run(through).gradient, run(losses).gradient])()
    close(one, other)


MISTAKES = {
    "losses returns an array \\[\\]; expected losses \\[N\\]": dict(
        losses=lambda p: jnp.sum(p["out"])
    ),
    "the weights is float64\\[5\\]; expected float64\\[6\\]": dict(hparams=np.zeros(5)),
    "the weights has the structure": dict(hparams={"w": np.zeros(N)}),
    "rate is 0": dict(rate=0),
    "outer_loss returns a dict": dict(outer_loss=lambda p, h: {"loss": p["out"][0]}),
    "hparams is of the dtype int": dict(hparams=np.zeros(N, int)),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message):
    given = dict(
        losses=losses, outer_loss=clean_loss, params=PARAMS, hparams=WEIGHTS, rate=RATE
    )
    with pytest.raises((TypeError, ValueError), match=message):
        hg.lookahead(**{**given, **MISTAKES[message]})
