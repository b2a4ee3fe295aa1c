"""What of HSML earns its error on curves, and what its embedding and clusters separate."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import metalearn as ml
from benchmarks import _clusters, _harness, _routing
from benchmarks._routing import Numbers
from metalearn.tasks.families import curve

CHUNK = 250
PICTURED = 6
GIVEN, WIDE, SINGLE = "as given", "wide", "ordered, single"
ENCODERS = ("ordered", "mean", "deep", "attention")


class Variant(NamedTuple):
    """One way to embed and route.

    Attributes:
      numbers: What differs within a program.
      aggregator: A key of `_routing.AGGREGATORS`.
      placed: Outer step before which leaves are placed by k-means; never if None.
      lead: Lead of the nearest leaf, in nats, that the width then gives.
      every: Outer steps between placements, during the first half of training.
    """

    numbers: Numbers = Numbers()
    aggregator: str = "gru"
    placed: int | None = None
    lead: float = 4.0
    every: int | None = None


def _numbers(**numbers: Any) -> Variant:
    return Variant(Numbers(**numbers))


ORDERED = Numbers(ordered=1.0)
BALANCE = Numbers(balance=0.1, learned=1.0)

VARIANTS = {
    GIVEN: Variant(),
    WIDE: _numbers(sigma=1e8, upper=1e8),
    "gate alone": _numbers(tree=0.0),
    "oracle": _numbers(oracle=1.0),
    "ordered": Variant(ORDERED),
    f"ordered, {WIDE}": _numbers(ordered=1.0, sigma=1e8, upper=1e8),
    "ordered, gate alone": _numbers(ordered=1.0, tree=0.0),
    "ordered, oracle": _numbers(ordered=1.0, oracle=1.0),
    "ordered, placed, sharp": Variant(ORDERED, placed=0),
    "ordered, placed, following": Variant(ORDERED, placed=0, every=250),
    SINGLE: _numbers(ordered=1.0, single=1.0),
    "ordered, sharp": _numbers(ordered=1.0, sigma=0.25),
    "placed, sharp": Variant(placed=0),
    "placed, following": Variant(placed=0, every=250),
    "placed, hard": Variant(Numbers(hard=1.0), placed=0),
    "placed late": Variant(placed=2000),
    "learned width": _numbers(learned=1.0),
    "sphere": Variant(Numbers(sphere=1.0), placed=0, lead=2.0),
    "balance": Variant(BALANCE, placed=0, lead=1.0),
    "linear": _numbers(linear=1.0),
    "no reconstruction": _numbers(reconstruction=0.0),
    "mean": Variant(aggregator="mean"),
    "deep": Variant(aggregator="deep"),
    "attention": Variant(aggregator="attention"),
    "attention, oracle": Variant(Numbers(oracle=1.0), "attention"),
}


@dataclasses.dataclass(frozen=True)
class Routing:
    """Trains variants of HSML on four families of curves, 10 shots, and compares them.

    Attributes:
      variants: Names of `benchmarks.routing.VARIANTS`; all of them if none are given.
      seeds: Training seeds.
      steps: Outer steps.
      tasks: Test tasks, the same for all.
      lanes: Trainings in one program.
      raw: Folder of what every training ends with; what it holds is not trained again.
      json: Where to write; `benchmarks/results/routing.json` by default. A picture of the
        embeddings of the first variants is written beside.
    """

    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 20_000
    tasks: int = 2000
    lanes: int = 12
    raw: str = "runs/routing"
    json: str | None = None

    def run_benchmark(self) -> None:
        names = self.variants or tuple(VARIANTS)
        folder = Path(self.raw) / f"{self.steps}-steps"
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [(name, seed) for name in names for seed in self.seeds]
        waiting = [pair for pair in wanted if not _file(folder, *pair).exists()]
        for aggregator in _routing.AGGREGATORS:
            mine = [p for p in waiting if VARIANTS[p[0]].aggregator == aggregator]
            for first in range(0, len(mine), self.lanes):
                self._train(mine[first : first + self.lanes], aggregator, folder)
        self._report(names, folder)

    def _train(self, pairs: list[tuple[str, int]], aggregator: str, folder: Path) -> None:
        """Trains some lanes side by side and stores what each ends with."""
        variants = [VARIANTS[name] for name, _ in pairs]
        lanes = _routing.start(
            aggregator, [v.numbers for v in variants], [s for _, s in pairs], self.steps
        )
        began = time.perf_counter()
        for step in range(0, self.steps, CHUNK):
            for lane, variant in enumerate(variants):
                again = variant.every and 0 < step <= self.steps // 2
                if variant.placed == step or (again and step % variant.every == 0):
                    lanes = _routing.place_leaves(
                        lanes, lane, aggregator, variant.lead, variant.placed != step
                    )
            num = min(CHUNK, self.steps - step)
            lanes, losses = _routing.train(lanes, aggregator, step, num, self.steps)
            if (step // CHUNK) % 2 == 1 or step == 0:
                rate = (step + num) / (time.perf_counter() - began)
                print(
                    f"{step + num} steps, {rate:.0f} a second:",
                    *(f"{name} {s}: {x:.3f}" for (name, s), x in zip(pairs, losses)),
                    sep="  ",
                    flush=True,
                )
        place = json.dumps(_harness.where() | {"lanes": len(pairs)}, indent=1)
        (folder / "where.json").write_text(place + "\n", encoding="utf-8")
        for lane, (name, seed) in enumerate(pairs):
            params, numbers = _routing.lane_of(lanes, lane)
            info, out = jax.device_get(
                _routing.judge(params, numbers, aggregator, self.tasks, 0)
            )
            sigma = np.exp(params["structure"]["log_sigma"])
            kept = {k: v for k, v in out.items() if k != "rebuilt"}
            kept |= {"family": info["family"], "sigma": sigma, "steps": self.steps}
            np.savez(_file(folder, name, seed), **kept)

    def _report(self, names: tuple[str, ...], folder: Path) -> None:
        found = {name: self._runs(folder, name) for name in names}
        shapes = _shapes(self.tasks)
        rows = {}
        for name, runs in found.items():
            losses = np.stack([run["loss"] for run in runs.values()])
            row: dict[str, Any] = {
                "numbers": VARIANTS[name]._asdict()
                | {"numbers": VARIANTS[name].numbers._asdict()},
                "seeds": list(runs),
                "query_mse": _clusters.mean(losses.mean(0)),
                "by_seed": losses.mean(1).round(5).tolist(),
                "spread": float(losses.mean(1).std(ddof=1)) if len(runs) > 1 else None,
                "sigma": [float(run["sigma"]) for run in runs.values()],
                "by_family": {
                    family: _clusters.mean(losses.mean(0)[_first(runs)["family"] == i])
                    for i, family in enumerate(ml.tasks.FAMILIES)
                },
                "embedding": [
                    _clusters.separation(run["family"], run["g"])
                    | {name: _read(run["g"], of) for name, of in shapes.items()}
                    for run in runs.values()
                ],
                "clusters": [
                    _clusters.information(run["family"], run["leaves"], 4)
                    | {"largest_leaf": _largest(run["leaves"])}
                    for run in runs.values()
                ],
            }
            others = {"wide": _wide(name), "first": names[0], "single": SINGLE}
            for key, other in others.items():
                both = [s for s in runs if s in found.get(other, {})]
                if name != other and both:
                    apart = np.stack(
                        [runs[s]["loss"] - found[other][s]["loss"] for s in both]
                    )
                    row[f"paired_with_{key}"] = _clusters.mean(apart.mean(0)) | {
                        "other": other,
                        "by_seed": apart.mean(1).round(5).tolist(),
                        "spread": float(apart.mean(1).std(ddof=1))
                        if len(both) > 1
                        else None,
                    }
            rows[name] = row
            print(_line(name, row), flush=True)
        result = {"kind": "routing", "steps": self.steps, "num_tasks": self.tasks}
        if (place := folder / "where.json").exists():  # the report may come from elsewhere
            result["trained"] = json.loads(place.read_text(encoding="utf-8"))
        path = _harness.store("routing", result | {"rows": rows}, self.json)
        shown = {name: _first(found[name]) for name in names[:PICTURED]}
        _clusters.project(path.with_suffix(".png"), shown, ml.tasks.FAMILIES)

    def _runs(self, folder: Path, name: str) -> dict[int, dict[str, np.ndarray]]:
        """What the trainings of a variant ended with, by seed."""
        files = {seed: _file(folder, name, seed) for seed in self.seeds}
        return {seed: dict(np.load(path)) for seed, path in files.items() if path.exists()}


def _largest(leaves: np.ndarray) -> float:
    """Share of the tasks whose strongest leaf is the one that has most of them."""
    return float(np.bincount(leaves.argmax(-1)).max() / len(leaves))


def _first(runs: dict[int, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return next(iter(runs.values()))


def _shapes(num: int) -> dict[str, np.ndarray]:
    """What tells the test curves apart: value and slope, bend and twist, each `[T]`."""

    def one(number: Any) -> jax.Array:
        info = _routing.test_task(number, 0).info
        at = jax.numpy.asarray([-5.0, -2.5, 0.0, 2.5, 5.0])
        return curve(info["family"], info["coefficients"], at)

    a, b, c, d, e = np.asarray(jax.jit(jax.vmap(one))(np.arange(num))).T
    return {
        "r2_of_value": c,
        "r2_of_slope": e - a,
        "r2_of_bend": a - 2 * c + e,
        "r2_of_twist": e - 2 * d + 2 * b - a,
    }


def _read(embeddings: np.ndarray, values: np.ndarray) -> float:
    """Share of the variance that a linear reading explains on the other half of tasks."""
    x, half = np.c_[embeddings, np.ones(len(embeddings))], len(embeddings) // 2
    weights = np.linalg.lstsq(x[:half], values[:half], rcond=1e-6)[0]
    error = np.mean((x[half:] @ weights - values[half:]) ** 2)
    return float(1 - error / values[half:].var())


def _wide(name: str) -> str:
    """The variant of the same embedding whose clusters share alike."""
    encoder = name.partition(",")[0]
    return f"{encoder}, {WIDE}" if encoder in ENCODERS else WIDE


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(', ', '+').replace(' ', '-')}-seed{seed}.npz"


def _line(name: str, row: dict[str, Any]) -> str:
    """A row of the table of NOTES.md."""
    cells = [name, _cell("", row["query_mse"], row["by_seed"])]
    for key in ("paired_with_wide", "paired_with_first"):
        paired = row.get(key)
        cells.append(_cell("+", paired, paired["by_seed"]) if paired else "")
    shared = ", ".join(f"{c['nmi']:.2f}" for c in row["clusters"])
    control = max(c["nmi_shuffled_max_of_100"] for c in row["clusters"])
    decoded = np.mean([e["linear_accuracy"] for e in row["embedding"]])
    cells.append(f"{shared} ({control:.3f})" if VARIANTS[name].numbers.tree else "")
    return f"| {' | '.join(cells)} | {100 * decoded:.0f} % |"


def _cell(sign: str, value: dict[str, Any], by_seed: list[float]) -> str:
    each = f" ({', '.join(f'{x:{sign}.3f}' for x in by_seed)})" if len(by_seed) > 1 else ""
    return f"{value['mean']:{sign}.3f} ± {value['ci95']:.3f}{each}"
