"""One outer step on several devices and processes, each number in processes of its own."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks import _harness

CHILD = """
import json, sys, time
import jax
devices, tasks, workload, steps, processes, process, port = json.loads(sys.argv[1])
from metalearn.runs import environment
environment.connect(
    devices=devices,
    processes=processes,
    process=process,
    coordinator=f"localhost:{port}" if processes > 1 else None,
)
import dataclasses
import metalearn as ml
from benchmarks import workloads
work = dataclasses.replace(workloads.WORKLOADS[workload], tasks=tasks)
step = workloads.metalearn_step(work, devices=devices).setup()
step()
times = []
for _ in range(steps):  # a fixed number: processes wait for one another
    began = time.perf_counter()
    step()
    times.append(time.perf_counter() - began)
print(sorted(times)[steps // 2])
"""


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Weak and strong scaling over devices; on a CPU they share its cores.

    Attributes:
      workload: Which.
      devices: Numbers of devices of one process.
      processes: Numbers of processes, with one device each.
      tasks: Tasks of a step, strong scaling; a quarter of them for each device, weak.
      rounds: Measurements of each, in turn.
      steps: Steps of one measurement.
      json: Where to write; `benchmarks/results/scaling.json` by default.
    """

    workload: str = "omniglot"
    devices: tuple[int, ...] = (1, 2, 4, 8)
    processes: tuple[int, ...] = (1, 2)
    tasks: int = 32
    rounds: int = 2
    steps: int = 8
    json: str | None = None

    def run_benchmark(self) -> None:
        found: dict[str, dict[int, list[float]]] = {}
        sizes = [(devices, 1) for devices in self.devices]
        sizes += [(processes, processes) for processes in self.processes if processes > 1]
        for _ in range(self.rounds):
            for devices, processes in sizes:
                for kind, tasks in (
                    ("strong", self.tasks),
                    ("weak", self.tasks // 4 * devices),
                ):
                    rate = tasks / self._step_time(devices, tasks, processes)
                    of = "devices" if processes == 1 else "processes"
                    row = found.setdefault(f"{kind}, {of}", {})
                    row.setdefault(devices, []).append(round(rate, 1))
                    print(f"{kind}: {devices} {of}, {tasks} tasks: {rate:.1f} tasks/s")
        _harness.store(
            "scaling",
            {"kind": "scaling", "workload": self.workload, "tasks_per_s": found},
            self.json,
        )

    def _step_time(self, devices: int, tasks: int, processes: int) -> float:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        common = [devices, tasks, self.workload, self.steps, processes]
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps([*common, process, port])],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(processes)
        ]
        with ThreadPoolExecutor(processes) as pool:  # a full pipe would stop them all
            outputs = list(pool.map(lambda child: child.communicate(), children))
        for child, (_, errors) in zip(children, outputs, strict=True):
            if child.returncode:
                raise SystemExit(errors[-2000:])
        return float(outputs[0][0].split()[-1])
