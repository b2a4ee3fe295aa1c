"""Programs go when their learner goes, and stay as long as it stays."""

import functools
import gc
import pickle
import weakref

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.extend.core import Jaxpr

import metalearn as ml
from metalearn.core import programs


@pytest.fixture(autouse=True)
def looks_at_what_the_test_makes(monkeypatch):
    """The collector of Python, which looks through neither more nor less than that."""
    monkeypatch.setattr(programs, "gc", gc)
    gc.freeze()
    yield
    gc.unfreeze()


def made_in(calls):
    @programs.kept_with_owner
    def make(owner, setting):
        calls.append(setting)
        return lambda: owner  # as a program: it holds what it belongs to

    return make


def record(number=0):
    """A record of functions of its own, as every learner is."""
    return (len, lambda: number)


def test_a_value_is_made_once_for_an_owner_and_a_setting():
    calls = []
    make, one, other = made_in(calls), record(1), record(2)
    assert make(one, "a") is make(one, "a")
    assert make(one, "b") is not make(one, "a")
    assert make(other, "a") is not make(one, "a")
    assert calls == ["a", "b", "a"]


def test_programs_go_with_their_owner():
    make, owner = made_in([]), record()
    value = weakref.ref(make(owner, 0))
    gc.collect()
    assert value() is not None
    del owner
    gc.collect()
    assert value() is None


def test_an_owner_keeps_its_latest_programs():
    calls = []
    make, owner = made_in(calls), record()
    for setting in range(programs.MOST_PROGRAMS + 1):
        make(owner, setting)
    make(owner, programs.MOST_PROGRAMS)
    make(owner, 0)
    assert calls == [*range(programs.MOST_PROGRAMS + 1), 0]


def test_the_latest_owners_keep_their_programs(monkeypatch):
    monkeypatch.setattr(programs, "MOST_OWNERS", 6)
    calls = []
    make, owners = made_in(calls), [record(i) for i in range(programs.MOST_OWNERS + 1)]
    for number, owner in enumerate(owners):
        make(owner, number)
        make(owners[1], 1)  # used all the time
    calls.clear()
    make(owners[1], 1), make(owners[-1], programs.MOST_OWNERS)
    assert calls == []
    make(owners[0], 0)
    assert calls == [0]


def test_functions_of_a_module_hold_few_programs():
    """They live for ever, so what they own is bounded by a number."""
    calls = []
    make = made_in(calls)
    make((len, print), 0), make((len, print), 0)
    assert calls == [0] and len(programs._ownerless) <= programs.MOST_PROGRAMS


def test_wrapped_and_pickled_owners_work():
    calls = []
    make, owner = made_in(calls), record()
    make(owner, 0)
    wrapped = functools.wraps(owner[1])(lambda: 0)
    make((wrapped,), 0)
    assert calls == [0, 0]
    assert not pickle.loads(pickle.dumps(vars(owner[1])[programs._ATTRIBUTE]))


def test_clear_caches_releases_what_is_held():
    calls = []
    make, owner = made_in(calls), record()
    value = weakref.ref(make(owner, 0))
    ml.clear_caches()
    assert value() is None
    make(owner, 0)
    assert calls == [0, 0]


def learner_of(number):
    def apply(params, x):
        return x * params["w"] + number

    model = ml.from_apply_fn(lambda key, x: {"w": jnp.ones(())}, apply)
    return ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=1)


@pytest.mark.parametrize("what", ["fit", "evaluate", "adapt"])
def test_a_learner_is_freed_with_what_was_compiled_for_it(what):
    tasks, key = ml.tasks.sinusoid(num_support=2, num_query=2), jax.random.key(0)
    learner = learner_of(0)
    variables = learner.init(key, tasks(key))
    if what == "fit":
        trainer = ml.meta_trainer(learner, optax.sgd(1e-3))
        ml.fit(trainer, tasks, num_steps=1, tasks_per_step=2, key=key)
        del trainer
    elif what == "evaluate":
        ml.evaluate(learner, variables, tasks, num_tasks=2, key=key)
    else:
        jax.jit(learner.adapt)(variables, tasks(key).support)
    gone = [weakref.ref(fn) for fn in learner[:4]]
    del learner
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)


def test_adapting_outside_of_jit_leaves_nothing_behind():
    """Every call makes loops of its own, which jax would keep by itself."""
    key = jax.random.key(0)
    task = ml.tasks.sinusoid(num_support=2)(key)
    deep = ml.maml(
        ml.from_linen(ml.models.MLP(widths=(2,))),
        ml.losses.mse,
        optax.sgd(0.1),
        num_steps=2,
    )
    variables = deep.init(key, task)
    deep.adapt(variables, task.support)
    gc.collect()
    before = len([thing for thing in gc.get_objects() if isinstance(thing, Jaxpr)])
    for _ in range(3):
        deep.adapt(variables, task.support)
    gc.collect()
    assert len([t for t in gc.get_objects() if isinstance(t, Jaxpr)]) <= before


@pytest.mark.parametrize("flags", ["", "--xla_gpu_enable_triton_gemm=true"])
def test_a_card_is_told_what_it_knows_and_the_user_has_not_said(monkeypatch, flags):
    told = programs.ON_A_CARD | {"xla_no_such_option": False}
    monkeypatch.setattr(programs, "ON_A_CARD", told)
    assert programs.compiler_options() is None  # a CPU
    monkeypatch.setattr(programs, "_on_cuda", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", flags + " --xla_gpu_enable_triton_gemm_int4=true")
    expected = set(told) - {"xla_no_such_option"}
    if flags:
        expected -= {"xla_gpu_enable_triton_gemm"}
    assert set(programs.compiler_options()) == expected
    assert programs.compiled(lambda x: x + 1)(1) == 2


def test_training_and_evaluation_take_options_of_the_compiler(monkeypatch):
    """jax refuses them where a compiled function calls another."""
    told = {"xla_cpu_enable_fast_min_max": False}
    monkeypatch.setattr(programs, "compiler_options", lambda: told)
    tasks = ml.tasks.sinusoid(num_support=2, num_query=2)
    model = ml.from_linen(ml.models.MLP(widths=(2,)))
    learner = ml.maml(model, ml.losses.mse, optax.sgd(0.1))
    result = ml.fit(
        ml.meta_trainer(learner, optax.sgd(0.1)),
        tasks,
        num_steps=1,
        tasks_per_step=2,
        key=jax.random.key(0),
        validation=ml.Validation(tasks=tasks, num_tasks=2, every=1, metric="query/loss"),
        progress=False,
    )
    support = tasks(jax.random.key(1)).support
    ml.predict(learner, result.variables, support, support.x, key=jax.random.key(2))
