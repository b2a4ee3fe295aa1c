"""MetaDistil: the teacher's derivative, the order of steps, limits of settings."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import centred, plain, plain_init, tanh_net

import metalearn as ml

CE = ml.losses.cross_entropy
x64 = pytest.mark.usefixtures("x64")
KEY, PILOT, RATE, SOFT, HOT = jax.random.key(0), 0.7, 0.3, 0.6, 2.5
TEACHER = ml.from_apply_fn(lambda key, x: plain_init(key, x, 3, hidden=4), tanh_net)


def _task(learned=6, asked=5):
    rng = np.random.default_rng(0)

    def part(num):
        y = jnp.asarray(rng.integers(0, 3, num), jnp.int32)
        return ml.Examples.of(jnp.asarray(rng.normal(size=(num, 4))), y)

    return ml.Task(support=part(learned), query=part(asked))


@functools.cache
def _learner(network=plain, **options):
    learns = {"pilot_rate": PILOT, "teacher_rate": RATE, "teacher_opt": "sgd"}
    options = (learns if options.get("teacher_rate", RATE) else {}) | options
    options = {"soft": SOFT, "temperature": HOT, "pretrain_steps": 0, **options}
    return ml.meta_distil(network(), CE, teacher=TEACHER, **options)


def _estimate(learner, variables, task):
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    return jax.jit(learner.estimate)(variables, batch, key=KEY)


def _log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _net(params, x):
    """In NumPy."""
    hidden = np.tanh(x @ params["body"]["w"] + params["body"]["b"])
    return hidden @ params["head"]["w"] + params["head"]["b"], hidden


def _step_by_hand(student, teacher, part, soft=SOFT):
    """The gradient of the student's loss, by the chain rule, in NumPy."""
    x, y = np.asarray(part.x), np.asarray(part.y)
    logits, hidden = _net(student, x)
    theirs = np.exp(_log_softmax(_net(teacher, x)[0] / HOT))
    ours = np.exp(_log_softmax(logits / HOT))
    hard = np.exp(_log_softmax(logits)) - np.eye(3)[y]
    # T^2 KL at T: one T of the chain rule cancels.
    back = (soft * HOT * (ours - theirs) + (1 - soft) * hard) / len(y)
    below = back @ student["head"]["w"].T * (1 - hidden**2)
    return {
        "body": {"w": x.T @ below, "b": below.sum(0)},
        "head": {"w": hidden.T @ back, "b": back.sum(0)},
    }


def _quiz_by_hand(student, teacher, task):
    """The loss of the quiz after the pilot step."""
    grads = _step_by_hand(student, teacher, task.support)
    pilot = jax.tree.map(lambda p, g: p - PILOT * g, student, grads)
    logs = _log_softmax(_net(pilot, np.asarray(task.query.x))[0])
    return -logs[np.arange(5), np.asarray(task.query.y)].mean()


def _started(learner, task):
    variables = learner.init(jax.random.key(1), task)
    parts = variables.params["model"], variables.state["teacher"]
    return variables, *(jax.tree.map(np.array, part) for part in parts)


def _close(found, expected, rtol=1e-7, atol=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected
    )


@x64
def test_the_teacher_descends_the_quiz_loss_after_the_pilot_step():
    """By central differences of a pilot step in NumPy."""
    task, learner = _task(), _learner()
    variables, student, teacher = _started(learner, task)
    found = _estimate(learner, variables, task)
    size = 1e-5
    for layer in ("body", "head"):
        for name in ("w", "b"):
            expected = np.zeros_like(teacher[layer][name])
            for place in np.ndindex(expected.shape):
                values = []
                for sign in (1, -1):
                    moved = jax.tree.map(np.copy, teacher)
                    moved[layer][name][place] += sign * size
                    values.append(_quiz_by_hand(student, moved, task))
                expected[place] = (values[0] - values[1]) / (2 * size)
            after = np.asarray(found.state["teacher"][layer][name])
            slope = (teacher[layer][name] - after) / RATE
            assert np.abs(expected).max() > 1e-4
            np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-9)
    told = found.metrics["query/loss"]
    np.testing.assert_allclose(told, _quiz_by_hand(student, teacher, task))


@x64
def test_the_student_steps_from_its_start_with_the_new_teacher():
    task, learner = _task(), _learner()
    variables, student, teacher = _started(learner, task)
    found = _estimate(learner, variables, task)
    new = jax.tree.map(np.asarray, found.state["teacher"])
    _close(found.grads["model"], _step_by_hand(student, new, task.support))
    old = _step_by_hand(student, teacher, task.support)
    assert np.abs(found.grads["model"]["head"]["w"] - old["head"]["w"]).max() > 1e-5


@x64
@pytest.mark.parametrize("teacher_rate", [0.0, 1e-30])
def test_a_teacher_of_rate_zero_is_plain_distillation(teacher_rate):
    """Whether the teacher's step is left out or has no length."""
    task, learner = _task(), _learner(teacher_rate=teacher_rate)
    variables, student, teacher = _started(learner, task)
    found = _estimate(learner, variables, task)
    _close(found.state["teacher"], teacher, rtol=0, atol=10 * teacher_rate)
    _close(found.grads["model"], _step_by_hand(student, teacher, task.support))


@x64
def test_without_soft_targets_the_teacher_has_no_derivative():
    task = _task()
    # By a rate at which any derivative would be seen; Adam makes none of 0.
    learner = ml.meta_distil(plain(), CE, teacher=TEACHER, soft=0.0, pretrain_steps=0)
    variables, student, teacher = _started(learner, task)
    found = _estimate(learner, variables, task)
    _close(found.state["teacher"], teacher, rtol=0, atol=0)
    by_labels = _step_by_hand(student, teacher, task.support, soft=0.0)
    _close(found.grads["model"], by_labels)


def test_the_pilot_leaves_no_trace_in_the_state_of_the_student():
    """Running averages are those of one pass of the support set from the old ones."""
    task = jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype.kind == "f" else a, _task()
    )
    learner = _learner(network=centred)
    variables = learner.init(jax.random.key(1), task)
    state = {**variables.state, "model": {"mean": jnp.full(5, 0.3)}}
    variables = ml.Variables(params=variables.params, state=state)
    found = _estimate(learner, variables, task)
    own = ml.Variables(params=variables.params["model"], state=state["model"])
    apply = jax.jit(functools.partial(centred().apply, train=True))
    _, expected = apply(own, task.support.x, mask=task.support.mask)
    _close(found.state["model"], expected, rtol=1e-6)
    # Nothing of the length of the pilot step is left, to the last bit.
    longer = _learner(network=centred, pilot_rate=50.0)
    other = _estimate(longer, variables, task)
    np.testing.assert_array_equal(
        other.state["model"]["mean"], found.state["model"]["mean"]
    )


def test_the_first_phase_trains_the_teacher_alone():
    """By Adam on the support sets; then the moments begin anew."""
    task = _task()
    learner = _learner(pretrain_steps=2, pretrain_rate=0.05, teacher_opt="adam")
    variables, _, _ = _started(learner, task)
    opt = optax.adam(0.05)
    teacher = variables.state["teacher"]
    moments = opt.init(teacher)
    loss = lambda t: CE(tanh_net(t, task.support.x), task.support)
    step = jax.jit(jax.value_and_grad(loss))
    for _ in range(2):
        found = _estimate(learner, variables, task)
        assert not any(g.any() for g in jax.tree.leaves(found.grads))
        updates, moments = opt.update(step(teacher)[1], moments)
        teacher = optax.apply_updates(teacher, updates)
        variables = ml.Variables(params=variables.params, state=found.state)
    _close(variables.state["teacher"], teacher, rtol=1e-4, atol=1e-6)
    assert not any(m.any() for m in jax.tree.leaves(variables.state["second"]))
    found = _estimate(learner, variables, task)
    moved = found.state["teacher"]["head"]["b"] - teacher["head"]["b"]
    # A first step of Adam has the length of its rate.
    np.testing.assert_allclose(np.abs(moved), RATE, rtol=1e-2)
    assert any(g.any() for g in jax.tree.leaves(found.grads))
    assert int(found.state["step"]) == 3


def test_a_teacher_that_is_given_teaches():
    task = _task()
    taught = TEACHER.init(jax.random.key(5), task.support.x)
    learner = ml.meta_distil(plain(), CE, teacher=TEACHER, taught=taught, pretrain_steps=0)
    _close(learner.init(KEY, task).state["teacher"], taught.params, rtol=0, atol=0)


def test_soft_loss_by_hand():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 3, 4))
    mask = jnp.asarray([True, False, True])
    examples = ml.Examples.of(jnp.zeros((3, 1)), jnp.zeros(3, jnp.int32), mask)
    p, q = (_log_softmax(z[[0, 2]] / HOT) for z in (theirs, ours))
    expected = HOT**2 * (np.exp(p) * (p - q)).sum(1).mean()
    bad = jnp.asarray(ours).at[1].set(jnp.nan), jnp.asarray(theirs).at[1].set(jnp.inf)
    loss = functools.partial(ml.soft_loss, examples=examples, temperature=HOT)
    value, slopes = jax.value_and_grad(loss, (0, 1))(*bad)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_allclose(loss(bad[0], bad[0]), 0, atol=1e-6)


def test_masked_examples_do_not_count():
    task, learner = _task(), _learner()
    variables, *_ = _started(learner, task)

    def wider(part):
        x = jnp.concatenate([part.x, jnp.full((2, 4), 1e3, part.x.dtype)])
        y = jnp.concatenate([part.y, jnp.zeros(2, jnp.int32)])
        return ml.Examples.of(x, y, jnp.arange(len(y)) < len(part.y))

    wide = ml.Task(support=wider(task.support), query=wider(task.query))
    found, expected = (_estimate(learner, variables, each) for each in (wide, task))
    _close(found.grads, expected.grads, rtol=1e-3, atol=1e-5)
    _close(found.state["teacher"], expected.state["teacher"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("pretrain_steps", -1, "pretrain_steps is -1"),
        ("pretrain_rate", 0.0, "pretrain_rate is 0.0"),
        ("temperature", 0.0, "temperature is 0.0; expected a finite number above 0"),
        ("soft", 1.5, "soft is 1.5; expected a share"),
        ("soft", -0.5, "soft is -0.5"),
        ("pilot_rate", 0.0, "pilot_rate is 0.0"),
        ("teacher_rate", -1.0, "teacher_rate is -1.0"),
        ("teacher_opt", "rmsprop", "teacher_opt is 'rmsprop'"),
    ],
)
def test_settings_are_checked(option, value, said):
    with pytest.raises(ValueError, match=said):
        _learner(**{option: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"teacher_rate": 0, "pilot_rate": 0.1},
            "pilot_rate is 0.1, .* teacher_rate above",
        ),
        ({"teacher_rate": 0, "teacher_opt": "sgd"}, "teacher_opt is 'sgd', .*no effect"),
        ({"soft": 0, "temperature": 2.0}, "temperature is 2.0, .* with soft above 0"),
        ({"soft": 0, "teacher_rate": 0.1}, "teacher_rate is 0.1, .* with soft above 0"),
        ({"pretrain_steps": 0, "pretrain_rate": 0.1}, "pretrain_rate is 0.1.*at 0.001"),
    ],
)
def test_options_that_nothing_reads_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ml.meta_distil(plain(), CE, teacher=TEACHER, **options)


def test_a_student_without_a_teacher_may_say_that_its_rate_is_zero():
    ml.meta_distil(plain(), CE, soft=0, teacher_rate=0, pretrain_steps=0)


def test_networks_of_other_classes_are_refused():
    learner = ml.meta_distil(plain(4), CE, teacher=TEACHER)
    with pytest.raises(
        ValueError, match=r"student's logits are \[6, 4\] and the teacher's"
    ):
        learner.init(KEY, _task())
    with pytest.raises(TypeError, match="model"):
        ml.meta_distil(plain(), CE, teacher=3)
    with pytest.raises(TypeError, match="expected Variables"):
        ml.meta_distil(plain(), CE, taught={"w": 1})
