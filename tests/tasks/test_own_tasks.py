"""Tasks of the user: lists of tasks of any sizes, and tasks that Python makes."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml

SIZES = ((3, 4), (5, 2), (1, 6))


def made(support, query, number, y=None):
    """Task `number`: every input holds the number of the task and of the row."""
    x = np.stack([np.full(support + query, number), np.arange(support + query)], 1)
    y = x[:, :1] * 10.0 + x[:, 1:] if y is None else np.asarray(y)
    x = x.astype(np.float64)
    return x[:support], y[:support], x[support:], y[support:]


def lists():
    return [made(s, q, number) for number, (s, q) in enumerate(SIZES)]


def drawn(sampler, num=60, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    tasks = jax.jit(lambda data, k: ml.sample_batch(sampler, data, k))(sampler.data, keys)
    return jax.tree.map(np.asarray, tasks)


def test_tasks_keep_their_rows_and_are_padded_with_zeros():
    given, batch = lists(), drawn(ml.tasks.from_tasks(lists()))
    assert batch.support.x.shape == (60, 5, 2) and batch.query.y.shape == (60, 6, 1)
    for i, number in enumerate(batch.info["task"]):
        for part, (x, y) in (("support", given[number][:2]), ("query", given[number][2:])):
            found = jax.tree.map(lambda leaf, i=i: leaf[i], getattr(batch, part))
            assert found.mask.tolist() == [row < len(x) for row in range(len(found.mask))]
            np.testing.assert_array_equal(found.x[found.mask], x)
            np.testing.assert_array_equal(found.y[found.mask], y)
            assert not found.x[~found.mask].any() and not found.y[~found.mask].any()


def test_tasks_are_drawn_uniformly_and_by_key():
    sampler = ml.tasks.from_tasks(lists())
    counts = np.bincount(drawn(sampler, 600).info["task"], minlength=3)
    assert counts.sum() == 600 and counts.min() > 150
    one, same = sampler(jax.random.key(4)), sampler(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, one, same)


def test_equal_settings_share_programs_and_order_visits_each_task_once():
    first, second = (ml.tasks.from_tasks(lists()) for _ in range(2))
    assert first.sample == second.sample and hash(first.sample) == hash(second.sample)
    stream = ml.tasks.in_order(first)
    batches = list(itertools.islice(stream.batches(2, 0), 3))
    numbers = [int(n) for batch in batches for n in batch.info["task"]]
    assert numbers == [0, 1, 2, 0, 1, 2]
    later = next(ml.tasks.in_order(first).batches(2, 2))
    jax.tree.map(np.testing.assert_array_equal, later, batches[2])
    half = next(stream.batches(2, 1, slice(1, 2)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1:]), half, batches[1])


def test_evaluation_in_order_is_the_mean_over_the_list():
    """The loss of a learner that predicts zeros, against NumPy."""
    learner = ml.MetaLearner(
        init=lambda key, task: ml.Variables(params={}, state={}),
        adapt=lambda variables, support, *, key=None: None,
        predict=lambda adapted, x, *, key=None, mask=None: 0 * x[:, :1],
        estimate=None,
    )
    tasks = ml.tasks.from_tasks(lists())
    result = ml.evaluate(
        learner,
        ml.Variables(params={}, state={}),
        ml.tasks.in_order(tasks),
        num_tasks=tasks.sample.num_tasks,
        key=jax.random.key(0),
    )
    expected = [np.mean(query_y**2) for _, _, _, query_y in lists()]
    np.testing.assert_allclose(result.values["query/loss"], expected, rtol=1e-6)


def test_an_own_list_trains():
    model = ml.from_linen(ml.models.MLP(widths=(4,)))
    learner = ml.maml(model, ml.losses.mse, optax.sgd(1e-4), num_steps=1)
    result = ml.fit(
        ml.meta_trainer(learner, optax.adam(1e-3)),
        ml.tasks.from_tasks(lists()),
        num_steps=2,
        tasks_per_step=2,
        key=jax.random.key(0),
    )
    assert np.isfinite(result.history[-1]["query/loss"])


def test_dtypes_are_those_that_learners_take():
    x = {
        "image": np.full((4, 2, 2, 1), 51, np.uint8),
        "word": np.arange(4),
        "flag": [True] * 4,
    }
    y = np.array([0, 1, 0, 1], np.int64)
    take = lambda rows: ({k: np.asarray(v)[rows] for k, v in x.items()}, y[rows])
    task = ml.tasks.from_tasks([(*take(slice(0, 3)), *take(slice(3, 4)))])(
        jax.random.key(0)
    )
    assert (
        task.support.x["image"].dtype == jnp.float32 and task.support.y.dtype == jnp.int32
    )
    np.testing.assert_allclose(task.support.x["image"], 0.2)
    assert task.support.x["word"].dtype == jnp.int32
    assert task.support.x["flag"].dtype == jnp.float32


def test_tasks_of_the_library_and_padded_ones_are_taken():
    task = ml.Task(
        support=ml.pad_examples(ml.Examples.of(jnp.ones((2, 1)), jnp.zeros(2)), 5),
        query=ml.Examples.of(jnp.ones((3, 1)), jnp.zeros(3)),
        info={"kind": jnp.float32(7)},
    )
    found = ml.tasks.from_tasks([task, task])(jax.random.key(0))
    assert found.support.mask.shape == (2,) and float(found.info["kind"]) == 7


LABELS = {
    "all tasks alike": ([["b", "a"], ["a", "b"]], None, [[1, 0], [0, 1]], ("a", "b")),
    "own": (
        [["cat", "ant"], ["bus", "car"]],
        "own",
        [[1, 0], [0, 1]],
        (("ant", "cat"), ("bus", "car")),
    ),
    "shared": ([["b", "a"], ["c", "b"]], "shared", [[1, 0], [2, 1]], ("a", "b", "c")),
    "named": ([["b", "a"], ["b", "b"]], ["b", "a"], [[0, 1], [0, 0]], ("b", "a")),
    "numbers of their own": (
        [[70, 20], [9, 10]],
        "own",
        [[1, 0], [0, 1]],
        (("20", "70"), ("9", "10")),
    ),
    "objects": ([np.array(["b", "a"], object)] * 2, None, [[1, 0]] * 2, ("a", "b")),
}


@pytest.mark.parametrize("labels, how, codes, classes", LABELS.values(), ids=LABELS)
def test_text_labels_become_indices(labels, how, codes, classes):
    x = np.zeros((2, 1))
    tasks = ml.tasks.from_tasks([(x, y, x, y) for y in labels], labels=how)
    assert tasks.sample.classes == classes
    batch = next(ml.tasks.in_order(tasks).batches(2, 0))
    assert batch.support.y.tolist() == batch.query.y.tolist() == codes


def test_classes_may_have_any_numbers_of_shots():
    x, y = np.zeros((6, 1)), np.array([0, 0, 0, 0, 1, 2])
    task = ml.tasks.from_tasks([(x, y, x[:3], [0, 1, 2])])(jax.random.key(0))
    assert np.bincount(task.support.y).tolist() == [4, 1, 1]


X, Y = np.zeros((3, 2)), np.zeros(3)
BYTES = np.zeros((3, 2), np.uint8)
BAD_LISTS = {
    "none": (lambda: [], "tasks is empty"),
    "one task": (lambda: ml.tasks.sinusoid()(jax.random.key(0)), "Put it into a list"),
    "a sampler": (lambda: ml.tasks.sinusoid(), "fit and evaluate as it is"),
    "a generator": (lambda: (t for t in lists()), "from_generator"),
    "four arrays": (lambda: (X, Y, X, Y), "put it into a list"),
    "pairs": (lambda: [(X, Y)], "task 0 is a tuple of 2"),
    "a batch": (
        lambda: [ml.stack_tasks([ml.tasks.sinusoid()(jax.random.key(0))])],
        "one by one",
    ),
    "empty query": (lambda: [(X, Y, X[:0], Y[:0])], "task 0: query"),
    "rows": (lambda: [(X, Y[:2], X, Y)], "same N"),
    "no rows": (lambda: [(X, 3.0, X, Y)], "same N"),
    "ragged": (lambda: [([[1.0], [1.0, 2.0]], Y[:2], X, Y)], "equal rows"),
    "shapes": (lambda: [(X, Y, X, Y), (X[:, :1], Y, X, Y)], "task 1: support x"),
    "kinds of targets": (
        lambda: [(X, Y, X, Y), (X, Y.astype(int), X, Y)],
        "task 1: support y",
    ),
    "nan": (
        lambda: [(X, Y, X, Y), (X, Y, X + np.nan, Y)],
        "task 1: query x holds 6 values",
    ),
    "infinite target": (lambda: [(X, Y / 0.0 + 1, X, Y)], "support y"),
    "too large": (lambda: [(X + 1e300, Y, X, Y)], "not finite in float32"),
    "negative": (lambda: [(X, [0, -1, 2], X, [0, 1, 2])], "label -1"),
    "64 bits": (lambda: [(X, [0, 1, 2**40], X, [0, 1, 2])], "beyond 32 bits"),
    "complex": (lambda: [(X * 1j, Y, X, Y)], "complex128"),
    "text input": (lambda: [(np.array([["a"]] * 3), Y, X, Y)], "from_table"),
    "masked": (lambda: [(np.ma.masked_equal(X, X[0, 0]), Y, X, Y)], "are masked"),
    "masked targets": (lambda: [(X, Y, X, np.ma.masked_equal(Y, Y[0]))], "are masked"),
    "widths of support and query": (lambda: [(X, Y, X[:, :1], Y)], "query x of"),
    "bytes and floats": (
        lambda: [(BYTES, Y, BYTES / 255, Y)],
        "support x has rows of uint8[2], query x of numbers[2]",
    ),
    "None": (lambda: [(None, Y, X, Y)], "support x"),
    "info": (
        lambda: [
            ml.Task(support=ml.Examples.of(X, Y), query=ml.Examples.of(X, Y), info=i)
            for i in ({}, {"a": 1})
        ],
        "task 1 has in info",
    ),
    "different classes": (
        lambda: [(X[:1], [c], X[:1], [c]) for c in "ab"],
        "labels='shared'",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero|invalid value|overflow")
@pytest.mark.parametrize("make, words", BAD_LISTS.values(), ids=BAD_LISTS)
def test_bad_lists_are_refused(make, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        ml.tasks.from_tasks(make())


@pytest.mark.parametrize(
    "y, query, labels, words",
    [
        (["a", "b"], ["a", "c"], "own", "support of every class"),
        (["a", "b"], ["a", "c"], ["a", "b"], "label 'c'"),
        (["a", "b"], ["a", "b"], "mine", "'shared'"),
        (["a", "b"], ["a", "b"], ["a", "a"], "every name once"),
        ([0.5, 1.5], [0.5, 1.5], "own", "Leave out labels="),
        ([["a"], ["b"]], [["a"], ["b"]], None, "text or integers [N]"),
    ],
)
def test_bad_labels_are_refused(y, query, labels, words):
    x = np.zeros((2, 1))
    with pytest.raises(ValueError, match=re.escape(words)):
        ml.tasks.from_tasks([(x, y, x, query)], labels=labels)


PICTURES = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3)).astype(np.float32)
UNSCALED = {
    "0..255": (PICTURES, "run from 0 to 255 .*Divide them by 255"),
    "whole numbers": (PICTURES.astype(np.int64), "Divide them by 255"),
    "half precision": (PICTURES.astype(np.float16), "Divide them by 255"),
    "flattened": (PICTURES.reshape(2, -1), "flattened"),
    "bytes of 0 and 1": ((PICTURES > 99).astype(np.uint8), "bytes .* from 0 to 1"),
}


@pytest.mark.parametrize("part", ["support", "query"])
@pytest.mark.parametrize("name", UNSCALED)
def test_unscaled_images_are_refused(name, part):
    """As `few_shot` does, in whatever part of whatever task they are."""
    x, words = UNSCALED[name]
    fine, y = np.where(np.isfinite(x), x.dtype.type(0), x), [0, 1]
    sets = (x, y, fine, y) if part == "support" else (fine, y, x, y)
    with pytest.raises(ValueError, match=f"(?s)^{part} x of the tasks: .*{words}"):
        ml.tasks.from_tasks([(fine, y, fine, y), sets])
    ml.tasks.from_tasks([sets], check_images=False)


def test_unscaled_images_of_generators_are_refused():
    y = [0, 1]
    for number, make in enumerate(
        (lambda rng: (PICTURES, y, PICTURES, y), lambda: [(PICTURES, y, PICTURES, y)])
    ):
        with pytest.raises(ValueError, match="Divide them by 255"):
            ml.tasks.from_generator(make)
        options = {"check_images": False, "num_tasks": 1 if number else None}
        ml.tasks.from_generator(make, **options)


@pytest.mark.parametrize(
    "x",
    [
        PICTURES / 255,
        PICTURES.astype(np.uint8),
        PICTURES / 127.5 - 1,
        PICTURES[..., 0] * 9,  # two axes a row: a series
        PICTURES.reshape(2, -1)[:, :40],  # no square: a table
        PICTURES.reshape(2, -1) * 0.9,  # numbers, and no whole ones
        PICTURES.astype(np.int32)[:, 0, :, 0],  # codes
    ],
)
def test_scaled_images_and_other_inputs_are_taken_as_they_are(x):
    ml.tasks.from_tasks([(x, [0, 1], x, [0, 1])])


def test_order_does_not_depend_on_the_batch_whatever_generator_is_preferred():
    """Draws of rbg differ with the number of keys that are handled at once."""
    rows = np.arange(60.0)
    table = {"user": np.repeat(np.arange(6), 10), "v": rows, "y": rows}
    with jax.default_prng_impl("rbg"):
        tasks = ml.tasks.from_table(
            table, group="user", x=["v"], y="y", num_support=3, num_query=2
        )
        stream = ml.tasks.in_order(tasks)
        whole = next(stream.batches(6, 0)).support.x
        parts = [next(stream.batches(2, i)).support.x for i in range(3)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_order_needs_a_list():
    for other in (
        ml.tasks.sinusoid(),
        lambda key: None,
        ml.tasks.from_tasks(lists()).sample,
    ):
        with pytest.raises(TypeError, match=re.escape("ml.tasks.from_tasks")):
            ml.tasks.in_order(other)


# -- Generators ---------------------------------------------------------------------------


def line(rng):
    x = rng.uniform(-1, 1, (int(rng.integers(6, 9)), 1))
    return x[:5], 2 * x[:5], x[5:], 2 * x[5:]


def test_a_function_of_a_generator_is_a_stream_of_numbered_tasks():
    stream = ml.tasks.from_generator(line, seed=3, num_query=3)
    batches = list(itertools.islice(stream.batches(4, 0), 2))
    assert batches[0].query.x.shape == (4, 3, 1)
    for place in range(8):
        x = line(np.random.default_rng((3, place)))[2].astype(np.float32)
        query = jax.tree.map(lambda leaf, p=place: leaf[p % 4], batches[place // 4].query)
        np.testing.assert_array_equal(query.x[query.mask], x)
    later = next(stream.batches(4, 1, slice(2, 4)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[2:]), later, batches[1])


SOURCES = {
    "function of a generator": lambda: line,
    "list": lambda: [line(np.random.default_rng((0, i))) for i in range(6)],
    "endless iterator": lambda: (
        line(np.random.default_rng((0, i))) for i in itertools.count()
    ),
    "generator function": lambda: (
        lambda: (line(np.random.default_rng((0, i))) for i in itertools.count())
    ),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_a_number_of_tasks_is_made_now(make):
    sampler = ml.tasks.from_generator(make(), num_tasks=6)
    assert isinstance(sampler, ml.TaskSampler) and sampler.sample.num_tasks == 6
    batch = next(ml.tasks.in_order(sampler).batches(6, 0))
    for i in range(6):
        x = line(np.random.default_rng((0, i)))[2].astype(np.float32)
        np.testing.assert_array_equal(batch.query.x[i][batch.query.mask[i]], x)


def text(rng):
    return np.zeros((2, 1)), ["a", "b"], np.zeros((1, 1)), ["b"]


def test_streams_take_text_labels():
    for labels in ("own", ["a", "b"]):
        stream = ml.tasks.from_generator(text, labels=labels)
        assert next(stream.batches(2, 0)).query.y.tolist() == [[1], [1]]


def grows(rng):
    n = 2 if rng.integers(2) else 3
    return np.zeros((n, 1)), np.zeros(n), np.zeros((1, 1)), np.zeros(1)


BAD_SOURCES = {
    "endless": (lambda: (t for t in ()), {}, "Give num_tasks"),
    "ends": (lambda: iter(lists()), {"num_tasks": 5}, "ended after 3"),
    "no tasks": (lambda: 5, {}, "source gives a int"),
    "two arguments": (lambda: lambda a, b: None, {}, "takes a, b"),
    "text": (lambda: text, {}, "labels='own'"),
    "no task": (lambda: lambda rng: rng.normal(), {}, "task 0 is a float"),
    "padding of a list": (lambda: lists(), {"num_query": 9}, "Leave them out"),
    "zero tasks": (lambda: line, {"num_tasks": 0}, "num_tasks is 0"),
    "seed": (lambda: line, {"seed": -1}, "seed is -1"),
    "too small": (lambda: line, {"num_support": 2}, "num_support=5 or more"),
}


@pytest.mark.parametrize("make, options, words", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_bad_sources_are_refused(make, options, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        ml.tasks.from_generator(make(), **options)


def test_a_later_task_that_is_larger_is_named():
    stream = ml.tasks.from_generator(grows)
    with pytest.raises(ValueError, match=r"num_support=3 or more"):
        for batch in itertools.islice(stream.batches(4, 0), 8):
            assert batch.support.x.shape == (4, 2, 1)
