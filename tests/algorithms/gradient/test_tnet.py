"""T-net and MT-net: the learned metric, and masks that are drawn once for a task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, INNER, close, compiled, differs, grads_of, model_grads, of, wide_blobs
from tiny import INPUTS, WAYS, blob_batch, linen, one

import metalearn as ml
from metalearn.algorithms.gradient.tnet import draw_masks, mt_net, t_net
from metalearn.models.tnet import TConv, TNetConv4, TNetMLP

WIDTH = 8


def model_of(widths=(WIDTH,), norm="none"):
    return ml.from_linen(TNetMLP(WAYS, widths, norm))


def learner_of(make=t_net, opt=None, widths=(WIDTH,), **options):
    opt = optax.sgd(INNER) if opt is None else opt
    options = {"num_steps": 2, "task_chunk": 9, **options}
    return compiled(make(model_of(widths), CE, opt, **options))


@functools.cache
def params_of(widths=(WIDTH,), identity=False):
    """Float64 parameters, with matrices away from the identity unless asked for."""
    with jax.enable_x64(True):
        made = model_of(widths).init(jax.random.key(1), jnp.zeros((1, INPUTS))).params
        rng = np.random.default_rng(2)

        def value(path, leaf):
            leaf = leaf.astype(jnp.float64)
            if "transform" in str(path[-1]) and not identity:
                leaf = leaf + 0.3 * rng.normal(size=leaf.shape)
            return leaf

        return jax.tree_util.tree_map_with_path(value, made)


def zetas_of(value):
    return {"TDense_0": jnp.full(WIDTH, value), "head": jnp.full(WAYS, value)}


def adapted(learner, params, key=None, task=0):
    variables = params if isinstance(params, ml.Variables) else of(params)
    return learner.adapt(variables, one(wide_blobs(), task).support, key=key)


def weights(params):
    return {
        layer: {name: leaf for name, leaf in leaves.items() if name != "transform"}
        for layer, leaves in params.items()
    }


def transforms(params):
    return {layer: leaves["transform"] for layer, leaves in params.items()}


# -- T-net ------------------------------------------------------------------------------


def test_identity_matrices_are_maml(x64):
    params = params_of(identity=True)
    plain_params = {"Dense_0": params["TDense_0"], "head": params["head"]}
    maml = ml.maml(
        ml.from_linen(ml.models.MLP(WAYS, (WIDTH,))),
        CE,
        optax.sgd(INNER),
        num_steps=2,
        task_chunk=9,
    )
    expected = model_grads(maml, weights(plain_params), wide_blobs()).grads
    found = weights(model_grads(learner_of(), params, wide_blobs()).grads)
    close(found["TDense_0"], expected["Dense_0"])
    close(found["head"], expected["head"])


def test_only_kernels_and_biases_move(x64):
    params = params_of()
    after = adapted(learner_of(), params).params
    close(transforms(after), transforms(params), rtol=0)
    for layer in ("TDense_0", "head"):
        for name in ("kernel", "bias"):
            assert differs(after[layer][name], params[layer][name], least=1e-6)
    grads = model_grads(learner_of(), params, wide_blobs()).grads
    assert all(np.any(g) for g in jax.tree.leaves(transforms(grads)))


def test_norms_do_not_adapt():
    learner = t_net(model_of(norm="layer"), CE, optax.sgd(INNER), task_chunk=8)
    variables = learner.init(jax.random.key(0), one(blob_batch()))
    after = jax.jit(learner.adapt)(variables, one(blob_batch()).support).params
    close(after["Norm_0"], variables.params["model"]["Norm_0"], rtol=0)
    assert differs(after["TDense_0"]["bias"], variables.params["model"]["TDense_0"]["bias"])


def test_a_step_moves_the_composite_by_the_metric(x64):
    """`A = W T`: `A' - A = -alpha grad_A L T'T`, and likewise for the bias."""
    learner = learner_of(widths=(), num_steps=1)
    before = params_of(())["head"]
    after = adapted(learner, params_of(())).params["head"]
    matrix = before["transform"]
    support = one(wide_blobs()).support

    def loss(kernel, bias):
        return CE(support.x @ kernel + bias[None], support)

    composite = [before[name] @ matrix for name in ("kernel", "bias")]
    grads = jax.grad(loss, argnums=(0, 1))(*composite)
    for name, start, grad in zip(("kernel", "bias"), composite, grads):
        moved = after[name] @ matrix - start
        close(moved, -INNER * grad @ matrix.T @ matrix)
        assert differs(moved, -INNER * grad @ matrix @ matrix.T)


def test_tconv_is_a_convolution_and_a_1x1_convolution(x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 3)))
    shapes = {"kernel": (3, 3, 3, 4), "bias": (4,), "transform": (4, 4)}
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}

    def conv(x, kernel, stride):
        numbers = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=numbers
        )

    for stride in (1, 2):
        layer = TConv(4, strides=stride)
        like = layer.init(jax.random.key(0), x)["params"]
        assert jax.tree.map(jnp.shape, like) == shapes
        close(like["transform"], np.eye(4), rtol=0)
        inner = conv(x, params["kernel"], stride) + params["bias"][None, None, None]
        expected = conv(inner, params["transform"][None, None], 1)
        close(layer.apply({"params": params}, x), expected)


def test_tnet_conv4_starts_as_conv4():
    options = dict(width=3, norm="layer", downsample="stride")
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    net = TNetConv4(WAYS, **options)
    params = jax.jit(net.init)(jax.random.key(1), x)["params"]
    other = {
        name.replace("TConv", "Conv"): {k: v for k, v in p.items() if k != "transform"}
        for name, p in params.items()
    }
    expected = jax.jit(ml.models.Conv4(WAYS, **options).apply)({"params": other}, x)
    close(jax.jit(net.apply)({"params": params}, x), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="TNetConv4 got inputs"):
        TNetConv4(WAYS).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="downsample is 'mean'"):
        TNetConv4(WAYS, downsample="mean").init(jax.random.key(0), x)


# -- MT-net -----------------------------------------------------------------------------


def test_full_masks_are_t_net(x64):
    params = params_of()
    expected = model_grads(learner_of(), params, wide_blobs()).grads
    found = grads_of(learner_of(mt_net), of(params, inner=zetas_of(60.0)), wide_blobs())
    close(found.grads["model"], expected)
    close(found.metrics["mask/active"], np.ones(3))


@pytest.mark.parametrize("opt", [optax.sgd(INNER), optax.adamw(INNER, eps_root=1e-8)])
def test_empty_masks_let_nothing_adapt(x64, opt):
    params = of(params_of(), inner=zetas_of(-60.0))
    after = adapted(learner_of(mt_net, opt), params, jax.random.key(0))
    close(after.params, params_of(), rtol=0)


def test_one_mask_of_units_holds_for_all_steps(x64):
    params, key = of(params_of(), inner=zetas_of(0.0)), jax.random.key(4)
    after = adapted(learner_of(mt_net, num_steps=3), params, key)
    masks = after.info
    assert 0 < np.concatenate(jax.tree.leaves(masks)).mean() < 1
    for layer, mask in masks.items():
        for name in ("kernel", "bias"):
            moved = after.params[layer][name] - params.params["model"][layer][name]
            moved = np.any(np.abs(moved.reshape(-1, mask.size)) > 1e-12, axis=0)
            assert not np.any(moved & (mask == 0))
            if name == "bias":
                assert np.array_equal(moved, mask == 1)

    support, phi = one(wide_blobs()).support, params.params["model"]
    net = model_of()
    for _ in range(3):
        grads = jax.grad(
            lambda p: CE(net.apply(ml.Variables(params=p, state={}), support.x)[0], support)
        )(phi)
        phi = {
            layer: {
                name: leaf
                if name == "transform"
                else leaf - INNER * masks[layer] * grads[layer][name]
                if leaf.ndim == 1
                else leaf - INNER * masks[layer][None] * grads[layer][name]
                for name, leaf in leaves.items()
            }
            for layer, leaves in phi.items()
        }
    close(after.params, phi)


def test_masks_differ_between_tasks_and_repeat_with_the_key(x64):
    params = of(params_of(), inner=zetas_of(0.0))
    learner = learner_of(mt_net)
    found = [grads_of(learner, params, wide_blobs()) for _ in range(2)]
    close(found[0].grads, found[1].grads, rtol=0)
    assert len(set(np.asarray(found[0].metrics["mask/active"]))) > 1
    assert all(np.any(g) for g in jax.tree.leaves(found[0].grads["inner"]))
    infos = [adapted(learner, params, jax.random.key(i)).info for i in (0, 0, 1)]
    close(infos[0], infos[1], rtol=0)
    assert differs(infos[0], infos[2])


def test_draws_are_binary_with_the_slope_of_the_relaxed_draw(x64):
    zeta, key, temperature = jnp.linspace(-2, 2, 5), jax.random.key(0), 0.7
    draws = jax.vmap(lambda k: draw_masks(k, [zeta])[0])(jax.random.split(key, 20000))
    assert set(np.unique(draws)) == {0.0, 1.0}
    close(draws.mean(0), jax.nn.sigmoid(zeta), rtol=0.02)

    noise = jax.random.logistic(jax.random.split(key, 1)[0], zeta.shape, zeta.dtype)
    slope = jax.grad(lambda z: draw_masks(key, [z], temperature)[0].sum())(zeta)
    soft = jax.nn.sigmoid((zeta + noise) / temperature)
    close(slope, soft * (1 - soft) / temperature)


def test_mean_masks_need_no_key(x64):
    params = of(params_of(), inner=zetas_of(0.4))
    learner = learner_of(mt_net, test_mask="mean", num_steps=1)
    after = adapted(learner, params)
    close(after.info, jax.tree.map(jax.nn.sigmoid, zetas_of(0.4)))
    rate = INNER * float(jax.nn.sigmoid(0.4))
    expected = adapted(learner_of(opt=optax.sgd(rate), num_steps=1), params_of())
    close(after.params, expected.params)
    with pytest.raises(ValueError, match=r"give a key.*test_mask='mean'"):
        adapted(learner_of(mt_net), params)


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [t_net, mt_net])
def test_models_without_fixed_matrices_are_refused(make):
    task, key = one(blob_batch()), jax.random.key(0)
    with pytest.raises(ValueError, match=r"occurs in no parameter path.*head/kernel"):
        make(linen(), CE, optax.sgd(0.1)).init(key, task)
    with pytest.raises(ValueError, match="TDense_0/transform, head/transform adapt"):
        learner_of(make, adapt=".*").init(key, task)


def test_bad_options_of_mt_net_are_refused():
    with pytest.raises(TypeError, match="mt_net learns the masks"):
        learner_of(mt_net, optax.sgd)
    with pytest.raises(ValueError, match="temperature is 0"):
        learner_of(mt_net, temperature=0)
    for temperature in (float("inf"), True, "1"):
        with pytest.raises(ValueError, match=r"temperature is .*finite"):
            learner_of(mt_net, temperature=temperature)
    for logit in (float("nan"), "0", None):
        with pytest.raises(ValueError, match=r"initial_logit is .*finite"):
            learner_of(mt_net, initial_logit=logit)
    with pytest.raises(ValueError, match="test_mask is 'mode'"):
        learner_of(mt_net, test_mask="mode")

    def init(key, x):
        del key
        layer = {"w": jnp.ones((x.shape[-1], WAYS)), "odd": jnp.ones(2)}
        return {"layer": layer, "transform": jnp.eye(WAYS)}

    model = ml.from_apply_fn(init, lambda p, x: x @ p["layer"]["w"] @ p["transform"])
    learner = mt_net(model, CE, optax.sgd(0.1), adapt="^layer/")
    with pytest.raises(ValueError, match=r"parameter 'layer/w' of shape \(4, 3\)"):
        learner.init(jax.random.key(0), one(blob_batch()))
