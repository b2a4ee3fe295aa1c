"""Streamed tasks: the invariants of episodes, exact resume, equal training."""

import functools
import itertools
import json
import pickle

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from tiny import plain

import metalearn as ml

CLASSES, PER_CLASS = 9, 6
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES) * 3, PER_CLASS))


class Images:
    """Random access; image i holds its label and its number, and counts its readers."""

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, i):
        return np.array([LABELS[i], i, 1, 0], np.float32)


def tasks(**options):
    sizes = {"num_ways": 3, "num_support": 2, "num_query": 3, **options}
    return ml.data.stream(Images(), LABELS, **sizes)


def take(stream, num, start=0, tasks_per_batch=4, share=None):
    return list(itertools.islice(stream.batches(tasks_per_batch, start, share), num))


def test_episodes_keep_their_invariants():
    for batch in take(tasks(), 5):
        for t in range(4):
            task = jax.tree.map(lambda leaf, t=t: leaf[t], batch)
            ids = task.info["class_ids"]
            assert len(set(ids)) == 3
            for part, shots in ((task.support, 2), (task.query, 3)):
                assert part.mask.all()
                assert np.bincount(part.y).tolist() == [shots] * 3
                np.testing.assert_array_equal(part.x[:, 0], 3 * ids[part.y])
            numbers = np.concatenate([task.support.x[:, 1], task.query.x[:, 1]])
            assert len(set(numbers)) == len(numbers)  # support and query disjoint
    labels = np.concatenate([b.support.y[:, 0] for b in take(tasks(), 60)])
    assert (np.bincount(labels, minlength=3) > 50).all()  # shuffled


def test_a_stream_goes_on_where_it_stopped_in_any_number_of_workers():
    whole = take(tasks(), 6)
    for options in ({}, {"threads": 1}, {"workers": 2}):
        other = take(tasks(**options), 3, start=3)
        jax.tree.map(np.testing.assert_array_equal, whole[3:], other)
    shares = [take(tasks(), 2, share=slice(2 * p, 2 * p + 2)) for p in range(2)]
    jax.tree.map(
        lambda a, b, c: np.testing.assert_array_equal(a, np.concatenate([b, c])),
        whole[:2],
        *shares,
    )
    apart = take(tasks(seed=1), 1)[0].support.x != whole[0].support.x
    assert apart.any()


def trained(num_steps, checkpoints=None, resume=False, stream=None):
    learner = ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.01))
    return ml.fit(
        ml.meta_trainer(learner, optax.adam(1e-2)),
        stream or tasks(),
        num_steps=num_steps,
        tasks_per_step=4,
        key=jax.random.key(0),
        validation=ml.Validation(tasks=tasks(seed=5), num_tasks=6, every=3),
        log_every=2,
        progress=False,
        checkpoints=checkpoints,
        resume=resume,
    )


def test_training_goes_on_exactly(tmp_path):
    whole = trained(7)
    trained(3, ml.Checkpoints(tmp_path / "run"))
    again = trained(7, ml.Checkpoints(tmp_path / "run"), resume=True)
    jax.tree.map(np.testing.assert_array_equal, whole.state, again.state)
    losses = [[row.get("query/loss") for row in r.history] for r in (whole, again)]
    assert losses[0][0] == losses[1][0]


def test_streamed_training_equals_training_on_the_same_tasks():
    """Against single steps driven by hand."""
    learner = ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.01))
    trainer = ml.meta_trainer(learner, optax.adam(1e-2))
    k_init, _, k_steps = jax.random.split(jax.random.key(0), 3)
    batches = take(tasks(), 3)
    state = trainer.init(k_init, jax.tree.map(lambda leaf: leaf[0], batches[0]))
    for number, batch in enumerate(batches):
        key = jax.random.split(jax.random.fold_in(k_steps, number))[1]
        state, _ = jax.jit(trainer.step)(state, batch, key=key)
    found = trained(3).state
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.variables,
        found.variables,
    )


def test_devices_share_a_stream():
    alone = trained(3)
    with jax.set_mesh(ml.task_mesh(4)):
        shared = trained(3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        jax.device_get(alone.state.variables),
        jax.device_get(shared.state.variables),
    )


def test_arrays_on_disk_are_opened_again_by_the_workers(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (54, 8, 8, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    make = functools.partial(ml.data.stream, num_ways=3, num_query=2)
    plain = take(make(images, LABELS), 2)
    for stream in (make(mapped, LABELS), make(mapped, LABELS, workers=1)):
        jax.tree.map(np.testing.assert_array_equal, take(stream, 2), plain)


def finite(num_batches):
    """A stream that ends."""

    def batches(num_tasks, start, share=None):
        return iter(take(tasks(), num_batches - start, start, num_tasks, share))

    return ml.TaskStream(batches)


def test_the_last_batch_is_enough_and_an_early_end_is_explained():
    assert int(trained(3, stream=finite(3)).state.step) == 3
    with pytest.raises(ValueError, match="ended before batch 3"):
        trained(5, stream=finite(3))


def test_mistakes():
    with pytest.raises(TypeError, match="dtype int64"):
        ml.data.stream(np.zeros((54, 2, 2, 1), np.int64), LABELS, num_query=1)
    with pytest.raises(ValueError, match="10-way tasks need 10 classes"):
        tasks(num_ways=10)
    with pytest.raises(ValueError, match="has 6 images"):
        tasks(num_query=5)
    with pytest.raises(ValueError, match="54 images and labels of shape"):
        ml.data.stream(Images(), LABELS[:-1])


def test_records_are_decoded_when_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 255, (3, 4, 8, 8, 3), np.uint8)
    for c, i in itertools.product(range(3), range(4)):
        (tmp_path / "set" / f"class{c}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[c, i]).save(tmp_path / "set" / f"class{c}" / f"{i}.png")
    parts = {"train": ["class0", "class1", "class2"], "val": [], "test": []}
    (tmp_path / "set" / "splits.json").write_text(json.dumps(parts))
    name = f"folder:{tmp_path / 'set'}"
    whole = ml.data.load(name, parts=("train",)).train
    images = pickle.loads(pickle.dumps(ml.data.open_records(name)))
    np.testing.assert_array_equal(images.labels, whole.labels)
    np.testing.assert_array_equal(
        np.stack(list(map(images.__getitem__, range(12)))), whole.images
    )
    stream = ml.data.stream(images, images.labels, num_ways=2, num_query=2)
    assert take(stream, 1)[0].query.x.shape == (4, 4, 8, 8, 3)
    with pytest.raises(ValueError, match="no part 'test'"):
        ml.data.open_records(name, "test")
    for file in (tmp_path / "cache").rglob("*.array_record-*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is not as it was written.*Delete"):
        ml.data.open_records(name)
    with pytest.raises(ValueError, match=r"cannot be read.*Delete"):
        images[0]  # opened before
