"""Metrics of ratings and of their order, beside scikit-learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import metalearn as ml


def _examples(y, mask=None):
    y = jnp.asarray(y)
    return ml.Examples.of(jnp.zeros(len(y)), y, None if mask is None else jnp.asarray(mask))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("at", [None, 1, 3, 50])
@pytest.mark.parametrize("tied", [False, True])
def test_ndcg_is_that_of_scikit_learn(at, tied):
    rng, metric = np.random.default_rng(0), jax.jit(ml.metrics.ndcg(at))
    for _ in range(5):
        y = rng.integers(0, 6, 12).astype(float)
        scores = rng.integers(0, 4, 12).astype(float) if tied else rng.normal(size=12)
        expected = sklearn_metrics.ndcg_score([2**y - 1], [scores], k=at)
        # The best order of scikit-learn has no ties, and neither has a tie a price here.
        np.testing.assert_allclose(metric(scores, _examples(y)), expected, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tied", [False, True])
def test_auc_is_that_of_scikit_learn(tied):
    rng, metric = np.random.default_rng(1), jax.jit(ml.metrics.auc)
    for _ in range(5):
        y = np.r_[0.0, 1.0, rng.integers(0, 2, 18)]
        scores = rng.integers(0, 4, 20).astype(float) if tied else rng.normal(size=20)
        expected = sklearn_metrics.roc_auc_score(y, scores)
        np.testing.assert_allclose(metric(scores, _examples(y)), expected, atol=1e-12)


@pytest.mark.parametrize(
    "metric", [ml.metrics.mae, ml.metrics.ndcg(), ml.metrics.ndcg(2), ml.metrics.auc]
)
@pytest.mark.parametrize("lie", [-1e9, 0.4, 1e9])
def test_masked_rows_do_not_count(metric, lie):
    y, scores = np.asarray([1.0, 0, 1, 0, 1]), np.asarray([0.3, 0.9, 0.6, 0.1, 0.1])
    alone = metric(jnp.asarray(scores), _examples(y))
    for hidden in (0.0, 1.0):
        more = _examples([hidden, *y, hidden], [False, *[True] * 5, False])
        found = metric(jnp.asarray([lie, *scores, lie]), more)
        np.testing.assert_allclose(found, alone, rtol=1e-6)


def test_a_constant_predictor_is_worth_chance():
    y = np.asarray([1.0, 0, 0, 1, 0, 0])
    assert ml.metrics.auc(jnp.zeros(6), _examples(y)) == 0.5
    rng, metric = np.random.default_rng(2), jax.jit(ml.metrics.ndcg(3))
    random = [
        metric(jnp.asarray(rng.permutation(6) * 1.0), _examples(y)) for _ in range(400)
    ]
    same = metric(jnp.zeros(6), _examples(y))
    assert abs(np.mean(random) - same) < 3 * np.std(random) / 20


def test_a_prediction_that_is_no_number_makes_none_of_the_metric():
    y = [1.0, 0.0, 1.0]
    for metric in (ml.metrics.mae, ml.metrics.ndcg(2), ml.metrics.auc):
        assert np.isnan(metric(jnp.asarray([jnp.nan, 0.0, 1.0]), _examples(y)))
        # Unless it is masked.
        more = _examples([*y, 1.0], [True, True, True, False])
        alone = metric(jnp.asarray([2.0, 0.0, 1.0]), _examples(y))
        np.testing.assert_allclose(metric(jnp.asarray([2.0, 0, 1, jnp.nan]), more), alone)


def test_auc_of_many_and_unequal_classes_keeps_its_digits_in_float32():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=100_000).astype(np.float32)
    y = np.ones(100_000, np.float32)
    y[:5] = 0
    expected = sklearn_metrics.roc_auc_score(y, scores)
    found = ml.metrics.auc(jnp.asarray(scores), _examples(y))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_equal_metrics_share_programs():
    assert ml.metrics.ndcg(3) == ml.metrics.ndcg(3) != ml.metrics.ndcg(2)
    assert hash(ml.metrics.ndcg(3)) == hash(ml.metrics.ndcg(3))


def test_nothing_to_order_is_no_number():
    assert np.isnan(ml.metrics.ndcg()(jnp.arange(3.0), _examples([1.0, -1.0, 2.0])))
    assert np.isnan(ml.metrics.auc(jnp.arange(3.0), _examples([1.0, 1.0, 1.0])))
    assert np.isnan(ml.metrics.auc(jnp.arange(3.0), _examples([1.0, 0.0, 0.5])))
    assert np.isnan(ml.metrics.ndcg()(jnp.arange(3.0), _examples([0.0, 0.0, 0.0])))


def test_mae_of_columns_and_rows():
    y = jnp.asarray([[1.0], [3.0], [5.0]])
    examples = ml.Examples.of(jnp.zeros((3, 1)), y, jnp.asarray([True, True, False]))
    assert ml.metrics.mae(jnp.zeros((3, 1)), examples) == 2.0
    assert ml.metrics.mae(jnp.full((3, 1), 2.0), examples) == 1.0


def test_shapes_and_places_are_checked():
    with pytest.raises(ValueError, match="at is 0"):
        ml.metrics.ndcg(0)
    wide = ml.Examples.of(jnp.zeros((3, 1)), jnp.zeros((3, 2)))
    for metric in (ml.metrics.auc, ml.metrics.ndcg()):
        with pytest.raises(ValueError, match="one score an example"):
            metric(jnp.zeros((3, 2)), wide)
    with pytest.raises(ValueError, match="must be equal"):
        ml.metrics.mae(jnp.zeros(3), wide)


@pytest.mark.parametrize(
    ("name", "higher"), [("query/mae", False), ("query/auc", True), ("query/ndcg@3", True)]
)
def test_metrics_say_their_direction(name, higher):
    assert ml.core.metrics.higher_is_better(name) is higher
