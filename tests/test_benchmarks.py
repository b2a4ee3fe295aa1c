"""The benchmarks run, and count what they say they count."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from benchmarks import _count, _routing, ceiling, table, throughput, workloads


def test_a_benchmark_stores_its_numbers_with_where_they_were_taken(tmp_path):
    path = tmp_path / "found.json"
    throughput.Throughput(
        only="sine", rounds=1, seconds=0.01, json=str(path)
    ).run_benchmark()
    found = json.loads(path.read_text())
    assert found["tasks_per_s"]["sine"] > 0
    assert found["environment"]["versions"]["jax"] == jax.__version__
    assert found["environment"]["device"]["cores"] >= 1


def test_products_are_counted_with_loops_as_often_as_they_run():
    def three_products(a, b):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ b), a)

    a, b = jnp.ones((2, 5)), jnp.ones((5, 5))
    assert _count.product_flops(three_products, a, b) == 3 * 2 * 2 * 5 * 5


def test_products_of_the_sine_workload_by_hand():
    """A matrix [in, out] costs 2 N in out; the forward pass of 10 points is `one`."""
    work = workloads.WORKLOADS["sine"]
    one = 2 * 10 * (40 + 40 * 40 + 40)
    flops = ceiling.workload_flops(work) / work.tasks
    # Five second-order steps and a query: between first order and nine passes a step.
    assert 5 * 3 * one < flops < (5 * 9 + 3) * one


def test_convolutions_count_as_direct_ones():
    """5 and 25 images pass forward and backward; kernels [3, 3, D, F] cost 18 D F."""
    work = workloads.WORKLOADS["protonet"]
    layers = [28**2 * 1, 14**2 * 64, 7**2 * 64, 3**2 * 64]
    forward = sum(18 * 64 * inputs for inputs in layers) * 30
    flops = ceiling.workload_flops(work) / work.tasks
    first = 18 * 64 * layers[0] * 30  # no gradient for the images
    np.testing.assert_allclose(flops, 3 * forward - first, rtol=0.01)


def test_stored_results_are_rendered():
    stored = [json.loads(p.read_text()) for p in table.RESULTS.glob("*.json")]
    text = "\n".join(table.render(stored))
    assert "| omniglot-maml | 0 |" in text
    assert "TorchOpt" in text


@pytest.mark.slow
@pytest.mark.parametrize("tree", [1.0, 0.0])
def test_lanes_of_routing_are_the_learners_of_the_library(tree):
    """The same loss and the same gradient as `ml.hsml` and `ml.mumomaml`."""
    numbers = _routing.Numbers(tree=tree)
    make = ml.hsml if tree else ml.mumomaml
    learner = make(_routing.MODEL, ml.losses.mse, optax.sgd(1e-3))
    keys = jax.random.split(jax.random.key(5), 3)
    tasks = ml.sample_batch(_routing.sampler(), (), keys)
    key = jax.random.key(0)
    variables = learner.init(key, _routing.sampler()(key))
    expected = jax.jit(learner.estimate)(variables, tasks, key=key)
    params = _routing.init(0, "gru", numbers)
    grad = jax.jit(jax.grad(_routing.objective, has_aux=True), static_argnums=1)
    found, loss = grad(params, "gru", numbers, tasks)
    np.testing.assert_allclose(loss, expected.metrics["query/loss"].mean(), rtol=1e-5)
    for part in ("example", "embed"):
        pairs = zip(
            jax.tree.leaves(found["structure"][part]),
            jax.tree.leaves(expected.grads["structure"][part]),
            strict=True,
        )
        for ours, theirs in pairs:
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale)
