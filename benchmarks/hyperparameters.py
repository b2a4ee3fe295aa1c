"""Learned hyper-parameters beside searches by validation, on digits and linear models."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metalearn as ml
from benchmarks import _harness, _hyper, _runs
from benchmarks._hyper import Found, Problem
from benchmarks._intervals import student
from metalearn.core.types import Array
from metalearn.data.images.digits import read_digits
from metalearn.data.noisy import flipped

CLASSES = 10
GRID = (-12.0, 2.0)  # log strengths, from end to end
OF_NOISY = (-13.0, -3.0)
# Sizes of training, validation and test sets.
SMALL, NOISY, FEW = (500, 1000, 3000), (2000, 1500, 3000), (100, 1000, 3000)
# Ranges of random search: radians, pixels of 14, share; uniform in the logarithm.
SIZES = {"angle": (0.02, 1.0), "shift": (0.1, 3.0), "zoom": (0.02, 0.6)}
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Hyper-parameters of linear models of digits, by hypergradients and by search.

    A search has as many solves of the inner problem as the descent, or `many`. All choose
    by the loss of one validation set, which no test digit is in, but those of wrong labels,
    which choose by its errors. All are judged on the test digits.

    Attributes:
      recipes: Recipes: "ridge" and "logistic" (strengths), "cleaning" (weights of
        examples), "augmentation" (sizes of random maps).
      seeds: Splits of the digits and draws of what is random.
      solves: Inner problems that a descent solves; twice as many for many numbers.
      many: Inner problems of a long search.
      data_dir: Folder of the digits of MNIST.
      json: Where to write; `benchmarks/results/hyperparameters-RECIPE.json` by
        default.
    """

    recipes: tuple[str, ...] = ("ridge", "logistic", "cleaning", "augmentation")
    seeds: int = 3
    solves: int = 12
    many: int = 48
    data_dir: str | None = None
    json: str | None = None

    def run_benchmark(self) -> None:
        folder = Path(self.data_dir or ".")
        nested = folder / "mnist"
        images, labels = read_digits(nested if nested.is_dir() else folder)
        images = images.astype(np.float32) / 255
        origin = _runs.here()
        for name in self.recipes:
            found: dict[str, list[Row]] = {}
            for seed in range(self.seeds):
                for title, row in RECIPES[name](self, images, labels, seed):
                    found.setdefault(title, []).append(row)
                    print(f"{title}, seed {seed}: {row}", flush=True)
            result = {
                "kind": "hyperparameters",
                "recipe": name,
                "seeds": list(range(self.seeds)),
                "origin": origin,
                "rows": summed(found),
            }
            _harness.store(f"hyperparameters-{name}", result, self.json)


def _split(
    images: np.ndarray, labels: np.ndarray, sizes: tuple[int, int, int], seed: int
) -> list[ml.Examples]:
    """Training, validation and test digits, of which none repeats."""
    rows = np.random.default_rng([seed, 4]).permutation(len(labels))
    # Fewer digits than are asked for are shared in proportion.
    shares = np.asarray(sizes) * min(1, len(labels) / sum(sizes))
    parts = np.split(rows, np.cumsum(shares.astype(int)))[:3]
    return [ml.Examples.of(jnp.asarray(images[p]), jnp.asarray(labels[p])) for p in parts]


def _pooled(images: np.ndarray) -> np.ndarray:
    """Means of two pixels by two."""
    height, width = (side // 2 for side in images.shape[1:])
    blocks = images[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2)
    return blocks.mean((2, 4))


def _flat(examples: ml.Examples) -> ml.Examples:
    return ml.Examples.of(examples.x.reshape(len(examples.y), -1), examples.y)


def _judged(weights: Array, test: ml.Examples) -> np.ndarray:
    """Hits of test digits, `[N]`."""
    return np.asarray((_hyper.with_one(test.x) @ weights).argmax(-1) == test.y)


def _row(found: Found, test: ml.Examples, began: float, **rest: Any) -> Row:
    hits = _judged(found.weights, test)
    return {
        "validation": min(found.values),
        "accuracy": float(hits.mean()),
        "solves": len(found.values),
        "reached": _reached(found.values),
        "residual": found.residual,
        "seconds": round(time.perf_counter() - began, 1),
        **rest,
    }


def _reached(values: list[float]) -> int:
    """Solves until the loss was within 1 % of the best of the search."""
    return int(np.argmax(np.asarray(values) <= 1.01 * min(values))) + 1


def strengths(make: Callable[..., Problem], title: str) -> Callable[..., Iterator]:
    """One strength by descent and on two grids; one of each pixel by descent."""

    def run(
        settings: Hyperparameters, images: np.ndarray, labels: np.ndarray, seed: int
    ) -> Iterator[tuple[str, Row]]:
        train, held, test = map(_flat, _split(images, labels, SMALL, seed))
        problem = make(train, held, CLASSES)
        middle = jnp.asarray(np.mean(GRID), train.x.dtype)
        began = time.perf_counter()
        one = _hyper.descended(problem, middle, solves=settings.solves, rate=1.0)
        yield f"{title}, one strength, descent", _row(one, test, began)
        for num in (settings.solves, settings.many):
            began = time.perf_counter()
            # From strong to weak, so that each solution begins near the last one.
            grid = map(jnp.float32, np.linspace(*GRID[::-1], num))
            found = _hyper.searched(problem, grid)
            yield f"{title}, one strength, grid of {num}", _row(found, test, began)
        if title != "ridge":  # 300 steps do not solve the system of softmax regression
            return
        began = time.perf_counter()
        # As many numbers as pixels begin at the one that was found, whose solves count.
        each = jnp.full(train.x.shape[1], one.hparams)
        found = _hyper.descended(problem, each, solves=settings.solves, rate=0.5)
        row = _row(found, test, began)
        row["solves"] += len(one.values)
        yield f"{title}, a strength of each pixel, descent", row

    return run


def cleaning(
    settings: Hyperparameters, images: np.ndarray, labels: np.ndarray, seed: int
) -> Iterator[tuple[str, Row]]:
    """Weights of examples half of whose labels are wrong, beside weights of one."""
    train, held, test = map(_flat, _split(_pooled(images), labels, NOISY, seed))
    truth = np.asarray(train.y)
    given = flipped(truth, CLASSES, share=0.5, kind="uniform", seed=seed)
    noisy, wrong = ml.Examples.of(train.x, jnp.asarray(given)), given != truth
    num = 2 * settings.solves
    grid = [jnp.float32(s) for s in np.linspace(*OF_NOISY[::-1], num)]

    def plain(examples: ml.Examples, judge: ml.Examples) -> Found:
        problem = _hyper.logistic(examples, judge, CLASSES)
        return _hyper.searched(problem, grid, choose=_errors(judge))

    began = time.perf_counter()
    uniform = plain(noisy, held)
    yield f"cleaning, weights of one (grid of {num})", _row(uniform, test, began)
    began = time.perf_counter()
    # Weights begin at a half, and so does the decay beside them. The loss chooses weak ones
    # of plain training: half of its labels are wrong, so that it is never sure of itself.
    strength = float(uniform.hparams) - np.log(2)
    problem = _hyper.cleaning(noisy, held, CLASSES, log_strength=strength)
    scores = jnp.zeros(len(given), train.x.dtype)
    found = _hyper.descended(problem, scores, solves=num, rate=0.5, choose=_errors(held))
    row = _row(found, test, began, auc=detection(np.asarray(found.hparams), wrong))
    row["solves"] += len(grid)
    yield "cleaning, a learned weight of each example", row
    right = np.flatnonzero(~wrong)
    began = time.perf_counter()
    oracle = plain(ml.Examples.of(noisy.x[right], noisy.y[right]), held)
    yield "cleaning, bound: the right labels alone", _row(oracle, test, began)
    # What validation is good for without a second level: to be learned from. Its last
    # quarter chooses the strength.
    began, cut = time.perf_counter(), 3 * len(held.y) // 4
    first, last = (
        ml.Examples.of(held.x[r], held.y[r]) for r in (slice(cut), slice(cut, None))
    )
    chosen = plain(first, last)
    again = _hyper.searched(_hyper.logistic(held, held, CLASSES), [chosen.hparams])
    row = _row(again._replace(values=chosen.values), test, began)
    yield "cleaning, baseline: trained on the validation digits", row


def _errors(judge: ml.Examples) -> Callable[[Array], float]:
    """The share of wrong answers among examples, of weights."""
    return lambda weights: 1 - float(_judged(weights, judge).mean())


def detection(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Share of pairs in which the wrong label has the smaller score, ties as a half."""
    order = np.unique(scores, return_inverse=True)[1]
    below = np.bincount(order[wrong], minlength=order.max() + 1)
    less = np.cumsum(below) - below / 2
    return float(less[order[~wrong]].mean() / wrong.sum())


def augmentation(
    settings: Hyperparameters, images: np.ndarray, labels: np.ndarray, seed: int
) -> Iterator[tuple[str, Row]]:
    """Sizes of maps of a hundred digits, by descent and by random search."""
    train, held, test = _split(_pooled(images), labels, FEW, seed)
    flat_test = _flat(test)
    began = time.perf_counter()
    grid = [jnp.float32(s) for s in np.linspace(*GRID[::-1], settings.solves)]
    bare = _hyper.searched(_hyper.logistic(_flat(train), _flat(held), CLASSES), grid)
    yield f"augmentation, none (grid of {settings.solves})", _row(bare, flat_test, began)
    problem = _hyper.augmentation(train, held, CLASSES, copies=8, seed=seed)
    middle = {name: jnp.float32(np.log(np.prod(ends)) / 2) for name, ends in SIZES.items()}
    middle["strength"] = jnp.float32(np.mean(GRID))
    began, solves = time.perf_counter(), 2 * settings.solves
    found = _hyper.descended(problem, middle, solves=solves, rate=0.3)
    sizes = {name: round(float(jnp.exp(v)), 3) for name, v in found.hparams.items()}
    yield "augmentation, four sizes, descent", _row(found, flat_test, began, sizes=sizes)
    rng = np.random.default_rng([seed, 5])

    def drawn() -> dict[str, Array]:
        made = {name: rng.uniform(*np.log(ends)) for name, ends in SIZES.items()}
        made["strength"] = rng.uniform(*GRID)
        return jax.tree.map(jnp.float32, made)

    candidates = [drawn() for _ in range(settings.many)]
    for num in (solves, settings.many):
        if num > len(candidates):
            continue
        began = time.perf_counter()
        found = _hyper.searched(problem, candidates[:num], warm=False)
        title = f"augmentation, four sizes, random search of {num}"
        yield title, _row(found, flat_test, began)


RECIPES: dict[str, Callable[..., Iterator[tuple[str, Row]]]] = {
    "ridge": strengths(_hyper.ridge, "ridge"),
    "logistic": strengths(_hyper.logistic, "logistic"),
    "cleaning": cleaning,
    "augmentation": augmentation,
}


def summed(found: dict[str, list[Row]]) -> dict[str, Row]:
    """Rows of all seeds, by title, as one row each."""
    first = next(iter(found.values()))
    return {title: _summed(rows, first) for title, rows in found.items()}


def _summed(rows: list[Row], first: list[Row]) -> Row:
    """Means over seeds, and the difference to the first row, paired by seed."""
    made: Row = {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("validation", "reached", "seconds")
    }
    made |= {"solves": rows[0]["solves"], "residual": max(row["residual"] for row in rows)}
    made["accuracy"] = {"seeds": [row["accuracy"] for row in rows]}
    apart = [row["accuracy"] - other["accuracy"] for row, other in zip(rows, first)]
    if len(rows) > 1:
        made["difference"] = {"mean": float(np.mean(apart)), "ci95": student(apart)}
    for name in ("auc", "sizes"):
        if name in rows[0]:
            made[name] = [row[name] for row in rows]
    return made


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`."""
    lines = [
        f"Learned hyper-parameters ({row['recipe']}): linear models of digits, by descent "
        "of the validation loss (`ml.hypergradient.implicit`) or by search; "
        f"{len(row['seeds'])} splits. Differences are to the first row, paired by split, "
        "with Student's intervals. The fifth column counts solves until the validation "
        "loss was within 1 % of the best of the run:",
        "",
        "| | test accuracy | difference, points | solves | within 1 % after | validation "
        "loss | seconds | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, (title, found) in enumerate(row["rows"].items()):
        accuracy = 100 * np.mean(found["accuracy"]["seeds"])
        apart = found.get("difference")
        told = ""
        if apart and number:
            told = f"{100 * apart['mean']:+.2f} ± {100 * apart['ci95']:.2f}"
        rest = ""
        if "auc" in found:
            rest = f"AUC of wrong labels {np.mean(found['auc']):.3f}"
        if "sizes" in found:
            each = found["sizes"]
            rest = ", ".join(
                f"{name} {np.mean([sizes[name] for sizes in each]):.2f}" for name in SIZES
            )
        cells = [title, f"{accuracy:.2f} %", told, str(found["solves"])]
        cells += [f"{found['reached']:.0f}", f"{found['validation']:.4f}"]
        cells += [f"{found['seconds']:.0f}", rest]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
