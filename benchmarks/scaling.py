"""One outer step on 1, 2, 4 and 8 devices, each number in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

from benchmarks import _harness

CHILD = """
import json, sys, time
import jax
devices, tasks, workload, seconds = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", devices)
import dataclasses
import metalearn as ml
from benchmarks import workloads
work = dataclasses.replace(workloads.WORKLOADS[workload], tasks=tasks)
with jax.set_mesh(ml.task_mesh(devices)):
    step = workloads.metalearn_step(work).setup()
    step()
    began, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - began < seconds:
        step()
        count += 1
    print((time.perf_counter() - began) / count)
"""


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Weak and strong scaling over devices; on a CPU they share its cores.

    Attributes:
      workload: Which.
      devices: Numbers of devices.
      rounds: Measurements of each, in turn.
      seconds: Length of one measurement.
      json: Where to write; `benchmarks/results/scaling.json` by default.
    """

    workload: str = "sine"
    devices: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 3
    seconds: float = 2.0
    json: str | None = None

    def run_benchmark(self) -> None:
        base = 32
        times: dict[str, dict[int, list[float]]] = {"strong": {}, "weak": {}}
        for _ in range(self.rounds):
            for devices in self.devices:
                for kind, tasks in (("strong", base), ("weak", base // 8 * devices)):
                    rate = tasks / self._step_time(devices, tasks)
                    times[kind].setdefault(devices, []).append(round(rate, 1))
                    print(f"{kind}: {devices} devices, {tasks} tasks: {rate:.1f} tasks/s")
        _harness.store(
            "scaling",
            {"kind": "scaling", "workload": self.workload, "tasks_per_s": times},
            self.json,
        )

    def _step_time(self, devices: int, tasks: int) -> float:
        arguments = json.dumps([devices, tasks, self.workload, self.seconds])
        done = subprocess.run(
            [sys.executable, "-c", CHILD, arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        return float(done.stdout)
