"""LEO: codes, generated classifiers, what is random and where gradients stop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import CE, close, compiled, differs, grads_of, wide_blobs
from tiny import INPUTS, WAYS, blob_batch, one

import metalearn as ml
from metalearn.algorithms.context.leo import leo
from metalearn.algorithms.context.leo_net import LeoNet, correlation_penalty, draw
from metalearn.testing import check_learner

LATENTS = 3
x64 = pytest.mark.usefixtures("x64")
NO_TERMS = dict(kl_weight=0.0, encoder_penalty=0.0, orthogonality=0.0)


@functools.cache  # it keeps what was compiled for it
def learner_of(**options):
    options = {"latents": LATENTS, "num_steps": 2, "task_chunk": 9, **options}
    return compiled(leo(WAYS, **options))


@functools.cache
def params_of():
    """Float64 parameters, with rates that differ."""
    with jax.enable_x64(True):
        made = learner_of().init(jax.random.key(1), one(wide_blobs())).params
        made = jax.tree.map(lambda p: p.astype(jnp.float64), made)
        return {
            **made,
            "latent_rate": jnp.array([0.1, 0.2, 0.3]),
            "fine_tune_rate": jnp.array([0.1, 0.2, 0.3, 0.4]),
        }


def adapted(support, params=None, **options):
    params = params_of() if params is None else params
    return learner_of(**options).adapt(ml.Variables(params=params, state={}), support)


def support_with(rows):
    return jax.tree.map(lambda leaf: leaf[np.array(rows)], one(wide_blobs()).support)


def numpy_codes(x, y):
    """`[W, 2 L]` from the concatenated pairs, as the paper writes them."""
    net = jax.tree.map(np.asarray, params_of()["model"])
    h = x @ net["encoder"]["kernel"]
    pairs = np.stack([[np.concatenate([a, b]) for b in h] for a in h])
    pairs = np.maximum(pairs @ net["relation_0"], 0)
    pairs = np.maximum(pairs @ net["relation_1"]["kernel"], 0)
    found = (pairs @ net["relation_2"]["kernel"]).mean(1)
    return np.stack([found[y == w].mean(0) for w in range(WAYS)])


# -- The generator ----------------------------------------------------------------------


@x64
def test_without_steps_it_generates_weights():
    support = one(wide_blobs()).support
    codes = numpy_codes(np.asarray(support.x), np.asarray(support.y))[:, :LATENTS]
    found = adapted(support, num_steps=0, fine_tune_steps=0)
    close(found.codes, codes)
    decoder = np.asarray(params_of()["model"]["decoder"]["kernel"])
    close(found.weights, (codes @ decoder)[:, :INPUTS])


@x64
def test_steps_on_codes_and_then_on_weights():
    """Both written out; rates belong to coordinates."""
    support, params = one(wide_blobs()).support, params_of()
    decoder = params["model"]["decoder"]["kernel"][:, :INPUTS]
    z = jnp.asarray(numpy_codes(np.asarray(support.x), np.asarray(support.y)))[:, :LATENTS]
    of_codes = jax.jit(jax.grad(lambda z: CE(support.x @ (z @ decoder).T, support)))
    of_weights = jax.jit(jax.grad(lambda w: CE(support.x @ w.T, support)))
    for _ in range(2):
        slope = of_codes(z)
        z = z - params["latent_rate"][None] * slope
    w = z @ decoder
    for _ in range(3):
        slope = of_weights(w)
        w = w - params["fine_tune_rate"][None] * slope
    found = adapted(support, fine_tune_steps=3)
    close((found.codes, found.weights), (z, w))
    learner = learner_of(fine_tune_steps=3)
    close(learner.predict(found, support.x), support.x @ w.T)


@x64
def test_codes_of_examples_are_those_of_classes_where_nothing_is_drawn():
    """Also with 1 and 3 shots, for a class moves as fast as a class."""
    support = support_with([0, 2, 3, 4, 5, 2])
    for rows in (one(wide_blobs()).support, support):
        by_class, by_example = (adapted(rows, codes=c) for c in ("class", "example"))
        close(by_example.weights, by_class.weights)
        close(by_example.codes, by_class.codes[rows.y])


@x64
def test_order_padding_and_absent_classes():
    plain = adapted(support_with([0, 1, 2, 3]))  # nothing of the third class
    assert plain.present.tolist() == [True, True, False]
    assert differs(plain.codes, adapted(support_with([0, 2, 3])).codes)
    for codes in ("class", "example"):
        plain = adapted(support_with([0, 1, 2, 3]), codes=codes)
        other = support_with([3, 1, 1, 0, 2])
        other = ml.Examples(x=other.x, y=other.y, mask=jnp.arange(5) != 2)
        mixed = adapted(other, codes=codes)
        close(mixed.weights[:2], plain.weights[:2])
        x = one(wide_blobs()).query.x
        logits = learner_of().predict(mixed, x)
        assert (logits.argmax(-1) != 2).all() and np.isfinite(logits).all()


# -- Training ---------------------------------------------------------------------------


@x64
def test_draws_have_the_deviation_and_the_divergence_they_should():
    made = jnp.asarray(np.array([[0.3, -1.0, 0.5, 0.4, -0.7, 1e-3]]))
    keys = jax.random.split(jax.random.key(0), 40_000)
    samples, kl = jax.jit(jax.vmap(lambda k: draw(k, made, 0.0)))(keys)
    deviation = np.maximum(np.exp(made[0, 3:]) - 1, 1e-10)
    mean = np.asarray(made[0, :3])
    close(samples.mean(0)[0], mean, rtol=0.02)
    close(samples.std(0)[0], deviation, rtol=0.02)
    exact = 0.5 * (mean**2 + deviation**2 - 1) - np.log(deviation)
    close(kl.mean(0)[0], exact, rtol=0.005)
    shifted = jax.jit(jax.vmap(lambda k: draw(k, 0 * made, 0.2)[0]))(keys)
    close(shifted.std(0)[0], np.full(3, 0.2), rtol=0.02)
    mean_alone, none = draw(None, made, 0.2)
    close(mean_alone, made[:, :3], rtol=0)
    assert not none.any()


@x64
def test_evaluation_has_no_chance_and_training_has():
    task = one(wide_blobs())
    variables = ml.Variables(params=params_of(), state={})
    learner = learner_of()
    found = [
        learner.adapt(variables, task.support, key=k) for k in (None, jax.random.key(3))
    ]
    close(found[0], found[1], rtol=0)
    options = {**NO_TERMS, "dropout": 0.0}
    run = lambda k: learner_of(**options).estimate(variables, wide_blobs(), key=k)
    losses = [run(jax.random.key(i)).metrics["query/loss"] for i in (0, 0, 1)]
    close(losses[0], losses[1], rtol=0)
    assert differs(losses[0], losses[2])


@x64
@pytest.mark.parametrize(
    "codes", ["class", pytest.param("example", marks=pytest.mark.slow)]
)
def test_gradient_by_finite_differences(codes):
    """Of the whole objective but the penalty, which stops a gradient; draws held."""
    weights = dict(kl_weight=0.3, encoder_penalty=0.0, orthogonality=0.7, l2=0.1)
    learner, tasks = learner_of(codes=codes, dropout=0.2, **weights), wide_blobs()

    @jax.jit
    def run(params):
        now = ml.Variables(params=params, state={})
        return learner.estimate(now, tasks, key=jax.random.key(0))

    def objective(scale):
        params = jax.tree.map(lambda p, d: p + scale * d, params_of(), way)
        found, net = run(params).metrics, params["model"]
        squares = sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(net))
        loss = found["query/loss"].mean() + 0.3 * found["encoder/kl"].mean()
        return loss + 0.7 * correlation_penalty(net["decoder"]["kernel"]) + 0.05 * squares

    rng = np.random.default_rng(0)
    way = jax.tree.map(lambda p: rng.normal(size=p.shape), params_of())
    grads = run(params_of()).grads
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    along = jax.tree.map(lambda g, d: jnp.sum(g * d), grads, way)
    difference = (objective(1e-6) - objective(-1e-6)) / 2e-6
    assert np.isfinite(difference)
    close(sum(jax.tree.leaves(along)), difference, rtol=1e-6)


@x64
def test_penalty_pulls_the_encoder_to_where_the_steps_lead_and_not_the_steps():
    tasks, params = wide_blobs(), params_of()
    options = {**NO_TERMS, "dropout": 0.0}
    plain, pulled = (
        grads_of(learner_of(**{**options, "encoder_penalty": w}), params, tasks)
        for w in (0.0, 1.0)
    )
    gap = jax.tree.map(np.subtract, pulled.grads, plain.grads)
    for reached in ("encoder", "relation_0", "relation_1", "relation_2"):
        assert differs(
            gap["model"][reached],
            jax.tree.map(np.zeros_like, gap["model"][reached]),
            least=1e-6,
        )
    for stopped in (gap["model"]["decoder"], gap["latent_rate"], gap["fine_tune_rate"]):
        assert all(np.abs(g).max() < 1e-12 for g in jax.tree.leaves(stopped))
    assert pulled.metrics["encoder/penalty"].min() > 1e-6
    still = grads_of(learner_of(**options, num_steps=0), params, tasks)
    assert not still.metrics["encoder/penalty"].any()


@x64
def test_orthogonal_rows_pay_nothing():
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 4)))[0].T
    assert correlation_penalty(jnp.asarray(3 * rows)) < 1e-20
    same = jnp.ones((2, 5))
    close(correlation_penalty(same), 0.5)
    assert np.isfinite(jax.grad(correlation_penalty)(jnp.zeros((2, 3)))).all()


@x64
def test_first_order_and_no_steps_differ_as_they_should():
    tasks, options = wide_blobs(), {**NO_TERMS, "dropout": 0.0}
    ways = ({}, {"differentiation": "mixed"}, {"differentiation": "first_order"})
    found = [grads_of(learner_of(**options, **w), params_of(), tasks).grads for w in ways]
    close(found[1], found[0], rtol=1e-8)
    assert differs(found[2], found[0], least=1e-4)


@pytest.mark.slow  # quick tests have its whole loss by finite differences
def test_it_learns_blobs():
    """A few steps of gradient descent lower the loss of evaluation."""
    learner, tasks = learner_of(latents=8, dropout=0.1, orthogonality=0.0), blob_batch()
    variables = learner.init(jax.random.key(0), one(tasks))

    def loss(params):
        def of_task(task):
            v = ml.Variables(params=params, state={})
            return CE(
                learner.predict(learner.adapt(v, task.support), task.query.x), task.query
            )

        return jax.vmap(of_task)(tasks).mean()

    def step(params, key):
        now = ml.Variables(params=params, state={})
        grads = learner.estimate(now, tasks, key=key).grads
        return jax.tree.map(lambda p, g: p - 0.05 * jnp.clip(g, -1, 1), params, grads), None

    keys = jax.random.split(jax.random.key(1), 100)
    after = jax.jit(lambda p: jax.lax.scan(step, p, keys)[0])(variables.params)
    before, end = jax.jit(loss)(variables.params), jax.jit(loss)(after)
    assert end < 0.5 * before, (before, end)


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latents": 0}, "latents is 0"),
        ({"num_steps": -1}, "num_steps is -1"),
        ({"fine_tune_steps": 1.5}, "fine_tune_steps is 1.5"),
        ({"hidden": 0}, "hidden is 0"),
        ({"dropout": 1.0}, "dropout is 1.0.*below 1.0"),
        ({"kl_weight": float("nan")}, "kl_weight is nan"),
        ({"encoder_penalty": -1e-3}, "encoder_penalty is -0.001"),
        ({"orthogonality": float("inf")}, "orthogonality is inf"),
        ({"l2": True}, "l2 is True"),
        ({"latent_rate": "1"}, "latent_rate is '1'"),
        ({"codes": "task"}, "codes is 'task'"),
        ({"differentiation": "none"}, "differentiation is 'none'"),
        ({"task_chunk": 0}, "task_chunk is 0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        learner_of(**options)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match="num_ways is 1"):
        leo(1)
    part = ml.Examples.of(jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"feature vectors \[N, D\]"):
        learner_of().init(jax.random.key(0), ml.Task(support=part, query=part))
    whole = ml.Examples.of(jnp.zeros((2, 8), jnp.int32), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"dtype int32.*float32"):
        learner_of().init(jax.random.key(0), ml.Task(support=whole, query=whole))
    assert LeoNet(features=4, latents=2, hidden=7).hidden == 7


@pytest.mark.slow  # a variant of what the registry checks
def test_keeps_the_contract(strict_dtypes):
    learner = learner_of(num_steps=1, fine_tune_steps=1)
    assert ml.describe(learner)["codes"] == "class"
    check_learner(learner, blob_batch(), relabelling=True)
