"""Losses beside closed forms and scikit-learn; what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import blobs

import metalearn as ml
from metalearn.core import losses

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(40, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, 40).astype(np.int32)
WEIGHTS = np.array([0.5, 1.0, 4.0])


def examples(y=LABELS, mask=None):
    return ml.Examples.of(jnp.zeros((len(y), 1)), jnp.asarray(y), mask)


@pytest.mark.parametrize("weights", [None, WEIGHTS, [1.0, 0.0, 2.0]])
def test_weighted_cross_entropy_is_scikit_learns(weights):
    metrics = pytest.importorskip("sklearn.metrics")
    found = ml.losses.cross_entropy(jnp.asarray(LOGITS), examples(), class_weights=weights)
    each = None if weights is None else np.asarray(weights)[LABELS]
    expected = metrics.log_loss(
        LABELS, np.asarray(jax.nn.softmax(LOGITS)), sample_weight=each, labels=[0, 1, 2]
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_f1_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    guessed = LOGITS.argmax(-1)
    expected = metrics.f1_score(LABELS, guessed, average="macro")
    found = ml.metrics.f1(jnp.asarray(LOGITS), examples())
    assert float(found) == pytest.approx(expected, rel=1e-6)
    two = np.where(LABELS == 2, 0, LABELS)  # class 2 is predicted and never true
    expected = metrics.f1_score(two, guessed, average="macro", zero_division=0)
    found = ml.metrics.f1(jnp.asarray(LOGITS), examples(two))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    none = ml.metrics.f1(jnp.asarray(LOGITS), examples(mask=jnp.zeros(40, bool)))
    assert float(none) == 0


def test_losses_by_their_derivatives():
    """Huber's is the clipped error; that of the smoothed cross-entropy p minus target."""
    y = jnp.array([[0.2], [-3.0], [5.0]])
    real = ml.Examples.of(y, y)
    huber = functools.partial(ml.losses.huber, examples=real, delta=1.5)
    slopes = jax.grad(huber)(jnp.zeros((3, 1)))
    np.testing.assert_allclose(slopes, np.clip(-y, -1.5, 1.5) / 3, rtol=1e-6)
    smoothed = functools.partial(
        ml.losses.cross_entropy, examples=examples(), label_smoothing=0.3
    )
    target = 0.7 * np.eye(3)[LABELS] + 0.1
    expected = (np.asarray(jax.nn.softmax(LOGITS)) - target) / 40
    np.testing.assert_allclose(jax.grad(smoothed)(LOGITS), expected, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0, 5.0])
def test_focal_loss_is_finite_where_a_class_is_certain(gamma):
    loss = functools.partial(ml.losses.focal, examples=examples(), gamma=gamma)
    sure = 200.0 * np.eye(3, dtype=np.float32)[LABELS]
    for logits in (sure, -sure, LOGITS):
        logits = jnp.asarray(logits)
        slopes = jax.grad(loss)(logits)
        twice = jax.jvp(jax.grad(loss), (logits,), (jnp.ones_like(logits),))[1]
        assert np.isfinite(slopes).all() and np.isfinite(twice).all()
    p = np.asarray(jax.nn.softmax(LOGITS), np.float64)[np.arange(40), LABELS]
    expected = -((1 - p) ** gamma) * np.log(p)
    assert float(loss(jnp.asarray(LOGITS))) == pytest.approx(expected.mean(), rel=1e-5)
    weighted = ml.losses.focal(
        jnp.asarray(LOGITS), examples(), gamma=gamma, class_weights=WEIGHTS
    )
    expected = (WEIGHTS[LABELS] * expected).mean()
    assert float(weighted) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label", [-1, -3, 3, 200])
@pytest.mark.parametrize("loss", [ml.losses.cross_entropy, ml.losses.focal])
@pytest.mark.parametrize("dtype", [np.int32, np.int16])
def test_a_label_outside_is_never_another_class(label, loss, dtype):
    wrong = LABELS.astype(dtype)
    wrong[5] = label
    assert np.isnan(loss(jnp.asarray(LOGITS), examples(wrong)))
    mask = jnp.arange(40) != 5
    found = jax.value_and_grad(loss)(jnp.asarray(LOGITS), examples(wrong, mask))
    right = jax.value_and_grad(loss)(jnp.asarray(LOGITS), examples(mask=mask))
    jax.tree.map(np.testing.assert_array_equal, found, right)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("cross_entropy", {"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ("cross_entropy", {"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ("cross_entropy", {"label_smoothing": float("nan")}, "label_smoothing is nan"),
        ("cross_entropy", {"class_weights": [1.0, 2.0]}, r"shape \(2,\); expected \[3\]"),
        ("cross_entropy", {"class_weights": [1.0, -2.0, 1.0]}, "weights of 0 or more"),
        ("focal", {"class_weights": [1.0, np.nan, 1.0]}, "finite weights"),
        ("focal", {"gamma": 0.5}, "gamma is 0.5"),
        ("focal", {"gamma": "2"}, "gamma is '2'"),
        ("huber", {"delta": 0}, "delta is 0; expected a number above 0"),
    ],
)
def test_options_out_of_range(loss, options, message):
    y = jnp.zeros((40, 3)) if loss == "huber" else LABELS
    with pytest.raises(ValueError, match=message):
        getattr(ml.losses, loss)(jnp.asarray(LOGITS), examples(y), **options)


@pytest.mark.parametrize("loss", ["mse", "huber", "cross_entropy", "focal"])
def test_outputs_that_are_no_array(loss):
    with pytest.raises(TypeError, match=r"dict and .*loss of your own"):
        getattr(ml.losses, loss)({"mean": jnp.zeros(3)}, examples())


def test_which_losses_take_classes():
    assert losses.takes_classes(functools.partial(ml.losses.focal, gamma=1.0))
    assert losses.takes_classes(ml.losses.cross_entropy)
    assert not losses.takes_classes(ml.losses.mse) and not losses.takes_classes(None)


def test_absent_classes_never_win_in_any_dtype():
    support = blobs(jax.random.key(0)).support
    small = ml.Examples.of(support.x, support.y.astype(jnp.uint8))
    assert ml.losses.present_classes(small, 300).sum() == 3
    for dtype in ("float16", "bfloat16", "float32"):
        absent = jnp.zeros(3, bool)
        logits = ml.losses.mask_absent(jnp.zeros((2, 3), dtype), absent)
        assert np.isfinite(jax.nn.softmax(logits).astype(jnp.float32)).all()


TAKES = {
    "mse": ml.losses.mse,
    "huber": ml.losses.huber,
    "cross_entropy": ml.losses.cross_entropy,
    "focal": ml.losses.focal,
    "accuracy": ml.metrics.accuracy,
    "f1": ml.metrics.f1,
}


@pytest.mark.parametrize("name", TAKES)
def test_labels_alone_are_no_examples(name):
    words = rf"{name} got a ArrayImpl for the examples.*{name}\(outputs, ml.Examples.of"
    with pytest.raises(TypeError, match=words):
        TAKES[name](jnp.zeros((3, 3)), jnp.arange(3))


@pytest.mark.parametrize("name", ["accuracy", "f1"])
@pytest.mark.parametrize(
    ("shape", "y", "words"),
    [
        ((3, 3), jnp.zeros(3), "targets of dtype float32"),
        ((2, 3), jnp.arange(3), "outputs of shape"),
        ((3,), jnp.arange(3), "logits of shape"),
        ((3, 3), jnp.zeros((3, 1), int), "labels of shape"),
    ],
)
def test_metrics_of_classes_say_what_they_take(name, shape, y, words):
    examples = ml.Examples.of(jnp.zeros((3, 1)), y)
    with pytest.raises((TypeError, ValueError), match=f"{name} got .*{words}|{words}"):
        TAKES[name](jnp.zeros(shape), examples)


def test_macro_accuracy_of_logits_that_are_no_numbers_is_none():
    y = jnp.asarray([0, 0, 1])
    logits = jnp.asarray([[2.0, 0.0], [2.0, 0.0], [jnp.nan, 0.0]])
    rows = ml.Examples.of(jnp.zeros((3, 1)), y)
    assert jnp.isnan(ml.metrics.macro_accuracy(logits, rows))
    # A masked row has no part in it.
    masked = ml.Examples.of(rows.x, y, jnp.asarray([True, True, False]))
    assert float(ml.metrics.macro_accuracy(logits, masked)) == 1.0
