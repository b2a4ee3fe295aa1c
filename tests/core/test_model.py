"""Networks, normalisation under masks, and the adapters of linen and nnx."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import HIDDEN, INPUTS, WAYS, blob_batch, linen, nnx_net, one, plain

import metalearn as ml
from metalearn.inner import NORM_POLICIES
from metalearn.inner.norm import batch_statistics
from metalearn.models.resnet12 import drop_blocks

KEY = jax.random.key(0)
CE = ml.losses.cross_entropy


def shapes(module, *x_shape):
    """Output shape, and paths of parameters and state, without computing."""
    model = ml.from_linen(module)
    x = jax.ShapeDtypeStruct(x_shape, jnp.float32)
    variables = jax.eval_shape(model.init, KEY, x)
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x)[0], variables, x)
    return outputs.shape, variables


@pytest.mark.parametrize(
    ("module", "x_shape", "expected"),
    [
        (ml.models.Conv4(5, width=4), (2, 28, 28, 1), (2, 5)),
        (ml.models.Conv4(width=4), (2, 28, 28, 1), (2, 4)),
        (ml.models.Conv4(width=4), (2, 84, 84, 3), (2, 100)),
        (ml.models.Conv4(width=4, downsample="stride"), (2, 28, 28, 1), (2, 4)),
        (ml.models.ResNet12(5, widths=(2, 3, 4, 5)), (2, 32, 32, 3), (2, 5)),
        (ml.models.ResNet12(widths=(2, 3, 4, 5)), (2, 84, 84, 3), (2, 125)),
        (
            ml.models.ResNet12(widths=(2, 3, 4, 5), global_pool=True),
            (2, 84, 84, 3),
            (2, 5),
        ),
        (ml.models.MLP(), (3, 1), (3, 1)),
        (ml.models.MLP(None, widths=(6,)), (3, 2, 2), (3, 6)),
    ],
)
def test_output_shapes(module, x_shape, expected):
    found, variables = shapes(module, *x_shape)
    assert found == expected
    heads = [name for name in variables.params if name == "head"]
    assert len(heads) == (module.num_outputs is not None)


def test_conv4_has_its_published_number_of_parameters():
    """64 filters, 28x28x1: 111,936 with biases and batch norm (Snell et al. 2017)."""
    _, variables = shapes(ml.models.Conv4(), 1, 28, 28, 1)
    count = sum(np.prod(p.shape) for p in jax.tree.leaves(variables.params))
    assert count == 640 + 3 * 36_928 + 4 * 128


def test_conv4_without_its_last_relu_differs_in_that_relu_alone():
    x = jax.random.normal(KEY, (5, 16, 16, 1))
    with_relu, without = (
        ml.models.Conv4(width=8, norm="none", last_relu=last) for last in (True, False)
    )
    variables = with_relu.init(KEY, x)
    found = without.apply(variables, x)
    assert (found < 0).any()
    # The maximum of a window goes through the ReLU that stands before it.
    np.testing.assert_array_equal(np.maximum(found, 0), with_relu.apply(variables, x))


@pytest.mark.parametrize("kind", ["group", "layer", "none"])
def test_norms_of_single_examples_keep_no_state(kind):
    module = ml.models.Conv4(width=8, norm=kind)
    _, variables = shapes(module, 2, 16, 16, 1)
    assert variables.state == {}
    _, variables = shapes(ml.models.Conv4(width=8), 2, 16, 16, 1)
    assert list(variables.state) == ["batch_stats"]


def test_unknown_options_are_named():
    for module, words in (
        (ml.models.MLP(norm="instance"), "'instance'.*batch, renorm, group, layer, none"),
        (ml.models.Conv4(downsample="none"), "'none'.*'stride'"),
    ):
        with pytest.raises(ValueError, match=words):
            shapes(module, 2, 16, 16, 1)


# -- Masks and statistics -------------------------------------------------------------

SUPPORT_X = jnp.asarray(np.random.default_rng(0).normal(size=(6, INPUTS)), jnp.float32)
MASK = jnp.array([True, True, True, True, False, False])


@pytest.mark.parametrize("make", [linen, nnx_net, lambda: ml.from_linen(_mlp_module())])
def test_batch_norm_ignores_masked_rows(make):
    model = make()
    variables = model.init(KEY, SUPPORT_X)
    run = jax.jit(lambda v, x, m: model.apply(v, x, train=True, mask=m, key=KEY))
    garbage = SUPPORT_X.at[4:].set(1e3)
    first, state = run(variables, SUPPORT_X, MASK)
    second, other = run(variables, garbage, MASK)
    np.testing.assert_allclose(first[:4], second[:4], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, other)
    third, short = run(variables, SUPPORT_X[:4], MASK[:4])
    np.testing.assert_allclose(first[:4], third, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state, short)


@pytest.mark.parametrize("policy", NORM_POLICIES)
@pytest.mark.parametrize("make", [linen, pytest.param(nnx_net, marks=pytest.mark.slow)])
def test_a_support_set_without_a_valid_row_does_no_harm(make, policy):
    """Statistics of no row are NaN, and so is their gradient whatever the loss masks."""
    learner = ml.maml(make(), CE, optax.sgd(0.1), num_steps=2, norm=policy, task_chunk=8)
    tasks = blob_batch()
    mask = tasks.support.mask.at[1].set(False)
    support = ml.Examples(x=tasks.support.x, y=tasks.support.y, mask=mask)
    tasks = ml.Task(support=support, query=tasks.query)
    variables = jax.jit(learner.init)(KEY, one(tasks))
    adapted = jax.jit(learner.adapt)(variables, one(tasks, 1).support)
    jax.tree.map(np.testing.assert_array_equal, adapted.params, variables.params["model"])
    for kept in jax.tree.leaves(adapted.state):
        assert not np.any(kept != 0) or not np.any(kept != 1), "not as init left them"
    found = jax.jit(lambda v, t: learner.estimate(v, t, key=KEY))(variables, tasks)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    if policy == "per_step":
        empty = jax.tree.map(lambda leaf: leaf[1:2], tasks)
        moved = jax.jit(lambda v, t: learner.estimate(v, t, key=KEY).state["model"])(
            variables, empty
        )
        held = variables.state["model"]
        for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(held)):
            np.testing.assert_array_equal(new[:2], old[:2])  # the last is of the queries


def _mlp_module():
    return ml.models.MLP(WAYS, widths=(HIDDEN,), norm="batch")


def test_batch_statistics_are_those_of_the_support_set():
    model = linen()
    variables = model.init(KEY, SUPPORT_X)
    examples = ml.Examples.of(SUPPORT_X, jnp.zeros(6, jnp.int32), MASK)
    run = jax.jit(functools.partial(batch_statistics, model))
    found = run(variables.params, variables.state, examples)["batch_stats"]["BatchNorm_0"]
    dense = variables.params["Dense_0"]
    hidden = np.asarray(SUPPORT_X[:4] @ dense["kernel"] + dense["bias"][None])
    np.testing.assert_allclose(found["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], hidden.var(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", NORM_POLICIES)
def test_norm_policies_are_transductive_as_declared(policy):
    """Only "batch" lets queries influence one another; two steps move the averages."""
    learner = ml.maml(linen(), CE, optax.sgd(0.1), num_steps=2, norm=policy, task_chunk=8)
    tasks = blob_batch()
    variables = jax.jit(learner.init)(KEY, one(tasks))
    found = jax.jit(lambda v, t: learner.estimate(v, t, key=KEY))(variables, tasks)
    variables = ml.Variables(params=variables.params, state=found.state)

    @jax.jit
    def measured(variables, task):
        adapted = learner.adapt(variables, task.support)
        return ml.is_transductive(learner, adapted, task.query.x)

    assert bool(measured(variables, one(tasks))) == (policy == "batch")


def test_running_averages_move_only_where_they_are_read():
    tasks = blob_batch()
    for policy, moves in (("support", False), ("batch", False), ("running", True)):
        learner = ml.fomaml(linen(), CE, optax.sgd(0.1), norm=policy, task_chunk=8)
        variables = jax.jit(learner.init)(KEY, one(tasks))
        run = jax.jit(lambda v, t, f=learner: f.estimate(v, t, key=KEY).state)
        parts = (variables.state["model"], run(variables, tasks)["model"])
        pairs = zip(*map(jax.tree.leaves, parts))
        assert any(np.abs(a - b).max() > 1e-4 for a, b in pairs) == moves


def test_per_step_statistics_differ_between_steps():
    learner = ml.fomaml(
        linen(), CE, optax.sgd(1.0), num_steps=2, norm="per_step", task_chunk=8
    )
    tasks = blob_batch()
    variables = jax.jit(learner.init)(KEY, one(tasks))
    run = jax.jit(lambda v, t: learner.estimate(v, t, key=KEY).state)
    statistics = run(variables, tasks)["model"]["batch_stats"]
    mean = np.asarray(statistics["BatchNorm_0"]["mean"])
    assert mean.shape == (3, HIDDEN)
    assert np.abs(mean[0] - mean[1]).max() > 1e-4 < np.abs(mean[1] - mean[2]).max()


@pytest.mark.parametrize("policy", ["support", "batch"])
def test_joint_training_normalises_by_the_batch(policy):
    """Otherwise batch norm is trained on averages that nothing ever moves."""
    learner = ml.no_adaptation(linen(), CE, norm=policy, task_chunk=8)
    running = ml.no_adaptation(linen(), CE, norm="running", task_chunk=8)
    tasks = blob_batch()
    variables = jax.jit(learner.init)(KEY, one(tasks))
    first, second = (
        jax.jit(lambda v, t, f=f: f.estimate(v, t, key=KEY))(variables, tasks)
        for f in (learner, running)
    )
    jax.tree.map(np.testing.assert_array_equal, first.state, variables.state)
    for a, b in zip(jax.tree.leaves(first.grads), jax.tree.leaves(second.grads)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# -- DropBlock ------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 3, 50])
def test_drop_block_removes_squares_at_its_rate_and_keeps_the_mean(side):
    x = jnp.ones((256, 8, 8, 8))
    found = np.asarray(drop_blocks(KEY, x, 0.2, side))
    share = (found == 0).mean()
    # Overlapping squares make the rate of GammaBlock an upper bound.
    assert 0.12 < share < 0.22
    assert found.mean() == pytest.approx(1.0, rel=1e-4)
    if side == 3:  # every removed unit lies in a removed 3x3 square
        gone = (found == 0).astype(int)
        windows = np.lib.stride_tricks.sliding_window_view(gone, (3, 3), axis=(1, 2))
        corners = windows.all((-1, -2))
        covered = np.zeros_like(gone, bool)
        for i in range(3):
            for j in range(3):
                covered[:, i : i + 6, j : j + 6] |= corners
        assert (covered == (gone == 1)).all()


def test_resnet_drops_only_in_training_with_a_key():
    module = ml.models.ResNet12(
        2, widths=(2, 2, 2, 2), drop_rate=0.3, norm="none", global_pool=True
    )
    model = ml.from_linen(module, lower=False)
    x = jax.random.normal(KEY, (2, 16, 16, 1))
    variables = jax.jit(model.init)(KEY, x)
    train = jax.jit(lambda key: model.apply(variables, x, train=True, key=key)[0])
    still = jax.jit(lambda key: model.apply(variables, x, key=key)[0])
    a, b = jax.random.split(KEY)
    assert not np.allclose(train(a), train(b))
    np.testing.assert_array_equal(train(a), train(a))
    np.testing.assert_array_equal(still(a), still(b))


# -- Adapters -------------------------------------------------------------------------


class Dropping(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(INPUTS, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def test_nnx_dropout_follows_the_key():
    model = ml.from_nnx(lambda rngs: Dropping(rngs))
    x = jnp.ones((4, INPUTS))
    variables = model.init(KEY, x)
    run = jax.jit(lambda key: model.apply(variables, x, train=True, key=key))
    a, b = jax.random.split(KEY)
    first, state = run(a)
    np.testing.assert_array_equal(first, run(a)[0])
    assert not np.array_equal(first, run(b)[0])
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)
    still = [model.apply(variables, x, key=k)[0] for k in (a, b, None)]
    np.testing.assert_array_equal(still[0], still[1])
    np.testing.assert_array_equal(still[0], still[2])
    assert not np.allclose(first, still[0])


def test_nnx_and_linen_agree():
    """The same numbers through both adapters: values and new statistics."""
    first, second = linen(), nnx_net()
    a, b = first.init(KEY, SUPPORT_X), second.init(KEY, SUPPORT_X)
    params = {
        "body": a.params["Dense_0"],
        "norm": a.params["BatchNorm_0"],
        "head": a.params["head"],
    }
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, b.params)
    both = ml.Variables(params=params, state=b.state)
    for train in (True, False):
        y1, s1 = first.apply(a, SUPPORT_X, train=train, mask=MASK)
        y2, s2 = second.apply(both, SUPPORT_X, train=train, mask=MASK)
        np.testing.assert_allclose(y1[:4], y2[:4], rtol=1e-4, atol=1e-5)
        mean = s2["nnx"]["norm"]["mean"]
        expected = s1["batch_stats"]["BatchNorm_0"]["mean"]
        np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(2)(x))


def test_linen_dropout_follows_the_key():
    model = ml.from_linen(Noisy())
    variables = model.init(KEY, SUPPORT_X)
    a, b = jax.random.split(KEY)
    outputs = [model.apply(variables, SUPPORT_X, train=True, key=k)[0] for k in (a, a, b)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


def test_plain_functions_get_what_they_ask_for():
    seen = {}

    def apply(params, x, *, train, mask):
        seen.update(train=train, mask=mask)
        return x @ params

    model = ml.from_apply_fn(lambda key, x: jnp.ones((x.shape[-1], 1)), apply, lower=False)
    variables = model.init(KEY, SUPPORT_X)
    model.apply(variables, SUPPORT_X, train=True, mask=MASK, key=KEY)
    assert seen["train"] is True and seen["mask"] is MASK


def test_adapters_refuse_what_is_not_theirs():
    with pytest.raises(TypeError, match=r"type; expected.*call the class first"):
        ml.from_linen(Noisy)
    with pytest.raises(TypeError, match="from_nnx"):
        ml.from_linen(Dropping(nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"Noisy.*from_linen"):
        ml.from_nnx(lambda rngs: Noisy())
    with pytest.raises(TypeError, match="init is a dict"):
        ml.from_apply_fn({}, lambda params, x: x)
    assert plain().init(KEY, SUPPORT_X).state == {}
