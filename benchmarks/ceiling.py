"""How near to the machine's own rates the workloads come."""

from __future__ import annotations

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks import _count, _harness, workloads
from benchmarks._harness import Contender
from metalearn.lowering import winograd


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Measures matrix products and copies in turn with each workload.

    Attributes:
      workload: Names of workloads.
      rounds: Turns of each.
      seconds: Length of one turn.
      size: Side of the square matrices.
      json: Where to write; `benchmarks/results/ceiling.json` by default.
    """

    workload: tuple[str, ...] = workloads.FOR_CPUS
    rounds: int = 5
    seconds: float = 2.0
    size: int = 2048
    json: str | None = None

    def run_benchmark(self) -> None:
        copied = 2**28  # bytes, far more than any cache
        contenders = {
            "product": _harness.jax_call(_square, _matrix(self.size)),
            "copy": _in_place(copied // 4),
        }
        flops = {}
        for name in self.workload:
            work = workloads.WORKLOADS[name]
            contenders[name] = workloads.metalearn_step(work)
            flops[name] = workload_flops(work)
        rows = _harness.interleaved(contenders, rounds=self.rounds, seconds=self.seconds)
        product = 2 * self.size**3 / rows["product"]["step_s_median"]
        copy = 2 * copied / rows["copy"]["step_s_median"]
        print(f"matrix product {product / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s")
        result = {"product_flop_s": product, "copy_bytes_s": copy, "workloads": {}}
        for name, count in flops.items():
            # Round by round: the machine's rate drifts.
            pairs = zip(rows[name]["step_s"], rows["product"]["step_s"], strict=True)
            shares = sorted(count / step / (2 * self.size**3 / p) for step, p in pairs)
            rate = count / rows[name]["step_s_median"]
            share = shares[len(shares) // 2]
            tasks = workloads.WORKLOADS[name].tasks
            result["workloads"][name] = {
                "flop_per_task": count / tasks,
                "tasks_per_s": tasks / rows[name]["step_s_median"],
                "flop_s": rate,
                "share_of_product_rate": share,
            }
            print(f"{name:10} {rate / 1e9:6.1f} GFLOP/s, {share:.0%} of the product rate")
        _harness.store("ceiling", {"kind": "ceiling", **result}, self.json)


def workload_flops(work: workloads.Workload) -> int:
    """Products of one outer step, all tasks, with direct convolutions.

    Winograd's filtering performs fewer; the rate that is reported is that of the work
    done, as for every other program.
    """
    learner = workloads.learner_of(work, task_chunk=1)
    tasks = workloads.as_tasks(workloads.arrays(work))
    first = jax.tree.map(lambda x: x[0], tasks)
    variables = learner.init(jax.random.key(0), first)
    with mock.patch.object(winograd, "pays", lambda **_: False):
        return _count.product_flops(
            lambda v, t: learner.estimate(v, t, key=jax.random.key(0)), variables, tasks
        )


def _in_place(size: int) -> Contender:
    """Reads and writes an array where it lies: no fresh pages."""

    def setup():
        holder = [jnp.zeros(size)]
        run = jax.jit(lambda x: x + 1, donate_argnums=0)

        def call() -> None:
            holder[0] = jax.block_until_ready(run(holder[0]))

        call()
        return call

    return Contender(setup)


def _matrix(size: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (size, size))


def _square(matrix: jax.Array) -> jax.Array:
    return matrix @ matrix
