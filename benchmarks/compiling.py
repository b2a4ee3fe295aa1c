"""Time to trace and compile an outer step, by inner steps."""

from __future__ import annotations

import dataclasses
import time

import jax
import optax

import metalearn as ml
from benchmarks import _harness, workloads


@dataclasses.dataclass(frozen=True)
class Compiling:
    """Compiles the outer step of a workload for several numbers of inner steps.

    Attributes:
      workload: Which.
      steps: Numbers of inner steps.
      rounds: Compilations of each, in turn.
      json: Where to write; `benchmarks/results/compiling.json` by default.
    """

    workload: str = "omniglot5"
    steps: tuple[int, ...] = (5, 50)
    rounds: int = 3
    json: str | None = None

    def run_benchmark(self) -> None:
        times: dict[int, list[float]] = {steps: [] for steps in self.steps}
        jax.config.update("jax_enable_compilation_cache", False)
        for _ in range(self.rounds):
            for steps in self.steps:
                times[steps].append(self._compile(steps))
                print(f"{steps} steps: {times[steps][-1]:.1f} s", flush=True)
        medians = {s: sorted(found)[len(found) // 2] for s, found in times.items()}
        ratio = medians[self.steps[-1]] / medians[self.steps[0]]
        print(f"{self.steps[-1]} against {self.steps[0]} steps: {ratio:.2f} times")
        _harness.store(
            "compiling",
            {
                "kind": "compiling",
                "workload": self.workload,
                "seconds": times,
                "longest_to_shortest": ratio,
            },
            self.json,
        )

    def _compile(self, steps: int) -> float:
        work = dataclasses.replace(workloads.WORKLOADS[self.workload], inner_steps=steps)
        trainer = ml.meta_trainer(workloads.learner_of(work), optax.adam(1e-3))
        tasks = workloads.as_tasks(workloads.arrays(work))
        one = jax.tree.map(lambda x: x[0], tasks)
        state = jax.eval_shape(trainer.init, jax.random.key(0), one)
        began = time.perf_counter()
        jax.jit(trainer.step).lower(state, tasks, key=jax.random.key(0)).compile()
        return time.perf_counter() - began
