"""Rainbow MNIST: tasks that arrive one after another; FTML and the baselines of its paper.

Digits on seven backgrounds, in two sizes and four directions: 56 tasks (C. Finn,
A. Rajeswaran, S. Kakade, S. Levine, Online Meta-Learning, ICML 2019).
"""

from __future__ import annotations

import dataclasses
import gzip
import struct
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import metalearn as ml
from benchmarks import _harness
from metalearn.training import online

COLOURS = np.asarray(
    [
        (255, 0, 0),
        (255, 128, 0),
        (255, 255, 0),
        (0, 255, 0),
        (0, 0, 255),
        (75, 0, 130),
        (148, 0, 211),
    ],
    np.float32,
)
METHODS = ("ftml", "ftl", "toe", "scratch")  # FTML first: its comparator is everyone's
STYLES = {"ftml": "tab:blue", "ftl": "tab:orange", "toe": "tab:green", "scratch": "0.5"}
SHARED = {"tasks_per_step": 5, "num_support": 10, "num_query": 10}
FIXED = {
    "model": "Conv4 width 16, stride, batch norm by the support set, 14x14x3",
    "inner": "5 steps of sgd(0.1)",
    "outer": "adam(3e-3)",
}
METRICS = ("query/loss", "query/accuracy")


@dataclasses.dataclass(frozen=True)
class Online:
    """Plays the same sequences of tasks with each method and compares their regret.

    Attributes:
      data_dir: A folder with MNIST as `*images-idx3-ubyte*` and `*labels-idx1-ubyte*`.
      examples: Images that a task brings, of no other task; 900 in the paper.
      test: Held-out images of each task, drawn from those of no task.
      batch: Images that arrive at once.
      meta_steps: Outer steps of FTML after each arrival.
      joint_steps: Steps of the other methods for one of FTML: 4 are about the same work.
      seeds: Number of sequences; each has its own order, images and initial parameters.
      first_seed: Of the first; settings were chosen on 100.
      threshold: Accuracy at which a task counts as mastered; 0.9 in the paper, which has
        more data and larger images.
      only: Methods to run, all when empty; regret compares with the first in hindsight.
      tasks: Length of the sequences; the first of the 56 in their order.
      json: Where to write; `benchmarks/results/online.json` by default, a picture beside.
    """

    data_dir: str
    examples: int = 128
    test: int = 250
    batch: int = 16
    meta_steps: int = 5
    joint_steps: int = 4
    seeds: int = 3
    first_seed: int = 0
    threshold: float = 0.7
    only: tuple[str, ...] = ()
    tasks: int = 56
    json: str | None = None

    def run_benchmark(self) -> None:
        images, labels = read_mnist(self.data_dir)
        plans = {name: _plan(name) for name in self.only or METHODS}
        found: dict[str, list] = {name: [] for name in plans}
        for seed in range(self.first_seed, self.first_seed + self.seeds):
            tasks = rainbow(images, labels, self.examples, self.test, seed)[: self.tasks]
            key, best = jax.random.key(seed), None
            shared = {**SHARED, "key": key}
            for name, (trainer, options) in plans.items():
                began = time.perf_counter()
                steps = self.meta_steps * (1 if name == "ftml" else self.joint_steps)
                played = online.follow_the_meta_leader(
                    trainer,
                    tasks,
                    batch_size=self.batch,
                    meta_steps=steps,
                    metric="query/accuracy",
                    threshold=self.threshold,
                    progress=False,
                    **options,
                    **shared,
                )
                if best is None:  # that of FTML, one for all
                    best = online.best_in_hindsight(
                        trainer,
                        tasks,
                        num_steps=played.history[-1]["steps"],
                        **shared,
                    )
                found[name].append((played, best))
                print(
                    f"seed {seed} {name}: {time.perf_counter() - began:.0f} s, "
                    f"accuracy {played.values['query/accuracy'].mean():.3f} "
                    f"(in hindsight {best.values['query/accuracy'].mean():.3f}), "
                    f"regret {online.regret(played, best)[-1]:.2f}, "
                    f"needed {_needed(played, self.examples).mean():.0f}",
                    flush=True,
                )
        rows = {name: self._row(results) for name, results in found.items()}
        path = _harness.store(
            "online",
            {"kind": "online", "settings": _settings(self), "rows": rows},
            self.json,
        )
        draw(rows, path.with_suffix(".png"), self.threshold)

    def _row(self, results: list) -> dict[str, Any]:
        """Means over tasks with intervals over all rounds, and regret a seed."""
        values = {
            name: np.stack([played.values[name] for played, _ in results])
            for name in METRICS
        }
        needed = np.stack([_needed(played, self.examples) for played, _ in results])
        regrets = [online.regret(played, best) for played, best in results]
        every = [_regret_of_arrivals(played, best) for played, best in results]
        ends = np.asarray([curve[-1] for curve in regrets])
        return {
            **{name: _mean(found.ravel()) for name, found in values.items()},
            "second_half": {
                name: _mean(found[:, found.shape[1] // 2 :].ravel())
                for name, found in values.items()
            },
            "hindsight": {
                name: _mean(np.stack([best.values[name] for _, best in results]).ravel())
                for name in METRICS
            },
            "regret": {"mean": float(ends.mean()), "seeds": ends.round(4).tolist()},
            "regret_of_arrivals": {
                "mean": float(np.mean(every)),
                "seeds": np.round(every, 4).tolist(),
            },
            "needed": _mean(needed.ravel()),
            "never": float(np.mean([np.isnan(p.needed) for p, _ in results])),
            "by_round": {
                "error": (1 - values["query/accuracy"]).round(4).tolist(),
                "needed": needed.tolist(),
                "regret": np.round(regrets, 4).tolist(),
            },
            "seconds": round(sum(r["seconds"] for p, _ in results for r in p.history), 1),
        }


def _plan(method: str) -> tuple[ml.MetaTrainer, dict[str, Any]]:
    """Trainer and options of a method; all with statistics of the support set."""
    model = ml.from_linen(ml.models.Conv4(10, width=16, downsample="stride"))
    loss, inner, outer = ml.losses.cross_entropy, optax.sgd(0.1), optax.adam(3e-3)
    if method == "ftml":
        return ml.meta_trainer(ml.maml(model, loss, inner, num_steps=5), outer), {}
    if method == "ftl":
        learner = ml.fine_tune(model, loss, inner, num_steps=5, norm="support")
        return ml.meta_trainer(learner, outer), {"train_on": "past"}
    trainer = ml.meta_trainer(ml.no_adaptation(model, loss, norm="support"), outer)
    if method == "toe":
        return trainer, {}
    if method == "scratch":
        return trainer, {"train_on": "current", "restart": True}
    raise ValueError(f"method {method!r}; expected some of {METHODS}.")


def read_mnist(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """All digits of a folder: uint8 `[I, 28, 28]`, int32 `[I]`.

    Raises:
      FileNotFoundError: there are no idx files of images with those of their labels.
    """
    images, labels = [], []
    for path in sorted(Path(folder).glob("*images-idx3-ubyte*")):
        partner = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        images.append(_read_idx(path))
        labels.append(_read_idx(partner).astype(np.int32))
    if not images:
        raise FileNotFoundError(
            f"{folder} holds no *images-idx3-ubyte*; expected MNIST in its original files, "
            "such as t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz."
        )
    return np.concatenate(images), np.concatenate(labels)


def _read_idx(path: Path) -> np.ndarray:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    ndim = data[3]
    shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def rainbow(
    images: np.ndarray, labels: np.ndarray, examples: int, test: int, seed: int
) -> list[ml.Task]:
    """The 56 tasks in a random order, each with images of its own to learn from.

    Raises:
      ValueError: there are too few digits.
    """
    spare = len(images) - 56 * examples
    if spare < test:
        raise ValueError(
            f"56 tasks of {examples} images and {test} to test on need "
            f"{56 * examples + test} digits, the folder has {len(images)}. Take fewer "
            "images a task, or a folder with the training images of MNIST as well."
        )
    rng = np.random.default_rng(seed)
    places = rng.permutation(len(images))
    own, rest = places[: 56 * examples].reshape(56, examples), places[56 * examples :]
    tasks = []
    for number, look in enumerate(rng.permutation(56)):
        colour, half, turns = look // 8, look // 4 % 2, look % 4

        def part(rows: np.ndarray, look: tuple = (colour, half, turns)) -> ml.Examples:
            return ml.Examples.of(dress(images[rows], *look), labels[rows])

        held_out = rng.choice(rest, test, replace=False)
        tasks.append(ml.Task(support=part(own[number]), query=part(held_out)))
    return tasks


def dress(images: np.ndarray, colour: int, half: int, turns: int) -> np.ndarray:
    """White digits on a background, float32 `[N, 14, 14, 3]` in 0..1."""
    ink = _halved(images.astype(np.float32) / 255)
    if half:
        ink = np.pad(_halved(ink), [(0, 0), (3, 4), (3, 4)])
    ink = np.rot90(ink, turns, (1, 2))[..., None]
    return ink + (1 - ink) * COLOURS[colour] / 255


def draw(rows: dict[str, Any], path: Path, threshold: float) -> None:
    """Error, data needed and regret by round: means over seeds, smoothed over 7 rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    labels = {
        "error": "error with all data of the task",
        "needed": f"images to {threshold:.0%} accuracy (all where never)",
        "regret": "cumulative regret (nats)",
    }
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for method, row in rows.items():
            curve = np.asarray(row["by_round"][name], np.float64).mean(0)
            rounds = np.arange(1, len(curve) + 1)
            if name != "regret":
                wide = min(7, len(curve))
                axis.plot(rounds, curve, ".", ms=2, color=STYLES[method])
                curve = np.convolve(curve, np.ones(wide) / wide, "valid")
                rounds = rounds[wide // 2 : wide // 2 + len(curve)]
            axis.plot(rounds, curve, color=STYLES[method], label=method)
        axis.set(xlabel="task", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")


def _halved(images: np.ndarray) -> np.ndarray:
    num, side, _ = images.shape
    return images.reshape(num, side // 2, 2, side // 2, 2).mean((2, 4))


def _needed(played: Any, examples: int) -> np.ndarray:
    """All examples where the threshold was never reached: a lower bound."""
    return np.where(np.isnan(played.needed), examples, played.needed)


def _regret_of_arrivals(played: Any, best: Any) -> float:
    """Regret summed over tasks of the mean loss over all arrivals, not after the last."""
    losses: dict[int, list[float]] = {}
    for row in played.history:
        losses.setdefault(row["task"], []).append(row["query/loss"])
    means = np.asarray([np.mean(losses[task]) for task in sorted(losses)])
    return float((means - best.values["query/loss"]).sum())


def _mean(values: np.ndarray) -> dict[str, float]:
    mean, half = ml.metrics.mean_ci95(values)
    return {"mean": round(mean, 4), "ci95": round(half, 4)}


def _settings(options: Online) -> dict[str, Any]:
    settings = dataclasses.asdict(options)
    del settings["data_dir"], settings["json"]
    return settings | SHARED | FIXED


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`."""
    s = row["settings"]
    lines = [
        f"Rainbow MNIST at 14x14, {s['tasks']} tasks of {s['examples']} images in "
        f"{s['seeds']} random orders, FTML {s['meta_steps']} outer steps for "
        f"{s['batch']} images and the others {s['meta_steps'] * s['joint_steps']}; regret "
        "in nats against FTML trained on all tasks at once, which approximates the best in "
        "hindsight; intervals over tasks and orders pooled, images needed at most "
        f"{s['examples']} where never reached:",
        "",
        "| | accuracy | second half | regret (each order) | regret over arrivals "
        f"| images to {s['threshold']:.0%} | never |",
        "|---|---|---|---|---|---|---|",
    ]

    def points(found: dict[str, Any]) -> str:
        value = found["query/accuracy"]
        return f"{100 * value['mean']:.2f} ± {100 * value['ci95']:.2f} %"

    for name, f in row["rows"].items():
        each = ", ".join(f"{x:.1f}" for x in f["regret"]["seeds"])
        lines.append(
            f"| {name} | {points(f)} | {points(f['second_half'])} "
            f"| {f['regret']['mean']:.1f} ({each}) | {f['regret_of_arrivals']['mean']:.1f} "
            f"| {f['needed']['mean']:.0f} ± {f['needed']['ci95']:.0f} | {f['never']:.0%} |"
        )
    return [*lines, "", "![Error, images needed and regret by task](results/online.png)"]
