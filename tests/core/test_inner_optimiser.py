"""Checks of inner optimisers: what they find on optax, what they say, what they cost."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import blobs, plain

import metalearn as ml
from metalearn.core import checks

CE = ml.losses.cross_entropy


def of_update(change):
    """An optimiser without a state."""
    return optax.GradientTransformation(
        lambda params: (), lambda grads, state, params=None: (change(grads), state)
    )


def each(fn):
    return lambda grads: jax.tree.map(fn, grads)


OPTIMISERS = {
    "sgd": (lambda: optax.sgd(0.1), True),
    "nesterov": (lambda: optax.sgd(0.1, momentum=0.9, nesterov=True), True),
    "clip": (lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1)), True),
    "decay": (lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), True),
    "norm": (lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), False),
    "adam": (lambda: optax.adam(0.1), False),
    "adam with a root": (lambda: optax.adam(0.1, eps_root=1e-8), True),
    "square root": (lambda: of_update(each(lambda g: jnp.sqrt(jnp.abs(g)))), False),
    "inside a call": (lambda: of_update(each(jax.jit(lambda g: jnp.abs(g) ** 0.5))), False),
    "another structure": (lambda: of_update(lambda grads: grads["w"]), None),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_finite_slopes_at_a_zero_gradient(name):
    make, expected = OPTIMISERS[name]
    found = checks.is_differentiable(make())
    assert found is expected


def test_second_order_learners_refuse_what_has_no_slope():
    ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.1))
    for name in ("adam", "square root"):
        with pytest.raises(ValueError, match="eps_root"):
            ml.maml(plain(), ml.losses.cross_entropy, OPTIMISERS[name][0]())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_answer_is_kept_for_each_precision(dtype):
    """Where 32 bits have no slope any more, 64 do."""
    tiny = of_update(each(lambda g: jnp.sqrt(g**2 + jnp.asarray(1e-60, g.dtype))))
    assert checks.is_differentiable(tiny) is False
    with jax.enable_x64(dtype == jnp.float64):
        assert checks.is_differentiable(tiny) is (dtype == jnp.float64)


def test_learners_are_made_without_compiling(count_compilations):
    key, adam = jax.random.key(0), optax.adam(0.1, eps_root=1e-8)
    task = blobs(key)
    count_compilations()
    for opt in (optax.sgd(0.1, momentum=0.9), adam, optax.rmsprop(0.1, eps=1e-3)):
        with contextlib.suppress(ValueError):
            ml.maml(plain(), CE, opt)
    assert count_compilations() == 0
    learner = ml.maml(plain(), CE, adam)
    jax.eval_shape(learner.init, key, task)
    assert count_compilations() == 0


# -- Every transformation of optax ----------------------------------------------------

# Whether two updates have derivatives by gradients and parameters, at zeros of both; `None`
# where the update needs more than gradients.
OF_OPTAX = {
    "adabelief": (lambda: optax.adabelief(0.1), True),
    "adadelta": (lambda: optax.adadelta(0.1), True),
    "adafactor": (lambda: optax.adafactor(0.1), False),
    "adagrad": (lambda: optax.adagrad(0.1), True),
    "adam": (lambda: optax.adam(0.1), False),
    "adam with a root": (lambda: optax.adam(0.1, eps_root=1e-8), True),
    "adamax": (lambda: optax.adamax(0.1), True),
    "adamaxw": (lambda: optax.adamaxw(0.1), True),
    "adamw": (lambda: optax.adamw(0.1), False),
    "adan": (lambda: optax.adan(0.1), True),
    "amsgrad": (lambda: optax.amsgrad(0.1), False),
    "fromage": (lambda: optax.fromage(0.1), True),
    "lamb": (lambda: optax.lamb(0.1), False),
    "lars": (lambda: optax.lars(0.1), False),
    "lion": (lambda: optax.lion(0.1), True),
    "nadam": (lambda: optax.nadam(0.1), False),
    "novograd": (lambda: optax.novograd(0.1), False),
    "optimistic": (lambda: optax.optimistic_gradient_descent(0.1), True),
    "radam": (lambda: optax.radam(0.1), False),
    "rmsprop": (lambda: optax.rmsprop(0.1), True),
    "rmsprop outside": (lambda: optax.rmsprop(0.1, eps_in_sqrt=False), False),
    "rmsprop centred": (lambda: optax.rmsprop(0.1, centered=True), True),
    "rprop": (lambda: optax.rprop(0.1), True),
    "sgd": (lambda: optax.sgd(0.1), True),
    "nesterov": (lambda: optax.sgd(0.1, momentum=0.9, nesterov=True), True),
    "sign_sgd": (lambda: optax.sign_sgd(0.1), True),
    "sm3": (lambda: optax.sm3(0.1), True),
    "yogi": (lambda: optax.yogi(0.1), True),
    "clip": (lambda: optax.clip(1.0), True),
    "clip_by_block_rms": (lambda: optax.clip_by_block_rms(1.0), False),
    "clip_by_global_norm": (lambda: optax.clip_by_global_norm(1.0), False),
    "adaptive_grad_clip": (lambda: optax.adaptive_grad_clip(0.1), False),
    "normalize_by_update_norm": (lambda: optax.normalize_by_update_norm(), False),
    "scale_by_trust_ratio": (lambda: optax.scale_by_trust_ratio(), False),
    "scale_by_param_block_norm": (lambda: optax.scale_by_param_block_norm(), True),
    "scale_by_param_block_rms": (lambda: optax.scale_by_param_block_rms(), True),
    "scale_by_rss": (lambda: optax.scale_by_rss(), True),
    "scale_by_rss from 0": (lambda: optax.scale_by_rss(0.0), True),
    "scale_by_stddev": (lambda: optax.scale_by_stddev(), True),
    "scale_by_factored_rms": (lambda: optax.scale_by_factored_rms(), False),
    "centralize": (lambda: optax.centralize(), True),
    "trace": (lambda: optax.trace(0.9), True),
    "ema": (lambda: optax.ema(0.9), True),
    "zero_nans": (lambda: optax.zero_nans(), True),
    "add_decayed_weights": (lambda: optax.add_decayed_weights(0.1), True),
    "apply_every": (lambda: optax.apply_every(2), True),
    "keep_params_nonnegative": (lambda: optax.keep_params_nonnegative(), True),
    "schedule": (lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 5)), True),
    "injected": (lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), True),
    "lbfgs": (lambda: optax.lbfgs(0.1), None),
    "polyak_sgd": (lambda: optax.polyak_sgd(), None),
    "lookahead": (lambda: optax.lookahead(optax.sgd(0.1), 5, 0.5), None),
    "reduce_on_plateau": (lambda: optax.contrib.reduce_on_plateau(), None),
    "backtracking": (lambda: optax.scale_by_backtracking_linesearch(5), None),
}


@pytest.mark.parametrize("name", OF_OPTAX)
def test_the_probe_agrees_with_derivatives_that_jax_computes(name):
    make, expected = OF_OPTAX[name]
    opt = make()
    assert checks.is_differentiable(opt) is expected
    if expected is None:
        return

    def moved(grads, params):
        start, state = params, opt.init(params)
        for _ in range(2):
            updates, state = opt.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(params[k] - start[k]) for k in params)

    slopes = jax.jit(jax.vmap(jax.grad(moved, argnums=(0, 1))))
    some = {"k": jnp.array([[0.3, 0.0, -2.0]]), "b": jnp.array([0.0, 1.0])}
    none = jax.tree.map(jnp.zeros_like, some)
    half = {"k": some["k"], "b": none["b"]}
    cases = [(some, some), (none, some), (half, some), (some, none), (none, none)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes(*stacked)))
    assert finite is expected


NEEDY = {
    "lbfgs": (lambda: optax.lbfgs(0.1), "value, grad, value_fn"),
    "polyak_sgd": (lambda: optax.polyak_sgd(), "value"),
    "lookahead": (lambda: optax.lookahead(optax.sgd(0.1), 5, 0.5), "LookaheadParams"),
    "reduce_on_plateau": (
        lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
        "reduce_on_plateau",
    ),
    "momo": (lambda: optax.contrib.momo(), "value"),
    "momo_adam": (lambda: optax.contrib.momo_adam(), "value"),
}
LEARNERS = {
    "maml": lambda opt: ml.maml(plain(), CE, opt),
    "fomaml": lambda opt: ml.fomaml(plain(), CE, opt),
    "reptile": lambda opt: ml.reptile(plain(), CE, opt, num_steps=1),
    "imaml": lambda opt: ml.imaml(plain(), CE, opt),
    "fine_tune": lambda opt: ml.fine_tune(plain(), CE, opt, num_steps=1),
    "warpgrad": lambda opt: ml.warpgrad(plain(), CE, opt),
    "emaml": lambda opt: ml.emaml(plain(), CE, opt, combine="probabilities"),
    "platipus": lambda opt: ml.platipus(plain(), CE, opt, combine="probabilities"),
    "es_maml": lambda opt: ml.es_maml(plain(), CE, opt),
}


@pytest.mark.parametrize("name", NEEDY)
def test_optimisers_that_need_more_than_gradients_are_refused(name):
    make, words = NEEDY[name]
    with pytest.raises(TypeError, match=f"inner optimiser.*{words}.*optax.sgd"):
        ml.fomaml(plain(), CE, make())


RATES = {
    "NaN": (lambda: optax.sgd(float("nan")), "not finite.*rate"),
    "infinite": (lambda: optax.sgd(float("inf")), "not finite.*rate"),
    "negative": (lambda: optax.sgd(-0.1), "up the gradient.*negative"),
    "zero": (lambda: optax.sgd(0.0), "moves nothing.*rate is 0"),
    "negative Adam": (lambda: optax.adam(-0.1, eps_root=1e-8), "up the gradient"),
    "NaN Adam": (lambda: optax.adam(np.nan, eps_root=1e-8), "not finite.*rate"),
    "no rate": (lambda: optax.scale_by_adam(eps_root=1e-8), "up the gradient"),
    "schedule": (lambda: optax.sgd(optax.constant_schedule(np.nan)), "not finite"),
    "schedule of 0": (lambda: optax.sgd(optax.linear_schedule(0.0, 0.0, 5)), "is 0"),
    "injected": (
        lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=-1.0),
        "up the gradient",
    ),
    "in a chain": (
        lambda: optax.chain(optax.clip(1.0), optax.add_decayed_weights(0.1), optax.sgd(-1)),
        "up the gradient",
    ),
}


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("name", ["NaN", "negative", "zero"])
def test_every_learner_refuses_rates_that_lead_nowhere(learner, name):
    make, words = RATES[name]
    with pytest.raises(ValueError, match=words):
        LEARNERS[learner](make())


@pytest.mark.parametrize("name", RATES)
def test_rates_that_lead_nowhere_are_diagnosed(name):
    make, words = RATES[name]
    with pytest.raises(ValueError, match=words):
        ml.fomaml(plain(), CE, make(), num_steps=3)


@pytest.mark.parametrize(
    "opt",
    [
        optax.sgd(optax.linear_schedule(0.0, 0.1, 5)),  # a warm-up
        optax.chain(optax.add_decayed_weights(10.0), optax.sgd(0.1)),
        optax.sign_sgd(0.1),
        optax.noisy_sgd(0.1, key=0),
        optax.lion(0.1),
        optax.apply_if_finite(optax.sgd(0.1), 3),
    ],
)
def test_good_rates_pass(opt):
    ml.fomaml(plain(), CE, opt, num_steps=5)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("given", [0.01, 1, "sgd", None, optax.sgd, [optax.sgd(0.1)]])
def test_what_is_no_optimiser_is_named(learner, given):
    words = type(given).__name__
    if learner == "es_maml" and given is None:
        words = "None"
    with pytest.raises(TypeError, match=rf"(?s){words}.*optax"):
        LEARNERS[learner](given)
    if given == 0.01:
        with pytest.raises(TypeError, match=r"optax.sgd\(0.01\)"):
            LEARNERS[learner](given)


def by_name(params):
    return {"body": {"w": True, "b": False}, "head": {"w": True, "b": False}}


MASKED = {
    "decay, dictionary": lambda: optax.chain(
        optax.add_decayed_weights(0.1, mask=by_name(None)), optax.sgd(0.1)
    ),
    "decay, function": lambda: optax.chain(
        optax.add_decayed_weights(0.1, mask=lambda p: dict.fromkeys(p.keys(), True)),
        optax.sgd(0.1),
    ),
    "masked": lambda: optax.masked(optax.sgd(0.1), by_name),
    "partition": lambda: optax.partition(
        {"fast": optax.sgd(0.1), "slow": optax.sgd(0.01)},
        lambda p: {**dict.fromkeys(p.keys(), "slow"), "head": "fast"},
    ),
    "by path": lambda: optax.masked(
        optax.sgd(0.1),
        lambda p: jax.tree_util.tree_map_with_path(lambda k, _: k[0].key == "head", p),
    ),
}


@pytest.mark.parametrize("learner", ["maml", "fomaml", "reptile", "fine_tune"])
@pytest.mark.parametrize("name", MASKED)
def test_masks_by_name_are_judged_on_the_parameters(learner, name):
    made = LEARNERS[learner](MASKED[name]())
    task = blobs(jax.random.key(0))
    variables = jax.eval_shape(made.init, jax.random.key(1), task)
    jax.eval_shape(made.adapt, variables, task.support)


def test_masks_of_other_names_are_refused_with_the_paths():
    opt = optax.masked(optax.sgd(0.1), {"encoder": True})
    made = ml.fomaml(plain(), CE, opt)
    with pytest.raises(
        ValueError, match=r"(?s)does not take the parameters.*body/b, body/w"
    ):
        jax.eval_shape(made.init, jax.random.key(1), blobs(jax.random.key(0)))


def test_adam_behind_a_mask_is_still_found():
    opt = optax.masked(optax.adam(0.1), by_name)
    made = ml.maml(plain(), CE, opt)
    with pytest.raises(ValueError, match="eps_root"):
        jax.eval_shape(made.init, jax.random.key(1), blobs(jax.random.key(0)))


def test_hyper_parameters_start_finite():
    made = ml.fomaml(plain(), CE, optax.sgd, inner_hparams=jnp.nan)
    with pytest.raises(ValueError, match="inner_hparams is nan"):
        made.init(jax.random.key(1), blobs(jax.random.key(0)))


BY_SHAPE = {
    "partition": lambda: optax.partition(
        {"moves": optax.sgd(0.1), "rests": optax.set_to_zero()},
        lambda p: jax.tree.map(lambda w: "moves" if w.size > 8 else "rests", p),
    ),
    "masked": lambda: optax.chain(
        optax.sgd(0.1),
        optax.masked(optax.set_to_zero(), lambda p: jax.tree.map(lambda w: w.size <= 8, p)),
    ),
}


@pytest.mark.parametrize("learner", ["maml", "fomaml", "reptile", "fine_tune"])
@pytest.mark.parametrize("name", BY_SHAPE)
def test_rules_by_shape_that_choose_nothing_of_a_sample_are_no_rate_of_zero(learner, name):
    """Only large leaves move, and the sample that judges a rate has small ones."""
    made = LEARNERS[learner](BY_SHAPE[name]())
    task = blobs(jax.random.key(0))
    variables = jax.eval_shape(made.init, jax.random.key(1), task)
    jax.eval_shape(made.adapt, variables, task.support)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_rate_of_zero_is_still_found(name):
    opt = {
        "sgd": optax.sgd(0.0),
        "momentum": optax.sgd(0.0, momentum=0.9),
        "adam": optax.adam(0.0, eps_root=1e-8),
    }[name]
    with pytest.raises(ValueError, match="its rate is 0"):
        LEARNERS["maml"](opt)
