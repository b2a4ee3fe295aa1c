"""Labels that no logit stands for: found in every task, wherever tasks are taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import WAYS, blobs, centred, plain

import metalearn as ml
from metalearn.core import labels

KEY = jax.random.key(0)
CE = ml.losses.cross_entropy
CLEAN, FIRST = 3, 5  # tasks of an evaluation, or steps, before the first wrong one


@functools.cache
def learner(kind):
    if kind == "protonet":
        return ml.protonet(centred(None), num_ways=WAYS)
    return ml.maml(plain(), CE, optax.sgd(0.1), num_steps=1)


@functools.cache
def trainer(kind):
    return ml.meta_trainer(learner(kind), optax.sgd(0.01))


PARTS = ("support", "query")
# Those that are looked at before anything is computed are to be good ones.
FIRST_KEYS = (
    KEY,
    jax.random.split(KEY, 3)[1],
    jax.random.split(jax.random.fold_in(KEY, 0), 3)[0],
)
SHARE = 0.3


def is_odd(key, salt):
    return jax.random.uniform(jax.random.fold_in(key, salt)) < SHARE


@functools.cache
def salt():
    return next(s for s in range(99) if not any(is_odd(key, s) for key in FIRST_KEYS))


def spoiled(task, part, label, when=True, masked=False, number=0.0):
    """A task whose third example of a part has another label, or an input more."""
    found = {}
    for place, name in enumerate(PARTS):
        old = getattr(task, name)
        here = jnp.asarray(when) & (place == part)
        y = jnp.where(here, old.y.at[2].set(label), old.y)
        mask = old.mask.at[2].set(~(here & masked))
        x = jnp.where(here, old.x.at[2, 1].add(number), old.x)
        found[name] = ml.Examples(x=x, y=y, mask=mask)
    return ml.Task(**found, info=task.info)


def _sample(data, key):
    return spoiled(blobs(key), when=is_odd(key, data["salt"]), **data["how"])


def sampler(part, label, masked=False, number=0.0):
    """Wrong in a share of tasks; one function, so that programs are shared."""
    how = {
        "part": jnp.int32(PARTS.index(part)),
        "label": jnp.int32(label),
        "masked": jnp.asarray(masked),
        "number": jnp.float32(number),
    }
    return ml.TaskSampler(_sample, {"how": how, "salt": jnp.int32(salt())}, "now and then")


@jax.jit
def spoil(key, part, label, when, masked):
    return spoiled(blobs(key), part, label, when, masked)


def stream(part, label, first=FIRST, masked=False):
    """Wrong from task number `first` on."""

    def batches(num, start, share=None):
        number = start
        while True:
            rows = [
                spoil(jax.random.key(i), PARTS.index(part), label, i >= first, masked)
                for i in range(num * number, num * (number + 1))
            ]
            batch = jax.tree.map(np.asarray, ml.stack_tasks(rows))
            yield jax.tree.map(lambda leaf: leaf[share or slice(None)], batch)
            number += 1

    return ml.TaskStream(batches, "spoiled")


def evaluate(kind, tasks, **options):
    variables = trainer(kind).init(KEY, blobs(KEY)).variables
    options = {"num_tasks": 12, "tasks_per_call": 4, "key": KEY, **options}
    return ml.evaluate(learner(kind), variables, tasks, **options)


def fit(kind, tasks, **options):
    options = {"num_steps": 12, "tasks_per_step": 2, "progress": False, **options}
    return ml.fit(trainer(kind), tasks, key=KEY, **options)


def validated(kind, tasks):
    judged = ml.Validation(tasks=tasks, num_tasks=20, every=1)
    return fit(kind, blobs, num_steps=1, validation=judged)


def continually(kind, tasks):
    stages = [(blobs, 1), (tasks, 12)]
    return ml.fit_continually(
        learner(kind), optax.sgd(0.01), stages, tasks_per_step=2, key=KEY, progress=False
    )


WAYS_TO_TAKE = {
    "fit": fit,
    "evaluate": evaluate,
    "validation": validated,
    "continually": continually,
}


# One function counts labels, whoever asks: who asks, of which part, what is wrong there.
TAKEN = [(taken, "protonet", WAYS, "support") for taken in WAYS_TO_TAKE]
TAKEN += [(taken, "protonet", WAYS, "query") for taken in ("fit", "validation")]
TAKEN += [("fit", "maml", WAYS, "query")]
TAKEN += [("evaluate", "protonet", 200, "support"), ("evaluate", "protonet", -1, "query")]


@pytest.mark.parametrize(("taken", "kind", "label", "part"), TAKEN)
def test_a_sampler_with_wrong_labels_now_and_then(taken, kind, label, part):
    words = rf"outside the logits of the model in {part}\.y: .* not in 0\.\.{WAYS - 1}"
    with pytest.raises(ValueError, match=words):
        WAYS_TO_TAKE[taken](kind, sampler(part, label))


@pytest.mark.parametrize("part", PARTS)
def test_the_first_wrong_task_of_a_stream_is_named(part):
    with pytest.raises(ValueError, match=rf"task {FIRST} holds .* {part}\.y: 7 .*in 7 of"):
        evaluate("protonet", stream(part, 9))
    with pytest.raises(ValueError, match=rf"task 1 of step 2 holds .*{part}\.y"):
        fit("protonet", stream(part, 9))


def test_one_wrong_label_among_many_steps_is_counted_and_named():
    """Seven good steps in one call of the device, then one task with one label."""
    trainer_, seen = trainer("protonet"), []
    tasks = stream("support", WAYS, first=15)
    with pytest.raises(ValueError, match=r"task 1 of step 7 .*: 1 valid labels"):
        ml.fit(
            trainer_,
            tasks,
            num_steps=8,
            tasks_per_step=2,
            key=KEY,
            progress=False,
            log_every=1,
            sinks=[seen.append],
        )
    assert [row["step"] for row in seen] == list(range(1, 8))


@pytest.mark.parametrize("part", PARTS)
def test_masked_rows_may_hold_anything(part):
    tasks = sampler(part, -7, masked=True)
    assert np.isfinite(evaluate("protonet", tasks).values["query/loss"]).all()
    fit("protonet", tasks, num_steps=3)


@pytest.mark.parametrize("part", PARTS)
def test_online_looks_at_every_task(part):
    tasks = [blobs(jax.random.key(i)) for i in range(3)]
    tasks[2] = spoiled(tasks[2], PARTS.index(part), WAYS)
    with pytest.raises(ValueError, match=rf"task 2: {part}\.y holds labels 0\.\.3"):
        ml.follow_the_meta_leader(
            trainer("protonet"),
            tasks,
            batch_size=3,
            meta_steps=1,
            tasks_per_step=1,
            num_support=2,
            num_query=2,
            key=KEY,
        )


def test_labels_become_training_classes_and_wrong_ones_no_other_class():
    """Negative ones would count from the end, and large ones pass for the last."""
    y, mask = jnp.array([0, 2, 3, -1, 9, 1], jnp.int8), jnp.arange(6) != 4
    examples = ml.Examples.of(jnp.zeros((6, 1)), y, mask)
    found = labels.of_training(examples, {"class_ids": np.array([7, 5, 0], np.uint8)})
    assert found.y.tolist() == [7, 0, -1, -1, 0, 5]
    assert found.y.dtype == jnp.int32 and found.mask.tolist() == mask.tolist()
    logits = jnp.zeros((6, 8))
    assert np.isnan(CE(logits, found))
    many = {"class_ids": np.arange(300)}  # beyond what a label of a byte counts
    bytes_ = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([0, 255], jnp.uint8))
    assert labels.of_training(bytes_, many).y.tolist() == [0, 255]
    with pytest.raises(ValueError, match=r"class_ids.*got info \['other'\]"):
        labels.of_training(examples, {"other": y})


def test_training_classes_that_the_learner_has_not_are_counted():
    """Even where steps without a finite loss are left out. Now and then, as above."""

    def sample(data, key):
        task = blobs(key)  # of the classes 1, 2 and 3
        more = jnp.where(is_odd(key, data), 4, 0)
        info = {"class_ids": task.info["class_ids"] + more}
        return ml.Task(support=task.support, query=task.query, info=info)

    words = r"task \d of step \d+ holds training classes .*0\.\.6 to \d+ valid .* is 7\."
    model = ml.from_apply_fn(lambda key, x: {"w": jnp.eye(4)}, lambda p, x: x @ p["w"])
    made = ml.nearest_centroid(model, num_classes=7, num_ways=WAYS)
    with pytest.raises(ValueError, match=words):
        ml.fit(
            ml.meta_trainer(made, optax.sgd(0.01)),
            ml.TaskSampler(sample, jnp.int32(salt())),
            num_steps=12,
            tasks_per_step=2,
            key=KEY,
            progress=False,
            nonfinite="skip",
        )


def test_devices_count_what_each_of_them_finds():
    refused = pytest.raises(ValueError, match=r"step \d+ holds .*support\.y")
    with jax.set_mesh(ml.task_mesh(2)), refused:
        fit("protonet", sampler("support", WAYS))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("part", PARTS)
def test_numbers_that_are_not_finite_are_found_in_every_task(part, number):
    tasks = sampler(part, 0, number=number)
    with pytest.raises(ValueError, match=rf"task \d+ holds numbers in {part} that are"):
        evaluate("protonet", tasks)
    with pytest.raises(ml.NonFiniteGradient, match=rf"data .* the cause: {part}\.x of ta"):
        fit("protonet", tasks)


def counts(key):
    """Counts as targets: integers that are no classes."""
    x = jax.random.uniform(key, (6, 2))
    y = jax.random.randint(key, (6,), 0, 30)
    part = ml.Examples.of(x, y)
    return ml.Task(support=part, query=part)


def poisson(outputs, examples):
    rate = outputs[:, 0]
    return ml.masked_mean(jnp.exp(rate) - examples.y * rate, examples.mask)


def test_counts_under_a_loss_of_ones_own_are_no_classes():
    made = ml.maml(plain(1), poisson, optax.sgd(0.01), num_steps=1)
    result = ml.fit(
        ml.meta_trainer(made, optax.sgd(0.01)),
        counts,
        num_steps=2,
        tasks_per_step=2,
        key=KEY,
        progress=False,
    )
    found = ml.evaluate(made, result.variables, counts, num_tasks=3, key=KEY)
    assert list(found.values) == ["query/loss"]
