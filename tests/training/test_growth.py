"""A process that makes learner after learner stays as large as it is."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import jax, optax
import metalearn as ml

tasks = ml.tasks.sinusoid(num_support=5, num_query=5)
page = 4096 / 2**20
sizes = []
for number in range(int(sys.argv[1])):
    key = jax.random.key(number)
    model = ml.from_linen(ml.models.MLP(widths=(16, 16)))
    learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=2)
    task = tasks(key)
    learner.adapt(learner.init(key, task), task.support)
    trainer = ml.meta_trainer(learner, optax.adam(1e-3))
    result = ml.fit(trainer, tasks, num_steps=2, tasks_per_step=2, key=key)
    ml.evaluate(learner, result.variables, tasks, num_tasks=2, key=key)
    sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
print(json.dumps(sizes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux tells the size")
@pytest.mark.parametrize("num", [25])
def test_fresh_learners_take_no_more_memory(num):
    """Each learner compiles some 10 MB of programs; 300 are to grow by less than 200 MB."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(num)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    sizes = json.loads(run.stdout.splitlines()[-1])
    assert sizes[-1] - sizes[4] < 100, [round(size) for size in sizes]
