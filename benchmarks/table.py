"""Renders the stored results as the tables and plots of `benchmarks/README.md`."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import (
    _card_table,
    _comparisons,
    _pictures,
    _systems,
    bandits,
    cold_start,
    distillation,
    domains,
    graphs,
    growth,
    hyperparameters,
    labels,
    mixed,
    online,
    places,
    rollouts,
    streams,
    texts,
    warm_up,
)
from benchmarks._harness import RESULTS

START, END = "<!-- results -->", "<!-- end of results -->"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rewrites the tables of `benchmarks/README.md` and of systems in `README.md`."""

    def run_benchmark(self) -> None:
        folder = Path(__file__).parent
        stored = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]
        lines = [*render(stored), *_pictures.draw(stored, RESULTS)]
        _replace(folder / "README.md", START, END, lines)
        systems = _systems.rows(stored)
        _replace(folder.parent / "README.md", _systems.START, _systems.END, systems)


def _replace(path: Path, start: str, end: str, lines: list[str]) -> None:
    """Puts lines between two markers of a file."""
    text = path.read_text(encoding="utf-8")
    head, tail = text[: text.index(start)], text[text.index(end) :]
    body = "\n".join(lines)
    path.write_text(f"{head}{start}\n{body}\n{tail}", encoding="utf-8")
    print(f"wrote {path}")


def render(stored: list[dict[str, Any]]) -> list[str]:
    """Markdown lines with a table of each kind of result."""
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
    against = [row for row in stored if row.get("kind") == "against"]
    if against:
        parts += _comparisons.against_tables(against)
    if choices := [row for row in stored if row.get("kind") == "choice"]:
        parts += _comparisons.choice_table(choices)
    for row in stored:
        if row["benchmark"].startswith("peers-"):
            parts += _peer_rows(row)
    for kind, rows_of in KINDS.items():
        for row in stored:
            if row.get("kind") == kind:
                parts += [*rows_of(row), ""]
    return parts


def _number(result: dict[str, Any]) -> str:
    if "query/accuracy" in result:
        value = result["query/accuracy"]
        return f"{100 * value['mean']:.2f} ± {100 * value['ci95']:.2f} %"
    if "query/return" in result:
        value = result["query/return"]
        return f"return {value['mean']:.1f} ± {value['ci95']:.1f}"
    value = result["query/loss"]
    return f"MSE {value['mean']:.3f} ± {value['ci95']:.3f}"


def _cores(row: dict[str, Any]) -> int:
    found = row["environment"]
    return found["device"]["cores"] if "cpu_cores" not in found else found["cpu_cores"]


def _recipe_row(row: dict[str, Any]) -> str:
    result = row["result"]
    way = ""
    if "test_ways" in result:
        way = f"{result['test_ways']}-way {result['test_shots']}-shot, "
    return (
        f"| {' '.join([row['recipe'], *row.get('evaluation', ())])} "
        f"| {row['training_seed']} | {way}{_number(result)} "
        f"| {'no' if result['transductive'] else 'yes'} | {result['num_tasks']} "
        f"| {row['training_seconds'] / 60:.1f} min | {row['tasks_per_s_median']:.0f} "
        f"| {_where_trained(row)} |"
    )


def _where_trained(row: dict[str, Any]) -> str:
    """Version of jax, and the device. A run may be stored on another machine."""
    machine = (row.get("origin") or {}).get("machine") or {}
    jax = machine.get("jax") or row["environment"]["versions"]["jax"]
    platform = machine.get("platform") or "cpu"
    if platform != "cpu":
        return f"{jax}, {machine.get('kind', platform)}"
    return f"{jax}, {machine.get('cores') or _cores(row)} cores"


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


def _ceiling_rows(row: dict[str, Any]) -> list[str]:
    return [
        f"Matrix products run at {row['product_flop_s'] / 1e9:.0f} GFLOP/s here, copies at "
        f"{row['copy_bytes_s'] / 1e9:.0f} GB/s. Work is counted as direct convolutions:",
        "",
        "| workload | MFLOP a task | tasks/s | share of the product rate |",
        "|---|---|---|---|",
        *(
            f"| {name} | {found['flop_per_task'] / 1e6:.1f} | {found['tasks_per_s']:.1f} "
            f"| {found['share_of_product_rate']:.0%} |"
            for name, found in row["workloads"].items()
        ),
    ]


def _adapt_rows(row: dict[str, Any]) -> list[str]:
    return [
        f"Adapting to one 5-way 1-shot task by {row['workload']['inner_steps']} steps and "
        f"predicting it; the first call takes {row['cold_s']:.1f} s:",
        "",
        "| | p50 (ms) | p95 (ms) |",
        "|---|---|---|",
        *(
            f"| {name} | {found['p50_ms']:.1f} | {found['p95_ms']:.1f} |"
            for name, found in row["warm"].items()
        ),
    ]


def _memory_rows(row: dict[str, Any]) -> list[str]:
    steps = list(next(iter(row["temporary_bytes"].values())))
    lines = [
        f"Temporary MiB of a meta-gradient through inner Adam steps on a transformer of "
        f"{row['parameters'] / 1e6:.1f} M parameters:",
        "",
        "| | " + " | ".join(f"{s} steps" for s in steps) + " |",
        "|---" * (1 + len(steps)) + "|",
    ]
    for name, found in row["temporary_bytes"].items():
        cells = " | ".join(f"{found[s] / 2**20:,.0f}" for s in steps)
        lines.append(f"| {name} | {cells} |")
    if "timed_steps" in row:
        times = row["reverse_over_mixed_time"]["median"]
        gap = row["relative_gap_of_gradients"]
        lines += [
            "",
            f"At {row['timed_steps']} steps reverse mode takes {times:.2f} times as long "
            f"as mixed mode; their gradients differ by {gap:.1e} relatively.",
        ]
    return lines


def _chunk_rows(row: dict[str, Any]) -> list[str]:
    return [
        '`task_chunk="auto"` against fixed choices:',
        "",
        "| workload | best fixed | tasks/s | auto | auto relative to best |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {found['best_fixed']} "
            f"| {found['tasks_per_s'][found['best_fixed']]:.1f} "
            f"| {found['tasks_per_s']['auto']:.1f} "
            f"| {found['auto_relative_to_best']['median']:.2f} |"
            for name, found in row["workloads"].items()
        ),
    ]


def _compiling_rows(row: dict[str, Any]) -> list[str]:
    cells = ", ".join(
        f"{steps} inner steps {statistics.median(found):.1f} s"
        for steps, found in row["seconds"].items()
    )
    return [f"Compile time of `{row['workload']}`: {cells}."]


def _data_rows(row: dict[str, Any]) -> list[str]:
    return [
        f"Tasks a second: device sampler {row['sampler_tasks_per_s']:,.0f}, stream "
        f"{row['stream_tasks_per_s']:,.0f}, training {row['step_tasks_per_s']:.1f}. A step "
        f"waits {row['sampler_share_of_step']:.1%} of its time for the sampler, "
        f"{row['stream_share_of_step']:.1%} for the stream, and with the decoding on the "
        f"same cores it takes {row['slower_by_decoding_beside']:.1%} longer in all.",
    ]


def _scaling_rows(row: dict[str, Any]) -> list[str]:
    numbers = sorted({int(n) for found in row["tasks_per_s"].values() for n in found})
    lines = [
        f"`{row['workload']}` on {_cores(row)} cores, shared by devices or processes, in "
        "tasks/s:",
        "",
        "| | " + " | ".join(map(str, numbers)) + " |",
        "|---" * (1 + len(numbers)) + "|",
    ]
    for name, found in row["tasks_per_s"].items():
        middle = {n: sorted(v)[len(v) // 2] for n, v in found.items()}
        cells = " | ".join(f"{middle.get(str(n), '')}" for n in numbers)
        lines.append(f"| {name} | {cells} |")
    return lines


def _throughput_rows(row: dict[str, Any]) -> list[str]:
    return [
        "| outer step of metalearn alone | tasks/s |",
        "|---|---|",
        *(f"| {name} | {rate:,.1f} |" for name, rate in row["tasks_per_s"].items()),
    ]


def _families_rows(row: dict[str, Any]) -> list[str]:
    names = list(next(iter(row["rows"].values()))["by_family"])
    lines = [
        f"Query MSE on {row['num_tasks']} meta-test tasks of curves, "
        f"{row['benchmark'].removeprefix('families-')}, inductive, one training seed; "
        "the difference is paired with the first row, the information that of the "
        "strongest leaf with the family (of shuffled families at most):",
        "",
        f"| | all | {' | '.join(names)} | difference | information |",
        "|---" * (4 + len(names)) + "|",
    ]
    for name, found in row["rows"].items():
        values = [found["query_mse"], *found["by_family"].values()]
        cells = [f"{v['mean']:.3f} ± {v['ci95']:.3f}" for v in values]
        paired, clusters = found.get("paired_with_first"), found.get("clusters")
        cells.append(f"{paired['mean']:+.3f} ± {paired['ci95']:.3f}" if paired else "")
        cells.append(
            f"{clusters['nmi']:.2f} ({clusters['nmi_shuffled_max_of_100']:.3f})"
            if clusters
            else ""
        )
        lines.append(f"| {' | '.join([name, *cells])} |")
    if any("clusters" in found for found in row["rows"].values()):
        picture = f"clusters-{row['benchmark']}.png"
        lines += ["", f"![Clusters and the families that reach them](results/{picture})"]
    return lines


def _continual_rows(row: dict[str, Any]) -> list[str]:
    names, settings = row["families"], row["settings"]
    lines = [
        f"Query MSE of averaged weights (decay {settings['decay']}) after each stage of "
        f"{settings['steps']:,} outer steps for each family so far, {settings['shots']} "
        f"shots, {settings['tasks']:,} tasks of a family, {len(settings['seeds'])} "
        "training seeds; another family arrives with every stage. In brackets how much of "
        "its error before the stage a family gained; the interval over old families is "
        "paired over tasks, with that of each seed in brackets:",
        "",
        f"| | families so far | {' | '.join(names)} | old families | grew at |",
        "|---" * (4 + len(names)) + "|",
    ]
    for method, found in row["rows"].items():
        end = 0
        for number, errors in enumerate(found["mse"]):
            changed = found["old"][number - 1] if number else {}
            start, end = end, end + settings["steps"] * len(errors)
            cells = []
            for name in names:
                cell = ""
                if name in errors:
                    cell = f"{errors[name]['mean']:.3f} ± {errors[name]['ci95']:.3f}"
                if name in changed:
                    cell += f" ({100 * changed[name]['mean']:+.0f} %)"
                cells.append(cell)
            cell = ""
            if whole := changed.get("all"):
                seeds = [run["old"][number - 1]["all"]["mean"] for run in found["by_seed"]]
                each = ", ".join(f"{100 * mean:+.0f}" for mean in seeds)
                cell = f"{100 * whole['mean']:+.1f} ± {100 * whole['ci95']:.1f} % ({each})"
            grown = [
                ", ".join(f"{step:,}" for step in run["grown"] if start < step <= end)
                for run in found["by_seed"]
            ]
            cells += [cell, "; ".join(g or "no" for g in grown) if any(grown) else ""]
            lines.append(f"| {' | '.join([method, str(len(errors)), *cells])} |")
    return lines


KINDS = {
    "accelerator": _card_table.table_rows,
    "mixed": mixed.table_rows,
    "online": online.table_rows,
    "streams": streams.table_rows,
    "bandits": bandits.table_rows,
    "rollouts": rollouts.table_rows,
    "texts": texts.table_rows,
    "graphs": graphs.table_rows,
    "cold-start": cold_start.table_rows,
    "warm-up": warm_up.table_rows,
    "domains": domains.table_rows,
    "labels": labels.table_rows,
    "places": places.table_rows,
    "hyperparameters": hyperparameters.table_rows,
    "distillation": distillation.table_rows,
    "calibration": _systems.calibration_rows,
    "continual": _continual_rows,
    "families": _families_rows,
    "ceiling": _ceiling_rows,
    "throughput": _throughput_rows,
    "chunks": _chunk_rows,
    "adapt": _adapt_rows,
    "memory": _memory_rows,
    "growth": growth.table_rows,
    "compiling": _compiling_rows,
    "scaling": _scaling_rows,
    "data": _data_rows,
}
