"""Ours against PyTorch on the same workload, interleaved in one run."""

from __future__ import annotations

import dataclasses

from benchmarks import _harness, workloads


@dataclasses.dataclass(frozen=True)
class Peers:
    """Times one outer step of metalearn and of PyTorch in turn.

    Attributes:
      workload: "omniglot", "omniglot5", "sine" or "protonet".
      rounds: Turns of each contender.
      seconds: Length of one turn.
      plain: Also time plain JAX (no lowering, all tasks in one vmap); slow.
      json: Where to write; `benchmarks/results/peers-WORKLOAD.json` by default.
    """

    workload: str = "omniglot"
    rounds: int = 7
    seconds: float = 3.0
    plain: bool = False
    json: str | None = None

    def run_benchmark(self) -> None:
        if self.workload not in workloads.WORKLOADS:
            raise SystemExit(
                f"workload is {self.workload!r}; expected one of "
                f"{', '.join(workloads.WORKLOADS)}."
            )
        try:
            from benchmarks import torch_modules, torch_peers
        except ImportError as error:
            raise SystemExit("peers needs torch: pip install '.[peers]'") from error

        work = workloads.WORKLOADS[self.workload]
        contenders = {"metalearn": workloads.metalearn_step(work)}
        if work.kind == "sine":
            contenders["metalearn, 20 steps a call"] = workloads.metalearn_step(
                work, steps_per_call=20
            )
        else:
            one = workloads.metalearn_step(work, devices=1)
            contenders["metalearn, one device"] = one
        if work.kind == "prototypes":
            contenders |= {
                "torch loop": torch_peers.prototypes(work, batched=False),
                "torch all tasks at once": torch_peers.prototypes(work, batched=True),
            }
        else:
            contenders |= {
                "torch loop": torch_peers.loop(work),
                "torch.func vmap": torch_peers.vmap(work),
                "clone/adapt": torch_modules.clone_adapt(work),
                "TorchOpt": torch_modules.torchopt(work),
                "higher": torch_modules.higher(work),
            }
        if self.plain:
            contenders["plain jax vmap"] = workloads.metalearn_step(
                work, task_chunk=work.tasks, lower=False
            )
        rows = _harness.interleaved(contenders, rounds=self.rounds, seconds=self.seconds)
        left_out = sorted(contenders.keys() - rows.keys())
        for row in rows.values():
            row["tasks_per_s"] = round(work.tasks / row["step_s_median"], 1)
        times = _harness.ratios(rows, "metalearn")
        peers = [name for name in times if "metalearn" not in name]
        fastest = min(peers, key=lambda name: times[name]["median"])
        for name, row in rows.items():
            ratio = times.get(name, {}).get("median", 1.0)
            print(
                f"{name:24} {row['tasks_per_s']:9.1f} tasks/s   metalearn is {ratio:.2f}x"
            )
        _harness.store(
            f"peers-{self.workload}",
            {
                "workload": dataclasses.asdict(work),
                "rows": rows,
                "times_faster": times,
                "not_installed": left_out,
                "fastest_peer": fastest,
                "times_faster_than_fastest_peer": times[fastest]["median"],
            },
            self.json,
        )
