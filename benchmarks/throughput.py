"""Tasks a second of the outer step over workloads and ways of differentiation."""

from __future__ import annotations

import dataclasses

from benchmarks import _harness, workloads

CASES: dict[str, dict] = {
    "omniglot": {},
    "omniglot, first order": {"differentiation": "first_order"},
    "omniglot, mixed mode": {"differentiation": "mixed"},
    "omniglot5": {"workload": "omniglot5"},
    "omniglot5, remat": {"workload": "omniglot5", "differentiation": "remat"},
    "omniglot5, mixed mode": {"workload": "omniglot5", "differentiation": "mixed"},
    "sine": {"workload": "sine"},
    "protonet": {"workload": "protonet"},
    "omniglot, bfloat16": {"dtype": "bfloat16"},
    "omniglot, 32 channels": {"width": 32},
    "omniglot, one device": {"devices": 1},
    "omniglot, native convolutions": {"lower": False},
}


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Times the outer step of this library alone.

    Attributes:
      only: Cases whose name contains this.
      rounds: Turns of each.
      seconds: Length of one turn.
      json: Where to write; `benchmarks/results/throughput.json` by default.
    """

    only: str = ""
    rounds: int = 3
    seconds: float = 2.0
    json: str | None = None

    def run_benchmark(self) -> None:
        contenders, tasks = {}, {}
        for name, options in CASES.items():
            if self.only not in name:
                continue
            options = dict(options)
            work = workloads.WORKLOADS[options.pop("workload", "omniglot")]
            contenders[name] = workloads.metalearn_step(work, **options)
            tasks[name] = work.tasks
        rows = _harness.interleaved(contenders, rounds=self.rounds, seconds=self.seconds)
        rates = {name: tasks[name] / row["step_s_median"] for name, row in rows.items()}
        for name, rate in rates.items():
            print(f"{name:28} {rate:10.1f} tasks/s")
        _harness.store(
            "-".join(["throughput", *self.only.split()]),
            {"kind": "throughput", "tasks_per_s": rates, "rows": rows},
            self.json,
        )
