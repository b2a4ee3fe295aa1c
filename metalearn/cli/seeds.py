"""Several seeds of one recipe: what is finished, and the table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metalearn import runs
from metalearn.apps import Recipe
from metalearn.cli.console import say


def finished(run: runs.Run) -> dict[str, Any] | None:
    """Results of a run that is trained and judged already; `None` for any other.

    A file of results that cannot be read counts as none: it is written anew.
    """
    try:
        found = runs.read_results(run.folder)
        values = found[run.recipe.app.metric]
        whole = found["finished"] is True and found["training_seed"] == run.seed
        whole &= found["test_seed"] == 0 and found["num_tasks"] == run.recipe.test_tasks
        whole &= all(np.isfinite(float(values[name])) for name in ("mean", "ci95"))
        return found if whole else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def summary(metric: str, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds, beside the interval over tasks.

    Args:
      metric: Name of a metric of all results.
      results: Contents of `results.json` for each seed.

    Returns:
      JSON values. `sd_over_seeds` is the standard deviation with one degree of freedom
      taken off, `None` for one seed. `ci95_over_tasks` is the mean of the half-widths,
      which says nothing of seeds.
    """
    means = [float(found[metric]["mean"]) for found in results.values()]
    halves = [float(found[metric]["ci95"]) for found in results.values()]
    return {
        "metric": metric,
        "num_seeds": len(means),
        "mean": float(np.mean(means)),
        "sd_over_seeds": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "ci95_over_tasks": float(np.mean(halves)),
        "seeds": {str(s): dict(found[metric]) for s, found in results.items()},
    }


def report(
    recipe: Recipe,
    results: Mapping[int, Mapping[str, Any]],
    folders: Mapping[int, Path],
    path: Path,
) -> None:
    """Prints the table of all seeds, and writes its numbers to a JSON file."""
    found = summary(recipe.app.metric, results)
    show = in_units(recipe.app.metric)
    lines = [f"\n  seed  {recipe.app.metric:<20}best step  folder"]
    for seed, row in results.items():
        value = row[recipe.app.metric]
        words = f"{show(value['mean'])} ± {show(value['ci95'])}"
        lines.append(f"  {seed:>4}  {words:<20}{row['best_step']:>9,}  {folders[seed]}")
    spread = found["sd_over_seeds"]
    spread = "unknown for one seed" if spread is None else show(spread)
    lines += [
        f"\nMean over {len(results)} seeds: {show(found['mean'])}; standard deviation over "
        f"seeds: {spread}; 95 % interval over {recipe.test_tasks:,} tasks of one seed: ± "
        f"{show(found['ci95_over_tasks'])}"
    ]
    say("\n".join(lines))
    runs.write_json(path, found)
    say(f"  {path}")


def in_units(metric: str, *, signed: bool = False) -> Any:
    """Function that prints a value of a metric: per cent for accuracies."""
    sign = "+" if signed else ""
    if metric.rpartition("/")[2] == "accuracy":
        return lambda value: f"{100 * value:{sign}.2f} %"
    return lambda value: f"{value:{sign}.4g}"
