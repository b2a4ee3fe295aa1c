"""TSA: the frozen network within the adapted one, its steps, and what never moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from frozen_tasks import SIZES, variables
from tiny import HIDDEN, INPUTS, WAYS, blob_batch, one

import metalearn as ml
from metalearn.algorithms import frozen
from metalearn.models.adapters import AdapterConv4, AdapterMLP

RATES, EPS = (0.3, 0.7), 1e-6


def network():
    return ml.from_linen(AdapterMLP(None, widths=(HIDDEN,)))


def make(encoder=None, **options):
    rates = {"adapter_rate": RATES[0], "alignment_rate": RATES[1]}
    encoder = network() if encoder is None else encoder
    return frozen.tsa(encoder, **SIZES, **{**rates, **options})


def without(params):
    """Params of the network that has no adapters."""
    return {name: part for name, part in params.items() if "adapter" not in name}


def test_adapters_of_zero_leave_the_network_bitwise_as_it_is():
    """With strides; and with pooling the shapes are those of the convolutions."""
    module = AdapterConv4(2, width=2, downsample="stride")
    plain = ml.models.Conv4(2, width=2, downsample="stride")
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 1))

    def both(x):
        made = module.init(jax.random.key(0), x)
        rest = {**made, "params": without(made["params"])}
        return module.apply(made, x), plain.apply(rest, x)

    first, second = jax.jit(both)(x)
    np.testing.assert_array_equal(first, second)
    pooled = AdapterConv4(width=3)
    x = jnp.zeros((2, 17, 16, 1))
    made = jax.eval_shape(pooled.init, jax.random.key(0), x)
    kernels = [made["params"][f"adapter_{i}"]["kernel"].shape for i in range(4)]
    assert kernels == [(1, 1, 1, 3)] + 3 * [(1, 1, 3, 3)]
    assert jax.eval_shape(pooled.apply, made, x).shape == (2, 3)


def test_without_steps_it_is_the_nearest_centroid_of_the_frozen_network(strict_dtypes):
    """Of the network without adapters, bit for bit."""
    task = one(blob_batch())

    def both(support, x):
        start = make().init(jax.random.key(0), task)
        plain = ml.from_linen(ml.models.MLP(None, widths=(HIDDEN,)))
        params = {**start.params, "encoder": without(start.params["encoder"])}
        rest = ml.Variables(params=params, state=start.state)
        learner = frozen.nearest_centroid(plain, **SIZES)
        mine = make(num_steps=0)
        return (
            mine.predict(mine.adapt(start, support), x),
            learner.predict(learner.adapt(rest, support), x),
        )

    np.testing.assert_array_equal(*jax.jit(both)(task.support, task.query.x))


def reference(encoder, x, y, queries):
    """A and V after two steps of Adadelta on the loss of the support set.

    With the losses before, between and behind them, and the logits of the queries.
    """

    def logits_of(moved, rows):
        kernel = encoder["Dense_0"]["kernel"] + moved["A"]
        bias, length = encoder["Dense_0"]["bias"][None], jnp.linalg.norm
        embed = lambda x: jnp.maximum(x @ kernel + bias, 0) @ moved["V"]
        means = jnp.stack([embed(x)[y == k].mean(0) for k in range(WAYS)])
        unit = lambda rows: rows / length(rows, axis=-1, keepdims=True)
        return 10 * unit(embed(rows)) @ unit(means).T

    def loss(moved):
        return -jax.nn.log_softmax(logits_of(moved, x))[np.arange(len(y)), y].mean()

    moved = {"A": np.zeros((x.shape[1], HIDDEN)), "V": np.eye(HIDDEN)}
    squares, moves = (jax.tree.map(np.zeros_like, moved) for _ in range(2))
    slope, losses = jax.jit(jax.value_and_grad(loss)), []
    for _ in range(2):
        value, grads = slope(moved)
        losses.append(value)
        for (name, g), rate in zip(grads.items(), RATES, strict=True):
            squares[name] = 0.9 * squares[name] + 0.1 * np.square(g)
            step = np.sqrt(moves[name] + EPS) / np.sqrt(squares[name] + EPS) * g
            moves[name] = 0.9 * moves[name] + 0.1 * step**2
            moved[name] = moved[name] - rate * step
    return moved, [*losses, slope(moved)[0]], logits_of(moved, queries)


def test_steps_are_adadelta_with_a_rate_for_each_part(x64):
    """On the valid support examples, each of them part of its own mean.

    The queries meet the network that has moved, and centroids of it.
    """
    task = one(wide_blobs())
    mask = jnp.arange(6) < 5
    support = ml.Examples(
        x=jnp.where(mask[:, None], task.support.x, 50.0), y=task.support.y, mask=mask
    )
    learner, rng = make(num_steps=2), np.random.default_rng(0)
    encoder = {
        "adapter_0": {"kernel": jnp.zeros((INPUTS, HIDDEN))},
        # So large that no unit is dead.
        "Dense_0": {
            "kernel": jnp.asarray(rng.normal(size=(INPUTS, HIDDEN))),
            "bias": jnp.full(HIDDEN, 4.0),
        },
    }

    def episode(support, x):
        adapted = learner.adapt(variables(encoder), support)
        return adapted.fitted.moved, learner.predict(adapted, x)

    moved, found = jax.jit(episode)(support, task.query.x)
    x, y = np.asarray(support.x)[:5], np.asarray(support.y)[:5]
    expected, losses, logits = reference(encoder, x, y, np.asarray(task.query.x))
    assert losses[0] > losses[1] > losses[2]
    (adapter,) = jax.tree.leaves(moved["adapters"])  # None for all that is frozen
    close([adapter, moved["alignment"]], [expected["A"], expected["V"]], rtol=1e-8)
    close(found, logits, rtol=1e-8)


def test_either_part_may_adapt_alone():
    """And the other one is not there."""
    task = one(blob_batch())
    for adapts, names in (("adapters", ["adapters"]), ("alignment", ["alignment"])):
        learner = make(num_steps=2, adapts=adapts)

        def fit(key, learner=learner):
            start = learner.init(key, task)
            return learner.adapt(start, task.support).fitted.moved

        assert list(jax.eval_shape(fit, jax.random.key(0))) == names


def test_meta_training_leaves_the_adapters_alone():
    """They have no gradient, unlike the rest, even where they are no longer zero."""
    learner = make(task_chunk=9)

    def grads(tasks):
        start = learner.init(jax.random.key(0), one(tasks))
        start.params["encoder"]["adapter_0"]["kernel"] += 0.1
        return learner.estimate(start, tasks, key=jax.random.key(1)).grads["encoder"]

    found = jax.jit(grads)(blob_batch())
    assert not np.any(found["adapter_0"]["kernel"]) and np.any(found["Dense_0"]["kernel"])


def test_any_parameters_may_be_the_adapters():
    """Those of a network without adapters, which meta-training then trains."""
    plain = ml.from_linen(ml.models.MLP(None, widths=(HIDDEN,)))
    task = one(blob_batch())
    learner = make(plain, adapt_filter="bias$", num_steps=1)

    def fit(support):
        start = learner.init(jax.random.key(0), task)
        return learner.adapt(start, support).fitted.moved["adapters"]

    moved = jax.jit(fit)(task.support)
    assert moved["Dense_0"]["kernel"] is None and np.any(moved["Dense_0"]["bias"])


def test_a_network_without_adapters_is_refused_unless_the_map_alone_adapts():
    plain = ml.from_linen(ml.models.MLP(None, widths=(HIDDEN,)))
    key, task = jax.random.key(0), one(blob_batch())
    with pytest.raises(ValueError, match=r"no parameter of the encoder.*Dense_0/kernel"):
        jax.eval_shape(make(plain).init, key, task)
    jax.eval_shape(make(plain, adapts="alignment").init, key, task)
    with pytest.raises(ValueError, match="adapts is 'all'; expected one of both, adapters"):
        make(adapts="all")
