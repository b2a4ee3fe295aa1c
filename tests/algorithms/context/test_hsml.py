"""Hierarchically structured meta-learning: the tree by hand, reductions, a new leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    INNER,
    close,
    differs,
    grads_of,
    model_grads,
    network,
    network_maml,
    of,
    wide_blobs,
)
from tiny import WAYS, blob_batch, one, plain, sine_batch, tanh_net

import metalearn as ml
from metalearn.algorithms.context.clusters import route_task
from metalearn.algorithms.context.hsml import add_leaf
from metalearn.apps import plots
from metalearn.testing import check_learner

SMALL = {"hidden": 3, "example_size": 2, "num_ways": WAYS, "num_steps": 2}


def learner(make=ml.hsml, model=plain, **options):
    return make(model(), CE, optax.sgd(INNER), **SMALL | {"task_chunk": 9} | options)


@functools.cache
def started(tree=(4, 2, 1), routing="gaussian"):
    made = learner(tree=tree, routing=routing)
    return made, made.init(jax.random.key(0), one(wide_blobs()))


def changed(variables, **parts):
    structure = {**variables.params["structure"], **parts}
    params = {**variables.params, "structure": structure}
    return ml.Variables(params=params, state=variables.state)


def outputs(made, variables, task):
    @jax.jit  # operation by operation hundreds of programs would be compiled
    def run(variables, task):
        adapted = made.adapt(variables, task.support)
        return made.predict(adapted, task.query.x), adapted.info

    return run(variables, task)


def output_shape(made, task):
    """Shape of the predictions; nothing is computed."""
    key = jax.random.key(0)
    found = jax.eval_shape(lambda t: outputs(made, made.init(key, t), t)[0], task)
    return found.shape


@pytest.mark.parametrize(
    "make", [ml.hsml, pytest.param(ml.mumomaml, marks=pytest.mark.slow)]
)
def test_an_open_gate_leaves_maml(x64, make):
    made = learner(make, reconstruction=0.0)
    variables = made.init(jax.random.key(0), one(wide_blobs()))
    gate = variables.params["structure"]["gate"]
    open_gate = {
        "w": jax.tree.map(jnp.zeros_like, gate["w"]),
        "b": jax.tree.map(lambda b: jnp.full_like(b, 40.0), gate["b"]),
    }
    params = {**changed(variables, gate=open_gate).params, "model": network()}
    expected = model_grads(network_maml(), network(), wide_blobs()).grads
    close(grads_of(made, of(**params), wide_blobs()).grads["model"], expected)
    # And a gate that is not open does not.
    params = {**variables.params, "model": network()}
    assert differs(grads_of(made, of(**params), wide_blobs()).grads["model"], expected)


def test_the_tree_by_hand(x64):
    rng = np.random.default_rng(0)
    d, sigma = 3, 2.0
    draw = lambda *shape: rng.normal(size=shape)
    tree = [
        {"centres": draw(4, d), "w": draw(4, d, d), "b": draw(4, d)},
        {"centres": draw(2, d), "w": draw(2, d, d), "b": draw(2, d)},
        {"w": draw(1, d, d), "b": draw(1, d)},
    ]
    g = draw(d)

    def softmax(values):
        return np.exp(values) / np.sum(np.exp(values))

    p = softmax([-np.sum((g - c) ** 2) / (2 * sigma) for c in tree[0]["centres"]])
    first = [p[k] * np.tanh(g @ tree[0]["w"][k] + tree[0]["b"][k]) for k in range(4)]
    second = np.zeros((2, d))
    for h in first:
        a = softmax([-np.sum((h - c) ** 2) / (2 * sigma) for c in tree[1]["centres"]])
        for m in range(2):
            second[m] += a[m] * np.tanh(h @ tree[1]["w"][m] + tree[1]["b"][m])
    root = sum(np.tanh(h @ tree[2]["w"][0] + tree[2]["b"][0]) for h in second)
    found, route = route_task(jax.tree.map(jnp.asarray, tree), jnp.asarray(g), sigma=sigma)
    np.testing.assert_allclose(found, root, rtol=1e-12)
    np.testing.assert_allclose(route.leaves, p, rtol=1e-12)
    assert [a.shape for a in route.upper] == [(4, 2)]


@pytest.mark.parametrize("routing", ["gaussian", "linear"])
def test_shares_sum_to_one_and_clusters_have_no_order(x64, routing):
    made, variables = started(routing=routing)
    task = one(wide_blobs())
    expected, route = outputs(made, variables, task)
    np.testing.assert_allclose(route.leaves.sum(), 1)
    np.testing.assert_allclose(route.upper[0].sum(-1), np.ones(4))
    order = jnp.asarray([2, 0, 3, 1])
    leaves, middle, root = variables.params["structure"]["tree"]
    leaves = jax.tree.map(lambda x: x[order], leaves)
    turned = jnp.asarray([1, 0])
    if routing == "linear":
        linear = jax.tree.map(lambda x: x[..., turned], middle["linear"])
        middle = {k: v[turned] for k, v in middle.items() if k != "linear"}
        middle["linear"] = linear
    else:
        middle = jax.tree.map(lambda x: x[turned], middle)
    permuted = changed(variables, tree=[leaves, middle, root])
    found, other = outputs(made, permuted, task)
    close(found, expected)
    close(other.leaves, route.leaves[order])


def test_wide_clusters_share_alike(x64):
    _, variables = started()
    tree = variables.params["structure"]["tree"]
    _, route = route_task(tree, jnp.asarray([1.0, -2.0, 0.5]), sigma=1e8)
    np.testing.assert_allclose(route.leaves, np.full(4, 0.25), rtol=1e-5)


def test_a_leaf_that_takes_nothing_changes_nothing(x64):
    made, variables = started()
    task = one(wide_blobs())
    expected, _ = outputs(made, variables, task)
    grown = add_leaf(variables, jax.random.key(1))
    assert differs(outputs(made, grown, task)[0], expected)
    leaves, *upper = grown.params["structure"]["tree"]
    far = leaves["centres"].at[-1].set(1e3)
    grown = changed(grown, tree=[{**leaves, "centres": far}, *upper])
    found, route = outputs(made, grown, task)
    assert route.leaves.shape == (5,)
    close(found, expected)


@pytest.mark.slow
def test_the_reconstruction_does_not_shrink_its_target(x64):
    """Through the target alone: with a decoder of zeros the embedding gets no gradient."""
    made = learner(aggregator="mean", reconstruction=1.0)
    variables = made.init(jax.random.key(0), one(wide_blobs()))
    structure = variables.params["structure"]
    blind = {
        **structure["embed"],
        "back": jax.tree.map(jnp.zeros_like, structure["embed"]["back"]),
    }
    variables = changed(variables, embed=blind)

    def loss(structure):
        params = {**variables.params, "structure": structure}
        tasks = jax.tree.map(lambda leaf: leaf[:1], wide_blobs())
        found = made.estimate(of(**params), tasks, key=jax.random.key(0))
        return found.metrics["structure/reconstruction"][0]

    value, grads = jax.value_and_grad(loss)(variables.params["structure"])
    assert value > 0
    assert not np.any(grads["example"]["w"])
    assert np.any(grads["embed"]["back"]["b"])


@pytest.mark.slow  # a variant of what the registry checks
def test_keeps_the_contract_with_the_recurrent_aggregator():
    check_learner(learner(aggregator="gru"), blob_batch(), order_invariant=False)


@pytest.mark.parametrize("kind", ["curves", "classes", "curves by their features"])
def test_an_ordered_set_is_read_in_the_order_of_its_inputs_or_classes(x64, kind):
    """As the plain learner reads the same set when it is sorted by hand."""
    kind, _, by_features = kind.partition(" by ")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 2))
    y = rng.normal(size=(6, 1)) if kind == "curves" else np.asarray([2, 0, 3, 1, 4, 5]) % 3
    mask = np.asarray([True, True, False, True, True, True])
    loss, ways, outputs = {
        "curves": (ml.losses.mse, None, 1),
        "classes": (CE, WAYS, WAYS),
    }[kind]
    options = {**SMALL, "num_ways": ways, "num_steps": 0}
    if by_features:  # which turn the order around
        options["features"] = ml.from_apply_fn(
            lambda key, x: {"w": jnp.ones(2)}, lambda params, x: -params["w"][None] * x
        )
    made, reads = (
        ml.hsml(plain(outputs), loss, optax.sgd(INNER), ordered=flag, **options)
        for flag in (False, True)
    )
    given = ml.Examples(x=jnp.asarray(x), y=jnp.asarray(y), mask=jnp.asarray(mask))
    variables = made.init(jax.random.key(0), ml.Task(support=given, query=given))
    by = x[:, 0] if kind == "curves" else y
    kept = [i for i in np.argsort(by, kind="stable") if mask[i]]
    by_hand = ml.Examples.of(jnp.asarray(x[kept]), jnp.asarray(y[kept]))
    expected = made.adapt(variables, by_hand).info.embedding
    np.testing.assert_allclose(
        reads.adapt(variables, given).info.embedding, expected, rtol=1e-12
    )
    assert differs(made.adapt(variables, given).info.embedding, expected)


@pytest.mark.slow  # a variant of what the registry checks
def test_an_ordered_learner_forgets_the_given_order():
    options = {**SMALL, "num_ways": None, "task_chunk": 9, "ordered": True}
    curves = ml.hsml(plain(1), ml.losses.mse, optax.sgd(INNER), **options)
    check_learner(curves, sine_batch(), order_invariant=True)
    assert ml.describe(curves)["ordered"]


def test_a_learner_that_reads_in_any_order_is_the_learner_of_older_runs():
    assert set(ml.describe(learner(ordered=False))) == {
        *("name", "num_steps", "differentiation", "norm", "learned_inner"),
        *("tree", "hidden", "aggregator", "routing", "sigma"),
        *("reconstruction", "gate_bias"),
    }


def test_regression_and_image_features():
    options = {**SMALL, "num_ways": None, "task_chunk": 9}
    curves = ml.hsml(plain(1), ml.losses.mse, optax.sgd(INNER), **options)
    assert output_shape(curves, one(sine_batch())) == (4, 1)
    body = ml.from_linen(ml.models.Conv4(4, width=2, norm="layer", downsample="stride"))
    made = learner(features=body, model=lambda: ml.from_linen(ml.models.MLP(WAYS, (2,))))
    x = jnp.ones((6, 16, 16, 1))
    examples = ml.Examples.of(x, jnp.arange(6) % WAYS)
    task = ml.Task(support=examples, query=examples)
    assert output_shape(made, task) == (6, WAYS)
    batch_norm = ml.from_linen(ml.models.Conv4(4, width=2, downsample="stride"))
    with pytest.raises(ValueError, match="without state"):
        learner(features=batch_norm).init(jax.random.key(0), task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": (4, 2)}, "one node as the root"),
        ({"tree": (1,)}, "one node as the root"),
        ({"tree": (4, 0, 1)}, "each layer of tree"),
        ({"routing": "hard"}, "gaussian, linear"),
        ({"aggregator": "lstm"}, "gru, mean"),
        ({"tree": 4}, "tree is 4"),
        ({"sigma": 0.0}, "number above 0"),
        ({"sigma": "2"}, "sigma is '2'"),
        ({"sigma": True}, "sigma is True"),
        ({"reconstruction": float("nan")}, "reconstruction is nan"),
        ({"reconstruction": -0.1}, "of 0 or more"),
        ({"gate_bias": float("inf")}, "gate_bias is inf"),
        ({"ordered": 1}, "ordered is 1; expected True or False"),
        ({"example_size": 0}, "example_size is 0"),
        ({"num_ways": 0}, "num_ways is 0"),
        ({"num_steps": -1}, "num_steps"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        learner(**options)


def with_x(task, change):
    sets = [
        ml.Examples(x=change(e.x), y=e.y, mask=e.mask) for e in (task.support, task.query)
    ]
    return ml.Task(support=sets[0], query=sets[1])


def test_labels_and_targets_are_told_apart():
    labels, curves = one(blob_batch()), one(sine_batch())
    listed = with_x(labels, lambda x: {"a": x})
    for task, options, message in (
        (labels, {"num_ways": None}, "class labels of dtype int32.*num_ways="),
        (curves, {}, "dtype float32 and num_ways=3"),
        (listed, {"model": lambda: dict_model}, "got a dict as inputs.*features="),
    ):
        with pytest.raises(ValueError, match=message):
            learner(**options).init(jax.random.key(0), task)


dict_model = ml.from_apply_fn(
    lambda key, x: {"w": jnp.zeros((4, WAYS))}, lambda params, x: x["a"] @ params["w"]
)


def test_targets_beside_integer_inputs_stay_real():
    options = {**SMALL, "num_ways": None, "num_steps": 0}
    made = ml.hsml(plain(1), ml.losses.mse, optax.sgd(INNER), **options)
    x = jnp.arange(8, dtype=jnp.int32).reshape(4, 2)
    low, high = (ml.Examples.of(x, jnp.full((4, 1), y)) for y in (0.2, 0.7))
    variables = made.init(jax.random.key(0), ml.Task(support=low, query=low))

    def embedding(support):
        return made.adapt(variables, support).info.embedding

    assert differs(embedding(low), embedding(high))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_gate_keeps_the_dtype_of_the_parameters(x64, dtype):
    def init(key, x):
        return jax.tree.map(lambda p: p.astype(dtype), plain().init(key, x).params)

    model = ml.from_apply_fn(init, tanh_net)
    made = learner(model=lambda: model)
    task = one(wide_blobs())
    task = with_x(task, lambda x: x.astype(dtype))
    variables = made.init(jax.random.key(0), task)
    adapted = jax.eval_shape(made.adapt, variables, task.support)
    assert {str(p.dtype) for p in jax.tree.leaves(adapted.params)} == {dtype}


def test_a_new_leaf_has_the_dtype_of_the_others():
    made = learner()
    variables = made.init(jax.random.key(0), one(blob_batch()))
    with jax.enable_x64(True):
        grown = add_leaf(variables, jax.random.key(1))
    found = {str(p.dtype) for p in jax.tree.leaves(grown.params["structure"]["tree"])}
    assert found == {"float32"}


def test_mumomaml_has_no_leaf_to_add():
    made = learner(ml.mumomaml)
    variables = made.init(jax.random.key(0), one(blob_batch()))
    with pytest.raises(ValueError, match="no tree"):
        add_leaf(variables, jax.random.key(1))


def test_families_are_what_they_are_called():
    tasks = ml.sample_batch(
        ml.tasks.function_families(5, 3), (), jax.random.split(jax.random.key(0), 400)
    )
    family, c = np.asarray(tasks.info["family"]), np.asarray(tasks.info["coefficients"])
    assert np.all(np.bincount(family, minlength=4) > 60)
    x, y = np.asarray(tasks.query.x)[..., 0], np.asarray(tasks.query.y)[..., 0]
    c3, c2, c1, c0 = (c[:, i, None] for i in range(4))
    by_name = {
        "sine": c2 * np.sin(c1 * x) + c0,
        "line": c1 * x + c0,
        "quadratic": c2 * x**2 + c1 * x + c0,
        "cubic": c3 * x**3 + c2 * x**2 + c1 * x + c0,
    }
    for index, name in enumerate(ml.tasks.FAMILIES):
        rows = family == index
        np.testing.assert_allclose(y[rows], by_name[name][rows], rtol=1e-4, atol=1e-4)
        assert np.all(np.abs(x[rows]) <= 5)
    assert np.all(c[family == 1][:, :2] == 0)
    only = ml.tasks.function_families(5, 3, ("cubic",))
    assert int(only(jax.random.key(0)).info["family"]) == 3
    with pytest.raises(ValueError, match="expected some of"):
        ml.tasks.function_families(5, 3, ("spline",))
    assert ml.tasks.function_families(5, 3, ["cubic"]) is only
    for num in (0, True, 2.5, float("nan")):
        with pytest.raises(ValueError, match=f"num_support is {num}"):
            ml.tasks.function_families(num)


def test_families_first_made_in_a_trace_can_be_used_after_it():
    make = lambda: ml.tasks.function_families(6, 2)
    inside = jax.jit(lambda key: make()(key).query.y)(jax.random.key(0))
    np.testing.assert_allclose(inside, make()(jax.random.key(0)).query.y, rtol=1e-4)


def test_the_tree_is_drawn(tmp_path):
    leaves = np.asarray([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    upper = [np.full((2, 3, 2), 0.5)]
    path = tmp_path / "tree.png"
    plots.cluster_tree(path, leaves, upper, ("sine", "line"), title="Two families")
    assert path.read_bytes().startswith(b"\x89PNG")
