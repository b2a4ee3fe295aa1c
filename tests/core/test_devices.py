"""Tasks shared among devices: the same episodes, the same results."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from tiny import blobs, centred, plain

import metalearn as ml
from metalearn.core import mesh

CE = ml.losses.cross_entropy
LEARNERS = {
    "maml": lambda **o: ml.maml(plain(), CE, optax.sgd(0.1), num_steps=2, **o),
    "averages": lambda **o: ml.maml(centred(), CE, optax.sgd(0.1), norm="per_step", **o),
    "reptile": lambda **o: ml.reptile(
        centred(), CE, optax.sgd(0.1), num_steps=2, batch_size=3, **o
    ),
    "protonet": lambda **o: ml.protonet(centred(None), num_ways=3, **o),
}


@functools.cache
def learner_of(name, chunk="auto"):
    """One learner for all tests, for it keeps what was compiled for it."""
    return LEARNERS[name](task_chunk=chunk)


SGD = optax.sgd(0.1)
trainer_of = functools.cache(ml.meta_trainer)  # it keeps what it compiled


def trained(learner, devices, num_steps=3, tasks_per_step=8, **options):
    """Variables and history of a training on some devices."""
    with jax.set_mesh(ml.task_mesh(devices)):
        result = ml.fit(
            trainer_of(learner, SGD),
            blobs,
            num_steps=num_steps,
            tasks_per_step=tasks_per_step,
            key=jax.random.key(0),
            progress=False,
            **options,
        )
    return jax.device_get(result.state.variables), result.history


def judged(learner, variables, devices):
    with jax.set_mesh(ml.task_mesh(devices)):
        return ml.evaluate(learner, variables, blobs, num_tasks=10, key=jax.random.key(1))


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("maml", "auto"),
        # Gradients and averages are gathered in the same way in MAML and ProtoNet.
        pytest.param("averages", "auto", marks=pytest.mark.slow),
        pytest.param("reptile", "auto", marks=pytest.mark.slow),
        ("protonet", "auto"),
        pytest.param("maml", 1, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_learn_what_one_learns(name, chunk):
    (one, _), (eight, _) = (trained(learner_of(name, chunk), n) for n in (1, 8))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, eight
    )


@pytest.mark.parametrize("name", ["protonet", pytest.param("maml", marks=pytest.mark.slow)])
def test_eight_devices_judge_as_one_does(name):
    """Validation and evaluation; with the programs of the training above."""
    learner = learner_of(name)
    validation = ml.Validation(tasks=blobs, num_tasks=6, every=1)
    runs = (trained(learner, n, num_steps=1, validation=validation) for n in (1, 8))
    (variables, history), (_, other) = runs
    name = "validation/loss"
    found, expected = ([r[name] for r in rows if name in r] for rows in (history, other))
    assert found
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    one, eight = (judged(learner, variables, n) for n in (1, 8))
    assert one.fingerprint == eight.fingerprint  # the very same tasks
    np.testing.assert_allclose(
        one.values["query/loss"], eight.values["query/loss"], rtol=1e-4
    )


def test_results_without_a_mesh_are_those_of_one_device():
    learner = learner_of("maml")
    alone = ml.fit(
        trainer_of(learner, SGD),
        blobs,
        num_steps=3,
        tasks_per_step=8,
        key=jax.random.key(0),
        progress=False,
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(alone.state.variables),
        trained(learner, 1)[0],
    )


def test_a_run_goes_on_with_fewer_devices(tmp_path):
    learner = learner_of("protonet")  # it has averages, and few programs to compile
    whole, _ = trained(learner, 4, num_steps=4)
    for devices, steps, resume in ((4, 2, False), (2, 4, True)):
        checkpoints = ml.Checkpoints(tmp_path / "run")
        found, _ = trained(
            learner, devices, num_steps=steps, checkpoints=checkpoints, resume=resume
        )
        checkpoints.close()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, found
    )


def test_mistakes():
    explicit = jax.make_mesh((2,), ("tasks",), axis_types=(AxisType.Explicit,))
    message = r"Explicit.*ml\.task_mesh"
    with jax.set_mesh(explicit), pytest.raises(ValueError, match=message):
        ml.fit(
            ml.meta_trainer(learner_of("maml"), optax.sgd(0.1)),
            blobs,
            num_steps=1,
            tasks_per_step=2,
            key=jax.random.key(0),
        )
    with pytest.raises(ValueError, match=r"expected 1 to 8.*jax_num_cpu_devices"):
        ml.task_mesh(9)


def test_tasks_that_do_not_divide():
    (one, history), (four, other) = (
        trained(learner_of("maml"), n, tasks_per_step=6) for n in (1, 4)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, four
    )
    for row, also in zip(history, other, strict=True):
        names = [name for name in row if name.startswith(("support/", "query/"))]
        assert row.keys() == also.keys()
        np.testing.assert_allclose(
            [row[name] for name in names], [also[name] for name in names], rtol=1e-4
        )
    with pytest.raises(ValueError, match=r"3 tasks for 4 devices"):
        trained(learner_of("maml"), 4, tasks_per_step=3)


@pytest.mark.slow
def test_tasks_at_once_are_not_those_of_the_remainder():
    trainer = ml.meta_trainer(learner_of("maml"), optax.sgd(0.1))
    for devices, at_once in ((1, 7), (2, 3)):  # the second is not the first's either
        with jax.set_mesh(ml.task_mesh(devices)):
            result = ml.fit(
                trainer,
                blobs,
                num_steps=1,
                tasks_per_step=7,
                key=jax.random.key(0),
                progress=False,
            )
        assert result.tasks_at_once == at_once


CONNECT = """
import os, sys, warnings, jax
from metalearn.runs import environment
environment.cores = lambda: 3
warnings.simplefilter("ignore")  # jax has threads; none of them is at work yet
for case in ("early", "late", "given"):
    if os.fork():  # what follows would take back nothing of what a process has begun
        if os.wait()[1]:
            sys.exit(case)
        continue
    if case != "given":
        jax.config.update("jax_num_cpu_devices", -1)  # as without JAX_NUM_CPU_DEVICES
    if case == "late":
        jax.numpy.ones(1)
    environment.connect()
    print(case, len(jax.devices()), flush=True)
    os._exit(0)
"""


def test_cores_become_devices():
    variables = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT],
        capture_output=True,
        text=True,
        env={**variables, "JAX_NUM_CPU_DEVICES": "5"},
        check=True,
    )
    assert done.stdout.splitlines() == ["early 3", "late 1", "given 5"]


@pytest.mark.slow  # three steps of the same are quick
def test_a_hundred_steps_on_eight_devices():
    one, eight = (trained(learner_of("maml"), n, num_steps=100)[0] for n in (1, 8))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


def test_devices_when_nobody_says():
    assert len(jax.devices()) == 8  # by conftest.py
    assert mesh.fitting(32) == 8
    assert mesh.fitting(2) == 2
    assert mesh.fitting(7) == 7
    assert mesh.fitting(25) == 8  # three each and one for all: four in turn
    assert mesh.fitting(15) == 5  # one each and seven for all eight would be more
    assert mesh.fitting(15, padded=True) == 8
