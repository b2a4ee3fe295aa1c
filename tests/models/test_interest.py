"""The interest network, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml

N, L, K, D = 3, 4, 5, 2


def _x(num_candidates=K):
    random = np.random.default_rng(0)

    def records(places):
        return {
            "vector": random.normal(size=(N, places, D)).astype(np.float32),
            "category": random.integers(3, size=(N, places)).astype(np.int32),
            "hour": random.integers(24, size=(N, places)).astype(np.int32),
            "numbers": random.normal(size=(N, places, 2)).astype(np.float32),
        }

    seen = np.arange(L)[None] < np.array([[4], [2], [1]])
    made = {"history": records(L), "seen": seen, "candidates": records(num_candidates)}
    made["returns"] = random.random((N, num_candidates, L)) < 0.4
    return jax.tree.map(jnp.asarray, made)


def _model(**options):
    sizes = {"categories": 3, "dim": 2, "attention": 3, "widths": (4,), **options}
    return ml.from_linen(ml.models.InterestNetwork(**sizes))


def _by_hand(params, x, returns=False):
    """Logits, one candidate and one record at a time."""
    params, x = jax.tree.map(np.asarray, (params, x))

    def record(of, n, i):
        parts = [of["vector"][n, i], of["numbers"][n, i]]
        parts += [params[name][of[name][n, i]] for name in ("category", "hour")]
        return np.concatenate(parts)

    found = np.zeros(x["candidates"]["hour"].shape)
    for n, k in np.ndindex(found.shape):
        q, scores, past = record(x["candidates"], n, k), [], []
        for i in np.flatnonzero(x["seen"][n]):
            v = record(x["history"], n, i)
            h = q @ params["of_candidate"]["kernel"] + params["of_candidate"]["bias"]
            h = h + v @ params["of_past"]["kernel"] + (q * v) @ params["of_both"]
            weigh = params["weigh"]
            scores.append((np.maximum(h, 0) @ weigh["kernel"] + weigh["bias"])[0])
            past.append(v)
        weights = np.exp(scores) / np.exp(scores).sum()
        h = np.concatenate([weights @ np.stack(past), q])
        if returns:
            last = np.flatnonzero(x["seen"][n])[-1]
            ages = [last + 1 - i for i in range(last + 1) if x["returns"][n, k, i]]
            lately = 1 / min(ages) if ages else 0
            h = np.concatenate([h, [np.log1p(len(ages)), lately]])
        deep, head = params["decision_0"], params["head"]
        h = np.maximum(h @ deep["kernel"] + deep["bias"], 0)
        found[n, k] = (h @ head["kernel"] + head["bias"])[0]
    return found


# Both orders of the products.
@pytest.mark.parametrize(("num_candidates", "returns"), [(2, True), (40, False)])
def test_logits_are_those_of_a_loop(num_candidates, returns):
    x, model = _x(num_candidates), _model(returns=returns)
    variables = model.init(jax.random.key(0), x)
    outputs, _ = model.apply(variables, x)
    expected = _by_hand(variables.params, x, returns)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_of_training_alone():
    x, model = _x(), _model(dropout=0.5)
    variables = model.init(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(1))
    noisy = [model.apply(variables, x, key=key, train=True)[0] for key in keys]
    calm = [model.apply(variables, x, key=key)[0] for key in keys]
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3
    np.testing.assert_array_equal(calm[0], calm[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"dropout": 1.0}, "dropout is 1.0"), ({"categories": 0}, "categories is 0")],
)
def test_sizes_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        _model(**options).init(jax.random.key(0), _x())


def test_inputs_without_returns_are_refused_where_they_are_read():
    x = _x()
    del x["returns"]
    with pytest.raises(ValueError, match=r"candidates, history, seen; expected .*returns"):
        _model(returns=True).init(jax.random.key(0), x)
