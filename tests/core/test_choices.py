"""Metrics of a choice: ties count against it, and masked rows do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml

K = 101


def _examples(num, mask=None):
    y = np.zeros((num, K), np.float32)
    y[:, 0] = 1
    return ml.Examples.of(jnp.zeros((num, 1)), jnp.asarray(y), mask)


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan])
def test_constant_scores_hit_nothing(value):
    scores = jnp.full((4, K), value, jnp.float32)
    for metric in (ml.metrics.hit_rate(10), ml.metrics.choice_ndcg(10)):
        assert float(metric(scores, _examples(4))) == 0


def test_constant_scores_with_random_ties_hit_as_chance_does():
    noise = 1e-6 * jax.random.uniform(jax.random.key(0), (20_000, K))
    found = float(ml.metrics.hit_rate(10)(noise, _examples(20_000)))
    # Four standard errors of a share.
    assert abs(found - 10 / K) < 4 * np.sqrt(0.1 * 0.9 / 20_000)


def test_metrics_are_those_of_a_sorted_list():
    scores = np.random.default_rng(1).normal(size=(50, K)).astype(np.float32)
    mask = np.arange(50) % 3 > 0
    places = [sorted(row, reverse=True).index(row[0]) + 1 for row in scores.tolist()]
    for at in (1, 5, 10, K):
        kept = [p for p, there in zip(places, mask, strict=True) if there]
        hits = np.mean([p <= at for p in kept])
        gains = np.mean([1 / np.log2(1 + p) if p <= at else 0 for p in kept])
        given = (jnp.asarray(scores), _examples(50, jnp.asarray(mask)))
        assert float(ml.metrics.hit_rate(at)(*given)) == pytest.approx(hits, abs=1e-6)
        assert float(ml.metrics.choice_ndcg(at)(*given)) == pytest.approx(gains, abs=1e-6)


def test_targets_that_are_no_choice_give_nan_and_shapes_are_checked():
    scores = jnp.zeros((1, 3))
    for y in ([[1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]], [[0.5, 1.0, 0.0]]):
        examples = ml.Examples.of(jnp.zeros((1, 1)), jnp.array(y))
        assert np.isnan(float(ml.metrics.hit_rate(1)(scores, examples)))
    with pytest.raises(ValueError, match="expected scores"):
        ml.metrics.hit_rate(1)(scores[0], ml.Examples.of(scores[0], scores[0]))
    with pytest.raises(ValueError, match="at is 0"):
        ml.metrics.choice_ndcg(0)
