"""Ridge regression as a classifier, against least squares in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, numpy_tasks, wide_blobs
from tiny import WAYS, blob_batch, linen, one

import metalearn as ml
from metalearn.algorithms.closed_form import metaoptnet_ridge, r2d2
from metalearn.algorithms.closed_form.ridge import ridge

x64 = pytest.mark.usefixtures("x64")


def raw():
    """The encoder that gives its inputs."""
    return ml.from_apply_fn(lambda key, x: {"unused": jnp.zeros(1)}, lambda params, x: x)


def tanh():
    """An encoder of one matrix."""
    return ml.from_apply_fn(lambda key, x: jnp.ones((4, 5)), lambda w, x: jnp.tanh(x @ w))


def least_squares(x, y, penalty):
    """`argmin |X W - Y|^2 + penalty |W|^2` from a taller system without a penalty."""
    taller = np.concatenate([x, np.sqrt(penalty) * np.eye(x.shape[1])])
    rows = np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
    return np.linalg.lstsq(taller, rows, rcond=None)[0]


def of_task(mask=None, rows=slice(None)):
    """A task, its valid support rows with a column of ones, and their one-hot classes."""
    task = one(wide_blobs())
    support = jax.tree.map(lambda leaf: leaf[rows], task.support)
    if mask is not None:
        support = ml.Examples(x=support.x, y=support.y, mask=jnp.asarray(mask))
    x, y, keep = (np.asarray(leaf) for leaf in (support.x, support.y, support.mask))
    design = np.concatenate([x, np.ones((len(x), 1))], 1)[keep]
    return ml.Task(support=support, query=task.query), design, np.eye(WAYS)[y[keep]]


def episode(learner, task):
    """Fitted weights and logits at the start of training."""

    def run(key, task):
        adapted = learner.adapt(learner.init(key, task), task.support)
        return adapted.fitted, learner.predict(adapted, task.query.x)

    return [np.asarray(part) for part in jax.jit(run)(jax.random.key(0), task)]


def cross_entropy(logits, y):
    logits = logits - logits.max(-1, keepdims=True)
    return (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(y)), y]).mean()


@x64
@pytest.mark.parametrize("mask", [None, [True, False, True, True, False]])
def test_weights_are_those_of_least_squares(mask):
    """With more examples than columns, and with fewer and masked rows among them."""
    rows = slice(None) if mask is None else slice(5)
    task, design, y = of_task(mask, rows)
    learner = r2d2(raw(), num_ways=WAYS, regularisation=0.3, scale=2.5, offset=0.7)
    weights, logits = episode(learner, task)
    expected = least_squares(design, y, 0.3 * len(y))
    close(weights, expected)
    query = np.asarray(task.query.x)
    scores = 2.5 * (query @ expected[:-1] + expected[-1]) + 0.7
    present = y.any(0)
    close(logits[:, present], scores[:, present])
    assert (logits[:, ~present] < -1e8).all()


def test_single_precision_has_five_digits():
    rng = np.random.default_rng(0)
    for num, width in ((25, 65), (100, 65)):
        x = rng.normal(size=(num, width)).astype(np.float32)
        y = np.eye(5, dtype=np.float32)[rng.integers(5, size=num)]
        found = ridge(jnp.asarray(x), jnp.asarray(y), jnp.float32(50))
        assert found.dtype == jnp.float32
        close(found, least_squares(x.astype(float), y, 50.0), rtol=1e-5)


@x64
def test_a_large_penalty_gives_sums_of_embeddings():
    task, design, y = of_task()
    learner = r2d2(raw(), num_ways=WAYS, regularisation=1e9)
    close(1e9 * len(y) * episode(learner, task)[0], design.T @ y, rtol=1e-7)


@x64
@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_derivatives_of_both_systems(shape):
    """With respect to the design and the penalty, and of second order."""
    rng = np.random.default_rng(1)
    x, way = rng.normal(size=(2, *shape))
    y, apart = rng.normal(size=(shape[0], 2)), rng.normal(size=(shape[1], 2))

    def along(t):
        return jnp.sum(apart * ridge(jnp.asarray(x) + t * way, jnp.asarray(y), 0.4 + t))

    def reference(t):
        return (apart * least_squares(x + t * way, y, 0.4 + t)).sum()

    first, second = jax.jit(lambda t: (jax.grad(along)(t), jax.grad(jax.grad(along))(t)))(
        jnp.asarray(0.1)
    )
    h = 1e-5
    close(first, (reference(0.1 + h) - reference(0.1 - h)) / (2 * h), rtol=1e-6)
    h = 1e-3
    around = [reference(0.1 + k * h) for k in (-2, -1, 0, 1, 2)]
    close(second, np.dot([-1, 16, -30, 16, -1], around) / (12 * h * h), rtol=1e-6)


@x64
def test_encoder_and_numbers_learn_through_the_solution():
    """The whole meta-gradient by finite differences of the loss, in NumPy."""
    learner = r2d2(tanh(), num_ways=WAYS, regularisation=0.2, scale=1.5, learn="all")
    rng = np.random.default_rng(0)
    w, way = rng.normal(size=(2, 4, 5))

    def loss(w, penalty, scale):
        losses = []
        for xs, ys, xq, yq in numpy_tasks():
            support, query = (
                np.concatenate([np.tanh(x @ w), np.ones((len(x), 1))], 1) for x in (xs, xq)
            )
            weights = least_squares(support, np.eye(WAYS)[ys], len(ys) * penalty)
            losses.append(cross_entropy(scale * query @ weights, yq))
        return np.mean(losses)

    head = {"log_regularisation": np.log(0.2), "scale": 1.5, "offset": 0.3}
    found = grads_of(learner, {"encoder": w, "head": head}, wide_blobs())
    h, start = 1e-6, np.array([0.2, 1.5])
    close(found.metrics["query/loss"].mean(), loss(w, *start))
    difference = (loss(w + h * way, *start) - loss(w - h * way, *start)) / (2 * h)
    close(np.sum(found.grads["encoder"] * way), difference, rtol=1e-6)
    penalty = (loss(w, 0.2 * np.exp(h), 1.5) - loss(w, 0.2 * np.exp(-h), 1.5)) / (2 * h)
    close(found.grads["head"]["log_regularisation"], penalty, rtol=1e-6)
    scale = (loss(w, 0.2, 1.5 + h) - loss(w, 0.2, 1.5 - h)) / (2 * h)
    close(found.grads["head"]["scale"], scale, rtol=1e-6)
    assert abs(found.grads["head"]["offset"]) < 1e-12  # a softmax ignores it


@x64
def test_metaoptnet_doubles_the_weights_without_a_bias():
    """Its penalty stays as it is for any number of examples."""
    mask = [True, True, True, False, True, True]
    task, design, y = of_task(mask)
    learner = metaoptnet_ridge(raw(), num_ways=WAYS, regularisation=0.3, scale=2.5)
    weights, logits = episode(learner, task)
    expected = 2 * least_squares(design[:, :-1], y, 0.3)
    close(weights, expected)
    close(logits, 2.5 * np.asarray(task.query.x) @ expected)


@x64
def test_encoder_learns_through_the_doubled_solution():
    learner = metaoptnet_ridge(tanh(), num_ways=WAYS, regularisation=0.4)
    rng = np.random.default_rng(0)
    w, way = rng.normal(size=(2, 4, 5))

    def loss(w, scale):
        losses = []
        for xs, ys, xq, yq in numpy_tasks():
            weights = 2 * least_squares(np.tanh(xs @ w), np.eye(WAYS)[ys], 0.4)
            losses.append(cross_entropy(scale * np.tanh(xq @ w) @ weights, yq))
        return np.mean(losses)

    params = {"encoder": w, "head": {"scale": 1.3}}
    found = grads_of(learner, params, wide_blobs())
    h = 1e-6
    close(found.metrics["query/loss"].mean(), loss(w, 1.3))
    difference = (loss(w + h * way, 1.3) - loss(w - h * way, 1.3)) / (2 * h)
    close(np.sum(found.grads["encoder"] * way), difference, rtol=1e-6)
    scale = (loss(w, 1.3 + h) - loss(w, 1.3 - h)) / (2 * h)
    close(found.grads["head"]["scale"], scale, rtol=1e-6)


@x64
def test_learning_starts_with_the_given_numbers():
    """Positive ones by their logarithm."""
    options = {"regularisation": 0.3, "scale": 2.5, "offset": 0.7}
    task, *_ = of_task()
    fixed, learned = (
        episode(r2d2(raw(), num_ways=WAYS, learn=learn, **options), task)
        for learn in ("nothing", "all")
    )
    close(learned, fixed)


def test_numbers_that_are_not_learned_are_no_parameters():
    for learner in (
        r2d2(raw(), num_ways=WAYS, learn="nothing"),
        metaoptnet_ridge(raw(), num_ways=WAYS, learn_scale=False),
    ):
        made = jax.eval_shape(learner.init, jax.random.key(0), one(blob_batch()))
        assert list(made.params) == ["unused"]


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (
            r2d2,
            {"regularisation": 0.0},
            "regularisation is 0.0; expected a finite number ab",
        ),
        (r2d2, {"learn": "some"}, "learn is 'some'; expected one of nothing, calibration"),
        (metaoptnet_ridge, {"regularisation": -1.0}, "regularisation is -1.0"),
        (metaoptnet_ridge, {"scale": float("nan")}, "scale is nan"),
        (metaoptnet_ridge, {"scale": 0.0}, "scale is 0.0; expected a finite number above"),
        (r2d2, {"scale": -10.0, "learn": "nothing"}, "scale is -10.0; expected"),
    ],
)
def test_wrong_options_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(linen(None), num_ways=WAYS, **options)
