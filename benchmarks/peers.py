"""Ours against PyTorch on the same workload, interleaved in one run."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from benchmarks import _harness, workloads
from benchmarks._harness import Contender


@dataclasses.dataclass(frozen=True)
class Peers:
    """Times one outer step of metalearn and of PyTorch in turn.

    Attributes:
      workload: A workload of `benchmarks.workloads`, such as "omniglot" or "mini".
      tasks: Tasks of a step; as the workload has it if None.
      precision: Of float32 products on a card, in all contenders: "tf32" or "float32". A
        CPU knows the second alone.
      rounds: Turns of each contender.
      seconds: Length of one turn.
      plain: Also time plain JAX (no lowering, all tasks in one vmap); slow.
      threads: Contenders that are set up at once.
      json: Where to write; `benchmarks/results/peers-WORKLOAD.json` by default.
    """

    workload: str = "omniglot"
    tasks: int | None = None
    precision: Literal["tf32", "float32"] = "tf32"
    rounds: int = 7
    seconds: float = 3.0
    plain: bool = False
    threads: int = 1
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
        work = dataclasses.replace(work, tasks=self.tasks or work.tasks)
        precision = "float32" if jax.default_backend() == "cpu" else self.precision
        torch_peers.prepare(precision)
        ours = {n: _with(precision, c) for n, c in _ours(work, self.plain).items()}
        torch = _torch(work, torch_peers, torch_modules)
        torch = {name: torch_peers.waited(contender) for name, contender in torch.items()}
        contenders = ours | torch
        rows = _harness.interleaved(
            contenders, rounds=self.rounds, seconds=self.seconds, threads=self.threads
        )
        left_out = sorted(contenders.keys() - rows.keys())
        for row in rows.values():
            row["tasks_per_s"] = round(work.tasks / row["step_s_median"], 1)
        peers = [name for name in rows if name in torch]
        if "metalearn" not in rows or not peers:
            raise SystemExit(
                f"only {', '.join(rows) or 'nothing'} could be timed: no ratio. Left out: "
                f"{', '.join(left_out)}; see above."
            )
        times = _harness.ratios(rows, "metalearn")
        fastest = min(peers, key=lambda name: times[name]["median"])
        for name, row in rows.items():
            ratio = times.get(name, {}).get("median", 1.0)
            print(
                f"{name:40} {row['tasks_per_s']:9.1f} tasks/s   metalearn is {ratio:.2f}x"
            )
        _harness.store(
            "-".join(["peers", self.workload, *([str(self.tasks)] if self.tasks else [])]),
            {
                "workload": dataclasses.asdict(work),
                "precision": precision,
                "rows": rows,
                "times_faster": times,
                "left_out": left_out,
                "fastest_peer": fastest,
                "times_faster_than_fastest_peer": times[fastest]["median"],
            },
            self.json,
        )


PRECISIONS = {"tf32": "tensorfloat32", "float32": "float32"}


def _with(precision: str, contender: Contender) -> Contender:
    """The contender, set up and run in a precision: a context belongs to one thread."""
    context = functools.partial(jax.default_matmul_precision, PRECISIONS[precision])

    def setup():
        with context():
            step = contender.setup()

        def in_precision() -> None:
            with context():
                step()

        return in_precision

    return Contender(setup, contender.steps)


def _ours(work: workloads.Workload, plain: bool) -> dict[str, Contender]:
    found = {"metalearn": workloads.metalearn_step(work)}
    if work.kind == "sine":
        found["metalearn, 20 steps a call"] = workloads.metalearn_step(
            work, steps_per_call=20
        )
    elif jax.default_backend() == "cpu":
        found["metalearn, one device"] = workloads.metalearn_step(work, devices=1)
    else:
        found |= {
            "metalearn, native convolutions, a task at a time": workloads.metalearn_step(
                work, lower="pooling", task_chunk=1
            ),
            "metalearn, bfloat16": workloads.metalearn_step(work, dtype=jnp.bfloat16),
        }
    if plain:
        found["plain jax vmap"] = workloads.metalearn_step(
            work, task_chunk=work.tasks, lower=False
        )
    return found


def _torch(work: workloads.Workload, torch_peers, torch_modules) -> dict[str, Contender]:
    if work.kind == "embeddings":
        return {
            "torch loop": torch_peers.embeddings(work, batched=False),
            "torch all tasks at once": torch_peers.embeddings(work, batched=True),
        }
    found = {
        "torch loop": torch_peers.loop(work),
        "torch.func vmap": torch_peers.vmap(work),
    }
    if work.network == "resnet12":
        return found
    return found | {
        "clone/adapt": torch_modules.clone_adapt(work),
        "TorchOpt": torch_modules.torchopt(work),
        "higher": torch_modules.higher(work),
    }
