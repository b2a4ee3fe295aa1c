"""Networks of clicks, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml

FIELDS = ((3, 1), (4, 3))
X = {
    "content": jnp.asarray([[2, 0, 3, -1], [0, -1, -1, -1], [-1, 1, 1, 2]]),
    "user": jnp.asarray([1, -1, 0]),
    "item": jnp.asarray([0, 4, -1]),
    "history": jnp.asarray([[3, 1, -1], [0, -1, -1], [4, 2, 2]]),
}


def _network(kind, **options):
    sizes = {"users": 2, "items": 5, "dim": 2, "widths": (4,), "attention": 3, **options}
    return ml.models.ClickNetwork(kind=kind, fields=FIELDS, **sizes)


def _made(kind):
    model = ml.from_linen(_network(kind))
    variables = model.init(jax.random.key(0), X)
    key = jax.random.key(1)
    params = jax.tree.map(lambda a: jax.random.normal(key, a.shape), variables.params)
    return model, ml.Variables(params=params, state=variables.state)


def _by_hand(params, kind):
    """The logits, row by row and pair by pair."""

    def means(table, row):
        first = [row[0]] if row[0] >= 0 else []
        second = [3 + code for code in row[1:] if code >= 0]
        size = table.shape[1]
        return [
            np.mean([table[i] for i in rows], axis=0) if rows else np.zeros(size)
            for rows in (first, second)
        ]

    def interest(history, of_item):
        total = np.zeros(2)
        for number in history[history >= 0]:
            v = params["item"][number]
            h = of_item @ params["of_candidate"]["kernel"] + params["of_candidate"]["bias"]
            h = h + v @ params["of_past"]["kernel"] + (of_item * v) @ params["of_both"]
            weigh = params["weigh"]
            total = total + (np.maximum(h, 0) @ weigh["kernel"] + weigh["bias"])[0] * v
        return total

    logits = []
    names = ("content", "user", "item", "history")
    for row, user, item, history in zip(*(np.asarray(X[name]) for name in names)):
        of_item = params["new_item"] if item < 0 else params["item"][item]
        of_user = np.zeros(2) if user < 0 else params["user"][user]
        vectors = [*means(params["embed"], row), of_item, of_user]
        pairs = [vectors[i] @ vectors[j] for i in range(4) for j in range(i + 1, 4)]
        logit = params["bias"][0]
        if kind not in ("pnn", "din"):
            logit += sum(means(params["wide"], row))[0]
        if kind in ("fm", "deepfm"):
            logit += sum(pairs)
        if kind != "fm":
            more = [pairs] if kind == "pnn" else []
            more += [interest(history, of_item)] if kind == "din" else []
            h = np.concatenate(vectors + more)
            deep, head = params["deep_0"], params["head"]
            h = np.maximum(h @ deep["kernel"] + deep["bias"], 0)
            logit += (h @ head["kernel"] + head["bias"])[0]
        logits.append(logit)
    return np.asarray(logits)


@pytest.mark.parametrize("kind", ["fm", "wide_deep", "deepfm", "pnn", "din"])
def test_logits_are_those_of_the_paper(kind):
    model, variables = _made(kind)
    params = jax.tree.map(np.asarray, variables.params)
    outputs, _ = model.apply(variables, X)
    assert outputs.shape == (3, 1)
    np.testing.assert_allclose(outputs[:, 0], _by_hand(params, kind), rtol=1e-4, atol=1e-4)


def test_numbers_that_no_table_has_give_no_number():
    model, variables = _made("din")
    for name in ("user", "item", "history"):
        for number in (9, -3):
            x = {**X, name: X[name].at[0].set(number)}
            found = np.isnan(model.apply(variables, x)[0][:, 0])
            np.testing.assert_array_equal(found, [True, False, False])


def test_a_known_item_moves_its_own_vector_and_a_new_one_the_other():
    model, variables = _made("deepfm")

    def total(params, row):
        outputs = model.apply(ml.Variables(params=params, state={}), X)[0]
        return outputs[row, 0]

    known = jax.grad(total)(variables.params, 0)
    new = jax.grad(total)(variables.params, 2)
    assert known["item"][0].any() and not known["item"][1:].any()
    assert not known["new_item"].any()
    assert new["new_item"].any() and not new["item"].any()


def test_an_item_of_the_history_alone_moves_its_vector():
    model, variables = _made("din")

    def total(params):
        return model.apply(ml.Variables(params=params, state={}), X)[0][0, 0]

    moved = jax.grad(total)(variables.params)["item"].any(1)
    np.testing.assert_array_equal(moved, [True, True, False, True, False])


def test_generator_reads_items_alone():
    network = ml.models.VectorGenerator(fields=FIELDS, begin=1, dim=2)
    model = ml.from_linen(network)
    variables = model.init(jax.random.key(0), X)
    assert variables.params["embed"].shape == (7, 2)
    outputs, _ = model.apply(variables, X)
    other = {**X, "content": X["content"].at[:, 0].set(1)}
    np.testing.assert_array_equal(outputs, model.apply(variables, other)[0])
    matrix = np.asarray(variables.params["generate"]["kernel"])
    table = np.asarray(variables.params["embed"])
    expected = np.tanh((table[3] + table[6]) / 2 @ matrix) / 5
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="begin is 2"):
        ml.from_linen(ml.models.VectorGenerator(fields=FIELDS, begin=2)).init(
            jax.random.key(0), X
        )


def test_settings_are_checked():
    for options, said in (({"dim": 0}, "dim is 0"), ({"items": 0}, "items is 0")):
        with pytest.raises(ValueError, match=said):
            ml.from_linen(_network("fm", **options)).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="kind is 'dcn'"):
        ml.from_linen(_network("dcn")).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="expected history too"):
        without = {name: x for name, x in X.items() if name != "history"}
        ml.from_linen(_network("din")).init(jax.random.key(0), without)
