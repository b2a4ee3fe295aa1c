"""Renders the stored results as the tables of `benchmarks/README.md`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks._harness import RESULTS

START, END = "<!-- results -->", "<!-- end of results -->"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rewrites the tables between the two markers of `benchmarks/README.md`."""

    def run_benchmark(self) -> None:
        path = Path(__file__).parent / "README.md"
        text = path.read_text(encoding="utf-8")
        head, tail = text[: text.index(START)], text[text.index(END) :]
        path.write_text(f"{head}{START}\n{render()}\n{tail}", encoding="utf-8")
        print(f"wrote {path}")


def render() -> str:
    """Markdown tables of the recipes, pairs and peers in `benchmarks/results`."""
    stored = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]
    parts = []
    recipes = [row for row in stored if row.get("kind") == "recipe"]
    if recipes:
        parts += [
            "| recipe | seed | meta-test | inductive | tasks | training | tasks/s | jax |",
            "|---|---|---|---|---|---|---|---|",
            *map(_recipe_row, recipes),
            "",
        ]
    pairs = [row for row in stored if row.get("kind") == "paired"]
    if pairs:
        parts += [
            "| first | second | first | second | difference (points) | tasks |",
            "|---|---|---|---|---|---|",
            *map(_paired_row, pairs),
            "",
        ]
    for row in stored:
        if row["benchmark"].startswith("peers-"):
            parts += _peer_rows(row)
    return "\n".join(parts)


def _number(result: dict[str, Any]) -> str:
    if "query/accuracy" in result:
        value = result["query/accuracy"]
        return f"{100 * value['mean']:.2f} ± {100 * value['ci95']:.2f} %"
    value = result["query/loss"]
    return f"MSE {value['mean']:.3f} ± {value['ci95']:.3f}"


def _cores(row: dict[str, Any]) -> int:
    found = row["environment"]
    return found["device"]["cores"] if "cpu_cores" not in found else found["cpu_cores"]


def _recipe_row(row: dict[str, Any]) -> str:
    result, environment = row["result"], row["environment"]
    way = ""
    if "test_ways" in result:
        way = f"{result['test_ways']}-way {result['test_shots']}-shot, "
    return (
        f"| {' '.join([row['recipe'], *row.get('evaluation', ())])} "
        f"| {row['training_seed']} | {way}{_number(result)} "
        f"| {'no' if result['transductive'] else 'yes'} | {result['num_tasks']} "
        f"| {row['training_seconds'] / 60:.1f} min | {row['tasks_per_s_median']:.0f} "
        f"| {environment['versions']['jax']}, {_cores(row)} cores |"
    )


def _paired_row(row: dict[str, Any]) -> str:
    difference = row["difference_points"]
    return (
        f"| {row['first']} | {row['second']} | {_number(row['first_result'])} "
        f"| {_number(row['second_result'])} "
        f"| {difference['mean']:+.2f} ± {difference['ci95']:.2f} | {row['num_tasks']} |"
    )


def _peer_rows(row: dict[str, Any]) -> list[str]:
    lines = [
        f"`{row['benchmark'].removeprefix('peers-')}`, interleaved in one run on "
        f"{_cores(row)} cores:",
        "",
        "| | tasks/s | metalearn is faster by (median, min, max) |",
        "|---|---|---|",
    ]
    for name, values in row["rows"].items():
        times = row["times_faster"].get(name)
        ratio = f"{times['median']} ({times['min']}, {times['max']})" if times else ""
        lines.append(f"| {name} | {values['tasks_per_s']} | {ratio} |")
    return [*lines, ""]
