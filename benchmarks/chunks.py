"""`task_chunk="auto"` against 1, 2, 8 and all tasks at once."""

from __future__ import annotations

import dataclasses

from benchmarks import _harness, workloads


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Times the outer step with fixed numbers of tasks at once and with "auto", in turn.

    Attributes:
      workload: Names of workloads.
      rounds: Turns of each.
      seconds: Length of one turn.
      json: Where to write; `benchmarks/results/chunks.json` by default.
    """

    workload: tuple[str, ...] = workloads.FOR_CPUS
    rounds: int = 5
    seconds: float = 1.5
    json: str | None = None

    def run_benchmark(self) -> None:
        found = {}
        for name in self.workload:
            work = workloads.WORKLOADS[name]
            fixed = [c for c in (1, 2, 8, work.tasks) if c <= work.tasks]
            contenders = {
                str(c): workloads.metalearn_step(work, task_chunk=c)
                for c in ("auto", *dict.fromkeys(fixed))
            }
            rows = _harness.interleaved(
                contenders, rounds=self.rounds, seconds=self.seconds
            )
            rates = {c: work.tasks / row["step_s_median"] for c, row in rows.items()}
            best = max((c for c in rates if c != "auto"), key=rates.get)
            share = _harness.ratios(rows, "auto")[best]
            print(
                f"{name}: best fixed {best} at {rates[best]:.0f} tasks/s, auto "
                f"{rates['auto']:.0f}, {share['median']:.2f} of it"
            )
            found[name] = {
                "tasks_per_s": rates,
                "best_fixed": best,
                "auto_relative_to_best": share,
            }
        _harness.store("chunks", {"kind": "chunks", "workloads": found}, self.json)
