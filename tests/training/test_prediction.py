"""`ml.predict`: probabilities of new inputs, by the examples of a support set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml

WAYS, SIZE = 4, 3
NOTHING = ml.Variables(params={}, state={})


def nearest_mean(ways=WAYS, transductive=False):
    """A learner without anything to learn: logits are minus squared distances."""

    def adapt(variables, support, *, key=None):
        members = jax.nn.one_hot(support.y, ways) * support.mask[:, None]
        return (members.T @ support.x) / jnp.maximum(members.sum(0), 1)[:, None]

    def predict(means, x, *, key=None, mask=None):
        x = x - x.mean(0, keepdims=True) if transductive else x
        return -jnp.sum((x[:, None] - means[None]) ** 2, -1)

    return ml.MetaLearner(None, adapt, predict, None)


def examples(labels, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels, np.int32)
    return ml.Examples.of(rng.normal(size=(len(labels), SIZE)).astype(np.float32), labels)


def by_hand(support, x):
    """Probabilities of a nearest mean, over the classes that have support."""
    inputs, labels, mask = map(np.asarray, (support.x, support.y, support.mask))
    rows = []
    for point in np.asarray(x, np.float64):
        weights = np.zeros(WAYS)
        for c in range(WAYS):
            members = inputs[(labels == c) & mask]
            if len(members):
                weights[c] = np.exp(-np.sum((point - members.mean(0)) ** 2))
        rows.append(weights / weights.sum())
    return np.stack(rows)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [0, 0, 0, 1, 2, 3, 3], [0, 1], [3, 1, 1], [2]]
)
def test_probabilities_are_those_by_hand(labels):
    support, x = examples(labels), examples(range(6), seed=1).x
    found = ml.predict(nearest_mean(), NOTHING, support, x)
    expected = by_hand(support, x)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found.classes, expected.argmax(-1))
    absent = sorted(set(range(WAYS)) - set(labels))
    assert (found.probabilities[:, absent] == 0).all()
    assert found.probabilities.dtype == np.float32
    assert found.outputs.shape == (6, WAYS)
    assert not found.transductive


def test_masked_examples_are_none():
    support = ml.pad_examples(examples([0, 1]), 5)
    x = examples(range(3), seed=1).x
    found = ml.predict(nearest_mean(), NOTHING, support, x)
    np.testing.assert_allclose(found.probabilities, by_hand(support, x), rtol=1e-5)


def test_bytes_are_scaled_as_samplers_do():
    rng = np.random.default_rng(0)
    pixels, new = (rng.integers(0, 256, (4, SIZE), np.uint8) for _ in range(2))
    labels = np.arange(4, dtype=np.int32)
    bytes_ = ml.predict(nearest_mean(), NOTHING, ml.Examples.of(pixels, labels), new)
    floats = ml.Examples.of(pixels.astype(np.float32) / 255, labels)
    expected = ml.predict(nearest_mean(), NOTHING, floats, new.astype(np.float32) / 255)
    np.testing.assert_allclose(bytes_.probabilities, expected.probabilities, rtol=1e-6)


def test_transductive_is_measured():
    learner = nearest_mean(transductive=True)
    assert ml.predict(
        learner, NOTHING, examples([0, 1]), examples([0, 1], 1).x
    ).transductive


def test_values_have_no_probabilities():
    def adapt(variables, support, *, key=None):
        return jnp.linalg.lstsq(support.x, support.y)[0]

    def predict(weights, x, *, key=None, mask=None):
        return x @ weights

    x = examples(range(5)).x
    support = ml.Examples.of(x, x @ jnp.array([[1.0], [-2.0], [0.5]]))
    learner = ml.MetaLearner(None, adapt, predict, None)
    found = ml.predict(learner, NOTHING, support, X + 1)
    np.testing.assert_allclose(found.outputs, [[-0.5], [-0.5]], rtol=1e-4)
    assert found.probabilities is None and found.classes is None


SUPPORT = examples([0, 1])
X = np.zeros((2, SIZE), np.float32)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("maml", NOTHING, SUPPORT, X), TypeError, "learner is a str"),
        ((nearest_mean(), {}, SUPPORT, X), TypeError, "expected Variables"),
        ((nearest_mean(), NOTHING, (X, [0, 1]), X), TypeError, "expected ml.Examples"),
        ((nearest_mean(), NOTHING, SUPPORT, X[0]), ValueError, r"x\[None\]"),
        ((nearest_mean(), NOTHING, SUPPORT, X[:0]), ValueError, "one or more"),
        ((nearest_mean(), NOTHING, SUPPORT, np.float32(1)), ValueError, "x has shapes"),
        ((nearest_mean(), NOTHING, SUPPORT, X[:, :2]), ValueError, "the same sizes"),
        ((nearest_mean(), NOTHING, SUPPORT, {"a": X}), ValueError, "x has shapes"),
        (
            (nearest_mean(), NOTHING, SUPPORT, X / np.nan),
            ValueError,
            "x holds 6 non-finite",
        ),
        (
            (nearest_mean(), NOTHING, ml.Examples.of(X / np.nan, np.array([0, 1])), X),
            ValueError,
            "support.x holds 6",
        ),
        (
            (nearest_mean(), NOTHING, SUPPORT, X.astype(np.uint8)),
            ValueError,
            "float32 and uint8; bytes are mapped to 0..1",
        ),
        (
            (nearest_mean(), NOTHING, SUPPORT, np.ma.masked_equal(X, 0)),
            ValueError,
            "x is a masked array",
        ),
        ((nearest_mean(), NOTHING, examples([0, 4]), X), ValueError, r"holds 0\.\.4"),
        ((nearest_mean(), NOTHING, examples([-1, 1]), X), ValueError, r"labels 0\.\.3"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_mistakes_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ml.predict(*arguments)


def test_a_second_call_compiles_nothing(count_compilations):
    learner, support = nearest_mean(), examples([0, 1])
    ml.predict(learner, NOTHING, support, X)
    count_compilations()
    ml.predict(learner, NOTHING, support, X + 1)
    assert count_compilations() == 0


BYTES = np.random.default_rng(0).integers(0, 256, (WAYS, SIZE), np.uint8)


@pytest.mark.parametrize(
    ("support", "x", "fine"),
    [
        (BYTES, BYTES, True),
        (BYTES, BYTES / 255, True),
        (BYTES / 255, BYTES, True),
        (BYTES * 1.0, BYTES * 1.0, True),  # one form, whatever it is
        (BYTES, BYTES * 1.0, False),
        (BYTES * 1.0, BYTES, False),
        (BYTES, (BYTES - 128) / 64, False),
        (BYTES, BYTES.astype(np.int32), False),
    ],
)
def test_support_and_inputs_are_on_one_scale(support, x, fine):
    """Bytes become 0..1, and floats stay as they are."""
    support, x = (a.astype(np.float32) if a.dtype == float else a for a in (support, x))
    given = ml.Examples.of(support, np.arange(WAYS))
    if fine:
        found = ml.predict(nearest_mean(), NOTHING, given, x)
        assert found.classes.tolist() == list(range(WAYS))
    else:
        with pytest.raises(ValueError, match=r"mapped to 0\.\.1.*Give both in one form"):
            ml.predict(nearest_mean(), NOTHING, given, x)
