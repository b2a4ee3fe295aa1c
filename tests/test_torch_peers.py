"""The peers in PyTorch compute what the learners here compute; skipped without torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml
from benchmarks import workloads


@pytest.mark.parametrize(("network", "side"), [("conv4", 32), ("resnet12", 32)])
def test_pytorch_computes_what_the_flax_networks_compute(network, side):
    """With the same weights the same logits, so that the same work is timed."""
    torch = pytest.importorskip("torch")
    from benchmarks import torch_peers

    work = dataclasses.replace(
        workloads.WORKLOADS["mini"], network=network, side=side, tasks=1, query=5
    )
    params = torch_peers._params(work)
    x = workloads.arrays(work)["support_x"][0]
    theirs = torch_peers._logits(work, params, torch.from_numpy(x).movedim(-1, 1))
    made = {"conv4": workloads.UserConv4, "resnet12": workloads.UserResNet12}[network](5)
    variables = made.init(jax.random.key(0), x)
    flat = [np.asarray(p.detach().numpy()) for p in params]
    head = flat[-2].T
    if network == "conv4":  # [C, H, W] and [H, W, C] are flattened
        head = head.reshape(64, side // 16, side // 16, 5).transpose(1, 2, 0, 3)
    ours = {"Dense_0": {"kernel": head.reshape(-1, 5), "bias": flat[-1]}}
    leaves = iter(flat[:-2])
    for i in range(4 if network == "conv4" else 16):
        kernel = next(leaves).transpose(2, 3, 1, 0)
        ours[f"Conv_{i}"] = {"kernel": kernel}
        if network == "conv4":
            ours[f"Conv_{i}"]["bias"] = next(leaves)
        ours[f"BatchNorm_{i}"] = {"scale": next(leaves), "bias": next(leaves)}
    found, _ = made.apply(variables | {"params": ours}, x, mutable=["batch_stats"])
    np.testing.assert_allclose(found, theirs.detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["protonet", "matching", "r2d2", "snail"])
def test_pytorch_heads_classify_as_the_learners_do(name):
    """With the same embeddings and parameters the same probabilities."""
    torch = pytest.importorskip("torch")
    from benchmarks import torch_heads

    ways, size = 3, 6
    draw = np.random.default_rng(0).normal
    x, query = (draw(size=(n, size)).astype(np.float32) for n in (5, 4))
    y = np.array([0, 1, 2, 2, 0])
    made = torch_heads.params_of(name, size, ways, 5)
    there = [torch.from_numpy(a)[None] for a in (x, y, query)]
    theirs = torch_heads.HEADS[name].logits(made, *there, ways)[0].detach()
    encoder = ml.from_apply_fn(lambda key, x: jnp.ones(1), lambda params, x: x)
    learner = workloads.HEADS[name](encoder, num_ways=ways)
    head = {k: np.asarray(v.detach()) for k, v in made.items()}
    if name == "snail":
        layer = lambda part: {"w": head[part], "b": head[f"{part}_bias"]}
        parts = ("query", "key", "value")
        head = {
            "attention": [{p: layer(f"{p}_{i}") for p in parts} for i in range(3)],
            "convolutions": [
                [layer(f"convolution_{i}_{j}") for j in range(3)] for i in (1, 2)
            ],
            "logits": layer("logits"),
        }
    params = {"encoder": jnp.ones(1), "head": head} if made else jnp.ones(1)
    variables = ml.Variables(params=params, state={})
    support = ml.Examples.of(jnp.asarray(x), jnp.asarray(y, jnp.int32))
    ours = learner.predict(learner.adapt(variables, support), jnp.asarray(query))
    np.testing.assert_allclose(
        jax.nn.softmax(ours), torch.softmax(theirs, -1), rtol=1e-4, atol=1e-5
    )
