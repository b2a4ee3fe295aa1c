"""What a learner tells about itself: its own plain values, and nothing else."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalearn.core.learner import MetaLearner, config_of, describe, hashable


def test_plain_values_are_kept():
    config = config_of("mine", a=True, b=2, c=0.5, d="word", e=None)
    expected = {"name": "mine", "a": True, "b": 2, "c": 0.5, "d": "word", "e": None}
    assert describe(MetaLearner(None, None, None, None, config)) == expected
    assert hash(config) == hash(config_of("mine", a=True, b=2, c=0.5, d="word", e=None))


def test_numbers_of_numpy_become_plain_ones():
    """They are not JSON, and a checkpoint holds the description as JSON."""
    found = dict(config_of("mine", a=np.int64(2), b=np.float32(0.5), c=np.bool_(True)))
    assert found == {"name": "mine", "a": 2, "b": 0.5, "c": True}
    assert [type(found[name]) for name in "abc"] == [int, float, bool]


def test_a_tuple_of_plain_values_is_a_string():
    assert dict(config_of("mine", tree=(2, np.int32(1)), none=()))["tree"] == "(2, 1)"
    assert dict(config_of("mine", none=()))["none"] == "()"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (jnp.ones(()), "ArrayImpl"),
        ([1, 2], "list"),
        ((1, [2]), "list"),
        (lambda x: x, "function"),
        (optax.sgd(0.1), "GradientTransformation"),
        (np.ones(2), "ndarray"),
    ],
)
def test_anything_else_is_refused_with_its_option(value, kind):
    with pytest.raises(TypeError, match=f"the option scale of a learner is a .*{kind}"):
        config_of("mine", scale=value)


def test_a_learner_without_a_description_is_custom():
    assert describe(MetaLearner(None, None, None, None)) == {"name": "custom"}


def test_what_cannot_be_a_key_is_the_same_key_again():
    """A loss whose class is compared by its fields; every validation gives it anew."""

    @dataclasses.dataclass
    class Loss:
        scale: float

        def __call__(self, outputs, examples):
            return self.scale

    first, second = Loss(1.0), Loss(1.0)
    assert hashable(first) == hashable(first)
    assert len({hashable(first), hashable(first), hashable(second)}) == 2
    assert hashable(first)(None, None) == 1.0
    assert hashable(len) is len and hashable(None) is None
