"""Latency of adapting to one new task and predicting its queries."""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

from benchmarks import _harness, workloads


@dataclasses.dataclass(frozen=True)
class Adapt:
    """One 5-way 1-shot task: the first call, and warm calls with PyTorch in turn.

    Attributes:
      workload: Whose network and inner loop.
      steps: Inner steps.
      queries: Query images of the task.
      rounds: Turns of each.
      calls: Calls in a turn.
      json: Where to write; `benchmarks/results/adapt.json` by default.
    """

    workload: str = "omniglot5"
    steps: int = 5
    queries: int = 5
    rounds: int = 10
    calls: int = 20
    json: str | None = None

    def run_benchmark(self) -> None:
        from benchmarks import torch_peers

        work = dataclasses.replace(
            workloads.WORKLOADS[self.workload],
            inner_steps=self.steps,
            query=self.queries,
            tasks=1,
        )
        learner = workloads.learner_of(work)
        task = jax.tree.map(lambda x: x[0], workloads.as_tasks(workloads.arrays(work)))
        variables = jax.jit(learner.init)(jax.random.key(0), task)

        @jax.jit
        def adapt_and_predict(variables, support, x):
            return learner.predict(learner.adapt(variables, support), x)

        def ours() -> None:
            found = adapt_and_predict(variables, task.support, task.query.x)
            jax.block_until_ready(found)

        began = time.perf_counter()
        ours()
        cold = time.perf_counter() - began
        calls = {"metalearn": ours, "torch": torch_peers.adapt_and_predict(work)}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.rounds):
            for name, call in calls.items():
                call()
                for _ in range(self.calls):
                    began = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - began)
        rows = {
            name: {
                f"p{p}_ms": round(1e3 * float(np.percentile(found, p)), 3) for p in (50, 95)
            }
            for name, found in times.items()
        }
        lower = rows["torch"]["p50_ms"] / rows["metalearn"]["p50_ms"]
        print(f"cold {cold:.1f} s, warm {rows}, {lower:.2f} times lower at the median")
        _harness.store(
            "adapt",
            {
                "kind": "adapt",
                "workload": dataclasses.asdict(work),
                "cold_s": round(cold, 2),
                "warm": rows,
                "times_lower_than_torch": round(lower, 2),
            },
            self.json,
        )
