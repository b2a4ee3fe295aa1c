"""Meta networks against NumPy: fast weights, the memory, and which derivatives flow."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import CE, close, wide_blobs
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms.memory.meta_networks import meta_networks

pytestmark = pytest.mark.usefixtures("x64")
SIZES = {"representation": 3, "hidden": 4, "generator": 2}
SCALE = 2.0
MASK = np.array([True, True, False, True, True, True])


@functools.cache
def learner_of(**options):
    scaled = lambda p, x: x * p["scale"][None]
    encoder = ml.from_apply_fn(lambda key, x: {"scale": jnp.ones(4)}, scaled)
    return meta_networks(encoder, num_ways=WAYS, **{**SIZES, "scale": SCALE, **options})


@functools.cache
def params_of(**options):
    task = one(wide_blobs())
    init = lambda key: learner_of(**options).init(key, task)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(init, jax.random.key(0)).params
    rng = np.random.default_rng(4)
    return jax.tree.map(lambda p: 0.7 * rng.normal(size=p.shape), shapes)


@functools.cache
def episode(**options):
    """Function `(params, support, query) -> (memory, logits, gradients)`."""
    learner = learner_of(**options)

    def loss(params, support, query):
        adapted = learner.adapt(ml.Variables(params=params, state={}), support)
        logits = learner.predict(adapted, query.x)
        return CE(logits, query), (adapted.fitted, logits)

    def run(*task):
        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(*task)
        return *found, grads

    return jax.jit(run)


def task_with(mask=MASK):
    task = one(wide_blobs())
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=jnp.asarray(mask))
    return support, task.query


def with_head(params, **parts):
    return {**params, "head": {**params["head"], **parts}}


def without_generators(params, *names):
    """Params of generators whose last layer gives zeros."""
    d, m = params["head"]["d"], params["head"]["m"]
    zeros = lambda layer: jax.tree.map(np.zeros_like, layer)
    silent = {"d": {**d, "out": zeros(d["out"])}, "m": [*m[:-1], zeros(m[-1])]}
    return with_head(params, **{name: silent[name] for name in names})


# -- NumPy, one example and one weight at a time ------------------------------------------


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    shares = np.exp(x - x.max())
    return shares / shares.sum()


def pair_of(g, p=7.0):
    if abs(g) >= np.exp(-p):
        return np.array([np.log(abs(g)) / p, np.sign(g)])
    return np.array([-1.0, np.exp(p) * g])


def slope(weights, h, y):
    """Gradients of the cross-entropy of `relu(h W1) W2`, or of `h W1`, by hand."""
    first, *second = weights
    pre = h @ first
    logits = relu(pre) @ second[0] if second else pre
    error = softmax(logits) - np.eye(WAYS)[y]
    if not second:
        return [np.outer(h, error)]
    return [np.outer(h, (second[0] @ error) * (pre > 0)), np.outer(relu(pre), error)]


def numpy_d(params, grads):
    """An LSTM on the gradients of each weight, in a loop over weights."""
    cell, out = params["lstm"], params["out"]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))

    def of(index):
        h = c = np.zeros(len(cell["recurrent"]))
        for grad in grads:
            gates = pair_of(grad[index]) @ cell["input"] + h @ cell["recurrent"]
            i, f, g, o = np.split(gates + cell["bias"], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        return (h @ out["w"] + out["b"])[0]

    return np.array([of(i) for i in np.ndindex(grads[0].shape)]).reshape(grads[0].shape)


def numpy_m(layers, grad):
    def of(g):
        x = pair_of(g)
        for layer in layers[:-1]:
            x = relu(x @ layer["w"] + layer["b"])
        return (x @ layers[-1]["w"] + layers[-1]["b"])[0]

    return np.vectorize(of)(grad)


def inner_gradients(params, x, y):
    """Gradients of Q and of the weights of b for each support example."""
    head, h = params["head"], x * params["encoder"]["scale"]
    q = [head["representation"], head["classifier"]]
    base = [head["base"][name] for name in ("hidden", "logits") if name in head["base"]]
    pairs = list(zip(h, y))
    return [slope(q, *p)[0] for p in pairs], [slope(base, *p) for p in pairs]


def numpy_logits(params, x, y, query, read=None, given=None):
    """Q* and logits; `read` are the examples that the LSTM reads, in this order.

    The inner gradients are `given` where they are to be constants.
    """
    of_q, of_base = given or inner_gradients(params, x, y)
    head, scale = params["head"], params["encoder"]["scale"]
    fast_q = numpy_d(
        head["d"], [of_q[i] for i in (range(len(x)) if read is None else read)]
    )
    memory = [[numpy_m(head["m"], g) for g in grads] for grads in of_base]
    total = head["representation"] + fast_q
    unit = lambda v: v / np.sqrt(v @ v)
    base, found = head["base"], []
    for h in query * scale:
        cosines = [unit(r * scale @ total) @ unit(h @ total) for r in x]
        shares = softmax(SCALE * np.array(cosines))
        fast = [sum(a * m[k] for a, m in zip(shares, memory)) for k in range(len(base))]
        if "hidden" in base:
            h = relu(h @ base["hidden"]) + relu(h @ fast[0])
        found.append(h @ base["logits"] + h @ fast[-1])
    return fast_q, np.array(found)


def numpy_loss(params, x, y, query, target, given=None):
    _, logits = numpy_logits(params, x, y, query, given=given)
    return -np.mean([np.log(softmax(row)[k]) for row, k in zip(logits, target)])


def arrays(support, query, mask=MASK):
    mask = np.asarray(mask)
    return np.asarray(support.x)[mask], np.asarray(support.y)[mask], np.asarray(query.x)


# -- What the paper says ------------------------------------------------------------------


def test_logits_and_derivatives_equal_numpy():
    """The whole loss, with derivatives through the inner gradients."""
    support, query = task_with()
    params = params_of()
    memory, logits, grads = episode(second_order=True)(params, support, query)
    data = arrays(support, query)
    fast, expected = numpy_logits(params, *data)
    close(memory.representation, fast)
    close(logits, expected)
    check_slopes(grads, lambda p: numpy_loss(p, *data, query.y))


def test_inner_gradients_are_constants_of_the_outer_loss():
    support, query = task_with()
    params = params_of()
    _, logits, grads = episode()(params, support, query)
    data = arrays(support, query)
    given = inner_gradients(params, *data[:2])
    close(logits, numpy_logits(params, *data)[1])
    check_slopes(grads, lambda p: numpy_loss(p, *data, query.y, given))
    assert not np.any(grads["head"]["classifier"])


def check_slopes(grads, loss):
    """Derivatives along a random direction of each part of the params."""
    params, rng = params_of(), np.random.default_rng(8)
    way = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    for part in ("base", "representation", "classifier", "d", "m", "scale"):
        chosen = jax.tree_util.tree_map_with_path(
            lambda path, w, part=part: w * (part in str(path[:2])), way
        )
        move = lambda step, c=chosen: jax.tree.map(lambda p, w: p + step * w, params, c)
        expected = (loss(move(1e-6)) - loss(move(-1e-6))) / 2e-6
        found = sum(
            jax.tree.leaves(jax.tree.map(lambda g, w: np.sum(g * w), grads, chosen))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9, err_msg=part)


def test_without_generators_the_slow_network_classifies():
    support, query = task_with()
    params = without_generators(params_of(), "d", "m")
    memory, logits, _ = episode()(params, support, query)
    base = params["head"]["base"]
    h = np.asarray(query.x) * params["encoder"]["scale"]
    assert not np.any(memory.representation)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(memory.values))
    close(logits, relu(h @ base["hidden"]) @ base["logits"], rtol=1e-14)


def test_equal_keys_read_the_mean_of_the_memory():
    """Keys see one feature, which all support examples share."""
    support, query = task_with()
    support = ml.Examples(x=support.x.at[:, 0].set(1.0), y=support.y, mask=support.mask)
    params = without_generators(params_of(), "d")
    seen = np.zeros((4, 3))
    seen[0] = [0.5, -1.0, 2.0]
    params = with_head(params, representation=seen)
    memory, logits, _ = episode()(params, support, query)
    mean = jax.tree.map(lambda m: np.asarray(m)[MASK].mean(0), memory.values)
    base, h = params["head"]["base"], np.asarray(query.x) * params["encoder"]["scale"]
    g = relu(h @ base["hidden"]) + relu(h @ mean["hidden"])
    close(logits, g @ (base["logits"] + mean["logits"]))


def test_generators_handle_every_weight_by_itself():
    """Renamed units of both hidden layers rename fast weights and leave the logits."""
    support, query = task_with()
    params, head = params_of(), params_of()["head"]
    units, codes = np.array([2, 0, 3, 1]), np.array([1, 2, 0])
    base = {
        "hidden": head["base"]["hidden"][:, units],
        "logits": head["base"]["logits"][units],
    }
    renamed = with_head(
        params,
        base=base,
        representation=head["representation"][:, codes],
        classifier=head["classifier"][codes],
    )
    plain, other = (episode()(p, support, query) for p in (params, renamed))
    close(other[0].representation, plain[0].representation[:, codes])
    close(other[0].values["hidden"], plain[0].values["hidden"][:, :, units])
    close(other[0].values["logits"], plain[0].values["logits"][:, units])
    close(other[1], plain[1])


def test_sampled_gradients_are_those_of_valid_rows_in_an_order_that_the_key_draws():
    """A base learner without a hidden layer, whose memory holds all examples still."""
    options, mask = {"num_sampled": 2, "hidden": 0}, [True, False, True, False, True, False]
    support, query = task_with(mask)
    params, data, drawn = params_of(**options), arrays(support, query, mask), set()
    expected = [numpy_logits(params, *data, r) for r in itertools.permutations(range(3), 2)]
    learner = learner_of(**options)

    @jax.jit
    def run(key):
        variables = ml.Variables(params=params, state={})
        adapted = learner.adapt(variables, support, key=key)
        return adapted.fitted.representation, learner.predict(adapted, query.x)

    for key in jax.random.split(jax.random.key(0), 40):
        found, logits = run(key)
        gaps = np.array([np.abs(found - fast).max() for fast, _ in expected])
        assert np.sum(gaps < 1e-9) == 1, gaps
        drawn.add(gaps.argmin())
        close(logits, expected[gaps.argmin()][1])
    assert drawn == set(range(6))


def test_nothing_is_nan_without_a_support_example():
    support, query = task_with(np.zeros(6, bool))
    memory, logits, grads = episode(second_order=True)(params_of(), support, query)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((memory, logits, grads)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"representation": 0}, "representation is 0"),
        ({"hidden": -1}, "hidden is -1"),
        ({"generator": 0}, "generator is 0"),
        ({"num_sampled": 0}, "num_sampled is 0"),
        ({"scale": 0.0}, "scale is 0.0"),
    ],
)
def test_wrong_settings_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        learner_of(**wrong)
