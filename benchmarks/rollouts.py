"""Environment steps a second in a rollout, beside a gymnasium vector environment."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness
from benchmarks._harness import Contender
from metalearn.core import kinds

OURS = "metalearn"


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Times rollouts of 2-D navigation under a Gaussian policy, ours and with PyTorch.

    A contender plays all episodes of all tasks once a call, to the horizon. That of
    gymnasium steps one environment after another (`SyncVectorEnv`), as meta-RL libraries on
    PyTorch do; the other vector environment steps all at once by NumPy, which their users
    would have to write.

    Attributes:
      tasks: Goals at once.
      episodes: Episodes of each goal.
      widths: Hidden units of each layer of the policy.
      rounds: Turns of each contender.
      seconds: Length of one turn.
      json: Where to write; `benchmarks/results/rollouts.json` by default.
    """

    tasks: int = 40
    episodes: int = 20
    widths: tuple[int, ...] = (64, 64)
    rounds: int = 7
    seconds: float = 3.0
    json: str | None = None

    def run_benchmark(self) -> None:
        for name in ("tasks", "episodes", "rounds"):
            kinds.count(name, getattr(self, name))
        try:
            from benchmarks import gymnasium_peers
        except ImportError as error:
            raise SystemExit(
                "rollouts needs torch and gymnasium: pip install '.[peers]'"
            ) from error
        environment = ml.environments.navigation()
        num, horizon = self.tasks * self.episodes, environment.horizon
        goals = np.asarray(jax.vmap(environment.task)(_keys(self.tasks))["goal"])
        goals = np.repeat(goals, self.episodes, axis=0)
        contenders = {
            OURS: self._ours(environment),
            **gymnasium_peers.contenders(goals, horizon, self.widths),
        }
        rows = _harness.interleaved(contenders, rounds=self.rounds, seconds=self.seconds)
        times = _harness.ratios(rows, OURS)
        for name, row in rows.items():
            row["steps_per_s"] = round(num * horizon / row["step_s_median"])
            ratio = times.get(name, {}).get("median", 1.0)
            print(f"{name:44} {row['steps_per_s']:>12,} steps/s   {ratio:.1f}x")
        found = {
            "kind": "rollouts",
            "world": environment.name,
            "tasks": self.tasks,
            "episodes": self.episodes,
            "widths": list(self.widths),
            "rows": rows,
            "times_faster": times,
        }
        _harness.store("rollouts", found, self.json)

    def _ours(self, environment: ml.environments.Environment) -> Contender:
        policy = ml.policies.gaussian_policy(self.widths)
        params = policy.init(jax.random.key(0), environment)
        goals = jax.vmap(environment.task)(_keys(self.tasks))

        def play(params: Any, goals: Any, keys: Any) -> Any:
            one = lambda goal, key: ml.policies.rollout(
                environment, policy, params, goal, key, self.episodes
            )
            # Whole trajectories, as a learner needs them: nothing may be left out.
            return jax.vmap(one)(goals, keys)

        return _harness.jax_call(play, params, goals, _keys(self.tasks))


def _keys(num: int) -> jax.Array:
    return jax.random.split(jax.random.key(1), num)


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`."""
    lines = [
        f"Steps a second of `{row['world']}`, {row['tasks']} goals of "
        f"{row['episodes']} episodes at once, a Gaussian policy of layers "
        f"{row['widths']}; turns of one run, ratio with its least and largest value:",
        "",
        "| | steps/s | times that metalearn is faster |",
        "|---|---|---|",
    ]
    for name, found in row["rows"].items():
        apart = row["times_faster"].get(name)
        told = ""
        if apart is not None:
            told = f"{apart['median']:.1f} ({apart['min']:.1f} to {apart['max']:.1f})"
        lines.append(f"| {name} | {found['steps_per_s']:,} | {told} |")
    return lines
