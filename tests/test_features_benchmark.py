"""The command that writes the features of a trained encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import metalearn as ml
from benchmarks.features import is_encoder
from metalearn.core.model import Variables


def test_variables_of_an_encoder_alone_are_told_from_those_with_a_head():
    encoder = ml.from_linen(ml.models.MLP(None, widths=(4,)))
    x = jnp.ones((2, 3))
    variables = encoder.init(jax.random.key(0), x)
    with_head = Variables(params={"encoder": variables.params, "head": {}}, state={})
    wide = ml.from_linen(ml.models.MLP(None, widths=(5,))).init(jax.random.key(0), x)
    assert is_encoder(encoder, variables, x)
    assert not is_encoder(encoder, with_head, x)
    assert not is_encoder(encoder, wide, x)
    assert not is_encoder(None, variables, x)
