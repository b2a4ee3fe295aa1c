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
    first, second = params["embed_0"], params["embed_1"]
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
    assert not grads["embed_0"][1].any()  # the row that stands for none is 0
    assert np.isfinite(grads["embed_1"]).all() and grads["embed_1"][3].any()


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
    assert sorted(variables.params) == ["decision_0", "embed_0", "embed_1", "head"]


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
