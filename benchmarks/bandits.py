"""Bandits that come back: regret of the episodic LSTM with its memory and without.

The barcode bandits of S. Ritter et al., Been There, Done That, ICML 2018. An epoch shows
each bandit several times. Then it asks for one more episode of each, and for episodes of
bandits that are new, so that a memory helps with the first and not with the second.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalearn as ml
from benchmarks import _harness
from benchmarks.against import difference, spread
from metalearn.algorithms.episodic.agent import Rules, play_each
from metalearn.core.metrics import mean_ci95

CHUNK = 50
AGENTS = {"with memory": True, "without": False}
KINDS = ("recurring", "new")


@dataclasses.dataclass(frozen=True)
class Bandits:
    """Trains the episodic LSTM with its memory and without, and compares their regret.

    Both begin from the same parameters and see the same epochs. Regret is the expected
    loss at a pull beside the good arm, over the pulls of query episodes.

    Attributes:
      contexts: Bandits of an epoch.
      episodes: Episodes of its support set, in which each bandit occurs equally often.
      bits: Length of a barcode.
      arms: Number of arms.
      pulls: Pulls of an episode.
      hidden: Size of the LSTM.
      entropy: Weight of the entropy of the policy.
      steps: Outer steps.
      tasks_per_step: Epochs of an outer step.
      rate: Outer rate of Adam at the start; it falls to zero by a cosine.
      seeds: Training runs of each agent.
      tasks: Epochs to judge on, the same for all.
      json: Where to write; `benchmarks/results/bandits.json` by default.
    """

    contexts: int = 10
    episodes: int = 20
    bits: int = 10
    arms: int = 5
    pulls: int = 8
    hidden: int = 32
    entropy: float = 0.02
    steps: int = 1200
    tasks_per_step: int = 16
    rate: float = 2e-2
    seeds: int = 3
    tasks: int = 1000
    json: str | None = None

    def run_benchmark(self) -> None:
        if self.tasks < CHUNK or self.tasks % CHUNK:
            raise SystemExit(f"--tasks is {self.tasks}; expected a multiple of {CHUNK}.")
        sampler = ml.tasks.barcodes(
            self.contexts,
            self.episodes,
            bits=self.bits,
            arms=self.arms,
            num_new=self.contexts,
        )
        found = {name: self._agent(name, sampler) for name in AGENTS}
        regrets = {name: regret for name, (regret, _) in found.items()}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del own["json"]
        learner = ml.describe(self._learner(memory=True))
        stored = {
            "kind": "bandits",
            "settings": {**own, "learner": learner},
            # What pulls by chance lose.
            "chance": (learner["good"] - learner["bad"]) * (1 - 1 / self.arms),
            "seeds": list(range(self.seeds)),
            "tasks": sampler.name,
            "num_tasks": self.tasks,
            "rows": {
                name: {"training_seconds": seconds, **_row(regrets[name])}
                for name, (_, seconds) in found.items()
            },
            "comparison": {
                kind: compared(*(_of_epochs(regrets[name][kind]) for name in AGENTS))
                for kind in KINDS
            },
        }
        for kind, apart in stored["comparison"].items():
            print(f"{kind}: {apart}", flush=True)
        _harness.store(Path(self.json).stem if self.json else "bandits", stored, self.json)

    def _learner(self, *, memory: bool) -> ml.MetaLearner:
        return ml.episodic_lstm(
            None,
            num_ways=self.arms,
            pulls=self.pulls,
            hidden=self.hidden,
            memory=memory,
            # A context that is met again has its slot already.
            capacity=self.contexts,
            entropy_cost=self.entropy,
            # An epoch is a long sequence of small operations, so all go side by side.
            task_chunk=self.tasks_per_step,
        )

    def _agent(
        self, name: str, sampler: ml.TaskSampler
    ) -> tuple[dict[str, np.ndarray], list[float]]:
        """Regrets `[seeds, epochs, queries, pulls]` of each kind, and seconds a run."""
        learner = self._learner(memory=AGENTS[name])
        schedule = optax.cosine_decay_schedule(self.rate, self.steps)
        outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        trainer = ml.meta_trainer(learner, outer)
        judge = judge_of(learner, sampler, self.tasks)
        each: list[dict[str, np.ndarray]] = []
        seconds = []
        for seed in range(self.seeds):
            began = time.perf_counter()
            result = ml.fit(
                trainer,
                sampler,
                num_steps=self.steps,
                tasks_per_step=self.tasks_per_step,
                key=jax.random.key(seed),
                progress=False,
            )
            seconds.append(round(time.perf_counter() - began, 1))
            each.append(judge(result.variables))
            means = {kind: each[-1][kind].mean().round(4) for kind in KINDS}
            print(f"{name} seed {seed}: {seconds[-1]} s, regret {means}", flush=True)
        return {kind: np.stack([found[kind] for found in each]) for kind in KINDS}, seconds


def judge_of(
    learner: ml.MetaLearner, sampler: ml.TaskSampler, num: int
) -> Callable[[ml.Variables], dict[str, np.ndarray]]:
    """Judges variables of a learner on epochs that depend on no seed of training.

    Returns:
      A function of the variables, that compiles once. It gives the regret at each pull of
      the queries, by kind of context, `[epochs, queries, pulls]`.
    """
    rules = rules_of(learner)

    @jax.jit
    def played(variables: ml.Variables, data: Any, keys: jax.Array):
        def one(key: jax.Array):
            k_task, k_support, k_query = jax.random.split(key, 3)
            task = sampler.sample(data, k_task)
            memory = learner.adapt(variables, task.support, key=k_support).memory
            agent = variables.params["agent"]
            episodes = play_each(agent, rules, task.query, memory, k_query)
            wrong = episodes.actions != task.query.y[:, None]
            lost = jnp.where(wrong, rules.good - rules.bad, 0.0)
            return lost, task.info["recurring"]

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(0), num)

    def judge(variables: ml.Variables) -> dict[str, np.ndarray]:
        parts = [
            played(variables, sampler.data, keys[i : i + CHUNK])
            for i in range(0, num, CHUNK)
        ]
        lost, recurring = (np.concatenate(part) for part in zip(*parts, strict=True))
        # The queries of an epoch have their kinds in the order of those of any other.
        known = recurring[0]
        if (recurring != known[None]).any():
            raise ValueError("queries recur at other places in some epochs than in others.")
        return {"recurring": lost[:, known], "new": lost[:, ~known]}

    return judge


def rules_of(learner: ml.MetaLearner) -> Rules:
    """The bandit and the memory of an episodic LSTM, as it describes itself."""
    told: dict[str, Any] = {**ml.describe(learner)}
    told["arms"] = told["num_ways"]
    return Rules(**{name: told[name] for name in Rules._fields})


def compared(mine: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Regrets `[seeds, epochs]` beside those of a baseline on the same epochs.

    Returns:
      What `against.difference` does, and their `ratio`, with the interval over epochs that
      its linear approximation has, and that of each seed.
    """
    a, b = mine.mean(0), base.mean(0)
    ratio = a.mean() / b.mean()
    half = mean_ci95((a - ratio * b) / b.mean())[1]
    seeds = (mine.mean(1) / base.mean(1)).tolist()
    told = {"mean": float(ratio), "ci95": half, "seeds": seeds, "spread": spread(seeds)}
    return {"difference": difference(mine, base), "ratio": told}


def _of_epochs(regrets: np.ndarray) -> np.ndarray:
    """Means over queries and pulls, `[seeds, epochs]`."""
    return regrets.mean((-2, -1))


def _row(regrets: dict[str, np.ndarray]) -> dict[str, Any]:
    """Regret of one agent by kind of context, over all pulls and by pull."""
    row = {}
    for kind, values in regrets.items():
        mean, half = mean_ci95(_of_epochs(values).mean(0))
        seeds = values.mean((1, 2, 3)).tolist()
        row[kind] = {
            "mean": mean,
            "ci95": half,
            "by_seed": seeds,
            "spread": spread(seeds),
            "by_pull": values.mean((0, 1, 2)).tolist(),
        }
    return row


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`."""
    of = row["settings"]
    lines = [
        f"Regret at a pull of bandits with barcodes of {of['bits']} bits and {of['arms']} "
        f"arms, {of['pulls']} pulls an episode: after {of['episodes']} episodes of "
        f"{of['contexts']} bandits one more of each, and of {of['contexts']} new ones, on "
        f"{row['num_tasks']:,} epochs; pulls by chance lose {row['chance']:.2f}; "
        f"{len(row['seeds'])} training seeds, intervals over epochs, σ over seeds; rates "
        "were chosen for the agent with memory alone:",
        "",
        "| | recurring | at the first pull | new | at the first pull |",
        "|---" * 5 + "|",
    ]
    for name, found in row["rows"].items():
        cells = [name]
        for kind in KINDS:
            cells += [_cell(found[kind]), f"{found[kind]['by_pull'][0]:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    ratios = [_cell(row["comparison"][kind]["ratio"]) for kind in KINDS]
    return [*lines, f"| ratio | {ratios[0]} |  | {ratios[1]} |  |"]


def _cell(value: dict[str, Any]) -> str:
    text = f"{value['mean']:.3f} ± {value['ci95']:.3f}"
    return text if value["spread"] is None else f"{text}, σ {value['spread']:.3f}"
