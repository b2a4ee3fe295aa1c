"""What is easily given in place of tasks, data and steps of training: a table.

Each row was accepted once, or failed in the words of another library.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from slips import (
    ADAM,
    KEY,
    NAMED,
    SGD,
    STREAM,
    TASK,
    TASKS,
    maml,
    numbers,
    step_of,
    variables,
)
from tiny import one

import metalearn as ml

MISTAKES = {
    # Masks.
    "mask of ints": (
        lambda: maml().adapt(variables(), numbers().support),
        TypeError,
        r"support\.mask has the dtype int.*mask\.astype\(bool\)",
    ),
    "mask of floats": (
        lambda: ml.tasks.from_tasks([numbers(dtype=float)]),
        TypeError,
        "mask.* has the dtype float",
    ),
    "mask of ints in predict": (
        lambda: ml.predict(maml(), variables(), numbers().support, TASK.query.x, key=KEY),
        TypeError,
        "expected bool",
    ),
    "weights in masked_mean": (
        lambda: ml.masked_mean(jnp.arange(2.0), jnp.array([0.5, 0.5])),
        ValueError,
        r"bool \[N\]. A weighted mean",
    ),
    "one mask for three rows": (
        lambda: ml.masked_mean(jnp.arange(3.0), jnp.array([True])),
        ValueError,
        r"values \[3\] and a mask bool\[1\]",
    ),
    # Streams.
    "short stream in evaluate": (
        lambda: ml.evaluate(maml(), variables(), STREAM, num_tasks=50, key=KEY),
        ValueError,
        "batch 0 of the stream has masks",
    ),
    "short stream in fit": (
        lambda: ml.fit(
            ml.meta_trainer(maml(), SGD),
            STREAM,
            num_steps=1,
            tasks_per_step=16,
            key=KEY,
            progress=False,
        ),
        ValueError,
        "of the stream has masks of shape .*as many as it is asked for",
    ),
    "stream of arrays": (
        lambda: next(
            iter(
                [
                    ml.evaluate(
                        maml(),
                        variables(),
                        ml.TaskStream(lambda n, s, share=None: iter([np.ones(3)] * 9)),
                        num_tasks=4,
                        key=KEY,
                    )
                ]
            )
        ),
        TypeError,
        "the stream gave a ndarray for a task",
    ),
    # Outer optimisers.
    "no sign": (
        lambda: ml.meta_trainer(maml(), ADAM),
        ValueError,
        "outer_opt moves up the gradient",
    ),
    "no sign in a chain": (
        lambda: ml.meta_trainer(maml(), optax.chain(optax.clip_by_global_norm(1.0), ADAM)),
        ValueError,
        "moves up",
    ),
    "negative rate": (
        lambda: ml.meta_trainer(maml(), optax.sgd(-0.1)),
        ValueError,
        "its rate is negative",
    ),
    "mask by name outside": (
        lambda: step_of(optax.masked(optax.adam(1e-3), NAMED)),
        ValueError,
        "(?s)outer_opt does not take the parameters .*model/body/w",
    ),
    "sophia outside": (
        lambda: step_of(optax.contrib.sophia(1e-3)),
        (TypeError, ValueError),
        "needs more than a gradient|must be provided",
    ),
    # Directions.
    "inner with a rate": (
        lambda: ml.hypergradient_descent(1e-3, 0.02, optax.adam(0.1)),
        ValueError,
        "brings the sign",
    ),
    "inner number": (
        lambda: ml.hypergradient_descent(1e-3, 0.02, 0.1),
        TypeError,
        r"inner is 0\.1; expected a direction",
    ),
    "inner word": (
        lambda: ml.hypergradient_descent(1e-3, 0.02, "adam"),
        TypeError,
        "inner is 'adam'",
    ),
    "mesh of text": (lambda: ml.task_mesh("1"), ValueError, "devices is '1'"),
    "seed of an order": (
        lambda: ml.tasks.in_order(ml.tasks.from_tasks([TASK]), seed="x"),
        ValueError,
        "seed is 'x'",
    ),
    "flag of a sampler": (
        lambda: ml.data.few_shot(
            np.zeros((20, 4, 4, 1), np.uint8),
            np.arange(20) // 4,
            num_ways=2,
            num_query=1,
            rotations="no",
        ),
        TypeError,
        "rotations is 'no'",
    ),
    "number for True": (
        lambda: ml.data.few_shot(
            np.zeros((20, 4, 4, 1), np.uint8),
            np.arange(20) // 4,
            num_ways=2,
            num_query=True,
        ),
        ValueError,
        "num_query is True",
    ),
    "progress": (
        lambda: ml.evaluate(
            maml(), variables(), lambda key: TASK, num_tasks=2, key=KEY, progress="no"
        ),
        TypeError,
        "progress is 'no'",
    ),
    "families": (lambda: ml.tasks.function_families(families=5), TypeError, "names out of"),
    "a family": (
        lambda: ml.tasks.function_families(families="sine"),
        TypeError,
        "several names",
    ),
    "parts": (lambda: ml.data.load("omniglot", parts=5), TypeError, "parts is 5; expected"),
    # One attribute away.
    "judged a number": (lambda: ml.judged(5), TypeError, "expected TrainState"),
    "judged variables": (
        lambda: ml.judged(variables()),
        TypeError,
        r"state is a Variables; .*result\.state",
    ),
    "predict of variables": (
        lambda: maml().predict(variables(), TASK.query.x),
        TypeError,
        r"adapted is a Variables; .*learner\.adapt",
    ),
    "estimate of params": (
        lambda: maml().estimate(variables().params, TASKS, key=KEY),
        TypeError,
        "variables is a dict",
    ),
    "estimate of a sampler": (
        lambda: maml().estimate(variables(), ml.tasks.sinusoid(), key=KEY),
        TypeError,
        "tasks is a TaskSampler; .*sample_batch",
    ),
    "step of a sampler": (
        lambda: ml.meta_trainer(maml(), SGD).step(
            step_of(SGD), ml.tasks.sinusoid(), key=KEY
        ),
        TypeError,
        "tasks is a TaskSampler",
    ),
    "one task to check": (
        lambda: ml.testing.check_learner(maml(), TASK),
        TypeError,
        r"expected a batch of tasks, \[T, N\]",
    ),
    # Helpers of tasks.
    "stack one": (
        lambda: ml.stack_tasks(TASK),
        TypeError,
        "tasks is a Task; expected a list",
    ),
    "stack a number": (lambda: ml.stack_tasks(3), TypeError, "tasks is a int"),
    "stack tuples": (lambda: ml.stack_tasks([(1, 2)]), TypeError, "task 0 is a tuple"),
    "pad a task": (lambda: ml.pad_examples(TASK, 12), TypeError, "examples is a Task"),
    "pad a batch": (
        lambda: ml.pad_examples(TASKS.support, 12),
        TypeError,
        "expected ml.Examples of one task",
    ),
    "pad to text": (
        lambda: ml.pad_examples(TASK.support, "12"),
        ValueError,
        "size is '12'",
    ),
    "pad to a float": (
        lambda: ml.pad_examples(TASK.support, 12.0),
        ValueError,
        r"size is 12\.0",
    ),
    "pad below none": (lambda: ml.pad_examples(TASK.support, -1), ValueError, "size is -1"),
    "batch of a function": (
        lambda: ml.sample_batch(lambda key: TASK, (), jax.random.split(KEY, 2)),
        TypeError,
        "sampler is a <lambda>; expected a TaskSampler",
    ),
    "batch of a stream": (
        lambda: ml.sample_batch(STREAM, (), jax.random.split(KEY, 2)),
        TypeError,
        "sampler is a TaskStream",
    ),
    "mixture of one": (
        lambda: ml.tasks.mixture(ml.tasks.sinusoid()),
        TypeError,
        "samplers is a TaskSampler; expected a list",
    ),
    "mixture of a number": (lambda: ml.tasks.mixture(5), TypeError, "samplers is a int"),
    # Sinks and checks.
    "printer of a path": (
        lambda: ml.sinks.printer("log.txt"),
        TypeError,
        "file is 'log.txt'; .*json_lines takes a path",
    ),
    "lines to a number": (lambda: ml.sinks.json_lines(5), TypeError, "path is 5"),
    "lines to nothing": (lambda: ml.sinks.json_lines(""), TypeError, "path is ''"),
    "differentiable word": (
        lambda: ml.testing.assert_differentiable("x"),
        TypeError,
        "inner_opt is a str",
    ),
    "differentiable unknown": (
        lambda: ml.testing.assert_differentiable(optax.lbfgs()),
        AssertionError,
        "nothing is known",
    ),
    "unroll of a rate": (
        lambda: ml.inner.unroll(lambda p, s: (p, None), 1.0, 0.1, num_steps=1),
        TypeError,
        "inner_opt is a float",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    call, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        call()


def test_stacking_takes_any_iterable():
    batch = ml.stack_tasks(one(TASKS, i) for i in range(3))
    assert batch.support.mask.shape == TASKS.support.mask.shape


def test_numbers_of_numpy_count_devices():
    assert ml.task_mesh(np.int64(1)).size == 1
