"""The network over codes of categories, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml

FIELDS = ((3, 1), (4, 3))
CODES = jnp.asarray([[2, 0, 3, -1], [0, -1, -1, -1], [-1, 1, 1, 2]])


def _made(**options):
    network = ml.models.FieldMLP(fields=FIELDS, dim=2, widths=(5,), **options)
    model = ml.from_linen(network)
    return model, model.init(jax.random.key(0), CODES)


@pytest.mark.usefixtures("x64")
def test_fields_are_means_of_their_embeddings_side_by_side():
    model, variables = _made(offset=3.0)
    params = jax.tree.map(np.asarray, variables.params)
    first, second = params["embed"][:3], params["embed"][3:]
    zero = np.zeros(2)
    h = np.stack(
        [
            np.r_[first[2], (second[0] + second[3]) / 2],
            np.r_[first[0], zero],
            np.r_[zero, (2 * second[1] + second[2]) / 3],
        ]
    )
    layer, head = params["decision_0"], params["head"]
    h = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
    expected = h @ head["kernel"] + head["bias"] + 3.0
    outputs, _ = model.apply(variables, CODES)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    named, _ = model.apply(variables, {"content": CODES, "user": jnp.zeros(3, jnp.int32)})
    np.testing.assert_array_equal(named, outputs)


def test_embeddings_that_no_row_has_get_no_gradient():
    model, variables = _made()

    def total(params):
        return model.apply(ml.Variables(params=params, state={}), CODES)[0].sum()

    grads = jax.grad(total)(variables.params)
    # Row 0 stands for none in the lookup, and code 0 of the first field is used once.
    alone = CODES.at[1, 0].set(-1)

    def without(params):
        return model.apply(ml.Variables(params=params, state={}), alone)[0].sum()

    assert (
        not grads["embed"][1].any()
        and not jax.grad(without)(variables.params)["embed"][0].any()
    )
    assert np.isfinite(grads["embed"]).all() and grads["embed"][3 + 3].any()


@pytest.mark.parametrize("code", [3, 99, -2, -7])
def test_a_code_that_no_field_has_is_no_number(code):
    model, variables = _made()
    outputs, _ = model.apply(variables, CODES.at[1, 0].set(code))
    np.testing.assert_array_equal(np.isnan(outputs[:, 0]), [False, True, False])


@pytest.mark.usefixtures("x64")
def test_parameters_are_float32_as_those_of_other_networks():
    _, variables = _made()
    assert {leaf.dtype for leaf in jax.tree.leaves(variables.params)} == {
        jnp.dtype("float32")
    }


def test_parts_that_adapt_are_found_by_their_names():
    _, variables = _made()
    assert sorted(variables.params) == ["decision_0", "embed", "head"]


def test_what_is_no_code_is_refused():
    model, variables = _made()
    for given in (CODES * 1.0, {"codes": CODES}, [[0, 1, 2, 3]]):
        with pytest.raises(TypeError, match="expected codes"):
            model.apply(variables, given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fields": ()}, "one field or more"),
        ({"fields": ((3, 1),)}, r"expected \[N, 1\]"),
        ({"fields": FIELDS, "dim": 0}, "dim is 0"),
        ({"fields": FIELDS, "widths": (0,)}, "widths is 0"),
    ],
)
def test_settings_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        ml.from_linen(ml.models.FieldMLP(**options)).init(jax.random.key(0), CODES)


def test_dropout_hides_whole_fields_in_training_alone():
    network = ml.models.FieldMLP(fields=((3, 1),) * 200, dim=2, widths=(), dropout=0.25)
    model, codes = ml.from_linen(network), jnp.ones((1, 200), jnp.int32)
    variables = model.init(jax.random.key(0), codes)
    weights = jnp.tile(jnp.array([[1.0], [1000.0]]), (200, 1))
    params = {
        "embed": jnp.ones((600, 2)),
        "head": {"kernel": weights, "bias": jnp.zeros(1)},
    }
    variables = ml.Variables(params=params, state=variables.state)
    hidden, _ = model.apply(variables, codes, key=jax.random.key(1), train=True)
    shown, _ = model.apply(variables, codes, key=jax.random.key(1))
    np.testing.assert_allclose(shown, 200 * 1001.0, rtol=1e-5)
    fields = 0.75 * float(hidden[0, 0]) / 1001  # both numbers of a vector, or none
    assert abs(fields - round(fields)) < 1e-2 and 130 <= round(fields) <= 170
    with pytest.raises(ValueError, match="dropout is 1; expected a share"):
        ml.from_linen(ml.models.FieldMLP(fields=FIELDS, dropout=1)).init(
            jax.random.key(0), CODES
        )
