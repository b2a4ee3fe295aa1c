"""Invariants of `ml.data.few_shot`: what a task holds and how it is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from metalearn import sample_batch
from metalearn.data.few_shot import few_shot

CLASSES, PER_CLASS, SIDE = 7, 6, 2


def images_and_labels(counts=(PER_CLASS,) * CLASSES, seed=0):
    """Image i holds the number i in every pixel; labels are 10, 20, ..., shuffled."""
    labels = np.repeat(10 * np.arange(1, len(counts) + 1), counts)
    order = np.random.default_rng(seed).permutation(len(labels))
    images = np.arange(len(labels), dtype=np.float32)[:, None, None, None]
    images = np.broadcast_to(images, (len(labels), SIDE, SIDE, 1)).copy()
    return images, labels[order]


@functools.cache
def episodes(num=64, **options):
    images, labels = images_and_labels()
    sampler = few_shot(images, labels, **dict(options))
    return draw(sampler, num)


def draw(sampler, num, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    tasks = jax.jit(lambda data, keys: sample_batch(sampler, data, keys))(
        sampler.data, keys
    )
    return jax.tree.map(np.asarray, tasks)


def image_ids(examples):
    return examples.x[..., 0, 0, 0].astype(int)


def test_support_and_query_are_disjoint():
    tasks = episodes(num_ways=3, num_support=2, num_query=3)
    for support, query in zip(image_ids(tasks.support), image_ids(tasks.query)):
        drawn = np.concatenate([support, query])
        assert len(set(drawn.tolist())) == len(drawn) == 15


def test_counts_are_exact_and_labels_name_one_class_each():
    _, labels = images_and_labels()
    tasks = episodes(num_ways=3, num_support=2, num_query=3)
    for part, per_class in ((tasks.support, 2), (tasks.query, 3)):
        assert part.mask.all() and part.y.dtype == np.int32
        for ids, y, class_ids in zip(image_ids(part), part.y, tasks.info["class_ids"]):
            assert (np.bincount(y, minlength=3) == per_class).all()
            # Class c of the sampler is the c-th label in sorted order.
            assert (labels[ids] == 10 * (class_ids[y] + 1)).all()
            assert len(set(class_ids.tolist())) == 3


def test_classes_are_drawn_uniformly_and_relabelled_uniformly():
    num = 8_000
    tasks = episodes(num, num_ways=2, num_support=1, num_query=1)
    ids = tasks.info["class_ids"]
    # Every ordered pair of different classes is equally likely: 7 * 6 of them.
    table = np.zeros((CLASSES, CLASSES), int)
    np.add.at(table, (ids[:, 0], ids[:, 1]), 1)
    assert (np.diag(table) == 0).all()
    pairs = table[~np.eye(CLASSES, dtype=bool)]
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_images_and_positions_are_drawn_uniformly():
    tasks = episodes(8_000, num_ways=2, num_support=1, num_query=1)
    images = np.bincount(image_ids(tasks.support).ravel(), minlength=CLASSES * PER_CLASS)
    assert stats.chisquare(images).pvalue > 1e-4
    first = np.bincount(tasks.support.y[:, 0], minlength=2)
    assert stats.chisquare(first).pvalue > 1e-4
    first = np.bincount(tasks.query.y[:, 0], minlength=2)
    assert stats.chisquare(first).pvalue > 1e-4


def test_uneven_classes_give_only_their_own_images_uniformly():
    counts = (2, 5, 9)
    images, labels = images_and_labels(counts)
    sampler = few_shot(images, labels, num_ways=2, num_support=1, num_query=1)
    tasks = draw(sampler, 6_000)
    ids, y = image_ids(tasks.support), tasks.support.y
    classes = np.take_along_axis(tasks.info["class_ids"], y, axis=1)
    assert (labels[ids] == 10 * (classes + 1)).all()
    for c in range(3):
        drawn = ids[classes == c]
        hits = np.bincount(drawn, minlength=len(labels))[labels == 10 * (c + 1)]
        assert hits.min() > 0 and stats.chisquare(hits).pvalue > 1e-4


def test_rotations_are_classes_of_their_own():
    """Rotation r of class c is class `c + r * classes`, all its images turned alike."""
    corner = np.zeros((3 * 4, 3, 3, 1), np.uint8)
    corner[:, 0, 0] = 255
    corner[:, 1, 1, 0] = np.arange(12)
    sampler = few_shot(
        corner, np.repeat(np.arange(3), 4), num_ways=4, num_query=2, rotations=True
    )
    tasks = draw(sampler, 300)
    places = {(0, 0): 0, (2, 0): 1, (2, 2): 2, (0, 2): 3}  # counter-clockwise turns
    seen = set()
    for part in (tasks.support, tasks.query):
        assert part.x.dtype == np.float32 and part.x.max() == 1.0
        for x, y, ids in zip(part.x, part.y, tasks.info["class_ids"]):
            seen |= set(ids.tolist())
            for image, label in zip(x[..., 0], y):
                place = tuple(int(i) for i in np.argwhere(image == 1.0)[0])
                stored = round(float(image[1, 1]) * 255)
                assert stored // 4 + 3 * places[place] == ids[label]
    assert seen == set(range(12))


def test_ranges_of_ways_and_shots_are_masked():
    tasks = episodes(400, num_ways=(2, 4), num_support=(1, 3), num_query=2)
    assert tasks.support.y.shape == (400, 12) and tasks.query.y.shape == (400, 8)
    ways, shots = set(), set()
    for i in range(400):
        way = int(tasks.info["num_ways"][i])
        support = tasks.support.y[i][tasks.support.mask[i]]
        query = tasks.query.y[i][tasks.query.mask[i]]
        per_class = np.bincount(support, minlength=4)
        assert (per_class[way:] == 0).all() and len(set(per_class[:way].tolist())) == 1
        assert (np.bincount(query, minlength=4) == [2] * way + [0] * (4 - way)).all()
        ways.add(way)
        shots.add(int(per_class[0]))
    assert ways == {2, 3, 4} and shots == {1, 2, 3}


def test_same_key_same_task_and_other_key_other_task():
    images, labels = images_and_labels()
    sampler = few_shot(images, labels, num_ways=3, num_query=2)
    one = draw(sampler, 2, seed=3)
    two = draw(sampler, 2, seed=3)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert not np.array_equal(image_ids(one.support)[0], image_ids(one.support)[1])
    single = sampler(jax.random.split(jax.random.key(3), 2)[1])
    np.testing.assert_array_equal(single.query.x, one.query.x[1])


def test_keys_sharded_over_devices_give_the_same_tasks():
    assert len(jax.devices()) == 8
    images, labels = images_and_labels()
    sampler = few_shot(images, labels, num_ways=3, num_query=2)
    keys = jax.random.split(jax.random.key(0), 16)
    mesh = Mesh(np.asarray(jax.devices()), ("tasks",))
    run = jax.jit(lambda data, keys: sample_batch(sampler, data, keys))
    spread = jax.device_put(keys, NamedSharding(mesh, PartitionSpec("tasks")))
    data = jax.device_put(sampler.data, NamedSharding(mesh, PartitionSpec()))
    found, plain = run(data, spread), run(sampler.data, keys)
    assert len(found.support.x.sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_bytes_become_zero_to_one():
    images, labels = images_and_labels()
    sampler = few_shot(images.astype(np.uint8), labels, num_ways=2, num_query=1)
    x = sampler(jax.random.key(0)).support.x
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x * 255, np.round(x * 255), atol=1e-4)


IMAGES, LABELS = images_and_labels()
BAD = {
    "too many ways": (dict(num_ways=8), ValueError, "8 classes, the set has 7"),
    "too many shots": (dict(num_support=4, num_query=3), ValueError, "has 6 images"),
    "one way": (dict(num_ways=1), ValueError, "num_ways is 1"),
    "no query": (dict(num_query=0), ValueError, "num_query is 0"),
    "reversed range": (dict(num_ways=(4, 2)), ValueError, r"num_ways is \(4, 2\)"),
    "half a way": (dict(num_ways=2.5), ValueError, "num_ways is 2.5"),
    "half a query": (dict(num_query=1.5), ValueError, "num_query is 1.5"),
    "real labels": (dict(labels=LABELS * 1.0), TypeError, "labels have dtype float64"),
    "int images": (dict(images=IMAGES.astype(int)), TypeError, "dtype int64"),
    "lengths": (dict(labels=LABELS[:-1]), ValueError, "42 images and labels"),
    "oblong": (
        dict(images=np.zeros((42, 2, 3, 1), np.uint8), rotations=True),
        ValueError,
        "square",
    ),
    "NaN": (dict(images=np.where(IMAGES == 3, np.nan, IMAGES)), ValueError, "number 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    options, error, words = BAD[name]
    options = {"images": IMAGES, "labels": LABELS, "num_ways": 2, "num_query": 1, **options}
    with pytest.raises(error, match=words):
        few_shot(**options)
