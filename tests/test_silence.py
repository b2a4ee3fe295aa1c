"""Numbers that were wrong, and work that was lost, without a word."""

import dataclasses
import functools
import io
import os
import struct
import unicodedata
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from tiny import WAYS, blob_batch, blobs, linen, one, plain

import metalearn as ml
from metalearn.data.images import decoding
from metalearn.inner.averages import batch_statistics

CE, KEY = ml.losses.cross_entropy, jax.random.key(0)
TASK = one(blob_batch())


def maml(**options):
    return ml.maml(plain(), CE, optax.sgd(0.1), num_steps=1, **options)


MAML, ADAM = maml(), optax.adam(1e-2)
trainer_of = functools.cache(ml.meta_trainer)  # it keeps what it compiled


def fit(folder=None, learner=MAML, num_steps=2, outer=ADAM, tasks=blobs, **options):
    return ml.fit(
        trainer_of(learner, outer),
        tasks,
        num_steps=num_steps,
        tasks_per_step=2,
        key=KEY,
        progress=False,
        checkpoints=None if folder is None else ml.Checkpoints(folder),
        **options,
    )


# -- Work that was lost ------------------------------------------------------------------


def failing(row):
    raise RuntimeError("service down")


def test_what_a_sink_raises_costs_no_step(tmp_path):
    with pytest.raises(RuntimeError, match="service down") as caught:
        fit(tmp_path / "run", sinks=[failing], log_every=2)
    assert "saved in" in caught.value.__notes__[0]
    assert int(caught.value.state.step) == 2
    resumed = fit(tmp_path / "run", resume=True)
    alone = fit()
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, alone.variables)


def test_what_a_sink_raises_leaves_the_state_without_checkpoints():
    with pytest.raises(RuntimeError) as caught:
        fit(sinks=[failing], log_every=1)
    assert int(caught.value.state.step) == 1
    more = fit(state=caught.value.state)
    jax.tree.map(np.testing.assert_array_equal, more.variables, fit().variables)


@pytest.mark.parametrize(
    "value", [np.asarray(5), np.asarray(0.1), np.arange(3, dtype=">f4"), np.int64(7)]
)
def test_arrays_of_numpy_are_saved_as_they_are_restored(tmp_path, value):
    tree = {"seen": value}
    checkpoints = ml.Checkpoints(tmp_path / "run")
    checkpoints.save(1, tree, {})
    found, _ = checkpoints.restore(1, like=tree)
    checkpoints.close()
    np.testing.assert_allclose(found["seen"], np.asarray(value, np.float32), rtol=1e-6)


def test_masked_arrays_and_numbers_beyond_32_bits_are_not_saved(tmp_path):
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    checkpoints = ml.Checkpoints(tmp_path / "run")
    for value, message in ((masked, "masked"), (np.asarray(2**40), "beyond the int32")):
        with pytest.raises(ValueError, match=message):
            checkpoints.save(1, {"x": value}, {})


# -- Runs that are not the same ----------------------------------------------------------


def reptile(rate):
    return ml.reptile(plain(), CE, optax.sgd(rate), num_steps=1)


def images(scale):
    rng = np.random.default_rng(0)
    pixels = (rng.random((24, 4)) * scale).astype(np.float32)
    return ml.data.few_shot(pixels, np.arange(24) // 4, num_ways=WAYS, num_query=1)


def judged(metric):
    tasks = lambda key: blobs(key)
    return ml.Validation(tasks=tasks, metric=metric, num_tasks=4, every=1)


OTHERS = {
    "inner rate that no metric shows": (
        {"learner": reptile(0.1)},
        {"learner": reptile(10.0)},
    ),
    "images": ({"tasks": images(1.0)}, {"tasks": images(0.9)}),
    "optimiser": ({"outer": ADAM}, {"outer": optax.adabelief(1e-2)}),
    "metric": (
        {"validation": judged("query/accuracy")},
        {"validation": judged("query/loss")},
    ),
}


@pytest.mark.parametrize(
    "name",
    # `tests/training/test_resume.py` has the kinds of tasks and of losses.
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in ("images", "metric")))
        for n in OTHERS
    ],
)
def test_a_resume_with_another_part_is_refused(name, tmp_path):
    first, second = OTHERS[name]
    fit(tmp_path / "run", **first)
    with pytest.raises(ml.CheckpointMismatch, match="another run"):
        fit(tmp_path / "run", num_steps=3, resume=True, **second)
    fit(tmp_path / "run", num_steps=3, resume=True, **first)


def test_a_resume_may_begin_to_validate(tmp_path):
    fit(tmp_path / "run")
    fit(tmp_path / "run", num_steps=3, resume=True, validation=judged("query/loss"))


def test_a_validation_that_is_no_number_is_told_and_no_reason_to_stop():
    nothing = lambda outputs, examples: jnp.sum(outputs) * jnp.inf
    validation = ml.Validation(
        tasks=blobs, loss_fn=nothing, metric="query/loss", num_tasks=2, every=1, patience=1
    )
    with (
        pytest.warns(UserWarning, match="query/loss in 2 of 2 tasks"),
        pytest.warns(UserWarning, match="query/loss = .*neither kept as the best nor"),
    ):
        result = fit(num_steps=3, validation=validation)
    assert int(result.state.step) == 3


# -- Different tasks ---------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda x: 2 * x, lambda x: -x, lambda x: x[::-1]])
def test_other_tasks_have_other_fingerprints(change):
    """A weighted sum of bits is linear: signs and powers of two cancel in it."""

    def changed(key):
        task = blobs(key)
        part = lambda e: dataclasses.replace(e, x=change(e.x))
        return ml.Task(support=part(task.support), query=part(task.query))

    with pytest.raises(ValueError, match="different tasks"):
        ml.paired_difference(of_four(blobs), of_four(changed))


@functools.cache
def of_four(tasks):
    return ml.evaluate(MAML, MAML.init(KEY, TASK), tasks, num_tasks=4, key=KEY)


def test_repeated_tasks_make_no_interval():
    tasks = ml.tasks.in_order(ml.tasks.from_tasks([one(blob_batch(), i) for i in range(3)]))
    learner = MAML
    with pytest.raises(ValueError, match=r"has 3 different tasks.*num_tasks=3 or fewer"):
        ml.evaluate(learner, learner.init(KEY, TASK), tasks, num_tasks=50, key=KEY)


# -- Predictions -------------------------------------------------------------------------


def test_a_diverged_adaptation_is_no_prediction():
    learner = ml.maml(ml.from_linen(nn.Dense(WAYS)), CE, optax.sgd(0.1), num_steps=5)
    support = dataclasses.replace(TASK.support, x=TASK.support.x * 1e20)
    with pytest.raises(ValueError, match="non-finite values: adaptation to this support"):
        ml.predict(learner, learner.init(KEY, TASK), support, TASK.query.x * 1e20, key=KEY)


def protonet(dtype, num_ways=5):
    encoder = ml.from_apply_fn(
        lambda key, x: {"w": jnp.ones(1)}, lambda p, x: x.astype(dtype)
    )
    return ml.protonet(encoder, num_ways=num_ways)


@pytest.mark.parametrize(("dtype", "offset"), [(jnp.bfloat16, 20.0), (jnp.float16, 40.0)])
def test_distances_keep_their_digits_in_half_precision(dtype, offset):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 64)) + offset
    x = jnp.asarray(np.repeat(centres, 6, 0) + 0.3 * rng.normal(size=(30, 64)), jnp.float32)
    y = jnp.asarray(np.repeat(np.arange(5), 6))
    learner = protonet(dtype)
    variables = learner.init(
        KEY, ml.Task(support=ml.Examples.of(x, y), query=ml.Examples.of(x, y))
    )
    found = learner.predict(learner.adapt(variables, ml.Examples.of(x, y)), x)
    wide = np.asarray(x.astype(dtype), np.float64)
    means = np.stack([wide[y == k].mean(0) for k in range(5)])
    expected = ((wide[:, None] - means[None]) ** 2).sum(-1).argmin(-1)
    assert (np.asarray(found).argmax(-1) == expected).all()


@pytest.mark.parametrize(
    "make", [lambda: protonet(jnp.float32, WAYS), lambda: maml(mask_absent_classes=True)]
)
def test_without_support_every_class_is_as_likely(make):
    """Masked logits alone would swallow all differences: a loss of 0."""
    nothing = dataclasses.replace(TASK.support, mask=jnp.zeros_like(TASK.support.mask))
    learner = make()
    adapted = learner.adapt(learner.init(KEY, TASK), nothing)
    loss = float(CE(learner.predict(adapted, TASK.query.x), TASK.query))
    assert loss > 0.5
    if "protonet" in repr(learner):
        assert loss == pytest.approx(np.log(WAYS), rel=1e-5)


def test_bytes_are_labels_of_300_classes():
    y = jnp.arange(200, dtype=jnp.uint8)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 8)), jnp.float32)
    learner = protonet(jnp.float32, 300)
    support = ml.Examples.of(x, y)
    variables = learner.init(KEY, ml.Task(support=support, query=support))
    assert int(learner.adapt(variables, support).present.sum()) == 200
    halves = dataclasses.replace(support, y=y + 0.5)
    with pytest.raises(TypeError, match="the labels of the examples are float32"):
        learner.adapt(variables, halves)


def test_statistics_of_the_support_set_are_right_in_half_precision():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm(use_running_average=not train, momentum=0.99)(x)

    model = ml.from_linen(Net())
    variables = model.init(KEY, TASK.support.x)
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables.state)
    found = batch_statistics(model, variables.params, state, TASK.support)["batch_stats"]
    (layer,) = found.values()
    assert layer["mean"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(layer["mean"], np.float32), TASK.support.x.mean(0), rtol=2e-2, atol=2e-2
    )


# -- Data --------------------------------------------------------------------------------


def test_words_are_one_class_in_every_unicode_form():
    x, words = np.ones((2, 3), np.float32), ["café", "the"]
    other = [unicodedata.normalize("NFD", word) for word in words]
    tasks = ml.tasks.from_tasks([(x, np.array(words), x, np.array(other))])
    assert tasks.sample.classes == ("café", "the")
    table = {"user": words * 4 + other * 4, "x": np.arange(16.0), "y": np.arange(16.0)}
    groups = ml.tasks.from_table(
        table, group="user", x=["x"], y="y", num_support=2, num_query=2
    )
    assert groups.sample.groups == ("café", "the")


def test_whole_numbers_of_a_table_keep_their_digits():
    table = {"user": ["a"] * 4, "x": np.arange(4) + 2**24, "y": np.arange(4.0)}
    with pytest.raises(ValueError, match="float32 does not hold exactly"):
        ml.tasks.from_table(table, group="user", x=["x"], y="y", num_support=2, num_query=2)


def png(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png", **options)
    return stream.getvalue()


def test_every_changed_byte_of_a_png_is_noticed():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    data = png(pixels)
    for bit in np.random.default_rng(1).choice(8 * len(data), 200, replace=False):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << (bit % 8)
        try:
            found = decoding.decode_image(bytes(broken), mode="L", where="a.png")
        except ValueError:
            continue
        np.testing.assert_array_equal(found[..., 0], pixels)


def test_a_transparent_shade_of_few_bits_is_white():
    """Rows of 2 bits: the shades 0 to 3, of which 2 is transparent."""

    def part(name, body):
        return (
            struct.pack(">I", len(body))
            + name
            + body
            + struct.pack(">I", zlib.crc32(name + body))
        )

    data = b"\x89PNG\r\n\x1a\n"
    data += part(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0))
    data += part(b"tRNS", struct.pack(">H", 2))
    data += part(b"IDAT", zlib.compress(b"\x00\x1b")) + part(b"IEND", b"")
    found, notes = decoding.decode(data, mode="L", where="a.png")
    assert found[0, :, 0].tolist() == [0, 85, 255, 255]
    assert decoding.TRANSPARENT in notes


def tiff(bits, kind, photometric):
    """A grey TIFF of 2x1 values, without compression."""
    values = np.array([0, 1], np.uint16 if bits > 8 else np.uint8).tobytes()
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, 1), (279, 4, len(values)), (339, 3, kind)]
    at = 8 + len(values)
    data = b"II*\0" + struct.pack("<I", at) + values + struct.pack("<H", len(tags))
    for tag, width, value in tags:
        data += struct.pack("<HHI", tag, width, 1) + struct.pack("<I", value)
    return data + struct.pack("<I", 0)


@pytest.mark.parametrize(("bits", "kind", "zero"), [(16, 1, 0), (12, 1, 1), (8, 2, 1)])
def test_tiffs_that_are_read_otherwise_are_refused(bits, kind, zero):
    with pytest.raises(
        ValueError, match=r"is a TIFF of .*Convert the file to PNG|cannot be"
    ):
        decoding.decode_image(tiff(bits, kind, zero), mode="L", where="a.tif")


def test_a_plain_tiff_is_read():
    assert decoding.decode_image(tiff(8, 1, 1), mode="L", where="a.tif").shape == (1, 2, 1)


def test_a_file_with_other_pixels_is_read_again_whatever_its_time(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    rng, folder = np.random.default_rng(0), tmp_path / "set"
    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            (folder / name / f"{i}.ppm").write_bytes(b"P6 8 8 255\n" + rng.bytes(192))
    load = lambda: ml.data.load(f"folder:{folder}", split="test").test.images
    first = load()
    for path in folder.rglob("*.ppm"):
        before = path.stat()
        path.write_bytes(b"P6 8 8 255\n" + rng.bytes(192))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (first != load()).any()


def test_encoders_of_every_kind_are_still_read():
    learner = ml.protonet(linen(None), num_ways=WAYS)
    adapted = learner.adapt(learner.init(KEY, TASK), TASK.support)
    assert learner.predict(adapted, TASK.query.x).dtype == jnp.float32
