"""Tasks that two rules explain, and meta-training on fewer classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml
from metalearn.data import fewer_classes
from metalearn.data.images.image_sets import ImageDataset, from_arrays

CLASSES, PER_CLASS = 6, 8


def _classes(num=CLASSES, **options):
    """Images of one grey value a class, below a half, so that inverted ones are above."""
    labels = np.repeat(np.arange(num), PER_CLASS)
    images = np.broadcast_to((10 * labels)[:, None, None], (num * PER_CLASS, 4, 4))
    return from_arrays(images.astype(np.uint8), labels, **options)


def _tasks(shots=3, queries=4, **options):
    pairs = ml.data.few_shot(_classes(), num_ways=2, num_support=shots, num_query=queries)
    return ml.tasks.ambiguous(pairs, **options)


@pytest.fixture(scope="module")
def drawn():
    """`(inverted, class label, label)` of support and query of many tasks; info."""
    tasks = jax.vmap(_tasks())(jax.random.split(jax.random.key(1), 1000))

    def seen(examples):
        grey = np.asarray(examples.x)[..., 0, 0, 0] * 255 / 10  # class, or 25.5 - class
        inverted = grey > 12
        shown = np.rint(np.where(inverted, 25.5 - grey, grey)).astype(int)
        ids = np.asarray(tasks.info["class_ids"])
        assert np.all((shown[..., None] == ids[:, None, :2]).any(-1))
        return inverted, (shown == ids[:, None, 1]).astype(int), np.asarray(examples.y)

    return seen(tasks.support), seen(tasks.query), jax.tree.map(np.asarray, tasks.info)


def test_a_support_set_fits_both_rules(drawn):
    inverted, label, y = drawn[0]
    np.testing.assert_array_equal(label, y)
    # Style is a function of the label, one to one, whichever way round.
    turned = inverted[np.arange(len(y)), y.argmax(1)]
    np.testing.assert_array_equal(inverted, np.where(turned[:, None], y == 1, y == 0))
    assert 0.4 < turned.mean() < 0.6


def test_queries_follow_the_rule_of_their_task(drawn):
    (support_inverted, _, support_y), (inverted, label, y), info = drawn
    turned = support_inverted[np.arange(len(y)), support_y.argmax(1)]
    by_style = (inverted == turned[:, None]).astype(int)
    by_rule = np.where(info["rule"][:, None] == 1, by_style, label)
    np.testing.assert_array_equal(y, by_rule)
    np.testing.assert_array_equal(info["conflict"], by_style != label)
    assert 0.4 < info["rule"].mean() < 0.6 and 0.45 < info["conflict"].mean() < 0.55


def test_what_can_be_known_is_half_of_the_conflicts(drawn):
    """The rule is independent of all that a learner sees."""
    _, (_, label, y), info = drawn
    rights = (label == y)[info["conflict"]]
    assert abs(rights.mean() - 0.5) < 0.06


def test_three_ways_take_three_styles():
    triples = ml.data.few_shot(_classes(), num_ways=3, num_support=1, num_query=2)
    tasks = ml.tasks.ambiguous(triples, ("original", "inverted", "edges"))
    task = tasks(jax.random.key(0))
    assert task.query.x.shape == (6, 4, 4, 1) and set(np.asarray(task.query.y)) <= {0, 1, 2}
    assert task.query.y.dtype == jnp.int32


def test_fewer_classes_keep_the_share_of_each_group():
    train = _classes(groups=[0, 0, 0, 0, 1, 1], group_names=("a", "b"))
    whole = ImageDataset(name="set", train=train, validation=None, test=train, info={})
    some = fewer_classes(whole, 3)
    assert some.train.class_names == ("class_0", "class_2", "class_4")
    assert some.train.groups.tolist() == [0, 0, 1] and some.test is train
    assert some.train.counts.tolist() == [PER_CLASS] * 3
    np.testing.assert_array_equal(some.train.images[:, 0, 0, 0], 20 * some.train.labels)
    assert fewer_classes(whole, 6).train.class_names == train.class_names
    for num in (0, 7, 2.5, True):
        with pytest.raises(ValueError, match="Ask for 1 to 6"):
            fewer_classes(whole, num)
