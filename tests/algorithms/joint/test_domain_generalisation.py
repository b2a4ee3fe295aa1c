"""MLDG and MetaReg by parts: limits, expansions to first order, finite differences."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import compiled
from tiny import INPUTS, WAYS, centred, plain, tanh_net

import metalearn as ml
from metalearn.core.task import take

pytestmark = pytest.mark.usefixtures("x64")
CE = ml.losses.cross_entropy
DOMAINS, ROWS = 2, 3
KEY = jax.random.key(3)


def _task():
    rng = np.random.default_rng(0)

    def part(num):
        x = jnp.asarray(rng.normal(size=(num, INPUTS)))
        return ml.Examples.of(x, jnp.asarray(rng.integers(0, WAYS, num)))

    info = {"domains": jnp.asarray([2, 0]), "held_out": jnp.asarray(1, jnp.int32)}
    return ml.Task(support=part(DOMAINS * ROWS), query=part(ROWS), info=info)


def _estimate(learner, variables, task):
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    return compiled(learner).estimate(variables, batch, key=jax.random.key(0))


def _start(learner, task):
    """Variables in float64, with which weights of norm 0 do not occur."""
    found = learner.init(KEY, task)
    return jax.tree.map(
        lambda leaf: np.float64(leaf) + 0.01 if leaf.dtype.kind == "f" else leaf, found
    )


def _mean_loss(params, x, y):
    """Cross-entropy by NumPy."""
    hidden = np.tanh(x @ params["body"]["w"] + params["body"]["b"])
    logits = hidden @ params["head"]["w"] + params["head"]["b"]
    logits = logits - logits.max(1, keepdims=True)
    chosen = logits[np.arange(len(y)), y]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - chosen))


def _parts(task):
    """F and G of parameters, as functions of jax."""
    loss = lambda params, rows: CE(tanh_net(params, rows.x), rows)
    shares = [
        jax.tree.map(lambda leaf, d=d: leaf[d * ROWS : (d + 1) * ROWS], task.support)
        for d in range(DOMAINS)
    ]
    train = lambda params: sum(loss(params, rows) for rows in shares)
    return train, lambda params: loss(params, task.query)


def _equal(found, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-9, **tolerance}),
        found,
        expected,
    )


def _along(tree, direction, step):
    return jax.tree.map(lambda p, d: p + step * d, tree, direction)


def _direction(tree, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), tree)


def _dot(one, other):
    return sum(
        float(jnp.vdot(a, b)) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other))
    )


# -- MLDG ------------------------------------------------------------------------------


def _mldg(**options):
    task = _task()
    learner = ml.mldg(plain(), CE, **options)
    variables = _start(learner, task)
    found = _estimate(learner, variables, task)
    return found.grads["model"], variables.params["model"], task


def test_without_the_held_out_domain_it_is_the_sum_over_the_others():
    grads, params, task = _mldg(beta=0.0, inner_rate=0.7)
    _equal(grads, jax.jit(jax.grad(_parts(task)[0]))(params))


def test_without_a_virtual_step_it_is_a_weighted_sum():
    grads, params, task = _mldg(beta=0.3, inner_rate=0.0)
    train, test = _parts(task)
    _equal(grads, jax.jit(jax.grad(lambda p: train(p) + 0.3 * test(p)))(params))


def test_to_first_order_in_the_rate_it_rewards_gradients_that_agree():
    rate = 1e-5
    grads, params, task = _mldg(beta=1.0, inner_rate=rate)
    train, test = _parts(task)

    def agreement(p):
        pairs = jax.tree.map(jnp.vdot, jax.grad(train)(p), jax.grad(test)(p))
        return sum(jax.tree.leaves(pairs))

    plain_sum = jax.jit(jax.grad(lambda p: train(p) + test(p)))(params)
    change = jax.tree.map(lambda a, b: (a - b) / rate, grads, plain_sum)
    _equal(
        change,
        jax.tree.map(np.negative, jax.jit(jax.grad(agreement))(params)),
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_gradient_is_that_of_the_whole_objective():
    """By finite differences of F and G in NumPy, F by domain."""
    rate, beta = 0.4, 0.8
    grads, params, task = _mldg(beta=beta, inner_rate=rate)
    x, y = np.asarray(task.support.x), np.asarray(task.support.y)
    slope = jax.jit(jax.grad(_parts(task)[0]))

    def objective(params):
        moved = jax.tree.map(np.asarray, _along(params, slope(params), -rate))
        params = jax.tree.map(np.asarray, params)
        shares = [slice(d * ROWS, (d + 1) * ROWS) for d in range(DOMAINS)]
        train = sum(_mean_loss(params, x[rows], y[rows]) for rows in shares)
        query = np.asarray(task.query.x), np.asarray(task.query.y)
        return train + beta * _mean_loss(moved, *query)

    for seed in range(3):
        to, step = _direction(params, seed), 1e-5
        ends = [objective(_along(params, to, sign * step)) for sign in (1, -1)]
        assert _dot(grads, to) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_first_order_drops_the_hessian_term_alone():
    rate, beta = 0.4, 0.8
    whole, params, task = _mldg(beta=beta, inner_rate=rate)
    cut, _, _ = _mldg(beta=beta, inner_rate=rate, first_order=True)
    train, test = _parts(task)

    @jax.jit
    def bent(params):
        moved = _along(params, jax.grad(train)(params), -rate)
        to = jax.grad(test)(moved)
        return jax.jvp(jax.grad(train), (params,), (to,))[1]

    curved = bent(params)
    expected = jax.tree.map(lambda h: -rate * beta * h, curved)
    _equal(jax.tree.map(jnp.subtract, whole, cut), expected, rtol=1e-7, atol=1e-12)
    assert max(float(jnp.abs(h).max()) for h in jax.tree.leaves(expected)) > 1e-2


def test_masked_rows_count_in_no_domain():
    task = _task()
    mask = jnp.asarray([True, False, True, True, True, False])
    one = ml.Examples.of(task.support.x, task.support.y, mask)
    other = ml.Examples.of(jnp.where(mask[:, None], one.x, 7.0), one.y, mask)
    learner = ml.mldg(plain(), CE, inner_rate=0.4)
    variables = _start(learner, task)
    found = [
        _estimate(learner, variables, ml.Task(support=s, query=task.query, info=task.info))
        for s in (one, other)
    ]
    _equal(found[0].grads, found[1].grads)
    # The mean of a domain is over its valid rows.
    rows = lambda at: ml.Examples.of(one.x[jnp.asarray(at)], one.y[jnp.asarray(at)])
    params = variables.params["model"]
    expected = [CE(tanh_net(params, r.x), r) for r in (rows([0, 2]), rows([3, 4]))]
    assert float(found[0].metrics["fit/loss"][0]) == pytest.approx(float(sum(expected)) / 2)


@pytest.mark.parametrize("make", [ml.mldg, ml.metareg])
def test_unequal_shares_are_refused(make):
    task = _task()
    info = {**task.info, "domains": jnp.arange(4)}
    options = {"pretrain_steps": 1} if make is ml.metareg else {}
    learner = make(plain(), CE, **options)
    bad = ml.Task(support=task.support, query=task.query, info=info)
    variables = learner.init(KEY, task)
    with pytest.raises(ValueError, match=r"info\['domains'\] has shape .*6 rows"):
        _estimate(learner, variables, bad)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"inner_rate": -0.1}, "inner_rate is -0.1"), ({"beta": float("nan")}, "beta is nan")],
)
def test_numbers_of_mldg_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        ml.mldg(plain(), CE, **options)


def test_running_averages_are_those_of_the_parameters_that_predict():
    """And not of those after a virtual step, nor of the held-out domain alone."""
    task, found = _task(), []
    for rate in (0.0, 5.0):
        learner = ml.mldg(centred(), CE, inner_rate=rate)
        variables = _start(learner, task)
        found.append(_estimate(learner, variables, task).state["model"])
    _equal(*found)
    far = dataclasses.replace(task.query, x=task.query.x + 9)
    other = dataclasses.replace(task, query=far)
    _equal(_estimate(learner, variables, other).state["model"], found[1])


# -- MetaReg ---------------------------------------------------------------------------

RATE, STEPS = 0.3, 2


def _metareg(**options):
    inner = {"inner_rate": RATE, "inner_steps": STEPS}
    options = {"pretrain_steps": 1, **options}
    options = {**(inner if options["pretrain_steps"] else {}), **options}
    return ml.metareg(plain(), CE, **options)


def _at(variables, step):
    state = {**variables.state, "step": jnp.asarray(step, jnp.int32)}
    return ml.Variables(params=variables.params, state=state)


def test_without_a_regulariser_the_second_phase_is_joint_training():
    task, learner = _task(), _metareg(pretrain_steps=0)
    variables = learner.init(KEY, task)
    found = _estimate(learner, variables, task)
    joint = ml.no_adaptation(plain(), CE)
    alone = ml.Variables(params=variables.params["model"], state=variables.state["model"])
    _equal(found.grads["model"], _estimate(joint, alone, task).grads)
    rest = [found.grads[name] for name in ("pilot", "heads", "regulariser")]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(rest))
    assert found.metrics["regulariser/loss"] == 0


def test_the_second_phase_has_the_weighted_absolute_values_of_the_head():
    task, learner = _task(), _metareg(pretrain_steps=0, initial_weight=0.2)
    variables = _start(learner, task)
    params = variables.params["model"]
    plain_grads = _estimate(
        ml.no_adaptation(plain(), CE), ml.Variables(params=params, state={}), task
    ).grads
    found = _estimate(learner, variables, task).grads["model"]
    _equal(found["body"], plain_grads["body"])
    weights = variables.params["regulariser"]["head"]
    expected = jax.tree.map(
        lambda g, w, p: g + w * jnp.sign(p), plain_grads["head"], weights, params["head"]
    )
    _equal(found["head"], expected)


def test_the_regulariser_descends_the_held_out_loss_after_steps_on_another_domain():
    """Steps of a head by hand, from either domain: one of the two was drawn."""
    task, learner = _task(), _metareg(initial_weight=0.1)
    variables = _start(learner, task)
    params = variables.params
    grads = _estimate(learner, variables, task).grads["regulariser"]["head"]
    body = jax.tree.map(np.asarray, params["pilot"]["body"])
    features = lambda x: np.tanh(np.asarray(x) @ body["w"] + body["b"])

    def after(weights, place):
        number = int(task.info["domains"][place])
        head = jax.tree.map(lambda leaf: np.asarray(leaf)[number], params["heads"]["head"])
        rows = slice(place * ROWS, (place + 1) * ROWS)
        h, y = (
            features(task.support.x[rows]),
            np.eye(WAYS)[np.asarray(task.support.y[rows])],
        )
        for _ in range(STEPS):
            logits = h @ head["w"] + head["b"]
            error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - y
            slope = {"w": h.T @ error / len(y), "b": error.mean(0)}
            head = {
                k: head[k] - RATE * (slope[k] + weights[k] * np.sign(head[k])) for k in head
            }
        whole = {"body": body, "head": head}
        return _mean_loss(whole, np.asarray(task.query.x), np.asarray(task.query.y))

    weights = jax.tree.map(np.asarray, params["regulariser"]["head"])
    to, step = jax.tree.map(np.asarray, _direction(weights)), 1e-5
    slopes = []
    for place in range(DOMAINS):
        ends = [after(_along(weights, to, s * step), place) for s in (1, -1)]
        slopes.append((ends[0] - ends[1]) / (2 * step))
    assert abs(slopes[0] - slopes[1]) > 1e-3
    assert min(abs(_dot(grads, to) / s - 1) for s in slopes) < 1e-6


def test_the_first_phase_trains_a_body_on_all_domains_and_a_head_on_each():
    task, learner = _task(), _metareg()
    variables = _start(learner, task)
    params = variables.params
    found = _estimate(learner, variables, task)

    def loss(body, heads):
        total = 0.0
        numbers = [*task.info["domains"].tolist(), int(task.info["held_out"])]
        for place, number in enumerate(numbers):
            at = slice(place * ROWS, (place + 1) * ROWS)
            held = place == DOMAINS
            rows = task.query if held else take(task.support, at)
            own = {k: v[number] for k, v in heads["head"].items()}
            total += CE(tanh_net({"body": body["body"], "head": own}, rows.x), rows)
        return total

    expected = jax.jit(jax.grad(loss, (0, 1)))(params["pilot"], params["heads"])
    _equal((found.grads["pilot"], found.grads["heads"]), expected, atol=1e-12)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found.grads["model"]))
    assert found.state["step"] == 1


def test_the_regulariser_is_kept_as_the_first_phase_left_it():
    """An optimiser with momentum moves it on, which the second phase does not see."""
    task, learner = _task(), _metareg(pretrain_steps=1)
    variables = learner.init(KEY, task)
    left = jax.tree.map(lambda p: p + 0.5, variables.params["regulariser"])
    params = {**variables.params, "regulariser": left}
    state = _estimate(learner, variables, task).state
    state = _estimate(learner, ml.Variables(params=params, state=state), task).state
    _equal(state["regulariser"], left)
    moved = {**params, "regulariser": jax.tree.map(lambda p: p + 9, left)}
    found = _estimate(learner, ml.Variables(params=moved, state=state), task)
    _equal(found.state["regulariser"], left)
    head = params["model"]["head"]
    expected = sum(float(jnp.abs(p).sum()) * 0.5 for p in jax.tree.leaves(head))
    assert float(found.metrics["regulariser/loss"][0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrain_steps": -1}, "pretrain_steps is -1"),
        ({"inner_rate": 0.0}, "inner_rate is 0"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"pretrain_steps": 0, "inner_steps": 3}, "inner_steps is 3, .* no effect"),
        ({"pretrain_steps": 0, "inner_rate": 0.3}, "inner_rate is 0.3, .* no effect"),
        ({"head": "nowhere"}, "selects no parameter"),
        ({"head": "[a-z]"}, "selects every parameter"),
    ],
)
def test_settings_of_metareg_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        _metareg(**options).init(KEY, _task())


def test_a_domain_without_a_head_takes_no_other_head():
    task, learner = _task(), _metareg()
    variables = _start(learner, task)
    info = {**task.info, "domains": jnp.asarray([2, 3])}
    grads = _estimate(learner, variables, dataclasses.replace(task, info=info)).grads
    assert any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(grads))
