"""Tasks shared among devices: the same episodes, the same results."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from tiny import blobs, linen, plain

import metalearn as ml

CE = ml.losses.cross_entropy
LEARNERS = {
    "maml": lambda **o: ml.maml(plain(), CE, optax.sgd(0.1), num_steps=2, **o),
    "batch_norm": lambda **o: ml.maml(linen(), CE, optax.sgd(0.1), norm="per_step", **o),
    "reptile": lambda **o: ml.reptile(
        linen(), CE, optax.sgd(0.1), num_steps=2, batch_size=3, **o
    ),
    "protonet": lambda **o: ml.protonet(linen(None), num_ways=3, **o),
}


def trained(learner, devices, num_steps=3, tasks_per_step=8, **options):
    with jax.set_mesh(ml.task_mesh(devices)):
        result = ml.fit(
            ml.meta_trainer(learner, optax.sgd(0.1)),
            blobs,
            num_steps=num_steps,
            tasks_per_step=tasks_per_step,
            key=jax.random.key(0),
            validation=ml.Validation(tasks=blobs, num_tasks=6),
            progress=False,
            **options,
        )
        judged = ml.evaluate(
            learner, result.variables, blobs, num_tasks=10, key=jax.random.key(1)
        )
    return jax.device_get(result.state.variables), result.history, judged


@pytest.mark.parametrize("chunk", ["auto", 1])
@pytest.mark.parametrize("name", LEARNERS)
def test_eight_devices_learn_what_one_learns(name, chunk):
    learner = LEARNERS[name](task_chunk=chunk)
    (one, history, judged), (eight, other, also) = (trained(learner, n) for n in (1, 8))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, eight
    )
    assert judged.fingerprint == also.fingerprint  # the very same tasks
    np.testing.assert_allclose(
        judged.values["query/loss"], also.values["query/loss"], rtol=1e-4
    )
    assert [row["step"] for row in history] == [row["step"] for row in other]


def test_results_without_a_mesh_are_those_of_one_device():
    learner = LEARNERS["maml"]()
    alone = ml.fit(
        ml.meta_trainer(learner, optax.sgd(0.1)),
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
    learner = LEARNERS["batch_norm"]()
    whole, _, _ = trained(learner, 4, num_steps=4)
    for devices, steps, resume in ((4, 2, False), (2, 4, True)):
        checkpoints = ml.Checkpoints(tmp_path / "run")
        found, _, _ = trained(
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
            ml.meta_trainer(LEARNERS["maml"](), optax.sgd(0.1)),
            blobs,
            num_steps=1,
            tasks_per_step=2,
            key=jax.random.key(0),
        )
    with pytest.raises(ValueError, match=r"expected 1 to 8.*jax_num_cpu_devices"):
        ml.task_mesh(9)
    with pytest.raises(ValueError, match=r"6 tasks do not divide over 4 devices.*4 or 8"):
        trained(LEARNERS["maml"](), 4, tasks_per_step=6)
