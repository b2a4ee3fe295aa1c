"""Bad input is refused before anything is computed, saying what came and what to do."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import INPUTS, WAYS, blob_batch, blobs, linen, one, plain

import metalearn as ml
from metalearn.core import checks

KEY = jax.random.key(0)
CE = ml.losses.cross_entropy


@functools.cache
def learner():
    return ml.maml(plain(), CE, optax.sgd(0.1))


def refused(error, words, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in: {caught.value}"


# -- Examples and tasks -----------------------------------------------------------------


def test_examples_of_different_lengths():
    call = functools.partial(ml.Examples.of, np.zeros((3, 2)), np.zeros(4))
    refused(ValueError, ["(3, 2)", "(4,)", "leading axis"], call)
    refused(ValueError, ["leading axis"], ml.Examples.of, np.zeros(3), 1.0)


def test_mask_of_another_shape_or_dtype():
    x, y = np.zeros((3, 2)), np.zeros(3)
    refused(ValueError, ["(2,)", "(3,)"], ml.Examples.of, x, y, jnp.ones(2, bool))
    refused(ValueError, ["float32", "bool"], ml.Examples.of, x, y, jnp.ones(3))


def test_tasks_of_different_shapes_are_not_stacked():
    call = ml.stack_tasks
    refused(ValueError, ["task 1", "pad_examples"], call, [blobs(KEY), blobs(KEY, shots=1)])
    refused(ValueError, ["at least one"], call, [])
    refused(ValueError, ["6 rows", "size 5"], ml.pad_examples, blobs(KEY).support, 5)


def test_one_task_where_a_batch_belongs_and_the_other_way_round():
    variables = learner().init(KEY, blobs(KEY))
    estimate = functools.partial(learner().estimate, key=KEY)
    refused(ValueError, ["(6,)", "[T, N]", "stack_tasks"], estimate, variables, blobs(KEY))
    adapt, support = learner().adapt, blob_batch().support
    refused(ValueError, ["(3, 6)", "estimate"], adapt, variables, support)
    refused(TypeError, ["dict", "ml.Examples"], adapt, variables, {"x": 1})
    refused(TypeError, ["tuple", "ml.Task"], learner().init, KEY, (1, 2))


def test_tasks_that_do_not_make_a_batch():
    """In chunks, the tasks beyond the shorter part would be left out in silence."""
    variables, tasks = learner().init(KEY, blobs(KEY)), blob_batch()
    longer = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), tasks.query)
    uneven = ml.Task(support=tasks.support, query=longer)
    estimate = ml.maml(plain(), CE, optax.sgd(0.1), task_chunk=2).estimate
    refused(ValueError, ["query/x", "3 tasks"], estimate, variables, uneven, key=KEY)
    none = jax.tree.map(lambda leaf: leaf[:0], tasks)
    refused(ValueError, ["no task", "T >= 1"], estimate, variables, none, key=KEY)


def test_objectives_are_scalars():
    def objective(variables, task, *, key):
        return jnp.sum(task.query.x, -1) * variables.params, (variables.state, {})

    variables = ml.Variables(params=jnp.ones(()), state={})
    estimate = ml.gradient_estimator(objective, task_chunk=np.int64(3))
    refused(ValueError, ["(6,)", "scalar"], estimate, variables, blob_batch(), key=KEY)


# -- fit and evaluate -----------------------------------------------------------------


def changed(**query):
    def sample(key):
        task = blobs(key)
        parts = {"x": task.query.x, "y": task.query.y, "mask": task.query.mask}
        parts |= {name: change(parts[name]) for name, change in query.items()}
        return ml.Task(support=task.support, query=ml.Examples(**parts))

    return sample


BAD_TASKS = {
    "label beyond": (changed(y=lambda y: y + 1), ValueError, ["1..3", "3 logits", "0..2"]),
    "label below": (changed(y=lambda y: y - 1), ValueError, ["-1..1", "0..2"]),
    "NaN": (changed(x=lambda x: x.at[1, 2].set(jnp.nan)), ValueError, ["query.x", "1 non"]),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_values_stop_fit_and_evaluate(name):
    sample, error, words = BAD_TASKS[name]
    trainer = ml.meta_trainer(learner(), optax.sgd(0.1))
    options = dict(num_steps=1, tasks_per_step=2, key=KEY, progress=False)
    refused(error, words, ml.fit, trainer, sample, **options)
    variables = learner().init(KEY, blobs(KEY))
    refused(error, words, ml.evaluate, learner(), variables, sample, key=KEY)


def test_nan_in_masked_rows_is_refused_too():
    """Zero times NaN is NaN in a gradient: a mask does not help there."""
    task = blobs(KEY)
    x = task.query.x.at[0].set(jnp.nan)
    mask = task.query.mask.at[0].set(False)
    query = ml.Examples(x=x, y=task.query.y, mask=mask)
    outputs = jax.ShapeDtypeStruct((6, WAYS), jnp.float32)
    bad = ml.Task(support=task.support, query=query)
    refused(ValueError, ["query.x", "masked rows"], checks.values_of_task, bad, outputs)


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((3, 4, 4, 1), np.uint8, True),
        ((3, 4, 4, 3), np.uint8, True),
        ((3, 4, 4, 1), np.float32, False),
        ((3, 4), np.uint8, False),
        ((3, 4, 4, 64), np.uint8, False),
    ],
)
def test_images_of_bytes_that_nobody_scales_are_told(shape, dtype, told):
    part = ml.Examples.of(np.zeros(shape, dtype), np.zeros(3))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        checks.values_of_task(ml.Task(support=part, query=part), None)
    assert ["Divide them by 255" in str(w.message) for w in found] == [True, True] * told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(num_steps=0), ["num_steps is 0", "1 or more"]),
        (dict(tasks_per_step=0), ["tasks_per_step is 0"]),
        (dict(log_every=0), ["log_every is 0"]),
        (dict(checkpoint_every=0), ["checkpoint_every is 0"]),
        (dict(nonfinite="ignore"), ["'ignore'", "'skip'"]),
        (dict(resume=True), ["resume=True", "Checkpoints"]),
        (dict(sinks="metrics.jsonl"), ["'metrics.jsonl'", "json_lines"]),
        (dict(sinks=[5]), ["sinks is [5]"]),
    ],
)
def test_bad_options_of_fit(options, words):
    trainer = ml.meta_trainer(learner(), optax.sgd(0.1))
    options = {"num_steps": 1, "tasks_per_step": 1, "key": KEY, **options}
    kind = TypeError if "sinks" in options else ValueError
    refused(kind, words, ml.fit, trainer, blobs, **options)


def test_bad_arguments_of_evaluate_and_trainer():
    variables = learner().init(KEY, blobs(KEY))
    evaluate = functools.partial(ml.evaluate, learner(), variables, key=KEY)
    refused(ValueError, ["num_tasks is 1"], evaluate, blobs, num_tasks=1)
    refused(TypeError, ["list", "TaskSampler"], evaluate, [blobs(KEY)])
    refused(TypeError, ["str", "MetaLearner"], ml.meta_trainer, "maml", optax.sgd(1))
    refused(TypeError, ["float", "optax"], ml.meta_trainer, learner(), 0.1)


# -- Learners ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ml.maml(plain(), CE, 0.1), TypeError, ["float", "optax.sgd"]),
        (lambda: ml.maml(plain(), CE, optax.sgd), TypeError, ["inner_hparams"]),
        (lambda: ml.maml(plain(), CE, optax.adam(0.1)), ValueError, ["eps_root"]),
        (
            lambda: ml.maml(linen(), CE, optax.sgd(0.1), norm="eval"),
            ValueError,
            ["'eval'", "per_step"],
        ),
        (lambda: ml.protonet(plain(), num_ways=1), ValueError, ["num_ways is 1"]),
        (
            lambda: ml.protonet(plain(), num_ways=3, norm="support"),
            ValueError,
            ["'support'", "running, batch"],
        ),
        (
            lambda: ml.fine_tune(plain(), CE, optax.sgd(1), num_steps=1, num_classes=3),
            ValueError,
            ["num_classes=3", "num_ways=None"],
        ),
        (
            lambda: ml.fine_tune(linen(), CE, optax.sgd(1), num_steps=1, norm="per_step"),
            ValueError,
            ["per_step"],
        ),
        (
            lambda: ml.reptile(
                linen(), CE, optax.sgd(1), num_steps=1, eval_steps=2, norm="per_step"
            ),
            ValueError,
            ["num_steps=1", "eval_steps=2"],
        ),
    ],
)
def test_bad_options_of_learners(make, error, words):
    refused(error, words, make)


@pytest.mark.parametrize("given", [3, ["head"], True])
@pytest.mark.parametrize("name", ["bmaml", "bmg", "fine_tune", "hsml", "imaml", "maml"])
def test_filters_that_are_no_functions(name, given):
    make = functools.partial(getattr(ml, name), plain(), CE, optax.sgd(0.1))
    words = [f"adapt_filter is a {type(given).__name__};", "regular expression"]
    words += ["(path, leaf) -> bool", "'head' in path"]
    refused(TypeError, words, make, num_steps=1, adapt_filter=given)
    words = ["'(head' is no regular expression", "expected one that occurs in paths"]
    refused(ValueError, words, make, num_steps=1, adapt_filter="(head")


def test_filter_that_selects_nothing_lists_the_paths():
    maker = ml.anil(plain(), CE, optax.sgd(0.1), head="classifier")
    refused(ValueError, ["body/w", "head/b"], maker.init, KEY, blobs(KEY))


def test_boil_without_a_head_is_refused():
    """It would be MAML under another name."""
    maker = ml.boil(plain(), CE, optax.sgd(0.1), head="classifier")
    refused(ValueError, ["classifier", "body/w", "head/b"], maker.init, KEY, blobs(KEY))


@pytest.mark.parametrize("chunk", [0, -1, 1.5, "all"])
def test_bad_task_chunk(chunk):
    make = functools.partial(ml.maml, plain(), CE, optax.sgd(0.1), task_chunk=chunk)
    refused(ValueError, [repr(chunk), "positive integer"], make)


def test_inner_batches_without_a_key():
    maker = ml.reptile(plain(), CE, optax.sgd(0.1), num_steps=2, batch_size=2)
    variables = maker.init(KEY, blobs(KEY))
    adapt = functools.partial(maker.adapt, variables, blobs(KEY).support)
    refused(ValueError, ["batch_size=2 of 6", "key"], adapt)


def test_inner_batches_hold_valid_rows_only():
    """Masked rows are never drawn: with one valid row every batch is that row."""
    model = ml.from_apply_fn(
        lambda key, x: jnp.zeros(INPUTS),
        lambda params, x: jnp.broadcast_to(params[None], x.shape),
    )
    mse = lambda outputs, e: ml.masked_mean(0.5 * jnp.sum((outputs - e.x) ** 2, -1), e.mask)
    maker = ml.reptile(model, mse, optax.sgd(0.5), num_steps=3, batch_size=2)
    support = blobs(KEY).support
    mask = jnp.zeros(6, bool).at[4].set(True)
    support = ml.Examples(x=support.x, y=support.y, mask=mask)
    variables = ml.Variables(params=jnp.zeros(INPUTS), state={})
    found = maker.adapt(variables, support, key=KEY).params
    np.testing.assert_allclose(found, support.x[4] * (1 - 0.5**3), rtol=1e-6)


# -- Losses -----------------------------------------------------------------------------


def test_losses_name_shapes_and_dtypes():
    ones = jnp.ones((4, 1))
    real = ml.Examples.of(ones, jnp.ones(4))
    refused(ValueError, ["(4, 1)", "(4,)"], ml.losses.mse, ones, real)
    refused(ValueError, ["(3, 1)", "4 examples"], ml.losses.mse, ones[:3], real)
    refused(TypeError, ["float32", "integer", "mse"], CE, jnp.ones((4, 2)), real)
    wide = ml.Examples.of(ones, jnp.ones((4, 1), jnp.int32))
    refused(ValueError, ["(4, 2)", "(4, 1)"], CE, jnp.ones((4, 2)), wide)


def test_losses_are_zero_and_finite_without_valid_rows():
    task = one(blob_batch())
    empty = ml.Examples(x=task.support.x, y=task.support.y, mask=jnp.zeros(6, bool))
    loss, grads = jax.value_and_grad(CE)(jnp.ones((6, WAYS)), empty)
    assert float(loss) == 0 and (np.asarray(grads) == 0).all()
