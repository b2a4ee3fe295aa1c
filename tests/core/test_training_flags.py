"""Training flags: their sense, and what they do in a module."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import INPUTS

import metalearn as ml
from metalearn.core import flags

KEY = jax.random.key(0)
CE = ml.losses.cross_entropy
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, INPUTS)), jnp.float32)

SENSES = {
    "train": (True, "both"),
    "training": (True, "both"),
    "is_training": (True, "both"),
    "is_train": (True, "both"),
    "train_mode": (True, "both"),
    "Training": (True, "both"),
    "in_training": (True, "both"),
    "not_training": (False, "both"),
    "eval": (False, "both"),
    "is_eval": (False, "both"),
    "evaluation": (False, "both"),
    "eval_mode": (False, "both"),
    "inference": (False, "both"),
    "inference_mode": (False, "both"),
    "test": (False, "both"),
    "is_test": (False, "both"),
    "testing": (False, "both"),
    "deterministic": (False, "noise"),
    "use_running_average": (False, "batch"),
    "use_running_stats": (False, "batch"),
    "use_batch_stats": (True, "batch"),
    "update_stats": (True, "batch"),
    "mask": None,
    "train_steps": None,
    "test_data": None,
    "pretrained": None,
    "context": None,
}


@pytest.mark.parametrize("name", SENSES)
def test_the_sense_of_a_flag_is_read_from_its_name(name):
    found = flags.known(name)
    assert (found if found is None else found[1:]) == SENSES[name]


def calling(name, body):
    """A module whose `__call__` has a flag of this name."""

    def __call__(self, x, **given):
        return body(self, x, given[name])

    parameters = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY),
    ]
    __call__.__signature__ = inspect.Signature(parameters)
    return type("Net", (nn.Module,), {"__call__": nn.compact(__call__)})()


FLAGS = [name for name, sense in SENSES.items() if sense is not None]


@pytest.mark.parametrize("name", FLAGS)
def test_linen_modules_train_and_evaluate_whatever_their_flag_is_called(name):
    when_true = SENSES[name][0]

    def body(self, x, flag):
        evaluation = flag != when_true
        x = nn.BatchNorm(use_running_average=evaluation, momentum=0.5)(x)
        return nn.Dropout(0.5, deterministic=evaluation)(x)

    model = ml.from_linen(calling(name, body))
    assert f"{name}={when_true} in training" in repr(model)
    variables = model.init(KEY, X)
    still, state = model.apply(variables, X, key=KEY)
    np.testing.assert_allclose(still, X, rtol=1e-4)  # averages of 0 and 1
    assert state is variables.state
    outputs, moved = model.apply(variables, X, key=KEY, train=True)
    assert (np.asarray(outputs) == 0).any()  # dropped
    mean = moved["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * np.asarray(X).mean(0), rtol=1e-4, atol=1e-6)


def test_a_name_that_tells_nothing_is_given_with_its_sense():
    def body(self, x, frozen):
        return nn.BatchNorm(use_running_average=frozen)(x)

    module = calling("frozen", body)
    with pytest.raises(ValueError, match=r"moves its state.*frozen=True.*'not NAME'"):
        ml.from_linen(module, train_kw="frozen").init(KEY, X)
    model = ml.from_linen(module, train_kw="not frozen")
    assert "frozen=False in training" in repr(model)
    variables = model.init(KEY, X)
    assert np.any(
        model.apply(variables, X, train=True)[1]["batch_stats"]["BatchNorm_0"]["mean"]
    )
    with pytest.raises(TypeError, match=r"'not cold'.*takes x, frozen"):
        ml.from_linen(module, train_kw="not cold")
    with pytest.raises(TypeError, match="train_kw is 3"):
        ml.from_linen(module, train_kw=3)


class AlwaysDropping(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(2)(x))


class AlwaysOfTheBatch(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=False)(x)


class Swapped(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dropout(0.5, deterministic=not deterministic)(x)


class NnxDropping(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(x, deterministic=False)


class NnxOfTheBatch(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(INPUTS, rngs=rngs)

    def __call__(self, x):
        return self.norm(x, use_running_average=False)


def drop(params, x, key, deterministic=True):
    kept = jax.random.bernoulli(jax.random.key(1) if key is None else key, 0.5, x.shape)
    return jnp.where(kept, x, 0) if deterministic else x  # the wrong way round


BAD = {
    "linen that always drops": (lambda: ml.from_linen(AlwaysDropping()), "draws at random"),
    "linen of the batch": (lambda: ml.from_linen(AlwaysOfTheBatch()), "moves its state"),
    "linen swapped": (lambda: ml.from_linen(Swapped()), "deterministic=False in training"),
    "nnx that always drops": (lambda: ml.from_nnx(NnxDropping), "draws at random"),
    "nnx of the batch": (lambda: ml.from_nnx(NnxOfTheBatch), "nnx/norm/mean"),
    "function": (lambda: ml.from_apply_fn(lambda k, x: {}, drop), "draws at random"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_still_in_evaluation_is_refused(name):
    make, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(make().init, KEY, X)


def test_who_says_that_there_is_no_flag_gets_what_he_asked_for():
    model = ml.from_linen(AlwaysOfTheBatch(), train_kw=None)
    variables = model.init(KEY, X)
    assert model.apply(variables, X)[1] is variables.state


def test_a_rate_of_zero_is_no_noise():
    """The key enters the program and changes nothing."""
    model = ml.from_apply_fn(
        lambda key, x: {}, lambda p, x, key: x + 0 * jax.random.normal(key, x.shape)
    )
    model.init(KEY, X)


class LinenField(nn.Module):
    training: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=not self.training)(nn.Dense(2)(x))


class LinenOtherName(nn.Module):
    @nn.compact
    def __call__(self, x, dropout=False):
        return nn.Dropout(0.5)(nn.Dense(2)(x), deterministic=not dropout)


class LinenAnyArgument(nn.Module):
    @nn.compact
    def __call__(self, x, **given):
        evaluation = np.bool_(given.get("deterministic", True))
        return nn.Dropout(0.5, deterministic=evaluation)(nn.Dense(2)(x))


class LinenWord(nn.Module):
    @nn.compact
    def __call__(self, x, mode="eval"):
        return nn.Dropout(0.5, deterministic=mode == "eval")(nn.Dense(2)(x))


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        attend = nn.MultiHeadDotProductAttention(1, dropout_rate=0.5, deterministic=True)
        return nn.Dense(2)(attend(x[:, None], x[:, None])[:, 0])


class NnxWord(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, mode="eval"):
        return self.dropout(x, deterministic=mode == "eval")


class NnxArray(nnx.Module):
    """Its attribute is a bool of NumPy, which is a flag like Python's."""

    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.training = np.bool_(False)

    def __call__(self, x):
        return self.dropout(x, deterministic=not self.training)


class LinenPosition(nn.Module):
    @nn.compact
    def __call__(self, x, on=0):
        return nn.Dropout(0.5)(nn.Dense(2)(x), 1 - on)


class LinenFrozen(nn.Module):
    """One layer is off for good, and one drops in training."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.1, deterministic=True)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class LinenTwice(nn.Module):
    """One layer, called with noise and without."""

    @nn.compact
    def __call__(self, x, train=False):
        drop = nn.Dropout(0.5)
        return drop(x, deterministic=True) + drop(x, deterministic=not train)


IDLE = [LinenField(), LinenOtherName(), LinenAnyArgument(), LinenWord(), LinenAttention()]


@pytest.mark.parametrize("module", [*IDLE, LinenPosition()], ids=str)
def test_dropout_that_never_drops_is_refused(module):
    model = ml.from_linen(module)
    with pytest.raises(ValueError, match=r"drops nothing in training.*rate 0\.5"):
        model.init(KEY, X)
    ml.from_linen(module, train_kw=None).init(KEY, X)  # unless it is meant so


@pytest.mark.parametrize("module", [LinenFrozen(), LinenTwice()], ids=str)
def test_dropout_of_which_a_part_is_off_is_taken(module):
    model = ml.from_linen(module)
    variables = model.init(KEY, X)
    outputs = [model.apply(variables, X, key=KEY, train=on)[0] for on in (True, False)]
    assert not np.allclose(*outputs)


def test_idle_dropout_of_nnx_is_warned_of():
    with pytest.warns(UserWarning, match=r"nothing at random.*dropout \(rate 0\.5\)"):
        ml.from_nnx(NnxWord).init(KEY, X)


@pytest.mark.parametrize("rate", [0.0, 1.0, None])
def test_dropout_of_nnx_that_draws_nothing_by_its_rate_is_taken(rate):
    class Unused(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(rate, rngs=rngs)

        def __call__(self, x):
            return x

    ml.from_nnx(Unused).init(KEY, X)


class Stacked(nnx.Module):
    """Three layers of dropout as one, each with a key of its own."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return nnx.Dropout(0.5, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return layer(x)

        return forward(x, self.layers)


def test_stacked_layers_of_nnx_draw_each_from_its_own_key():
    model = ml.from_nnx(Stacked)
    x = np.ones((40, 50), np.float32)
    variables = model.init(KEY, x)
    kept = np.asarray(model.apply(variables, x, key=KEY, train=True)[0])
    assert set(np.unique(kept)) == {0.0, 8.0}  # doubled three times
    assert abs((kept > 0).mean() - 1 / 8) < 0.03  # 1/2, were their draws the same
    np.testing.assert_array_equal(model.apply(variables, x, key=KEY)[0], x)


def test_a_flag_of_numpy_is_a_flag():
    model = ml.from_nnx(NnxArray)
    variables = model.init(KEY, X)
    assert (np.asarray(model.apply(variables, X, key=KEY, train=True)[0]) == 0).any()
    np.testing.assert_array_equal(model.apply(variables, X, key=KEY)[0], X)


def test_other_names_of_dropout_are_given():
    model = ml.from_linen(LinenOtherName(), train_kw="dropout")
    variables = model.init(KEY, X)
    assert (np.asarray(model.apply(variables, X, key=KEY, train=True)[0]) == 0).any()
