"""Streams of items and late labels: any reader against loops, then each learner."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms import memory
from metalearn.algorithms.memory.stream import Reader, presentations, streamed

pytestmark = pytest.mark.usefixtures("x64")

ITEMS = 7  # and as many classes, so that labels can number the items

# Its state says what was read, in which order and with which labels.
ECHO = Reader(
    init=lambda key, like, num_ways: {"rate": jnp.full((), 0.5, jnp.float32)},
    start=lambda params: jnp.zeros(ITEMS),
    step=lambda params, carry, x, label: (
        params["rate"] * carry + x + 3 * label,
        2 * carry + x - label,
    ),
    view=lambda params, x: x + 1,
)
HEAD = streamed(ECHO, ITEMS)
RATE = {"rate": np.float64(0.5)}

fit = jax.jit(lambda support: HEAD.fit(RATE, support))
shuffled = jax.jit(lambda support, key: HEAD.fit(RATE, support, key=key))


def examples(y, valid=range(ITEMS), seed=0):
    """Seven rows, and zeros where one is masked, as the builder gives them."""
    x = np.random.default_rng(seed).normal(size=(ITEMS, ITEMS))
    mask = np.isin(np.arange(ITEMS), valid)
    x, y = np.where(mask[:, None], x, 0), np.where(mask, y, 0)
    return ml.Examples.of(jnp.asarray(x), jnp.asarray(y, jnp.int32), jnp.asarray(mask))


def echo(x, y):
    """Answers, the last state and the last label of the reader, by a loop."""
    carry, label, answers = np.zeros(ITEMS), np.zeros(ITEMS), []
    for row, told in zip(np.asarray(x) + 1, np.asarray(y)):
        answers.append(2 * carry + row - label)
        carry = 0.5 * carry + row + 3 * label
        label = np.eye(ITEMS)[told]
    return np.array(answers), carry, label


def test_an_item_meets_the_label_before_and_masked_rows_do_not_exist():
    valid = np.array([0, 2, 3, 5])
    support = examples([2, 1, 0, 6, 0, 1, 0], valid)
    found = fit(support)
    answers, carry, label = echo(support.x[valid], support.y[valid])
    close(found.logits[valid], answers)
    close((found.carry, found.label), (carry, label))
    nothing = fit(examples([0] * ITEMS, []))
    assert not np.any(nothing.carry) and not np.any(nothing.label)


def test_each_query_is_the_next_item_by_itself():
    support, query = examples([2, 0, 1, 1, 0, 5, 6]), examples([0] * ITEMS, seed=1)
    score = jax.jit(lambda s, x: HEAD.score(RATE, HEAD.fit(RATE, s), x))
    _, carry, label = echo(support.x, support.y)
    close(score(support, query.x), (2 * carry - label)[None] + np.asarray(query.x) + 1)


def test_a_drawn_order_is_that_of_the_valid_rows_alone():
    """A key reads the valid rows in the same order, wherever masked ones lie."""
    key, valid, few = jax.random.key(3), np.array([1, 2, 4, 5, 6]), range(5)
    order = np.asarray(shuffled(examples([*few, 0, 0], few), key).labels)[:5]
    assert sorted(order) == [*few] and (order != few).any()
    numbers = np.zeros(ITEMS, int)
    numbers[valid] = few
    found = shuffled(examples(numbers, valid), key)
    assert np.asarray(found.labels)[:5].tolist() == order.tolist()

    y = np.array([0, 2, 0, 0, 1, 1, 2])
    support = examples(y, valid)
    found = shuffled(support, key)
    rows = np.concatenate([valid[order], [0, 3]])
    wanted = fit(jax.tree.map(lambda leaf: leaf[rows], support))
    close(found, wanted)
    assert np.asarray(found.mask).tolist() == [True] * 5 + [False] * 2


def test_all_orders_are_as_likely():
    keys = jax.random.split(jax.random.key(0), 600)
    support = examples(range(ITEMS), range(3))
    found = jax.jit(jax.vmap(lambda key: shuffled(support, key).labels))(keys)
    _, counts = np.unique(found[:, :3], axis=0, return_counts=True)
    assert len(counts) == 6 and abs(counts - 100).max() < 45  # five standard deviations


def test_presentations_are_counted_as_by_a_loop():
    """Tasks with masked rows and tied answers, and more items of a class than asked for."""
    rng, most = np.random.default_rng(2), 3
    y, mask = rng.integers(0, 2, (6, ITEMS)), rng.random((6, ITEMS)) < 0.8
    readings = [fit(examples(y, np.flatnonzero(m))) for y, m in zip(y, mask)]
    logits = rng.integers(0, 2, (6, ITEMS, ITEMS)) * 1.0
    readings = [dataclasses.replace(r, logits=rows) for r, rows in zip(readings, logits)]
    hits, counts = np.zeros((6, most)), np.zeros((6, most))
    for task, i in zip(*np.nonzero(mask)):
        before = [j for j in range(i) if mask[task, j] and y[task, j] == y[task, i]]
        assert readings[task].seen[i] == len(before)
        if len(before) < most:
            best = logits[task, i] == logits[task, i].max()
            hits[task, len(before)] += best[y[task, i]] / best.sum()
            counts[task, len(before)] += 1
    assert counts.sum(0).min() > 3 and counts.sum() < mask.sum()
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *readings)
    found = jax.jit(jax.vmap(lambda reading: presentations(reading, most)))(stacked)
    close(found, (hits, counts))


def test_what_is_no_reading_or_no_number_of_presentations_is_named():
    reading = fit(examples([0] * ITEMS))
    with pytest.raises(
        TypeError, match=r"is a Examples; expected a Reading: .* of ml\.rnn"
    ):
        presentations(examples([0] * ITEMS), 3)
    for most in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"most is {most}; expected an integer of 1"):
            presentations(reading, most)


def test_the_loss_is_the_mean_over_all_items_and_queries():
    """What each answer costs, over the valid ones of both sets together."""
    support = examples([2, 1, 0, 2, 0, 0, 0], [0, 2, 3, 4])
    query = examples([1, 0, 2, 0, 0, 0, 0], [0, 1], seed=1)
    answers, reading = np.random.default_rng(5).normal(size=(ITEMS, ITEMS)), fit(support)
    loss = jax.jit(lambda *args: HEAD.loss(RATE, *args, key=None))
    found, report = loss(reading, support, query, answers)
    rows = np.concatenate([np.asarray(reading.logits)[[0, 2, 3, 4]], answers[:2]])
    labels = np.array([2, 0, 2, 0, 1, 0])
    costs = np.log(np.exp(rows).sum(-1)) - rows[np.arange(6), labels]
    close(found, costs.mean())
    close(report["support/loss"], costs[:4].mean())
    close(report["support/accuracy"], (rows.argmax(-1) == labels)[:4].mean())


LEARNERS = {
    "rnn": (memory.rnn, {"hidden": 4}),
    "gru": (memory.rnn, {"hidden": 4, "cell": "gru"}),
    "mann": (memory.mann, {"hidden": 4, "rows": 5, "width": 3, "reads": 2}),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_label_changes_the_answers_to_later_items_and_to_no_other(name):
    """Nor does a masked row in the middle: it is as if it were not there."""
    make, options = LEARNERS[name]
    encoder = ml.from_apply_fn(lambda key, x: {"w": jnp.eye(4)}, lambda p, x: x @ p["w"])
    learner, task = make(encoder, num_ways=WAYS, **options), one(wide_blobs())
    num = task.support.mask.shape[0]
    # As it is; then with another label of one item; then without one item.
    y = np.tile(np.array([0, 1, 2, 0, 1, 2], np.int32), (2 * num + 1, 1))
    mask = np.ones((2 * num + 1, num), bool)
    for i in range(num):
        y[1 + i, i] = (y[1 + i, i] + 1) % WAYS
        mask[1 + num + i, i] = False
    variables = jax.eval_shape(lambda: learner.init(jax.random.key(0), task))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), variables)

    def answers(y, mask):
        support = ml.Examples(x=task.support.x, y=y, mask=mask)
        adapted = learner.adapt(variables, support)
        return adapted.fitted.logits, learner.predict(adapted, task.query.x)

    stream, query = jax.jit(jax.vmap(answers))(y, mask)
    for i in range(num):
        changed = np.abs(stream[1 + i] - stream[0]).max(-1) > 1e-9
        assert changed.tolist() == [t > i for t in range(num)]
        assert (np.abs(query[1 + i] - query[0]).max(-1) > 1e-9).all()
        hidden = np.abs(stream[1 + num + i] - stream[0]).max(-1) > 1e-9
        assert hidden[:i].tolist() == [False] * i and hidden[i + 1 :].all()
