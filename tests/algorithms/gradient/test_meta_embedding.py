"""Meta-Embedding by hand in NumPy, by finite differences, and by what must not move."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import compiled

import metalearn as ml

RATE, STEPS, DIM = 0.5, 2, 3
x64 = pytest.mark.usefixtures("x64")


def _model():
    """Logit `v . tanh(embed[code]) + b`, v the vector of the item, -1 a new one."""

    def init(key, x):
        k_item, k_new, k_embed = jax.random.split(key, 3)
        return {
            "item": jax.random.normal(k_item, (4, DIM)),
            "new_item": jax.random.normal(k_new, (DIM,)),
            "embed": jax.random.normal(k_embed, (5, DIM)),
            "bias": jnp.full((1,), 0.3),
        }

    def apply(params, x):
        known = params["item"][jnp.maximum(x["item"], 0)]
        vectors = jnp.where((x["item"] == -1)[:, None], params["new_item"][None], known)
        features = jnp.tanh(params["embed"])[x["code"]]
        return jnp.sum(vectors * features, 1, keepdims=True) + params["bias"][None]

    return ml.from_apply_fn(init, apply)


def _generator():
    """`tanh(embed[kind] W)` with the embeddings of the base model and a matrix W."""

    def init(key, x):
        k_embed, k_own = jax.random.split(key)
        return {
            "embed": jax.random.normal(k_embed, (5, DIM)),
            "own": jax.random.normal(k_own, (DIM, DIM)),
        }

    def apply(params, x):
        return jnp.tanh(params["embed"][x["kind"]] @ params["own"])

    return ml.from_apply_fn(init, apply)


def _task(item=2, seed=0):
    rng = np.random.default_rng(seed)

    def part(num):
        x = {
            "item": jnp.full((num,), item, jnp.int32),
            "code": jnp.asarray(rng.integers(0, 5, num)),
            "kind": jnp.asarray(rng.integers(0, 5, num)),
        }
        y = jnp.asarray(rng.integers(0, 2, (num, 1)), jnp.result_type(float))
        return ml.Examples.of(x, y)

    return ml.Task(support=part(4), query=part(3))


def _learner(**options):
    options = {
        "inner_opt": optax.sgd(RATE),
        "pretrain_steps": 0,
        "num_steps": STEPS,
        "generator": _generator(),
        **options,
    }
    loss = ml.losses.binary_cross_entropy
    return compiled(ml.meta_embedding(_model(), loss, **options))


def _by_hand(base, own, task, *, steps=STEPS, rate=RATE, balance=0.1):
    """The objective of the generator in NumPy."""
    support, query = task.support, task.query
    vector = np.tanh(base["embed"][np.asarray(support.x["kind"])] @ own).mean(0)

    def loss(vector, part):
        features = np.tanh(base["embed"])[np.asarray(part.x["code"])]
        logits = features @ vector + base["bias"][0]
        y = np.asarray(part.y)[:, 0]
        slope = features.T @ (1 / (1 + np.exp(-logits)) - y) / len(y)
        return np.mean(np.logaddexp(0, logits) - y * logits), slope

    cold = loss(vector, support)[0]
    for _ in range(steps):
        vector = vector - rate * loss(vector, support)[1]
    return balance * cold + (1 - balance) * loss(vector, query)[0]


def _parts(learner, task):
    variables = learner.init(jax.random.key(3), task)
    return variables, jax.tree.map(np.asarray, variables.params["model"])


def _gradient(learner, variables, task):
    found = learner.estimate(variables, ml.stack_tasks([task]), key=jax.random.key(0))
    return found


def _differences(base, own, task, **how):
    found = np.zeros_like(own)
    for place in np.ndindex(own.shape):
        moved = [own.copy(), own.copy()]
        for sign, each in zip((1, -1), moved):
            each[place] += sign * 1e-6
        values = [_by_hand(base, each, task, **how) for each in moved]
        found[place] = (values[0] - values[1]) / 2e-6
    return found


@x64
@pytest.mark.parametrize(
    "steps, rate, balance", [(STEPS, RATE, 0.1), (1, RATE, 0.0), (0, RATE, 0.3)]
)
def test_gradient_of_the_generator_by_finite_differences(steps, rate, balance):
    task = _task()
    learner = _learner(num_steps=steps, inner_opt=optax.sgd(rate), balance=balance)
    variables, base = _parts(learner, task)
    own = np.asarray(variables.params["generator"]["own"])
    found = _gradient(learner, variables, task)
    wanted = _differences(base, own, task, steps=steps, rate=rate, balance=balance)
    np.testing.assert_allclose(found.grads["generator"]["own"], wanted, atol=1e-8)
    assert sorted(found.grads["generator"]) == ["own"]
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(found.grads["model"]))


@x64
def test_cold_loss_alone_has_no_second_order_term():
    task = _task()
    grads = []
    for rate in (RATE, 5 * RATE):
        learner = _learner(balance=1.0, inner_opt=optax.sgd(rate))
        variables, _ = _parts(learner, task)
        grads.append(_gradient(learner, variables, task).grads["generator"]["own"])
    np.testing.assert_array_equal(*grads)


@x64
def test_first_phase_trains_the_base_model_on_known_items():
    task, model = _task(), _model()
    learner = _learner(pretrain_steps=5)
    variables, _ = _parts(learner, task)
    found = _gradient(learner, variables, task)
    plain = compiled(ml.no_adaptation(model, ml.losses.binary_cross_entropy))
    wanted = plain.estimate(
        ml.Variables(params=variables.params["model"], state=variables.state["model"]),
        ml.stack_tasks([task]),
        key=jax.random.key(0),
    )
    for mine, other in zip(*map(jax.tree.leaves, (found.grads["model"], wanted.grads))):
        np.testing.assert_allclose(mine, other, rtol=1e-12)
    assert jnp.any(found.grads["model"]["item"][2])
    assert not jnp.any(found.grads["model"]["new_item"])
    assert not jnp.any(found.grads["generator"]["own"])


def test_base_model_is_frozen_after_its_training_and_judges_then():
    learner = _learner(pretrain_steps=2)
    trainer = ml.meta_trainer(learner, optax.adam(0.1))
    tasks = ml.stack_tasks([_task(item, seed=item) for item in range(3)])
    state = trainer.init(jax.random.key(0), _task())
    step, params, generators, outputs = jax.jit(trainer.step), [], [], []
    for _ in range(5):
        params.append(state.variables.params["model"])
        generators.append(state.variables.params["generator"]["own"])
        adapted = learner.adapt(state.variables, _task().support)
        outputs.append((adapted.params["item"], adapted.params["embed"]))
        state, _ = step(state, tasks, key=jax.random.key(1))
    for number in range(5):
        wanted = params[min(number, 2)]
        np.testing.assert_array_equal(outputs[number][0], wanted["item"])
        np.testing.assert_array_equal(outputs[number][1], wanted["embed"])
    np.testing.assert_array_equal(generators[0], generators[2])
    assert jnp.any(generators[2] != generators[4])
    np.testing.assert_array_equal(
        state.variables.state["frozen"]["item"], params[2]["item"]
    )
    # Momenta go on, which is why the frozen params are kept apart.
    assert jnp.any(params[4]["item"] != params[2]["item"])


def test_only_the_vector_adapts_and_the_number_of_the_item_is_unread():
    task, learner = _task(), _learner()
    variables, base = _parts(learner, task)
    adapted = learner.adapt(variables, task.support)
    for name in ("item", "embed", "bias"):
        np.testing.assert_array_equal(adapted.params[name], base[name])
    assert jnp.any(adapted.params["new_item"] != base["new_item"])
    other = _task(item=0)
    again = learner.adapt(variables, other.support)
    np.testing.assert_array_equal(
        learner.predict(adapted, task.query.x), learner.predict(again, other.query.x)
    )
    for leaf in (adapted.params["new_item"], again.params["new_item"]):
        np.testing.assert_array_equal(leaf, adapted.params["new_item"])


def test_masked_rows_generate_nothing():
    task = _task()
    learner = _learner(num_steps=0)
    variables, _ = _parts(learner, task)
    fewer = jax.tree.map(lambda leaf: leaf[:2], task.support)
    mask = jnp.arange(4) < 2
    padded = dataclasses.replace(task.support, mask=mask)
    vectors = [learner.adapt(variables, s).params["new_item"] for s in (fewer, padded)]
    np.testing.assert_allclose(*vectors, rtol=1e-6)


def test_mean_and_random_starts_are_those_of_the_base_model():
    task = _task()
    found = {}
    for first in ("mean", "random"):
        learner = _learner(first=first, num_steps=0)
        variables, base = _parts(learner, task)
        found[first] = learner.adapt(variables, task.support).params["new_item"]
    np.testing.assert_allclose(found["mean"], base["item"].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(found["random"], base["new_item"])


@x64
def test_items_apart_train_the_generator_alone_and_the_others_the_base_model():
    tasks = [_task(item, seed=item) for item in range(4)]
    # Items 0..3 times the golden section, after the point: .00 .62 .24 .85.
    apart, own, base = 0.4, (0, 2), (1, 3)
    for pretrain_steps, part, kept in ((5, "model", base), (0, "generator", own)):
        learner = _learner(pretrain_steps=pretrain_steps, apart=apart)
        whole = _learner(pretrain_steps=pretrain_steps)
        variables, _ = _parts(learner, tasks[0])
        for item, task in enumerate(tasks):
            found = _gradient(learner, variables, task).grads[part]
            wanted = _gradient(whole, variables, task).grads[part]
            scale = 0 if item not in kept else 1 / (0.4 if part == "generator" else 0.6)
            for mine, other in zip(*map(jax.tree.leaves, (found, wanted))):
                np.testing.assert_allclose(mine, scale * other, rtol=1e-12)
    learner = _learner(first="mean", num_steps=0, apart=apart)
    variables, params = _parts(learner, tasks[0])
    vector = learner.adapt(variables, tasks[0].support).params["new_item"]
    np.testing.assert_allclose(vector, params["item"][[1, 3]].mean(0), rtol=1e-12)


def test_bad_options_are_refused_by_name():
    with pytest.raises(ValueError, match=r"balance is 1.5; expected a share from 0 to 1"):
        _learner(balance=1.5)
    with pytest.raises(
        ValueError, match=r"apart is 1\.0; expected a share from 0 to below 1"
    ):
        _learner(apart=1.0)
    both = {"support": _task().support, "query": _task().query}
    plain = ml.Task(**{k: ml.Examples.of(v.x["code"], v.y) for k, v in both.items()})
    with pytest.raises(ValueError, match="inputs have no entry 'item' that tells"):
        _learner(apart=0.5).init(jax.random.key(0), plain)
    with pytest.raises(ValueError, match=r"balance is 0\.5, .* with first='generated'"):
        _learner(first="mean", balance=0.5)
    with pytest.raises(ValueError, match="first is 'zero'"):
        _learner(first="zero")
    with pytest.raises(ValueError, match=r"has 0 parameters 'vector'.*Paths: bias"):
        _learner(fresh="vector").init(jax.random.key(0), _task())
    with pytest.raises(ValueError, match=r"'embed' has shape|'bias' has shape"):
        _learner(first="mean", table="bias").init(jax.random.key(0), _task())
    wide = ml.from_apply_fn(
        lambda key, x: {"own": jnp.zeros((1, 7))},
        lambda params, x: jnp.zeros((4, 1)) @ params["own"],
    )
    with pytest.raises(ValueError, match=r"gives \[4, 7\]; expected \[N, 3\]"):
        _learner(generator=wide).init(jax.random.key(0), _task())
    other = ml.from_apply_fn(
        lambda key, x: {"embed": jnp.zeros((9, DIM))},
        lambda params, x: params["embed"][x["kind"]],
    )
    with pytest.raises(ValueError, match="'embed' of the generator has the shapes"):
        _learner(generator=other).init(jax.random.key(0), _task())
