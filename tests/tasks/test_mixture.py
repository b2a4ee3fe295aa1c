"""Mixtures of tasks and styles of images, and the recipe that trains on them."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

import metalearn as ml
from metalearn import data
from metalearn.tasks import mixture, styled

SIDE, TASKS = 8, 300
LEVELS = (0, 100, 200)  # images of set i are between its level and 50 more


def image_set(level, classes=4, side=SIDE):
    rng = np.random.default_rng(level)
    pixels = rng.integers(level, level + 51, (classes * 4, side, side, 1), np.uint8)
    return data.from_arrays(pixels, np.repeat(np.arange(classes), 4))


def tasks_of(level, **options):
    options = {"num_ways": 3, "num_support": 1, "num_query": 2} | options
    return data.few_shot(image_set(level), **options)


def drawn(sampler, num=TASKS, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.device_get(jax.jit(jax.vmap(sampler.sample, (None, 0)))(sampler.data, keys))


# -- Mixtures ----------------------------------------------------------------------------


def test_each_task_is_of_one_family():
    tasks = drawn(mixture([tasks_of(level) for level in LEVELS]))
    for index, level in enumerate(LEVELS):
        rows = tasks.info["family"] == index
        for part in (tasks.support, tasks.query):
            x = 255 * part.x[rows]
            assert level - 0.5 < x.min() and x.max() < level + 50.5
    assert tasks.info["family"].dtype == np.int32
    assert tasks.info["class_ids"].shape == (TASKS, 3)
    assert np.all(np.sort(tasks.support.y, -1) == np.arange(3))


def test_a_family_is_drawn_as_it_would_be_alone():
    """Task for task: the branch sees its own data and nothing of the others."""
    samplers = [tasks_of(level) for level in LEVELS]
    mixed, key = mixture(samplers), jax.random.key(3)
    task = mixed.first(key)
    alone = samplers[int(task.info["family"])].first(jax.random.split(key)[1])
    np.testing.assert_array_equal(task.support.x, alone.support.x)
    np.testing.assert_array_equal(task.query.y, alone.query.y)


@pytest.mark.parametrize("weights", [None, (1, 2, 0), (0.5, 0.25, 0.25)])
def test_frequencies(weights):
    num = 3000
    tasks = drawn(mixture([ml.tasks.sinusoid(1, 1)] * 3, weights), num)
    p = np.asarray(weights or (1, 1, 1)) / np.sum(weights or (1, 1, 1))
    found = np.bincount(tasks.info["family"], minlength=3) / num
    assert np.all(np.abs(found - p) <= 4 * np.sqrt(p * (1 - p) / num))


def test_masks_are_kept():
    """Variable shots: padded rows stay masked, in the families that have them only."""
    samplers = [tasks_of(0, num_support=(1, 2)), tasks_of(100, num_support=2)]
    tasks = drawn(mixture(samplers))
    rows = tasks.support.mask.sum(-1)
    assert set(rows[tasks.info["family"] == 0]) == {3, 6}
    assert set(rows[tasks.info["family"] == 1]) == {6}
    assert tasks.query.mask.all()


def test_info_is_merged_and_labelled():
    waves, curves = ml.tasks.sinusoid(2, 2), ml.tasks.function_families(2, 2)
    with pytest.raises(ValueError, match=r"distribution 1 .*'family' in info already"):
        mixture([waves, curves])
    tasks = drawn(mixture([waves, curves], label="kind"), 50)
    info = tasks.info
    assert set(info) == {"kind", "family", "coefficients", "amplitude", "phase"}
    is_wave = info["kind"] == 0
    assert np.all(info["amplitude"][is_wave] > 0)
    assert np.all(info["amplitude"][~is_wave] == 0)
    assert np.all(info["coefficients"][is_wave] == 0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"num_ways": 4}, r"distribution 1 \('4way-1shot'\) have a support set of"),
        ({"num_support": 2}, "a support set of"),
        ({"num_query": 1}, "a query set of"),
    ],
)
def test_other_shapes_are_refused(second, message):
    with pytest.raises(ValueError, match=message):
        mixture([tasks_of(0), tasks_of(100, **second)])


def test_other_images_are_refused():
    larger = data.few_shot(image_set(100, side=9), num_ways=3, num_query=2)
    with pytest.raises(ValueError, match=r"3, 9, 9, 1.*3, 8, 8, 1"):
        mixture([tasks_of(0), larger])


def test_info_of_other_shapes_is_refused():
    def sampler(length):
        task = tasks_of(0).first(jax.random.key(0))
        return lambda key: dataclasses.replace(task, info={"extra": jnp.zeros(length)})

    with pytest.raises(ValueError, match=r"info\['extra'\] of distribution 1"):
        mixture([sampler(2), sampler(3)])


@pytest.mark.parametrize(
    "weights",
    [(1.0,), (1, -1), (0, 0), (float("nan"), 1), (True, False), ("a", "b"), ([1], [1, 2])],
)
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="expected 2 numbers"):
        mixture([ml.tasks.sinusoid(1, 1)] * 2, weights)


def test_nested_info_is_refused():
    task = tasks_of(0).first(jax.random.key(0))
    nested = dataclasses.replace(task, info={"a": {"b": jnp.zeros(2)}})
    with pytest.raises(ValueError, match=r"info\['a'\] of distribution 0 .* is a dict"):
        mixture([lambda key: nested])


def test_bad_samplers():
    with pytest.raises(ValueError, match="samplers is empty"):
        mixture([])
    with pytest.raises(TypeError, match="expected a TaskSampler"):
        mixture([3])
    for make in (styled, lambda sampler: mixture([sampler])):
        with pytest.raises(TypeError, match="'<lambda>' gives a ShapeDtypeStruct"):
            make(lambda key: 3)
    with pytest.raises(TypeError, match="is a TaskStream"):
        mixture([ml.TaskStream(lambda *_: iter(()))])


def test_one_compilation_whatever_the_family(count_compilations):
    """And equal settings give equal samplers, which share it."""
    learner = ml.maml(
        ml.from_linen(ml.models.MLP(3, (2,))), ml.losses.cross_entropy, optax.sgd(0.1)
    )
    make = lambda: styled(mixture([tasks_of(level) for level in (0, 100)]), ("inverted",))
    first, second = make(), make()
    assert first.sample == second.sample
    variables = jax.jit(learner.init)(jax.random.key(0), first.first(jax.random.key(0)))
    run = lambda tasks, seed: ml.evaluate(
        learner, variables, tasks, num_tasks=8, key=jax.random.key(seed)
    )
    assert set(drawn(first, 20).info["family"]) == {0, 1}
    run(first, 0)
    count_compilations()
    run(first, 1)
    run(second, 2)
    assert count_compilations() == 0


# -- Styles ------------------------------------------------------------------------------


def by_scipy(style, x, blur):
    if style == "original":
        return x
    if style == "inverted":
        return 1 - x
    if style == "blurred":
        return ndimage.gaussian_filter(x, blur, mode="nearest", truncate=4)
    return np.minimum(
        np.hypot(*(ndimage.sobel(x, a, mode="nearest") for a in (0, 1))) / 4, 1
    )


STYLES = ("edges", "original", "inverted", "blurred")


@pytest.mark.parametrize("blur", [0.7, 2.0])
def test_styles_are_what_scipy_makes(blur):
    ink = image_set(0)  # of black and white, whose edges reach the limit
    ink = dataclasses.replace(ink, images=255 * (ink.images % 2))
    plain = data.few_shot(ink, num_ways=3, num_query=2)
    tasks = styled(plain, STYLES, blur=blur)
    seen = collections.Counter()
    sample = jax.jit(tasks.sample)
    for seed in range(12):
        key = jax.random.key(seed)
        task = sample(tasks.data, key)
        source = plain.first(jax.random.split(key)[1])
        style = STYLES[int(task.info["style"])]
        seen[style] += 1
        for part in ("support", "query"):
            found, old = getattr(task, part), getattr(source, part)
            images = np.asarray(old.x, np.float64)[..., 0]
            expected = np.stack([by_scipy(style, image, blur) for image in images])
            np.testing.assert_allclose(found.x[..., 0], expected, atol=1e-5)
            np.testing.assert_array_equal(found.y, old.y)
            np.testing.assert_array_equal(found.mask, old.mask)
    assert set(seen) == set(STYLES)


def test_styles_are_drawn_alike():
    styles = drawn(styled(tasks_of(0), STYLES)).info["style"]
    assert np.all(
        np.bincount(styles, minlength=4) > TASKS / 4 - 4 * np.sqrt(TASKS * 3 / 16)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"styles": ()}, "expected some of original, blurred"),
        ({"styles": ("pencil",)}, "expected some of"),
        ({"styles": 5}, "styles is 5; expected some of"),
        ({"styles": [["edges"]]}, "expected some of"),
        ({"blur": "1"}, "blur is '1'; expected a finite number above 0"),
        ({"blur": 0.0}, "number above 0"),
        ({"blur": float("nan")}, "number above 0"),
        ({"blur": True}, "number above 0"),
    ],
)
def test_bad_styles(options, message):
    with pytest.raises(ValueError, match=message):
        styled(tasks_of(0), **options)


def test_a_stream_is_not_styled():
    with pytest.raises(TypeError, match="are a TaskStream"):
        styled(ml.TaskStream(lambda *_: iter(())))


def test_only_images_and_only_once():
    with pytest.raises(ValueError, match="expected images"):
        styled(ml.tasks.sinusoid(2, 2))
    with pytest.raises(ValueError, match="style them once"):
        styled(styled(tasks_of(0)))
