"""`print(learner)` and `ml.summary`: numbers that are counted by hand here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from constructors import CONSTRUCTORS, make
from tiny import HIDDEN, INPUTS, WAYS, blob_batch, blobs, linen, one, plain

import metalearn as ml

KEY = jax.random.key(0)
CE = ml.losses.cross_entropy
BODY, HEAD = (INPUTS + 1) * HIDDEN, (HIDDEN + 1) * WAYS
FLOAT = 4


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_learner_prints_its_name_and_settings(name):
    learner = make(name)
    text = repr(learner)
    assert text.startswith(f"{name}(") and len(text) < 400, text
    assert "0x" not in text and "<" not in text
    for setting, value in ml.describe(learner).items():
        assert setting == "name" or f"{setting}={value!r}" in text


def my_learner():
    def init(key, task):
        return ml.Variables(params={"w": jnp.zeros(3)}, state={})

    def adapt(variables, support, *, key=None):
        return variables.params["w"] + support.x.sum()

    def predict(adapted, x, *, key=None, mask=None):
        return jnp.broadcast_to(adapted[None], (x.shape[0], 3))

    def objective(variables, task, *, key):
        loss = CE(predict(adapt(variables, task.support), task.query.x), task.query)
        return loss, (variables.state, {"query/loss": loss})

    return ml.MetaLearner(init, adapt, predict, ml.gradient_estimator(objective))


def test_learners_of_ones_own_carry_their_name():
    assert repr(my_learner()) == "my_learner()"
    assert ml.describe(my_learner()) == {"name": "my_learner"}
    assert ml.describe(ml.MetaLearner(None, None, None, None)) == {"name": "custom"}


def test_parameters_of_maml_all_adapt():
    found = ml.summary(ml.maml(plain(), CE, optax.sgd(0.1)), blobs(KEY))
    assert found.num_params == found.num_adapted == BODY + HEAD
    assert found.adapted_bytes == FLOAT * (BODY + HEAD)
    assert found.adaptation_bytes > found.adapted_bytes
    shapes = {row.path: row.shape for row in found.params}
    assert shapes["model/body/w"] == (INPUTS, HIDDEN)
    # Inputs, labels, masks, and the three class numbers.
    assert found.task_bytes == 2 * 6 * (INPUTS * FLOAT + 4 + 1) + 3 * 4
    assert [row.path for row in found.state] == ["step"]


def test_only_what_moves_counts_as_adapted():
    learner = ml.anil(plain(), CE, optax.sgd(0.1), num_steps=2)
    found = ml.summary(learner, blobs(KEY))
    assert found.num_params == BODY + HEAD and found.num_adapted == HEAD
    assert {row.path for row in found.params if row.adapts} == {
        "model/head/w",
        "model/head/b",
    }
    assert found.adapted_bytes == FLOAT * HEAD


def test_statistics_of_the_support_set_are_of_the_task():
    """Under "support" a task has a mean and a variance of its own."""
    found = ml.summary(ml.anil(linen(), CE, optax.sgd(0.1)), blobs(KEY))
    assert found.adapted_bytes == FLOAT * (HEAD + 2 * HIDDEN)
    assert {row.size for row in found.state} == {HIDDEN, 1}


def test_prototypes_are_of_the_task_and_no_parameter_is():
    found = ml.summary(ml.protonet(linen(None), num_ways=WAYS), blobs(KEY))
    assert found.num_adapted == 0
    assert found.adapted_bytes == WAYS * HIDDEN * FLOAT + WAYS


SOURCES = {
    "task": lambda: blobs(KEY),
    "batch": blob_batch,
    "shapes": lambda: jax.eval_shape(blobs, jax.random.key(0)),
    "function": lambda: blobs,
    "sampler": lambda: ml.TaskSampler(lambda data, key: blobs(key)),
    "stream": lambda: ml.TaskStream(
        lambda num, start, share=None: iter([jax.tree.map(np.asarray, blob_batch(num))])
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_tasks_may_be_given_in_every_form(source):
    learner = ml.maml(plain(), CE, optax.sgd(0.1))
    assert str(ml.summary(learner, SOURCES[source]())) == str(
        ml.summary(learner, one(blob_batch()))
    )


@pytest.mark.parametrize(
    "make_learner",
    [
        my_learner,
        *(lambda n=n: make(n, model=plain()) for n in ("hsml", "bmg", "platipus", "kfo")),
    ],
)
def test_nothing_is_computed(make_learner, count_compilations):
    learner = make_learner()
    task = blobs(KEY)
    if ml.describe(learner)["name"] == "hsml":
        learner = ml.hsml(plain(), CE, optax.sgd(0.1), num_ways=WAYS)
    count_compilations()
    text = str(ml.summary(learner, task))
    assert count_compilations() == 0
    assert text.startswith(repr(learner)) and "parameters learned outside" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("maml", None), "str.*expected a MetaLearner"),
        ((my_learner, None), "function.*expected a MetaLearner"),
        ((my_learner(), 3), "int.*TaskSampler"),
        ((my_learner(), [1]), "list.*TaskSampler"),
    ],
)
def test_what_is_no_learner_or_task_is_refused(arguments, words):
    with pytest.raises(TypeError, match=words):
        ml.summary(*arguments)
