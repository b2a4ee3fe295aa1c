"""Queries of classes without a support example, under learners that mask such classes."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE
from tiny import INPUTS, WAYS, blobs, centred, plain

import metalearn as ml
from metalearn.core import labels
from metalearn.core.task import Examples, Task

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
MASK = {"mask_absent_classes": True}
MAKERS = {
    "protonet": lambda: ml.protonet(centred(None), num_ways=WAYS),
    "leo": lambda: ml.leo(WAYS, latents=2, num_steps=1, fine_tune_steps=1),
    "maml": lambda: ml.maml(plain(), CE, SGD, **MASK),
    "imaml": lambda: ml.imaml(plain(), CE, SGD, num_steps=1, **MASK),
    "reptile": lambda: ml.reptile(plain(), CE, SGD, num_steps=1, **MASK),
    "es_maml": lambda: ml.es_maml(plain(), CE, SGD, num_perturbations=2, **MASK),
    "emaml": lambda: ml.emaml(plain(), CE, SGD, num_particles=2, **MASK),
    "platipus": lambda: ml.platipus(
        plain(), CE, SGD, combine="probabilities", num_samples=2, **MASK
    ),
    "llama": lambda: ml.llama(plain(), CE, SGD, curvature="last_layer", **MASK),
}
# Evaluation counts on the labels, whoever learns: those whose programs compile longest are
# further cases.
EVALUATED = [
    *("protonet", "leo", "maml", "reptile"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("emaml", "platipus")),
]


@functools.cache
def learner(name):
    return MAKERS[name]()


@functools.cache
def trainer(name):
    return ml.meta_trainer(learner(name), optax.sgd(0.01))


def without_class_two(task, when=True):
    """The support set of a task without its last class, of which the query set has two."""
    support = task.support
    there = support.mask & ~((support.y == 2) & jnp.asarray(when))
    return dataclasses.replace(task, support=dataclasses.replace(support, mask=there))


def stream(first):
    """Tasks that lack a class from number `first` on."""

    def batches(num, start, share=None):
        number = start
        while True:
            rows = range(num * number, num * (number + 1))
            tasks = [without_class_two(blobs(jax.random.key(i)), i >= first) for i in rows]
            batch = jax.tree.map(np.asarray, ml.stack_tasks(tasks))
            yield jax.tree.map(lambda leaf: leaf[share or slice(None)], batch)
            number += 1

    return ml.TaskStream(batches, "lacking")


def evaluate(name, tasks, **options):
    variables = trainer(name).init(KEY, blobs(KEY)).variables
    options = {"num_tasks": 8, "tasks_per_call": 4, "key": KEY, **options}
    return ml.evaluate(learner(name), variables, tasks, **options)


def fit(name, tasks, **options):
    options = {"num_steps": 4, "tasks_per_step": 2, "progress": False, **options}
    return ml.fit(trainer(name), tasks, key=KEY, **options)


# -- What is counted --------------------------------------------------------------------


def by_hand(support, query, ways):
    """Queries of classes that no support example has, by sets."""
    there = {int(y) for y, ok in zip(support[0], support[1]) if ok}
    rows = zip(query[0], query[1])
    return sum(bool(ok and there and int(y) not in there) for y, ok in rows)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint8])
def test_queries_without_support_are_counted_as_by_hand(dtype):
    rng = np.random.default_rng(0)
    tasks, expected = [], []
    for share in (0.0, 0.2, 0.5, 1.0, 0.5, 0.5):
        sizes = (4, 7)
        ys = [rng.integers(0, 5, n).astype(dtype) for n in sizes]
        masks = [rng.random(4) < share, rng.random(7) < 0.8]
        parts = [
            Examples(x=np.zeros((n, 1), np.float32), y=y, mask=m)
            for n, y, m in zip(sizes, ys, masks)
        ]
        tasks.append(Task(support=parts[0], query=parts[1]))
        expected.append(by_hand((ys[0], masks[0]), (ys[1], masks[1]), 5))
    batch = ml.stack_tasks(tasks)
    assert labels.unsupported(batch).tolist() == expected
    assert [int(labels.unsupported(task)) for task in tasks] == expected
    assert max(expected) > 0 and expected[0] == 0


def test_curves_have_no_classes():
    tasks = jax.vmap(ml.tasks.sinusoid())(jax.random.split(KEY, 3))
    assert labels.unsupported(tasks).tolist() == [0, 0, 0]


# -- Every learner that masks, wherever tasks are taken ---------------------------------

WORDS = r"queries of classes without a support example: {} valid queries"


def test_who_masks_says_so():
    masking = {name: learner(name).masks_absent for name in MAKERS}
    # Reptile trains on support and query together, where no class is absent.
    assert masking == {name: name != "reptile" for name in MAKERS}
    assert not ml.maml(plain(), CE, SGD).masks_absent


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation_counts_them_and_names_the_first_task(name):
    """Two queries in each of the last five of eight tasks."""
    words = WORDS.format(10) + r" in 5 of 8 tasks.*mask_absent_classes=False"
    with pytest.raises(ValueError, match=r"^task 3 holds " + words):
        evaluate(name, stream(3))


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_training_counts_them_and_names_the_first_task(name):
    with pytest.raises(ValueError, match="^task 1 of step 2 holds " + WORDS.format(2)):
        fit(name, stream(5), num_steps=3)


@pytest.mark.parametrize("name", ["leo", "platipus"])
def test_the_first_task_is_looked_at_before_anything_is_compiled(name):
    with pytest.raises(ValueError, match="^the first task holds " + WORDS.format(2)):
        fit(name, stream(0))
    with pytest.raises(ValueError, match="^the first task holds " + WORDS.format(2)):
        evaluate(name, stream(0))


def test_validation_counts_them():
    judged = ml.Validation(tasks=stream(6), num_tasks=8, every=1)
    with pytest.raises(ValueError, match="^task 6 holds " + WORDS.format(4)):
        fit("protonet", lambda key: blobs(key), num_steps=1, validation=judged)


def test_masked_queries_and_learners_without_a_mask_are_no_matter():
    def hidden(key):
        task = without_class_two(blobs(key))
        query = task.query
        keep = query.mask & (query.y != 2)
        return dataclasses.replace(task, query=dataclasses.replace(query, mask=keep))

    found = evaluate("protonet", hidden)
    assert found.values["query/loss"].max() < 100
    assert set(found.values) == {"query/loss", "query/accuracy"}
    unmasked = ml.maml(plain(), CE, SGD)
    variables = unmasked.init(KEY, blobs(KEY))
    lacking = lambda key: without_class_two(blobs(key))
    found = ml.evaluate(unmasked, variables, lacking, num_tasks=4, key=KEY)
    assert found.values["query/loss"].max() < 100


# -- Logits of classes that a task does not have ----------------------------------------


def five_logits(**options):
    network = ml.from_apply_fn(
        lambda key, x: {"w": jax.random.normal(key, (INPUTS, 5))},
        lambda params, x: x @ params["w"],
    )
    return ml.reptile(network, CE, SGD, num_steps=1, **options)


def test_predictions_of_classes_that_are_not_in_a_task_are_warned_of():
    wide = five_logits()
    variables = wide.init(KEY, blobs(KEY))
    with pytest.warns(
        UserWarning, match=r"^(\d+) predictions, in \d+ of 6 tasks.*mask_abs"
    ):
        ml.evaluate(wide, variables, blobs, num_tasks=6, key=KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked = five_logits(**MASK)
        ml.evaluate(masked, variables, blobs, num_tasks=6, key=KEY)
        evaluate("protonet", blobs)
