"""Bad arguments are refused before the first step, whatever function takes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sines import KEY, SINES, counting_learner, counting_trainer, sine_learner, sine_trainer
from tiny import plain, sine_batch

import metalearn as ml

NOTHING = ml.Variables(params={"n": jnp.zeros(1)}, state={})


def touched(*_):
    raise AssertionError("something was computed")


def fit(**options):
    options = {"num_steps": 2, "tasks_per_step": 2, "key": KEY, **options}
    options.setdefault("sinks", [touched])
    trainer = options.pop("trainer", counting_trainer())
    return ml.fit(trainer, options.pop("tasks", SINES), progress=False, **options)


def evaluate(**options):
    options = {"num_tasks": 2, "key": KEY, **options}
    learner = options.pop("learner", counting_learner())
    variables = options.pop("variables", NOTHING)
    return ml.evaluate(learner, variables, options.pop("tasks", SINES), **options)


def online(**options):
    defaults = {"batch_size": 2, "meta_steps": 1, "tasks_per_step": 1, "num_support": 2}
    options = {**defaults, "num_query": 2, "key": KEY, **options}
    options.setdefault("sinks", [touched])
    trainer = options.pop("trainer", sine_trainer())
    return ml.follow_the_meta_leader(trainer, options.pop("tasks", sine_batch()), **options)


def continually(**options):
    options = {"tasks_per_step": 2, "key": KEY, **options}
    learner = options.pop("learner", sine_learner())
    stages = options.pop("stages", [(SINES, 2)])
    opt = options.pop("outer_opt", optax.sgd(0.1))
    return ml.fit_continually(learner, opt, stages, progress=False, **options)


def validation(**options):
    options = {"metric": "query/loss", **options}
    return ml.Validation(**{"tasks": SINES, **options})


CALLS = {
    "fit": fit,
    "evaluate": evaluate,
    "online": online,
    "continually": continually,
    "validation": validation,
}
NO_COUNTS = [0, -1, "5", None, True, 2.5, 2**40, np.float32(3), [3]]
COUNTS = [
    ("fit", "num_steps", NO_COUNTS),
    ("fit", "tasks_per_step", NO_COUNTS),
    ("fit", "log_every", [n for n in NO_COUNTS if n is not None]),
    ("evaluate", "num_tasks", [*NO_COUNTS, 1, 10**12]),
    ("evaluate", "tasks_per_call", NO_COUNTS),
    ("online", "batch_size", [*NO_COUNTS, 1]),
    ("online", "meta_steps", NO_COUNTS),
    ("online", "tasks_per_step", NO_COUNTS),
    ("online", "num_support", NO_COUNTS),
    ("online", "num_query", NO_COUNTS),
    ("continually", "tasks_per_step", NO_COUNTS),
    ("continually", "check_every", NO_COUNTS),
    ("continually", "rest", NO_COUNTS),
    ("continually", "medians", NO_COUNTS),
    ("validation", "num_tasks", [*NO_COUNTS, 1]),
    ("validation", "every", [n for n in NO_COUNTS if n is not None and n != 2**40]),
    ("validation", "patience", [n for n in NO_COUNTS if n is not None and n != 2**40]),
    ("validation", "seed", [-1, "5", None, True, 2.5, 2**40]),
]


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [(call, name, value) for call, name, values in COUNTS for value in values],
)
def test_counts(call, name, value):
    with pytest.raises(ValueError, match=rf"{name}.* is .*expected an integer of"):
        CALLS[call](**{name: value})


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_integers_of_numpy_are_counts(kind, tmp_path):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    numbers = dict(num_steps=kind(2), tasks_per_step=kind(2), log_every=kind(1))
    judged = validation(num_tasks=kind(2), every=kind(1), patience=kind(5), seed=kind(3))
    fit(
        **numbers,
        sinks=[],
        validation=judged,
        checkpoints=checkpoints,
        checkpoint_every=kind(1),
    )
    assert checkpoints.latest() == 2
    evaluate(num_tasks=kind(2), tasks_per_call=kind(1))


WRONG = [
    ("fit", {"trainer": counting_learner()}, "expected a MetaTrainer.*ml.meta_trainer"),
    ("fit", {"trainer": plain()}, "trainer is a Model"),
    ("fit", {"trainer": None}, "trainer is a NoneType"),
    ("fit", {"state": NOTHING}, "state is a Variables; .*dataclasses.replace"),
    ("fit", {"state": {"step": 0}}, "state is a dict; expected a TrainState"),
    ("fit", {"validation": SINES}, "validation is a TaskSampler; .*ml.Validation"),
    ("fit", {"validation": 5}, "validation is a int"),
    ("fit", {"checkpoints": "run"}, "checkpoints is a str; expected ml.Checkpoints"),
    ("fit", {"resume": "yes"}, "resume is 'yes'; expected True or False"),
    ("fit", {"resume": 1}, "resume is 1"),
    ("fit", {"sinks": [lambda: None]}, r"sink 0 takes \(\); expected a function \(row\)"),
    ("fit", {"sinks": [print, lambda row, more: None]}, "sink 1 takes"),
    ("fit", {"sinks": [3]}, "sinks is"),
    ("fit", {"sinks": print}, "sinks is"),
    ("fit", {"tasks": ml.TaskSampler}, "the class TaskSampler; .*instance"),
    ("fit", {"tasks": [SINES(KEY)]}, "a list of 1; .*from_tasks"),
    ("fit", {"tasks": SINES(KEY)}, "tasks is one Task; .*lambda key: task"),
    ("fit", {"tasks": ml.tasks.sinusoid}, r"sinusoid\(.*not take one key.*sinusoid\(...\)"),
    ("fit", {"tasks": lambda: None}, "does not take one key"),
    ("fit", {"tasks": lambda key: SINES}, "gave a TaskSampler for a task"),
    ("fit", {"tasks": lambda key: (1, 2)}, "gave a tuple for a task; expected ml.Task"),
    ("fit", {"tasks": iter([1])}, "whose order is its own.*TaskStream"),
    ("fit", {"tasks": ml.TaskStream(lambda *a: iter([1]))}, "gave a int for a task"),
    ("fit", {"tasks": None}, "tasks is a NoneType"),
    ("fit", {"tasks": "omniglot"}, "tasks is a str"),
    ("evaluate", {"learner": counting_trainer()}, "Give its learner: learner.learner"),
    ("evaluate", {"learner": plain()}, "learner is a Model; .*only within a learner"),
    ("evaluate", {"learner": ml.maml}, "Call the function maml"),
    ("evaluate", {"learner": None}, "learner is a NoneType"),
    ("evaluate", {"variables": {"n": 1}}, r"a dict; .*result\.variables or"),
    ("evaluate", {"variables": None}, "variables is a NoneType"),
    ("evaluate", {"variables": (NOTHING, 1)}, "variables is a tuple"),
    ("evaluate", {"loss_fn": lambda outputs: 0}, r"loss_fn takes \(outputs\); expected"),
    ("evaluate", {"loss_fn": "mse"}, "loss_fn is 'mse'; expected a function"),
    ("evaluate", {"metrics": [ml.metrics.f1]}, "metrics is a list; .*query/f1"),
    ("evaluate", {"metrics": {"f1": 3}}, "the metric 'f1' is a int"),
    ("evaluate", {"metrics": {3: ml.metrics.f1}}, "the metric 3 has no name"),
    ("evaluate", {"metrics": {"f1": lambda a, b, c: 0}}, "the metric 'f1' takes"),
    ("evaluate", {"tasks": 3}, "tasks is a int"),
    ("online", {"trainer": sine_learner()}, "trainer is a MetaLearner"),
    ("online", {"adapting": sine_trainer()}, "adapting is a MetaTrainer; .*.learner"),
    ("online", {"loss_fn": lambda outputs: 0}, "loss_fn takes"),
    ("online", {"restart": "no"}, "restart is 'no'"),
    ("online", {"resume": None}, "resume is None"),
    ("online", {"progress": "no"}, "progress is 'no'"),
    ("online", {"checkpoints": "run"}, "checkpoints is a str"),
    ("online", {"sinks": [lambda: None]}, "sink 0 takes"),
    ("online", {"tasks": 3}, "tasks is a int; expected a sequence of ml.Task"),
    ("continually", {"learner": sine_trainer()}, "Give its learner"),
    ("continually", {"outer_opt": 0.1}, "outer_opt is a float"),
    ("continually", {"grow": lambda variables: variables}, r"grow takes \(variables\)"),
    ("continually", {"stages": [(SINES, 2), (ml.TaskSampler, 2)]}, "the class TaskSampler"),
    ("validation", {"learner": sine_trainer()}, "learner of a validation is a MetaTrainer"),
    ("validation", {"loss_fn": lambda outputs: 0}, "loss_fn takes"),
    ("validation", {"metrics": {"f1": lambda outputs: 0}}, "the metric 'f1' takes"),
    ("validation", {"tasks": [1]}, "tasks is a list"),
]


@pytest.mark.parametrize(("call", "options", "words"), WRONG)
def test_values_of_another_kind(call, options, words):
    with pytest.raises(TypeError, match=f"(?s){words}"):
        CALLS[call](**options)


ELSEWHERE = {
    "paired": (lambda: ml.paired_difference(1, 2), "first is a int; expected Evaluation"),
    "summaries": (lambda: ml.paired_difference({}, {}), "first is a dict; .*ml.evaluate"),
    "regret": (lambda: ml.regret(1, 2), "found is a int; expected OnlineResult"),
    "described model": (lambda: ml.describe(plain()), "a Model; expected a MetaLearner"),
    "step": (
        lambda: counting_trainer().step(NOTHING, sine_batch(), key=KEY),
        "state is a Variables; expected TrainState",
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_values_of_another_kind_elsewhere(name):
    call, words = ELSEWHERE[name]
    with pytest.raises(TypeError, match=words):
        call()


BAD = [
    ("fit", {"nonfinite": "ignore"}, "nonfinite is 'ignore'"),
    ("fit", {"checkpoint_every": 2}, "no checkpoints; expected a place"),
    ("fit", {"checkpoint_every": 0}, "checkpoint_every is 0"),
    ("fit", {"resume": True}, "resume=True needs checkpoints"),
    ("fit", {"tasks_per_step": 10**9}, "tasks_per_step is 1000000000, but .* GB"),
    ("fit", {"tasks": ml.TaskStream(lambda *a: iter([]))}, "ended before batch 0"),
    ("evaluate", {"metrics": {"query/loss": ml.metrics.f1}}, "is reported already"),
    ("evaluate", {"metrics": {"spread": lambda o, e: o[:, 0]}}, r"shape \(5,\); .*scalar"),
    ("online", {"train_on": "next"}, "train_on is 'next'"),
    ("online", {"tasks": []}, "at least one task"),
    ("continually", {"metric": "query/accuracy"}, "'query/accuracy' is not reported"),
    ("continually", {"stages": [(SINES, -1)]}, "steps of a stage is -1"),
    ("continually", {"stages": [(SINES, "2")]}, "steps of a stage is '2'"),
    ("validation", {"metric": "query/brier"}, "is better is not known"),
]


@pytest.mark.parametrize(("call", "options", "words"), BAD)
def test_values_out_of_range(call, options, words):
    with pytest.raises(ValueError, match=words):
        CALLS[call](**options)


def test_what_a_result_is_in_place_of_its_variables():
    result = fit(sinks=[])
    for given in (result, result.state, [result.variables]):
        with pytest.raises(TypeError, match=r"expected Variables\. Give"):
            evaluate(variables=given)
    with pytest.raises(TypeError, match=r"state is a FitResult; .*: \.state"):
        fit(state=result, sinks=[])


@pytest.mark.parametrize("number", [1, 3])
def test_a_bad_later_stage_is_found_before_the_first_step(number):
    def bad(key):
        task = SINES(key)
        y = task.query.y.at[0].set(jnp.nan)
        query = dataclasses.replace(task.query, y=y)
        return dataclasses.replace(task, query=query)

    stages = [(SINES, 10**9)] * number + [(bad, 1)]
    with pytest.raises(ValueError, match=f"stage {number}: query.y holds 1 non-finite"):
        continually(stages=stages)


@pytest.mark.parametrize(
    ("opt", "error", "words"),
    [
        (optax.contrib.reduce_on_plateau(), TypeError, "more than a gradient"),
        (
            optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()),
            TypeError,
            "more than a gradient",
        ),
        (optax.lbfgs(), TypeError, "more than a gradient"),
        (
            optax.lookahead(optax.sgd(0.1), 5, 0.5),
            TypeError,
            "more than a gradient",
        ),
        (optax.adam(float("nan")), ValueError, "updates that are NaN"),
        (optax.chain(optax.clip(1.0), optax.sgd(np.nan)), ValueError, "rate"),
        (0.1, TypeError, "outer_opt is a float"),
        (optax.adam, TypeError, "outer_opt is a function"),
    ],
)
def test_outer_optimisers_that_cannot_work(opt, error, words):
    with pytest.raises(error, match=words):
        ml.meta_trainer(sine_learner(), opt)


@pytest.mark.parametrize(
    "opt",
    [
        optax.contrib.schedule_free_adamw(1e-2),
        optax.contrib.prodigy(),
        optax.contrib.muon(1e-2),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 10)),
        optax.masked(optax.adam(1e-2), {"model": True}),
        optax.partition({"a": optax.sgd(0.1)}, lambda params: "a"),
        optax.inject_hyperparams(optax.adam)(1e-2),
        optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
        ml.averaging(optax.adam(1e-2)),
        optax.apply_if_finite(optax.adam(1e-2), 3),
    ],
)
def test_outer_optimisers_that_work(opt):
    ml.meta_trainer(sine_learner(), opt)


@pytest.mark.parametrize("rate", [np.nan, jnp.nan])
@pytest.mark.parametrize("opt", [optax.sgd, optax.adam])
def test_a_rate_that_is_nan_is_called_one(opt, rate):
    """And not a square root of Adam's."""
    with pytest.raises(ValueError, match="its rate is not a finite number"):
        ml.maml(plain(1), ml.losses.mse, opt(rate))


def test_intervals_follow_the_number_of_steps():
    result = fit(num_steps=40, sinks=[])
    assert [row["step"] for row in result.history] == list(range(2, 41, 2))
    judged = validation(num_tasks=2)
    result = fit(num_steps=10, log_every=10, validation=judged, sinks=[])
    steps = [row["step"] for row in result.history if "validation/loss" in row]
    assert steps == [2, 4, 6, 8, 10]


def test_tasks_of_mixed_kinds_are_not_stacked():
    task = SINES(KEY)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), task.query)
    whole = dataclasses.replace(whole, mask=task.query.mask)
    other = dataclasses.replace(task, query=whole)
    with pytest.raises(ValueError, match=r"task 2 has .*integer.*same dtypes"):
        ml.stack_tasks([task, task, other])
    ml.stack_tasks([task, jax.tree.map(np.asarray, task)])
    from metalearn.core.task import concatenate

    with pytest.raises(ValueError, match="classes would become real"):
        concatenate(task.support, whole)


@pytest.mark.parametrize("labels", [["cat", "dog"], np.array(["cat", "dog"])])
def test_names_of_classes_are_no_labels(labels):
    with pytest.raises(TypeError, match=r"y holds strings.*numpy.unique"):
        ml.Examples.of(np.zeros((2, 1)), labels)
    with pytest.raises(ValueError, match="A list is many leaves"):
        ml.Examples.of(np.zeros((2, 1)), [0, 1])
