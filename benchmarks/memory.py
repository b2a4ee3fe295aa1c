"""Temporary memory of a meta-gradient, by inner steps and way of differentiation."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from benchmarks import _harness, transformer
from metalearn.inner import DIFFERENTIATION, Implicit


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the compiler sets aside for inner Adam steps on a small transformer.

    Attributes:
      steps: Numbers of inner steps.
      batch: Sequences of 256 tokens in each step.
      rounds: Turns of the timing of reverse against mixed mode.
      timed_steps: Inner steps of the timing; none if 0.
      json: Where to write; `benchmarks/results/memory.json` by default.
    """

    steps: tuple[int, ...] = (2, 8, 32)
    batch: int = 4
    rounds: int = 3
    timed_steps: int = 8
    json: str | None = None

    def run_benchmark(self) -> None:
        modes = {name: name for name in DIFFERENTIATION} | {"implicit": Implicit()}
        found: dict[str, dict[int, int]] = {name: {} for name in modes}
        for name, mode in modes.items():
            for steps in self.steps:
                run = jax.jit(transformer.meta_gradient(mode, steps))
                inputs = jax.eval_shape(
                    lambda s=steps: transformer.arguments(s, batch=self.batch)
                )
                memory = run.lower(*inputs).compile().memory_analysis()
                found[name][steps] = memory.temp_size_in_bytes
                print(f"{name:12} {steps:4} steps {found[name][steps] / 2**20:9.1f} MiB")
        params, _ = jax.eval_shape(lambda: transformer.arguments(1))
        num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
        result = {"parameters": num_params, "temporary_bytes": found}
        if self.timed_steps:
            result |= self.timing()
        _harness.store("memory", {"kind": "memory", **result}, self.json)

    def timing(self) -> dict:
        """Reverse against mixed mode: time in turn, and the gap of their gradients."""
        inputs = transformer.arguments(self.timed_steps, batch=self.batch)
        runs = {
            mode: transformer.meta_gradient(mode, self.timed_steps)
            for mode in ("mixed", "reverse")
        }
        contenders = {m: _harness.jax_call(run, *inputs) for m, run in runs.items()}
        rows = _harness.interleaved(contenders, rounds=self.rounds, seconds=1.0)
        ratio = _harness.ratios(rows, "mixed")["reverse"]
        mixed, reverse = (jax.jit(runs[m])(*inputs) for m in ("mixed", "reverse"))
        pairs = zip(jax.tree.leaves(mixed), jax.tree.leaves(reverse), strict=True)
        apart = sum(float(np.sum((np.asarray(a) - b) ** 2)) for a, b in pairs)
        size = sum(float(np.sum(np.asarray(b) ** 2)) for b in jax.tree.leaves(reverse))
        gap = (apart / size) ** 0.5
        print(
            f"mixed is {ratio['median']:.2f} times as fast; gradients differ by {gap:.1e}"
        )
        return {
            "timed_steps": self.timed_steps,
            "reverse_over_mixed_time": ratio,
            "relative_gap_of_gradients": gap,
        }
