"""The command that writes the features of a trained encoder."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_folders import image_set

import metalearn as ml
from benchmarks.features import _images, is_encoder
from metalearn.core.model import Variables
from metalearn.data.images.image_sets import fewer_classes


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


@dataclasses.dataclass(frozen=True)
class Made:
    """An application of ten training classes, each with one image, of its own grey."""

    train_classes: int | None = None

    def load(self, data_dir, parts):
        names = tuple("abcdefghij")
        data = image_set({"train": names, "test": names})
        num = self.train_classes
        return data if num is None else fewer_classes(data, num)


def test_unseen_classes_are_those_that_the_run_left_out():
    fewer = Made(train_classes=4)
    grey = lambda data: set(data.part("train").images[:, 0, 0, 0].tolist())
    seen, unseen = _images(fewer, None, False), _images(fewer, None, True)
    assert len(grey(seen)) == 4
    assert grey(unseen) == set(range(10)) - grey(seen)
    np.testing.assert_array_equal(unseen.part("train").labels, np.arange(6))
    assert unseen.part("test").num_classes == 10


@pytest.mark.parametrize("train_classes", [None, 10])
def test_unseen_classes_of_a_run_on_all_are_refused(train_classes):
    with pytest.raises(SystemExit, match="trained on all 10 classes"):
        _images(Made(train_classes), None, True)
