"""Memory of a process that makes one learner after another, as a sweep does."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import optax

import metalearn as ml
from benchmarks import _harness

# Learners after which a process has what it needs once: the compiler, the first programs.
SETTLED = 10
STATM = Path("/proc/self/statm")


@dataclasses.dataclass(frozen=True)
class Growth:
    """Adapts, trains and evaluates fresh learners, and notes the memory after each.

    Attributes:
      learners: Number of learners, 20 or more.
      json: Where to write; `benchmarks/results/growth.json` by default.
    """

    learners: int = 300
    json: str | None = None

    def run_benchmark(self) -> None:
        if self.learners < 2 * SETTLED:
            raise SystemExit(
                f"learners is {self.learners}; expected {2 * SETTLED} or more."
            )
        if not STATM.exists():
            raise SystemExit(f"growth reads {STATM}, which this system does not have.")
        megabytes = []
        for number in range(self.learners):
            _one_learner(number)
            megabytes.append(round(_resident() / 2**20, 1))
            if (number + 1) % SETTLED == 0:
                print(f"{number + 1} learners: {megabytes[-1]} MB", flush=True)
        grown = round(megabytes[-1] - megabytes[SETTLED - 1], 1)
        print(f"{grown:+} MB from learner {SETTLED} to {self.learners}")
        found = {"kind": "growth", "settled": SETTLED, "megabytes": megabytes}
        _harness.store("growth", found, self.json)


def _one_learner(number: int) -> None:
    key, tasks = jax.random.key(number), ml.tasks.sinusoid(num_support=5, num_query=5)
    model = ml.from_linen(ml.models.MLP(widths=(16, 16)))
    learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=2)
    task = tasks(key)
    learner.adapt(learner.init(key, task), task.support)
    trainer = ml.meta_trainer(learner, optax.adam(1e-3))
    result = ml.fit(trainer, tasks, num_steps=2, tasks_per_step=2, key=key, progress=False)
    ml.evaluate(learner, result.variables, tasks, num_tasks=2, key=key)


def _resident() -> int:
    """Bytes of this process in memory, by Linux."""
    return os.sysconf("SC_PAGE_SIZE") * int(STATM.read_text().split()[1])


def table_rows(row: dict[str, Any]) -> list[str]:
    """Markdown lines of a stored result."""
    megabytes, settled = row["megabytes"], row["settled"]
    return [
        f"Memory of a process that makes {len(megabytes)} learners: {megabytes[0]} MB "
        f"after the first, {megabytes[settled - 1]} after {settled}, {max(megabytes)} at "
        f"most, {megabytes[-1]} after the last.",
    ]
