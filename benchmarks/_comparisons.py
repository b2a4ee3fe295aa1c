"""The tables of `against` and `choose`: one baseline, its runs, and who is beside it.

A baseline that was trained on two machines has two values. Systems are listed under the
runs that they were compared with, so that no table shows two values of one baseline.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def against_tables(stored: list[Row]) -> list[str]:
    """A table for the runs of each baseline.

    Raises:
      ValueError: one code on one machine has two values of the same runs, so that one of
        two results is no longer what it says.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in stored:
        groups.setdefault(_runs_of_baseline(row), []).append(row)
    _check_baselines([rows[0] for rows in groups.values()])
    lines = [
        "Systems and their baselines on the same test tasks, trained for the same number "
        "of steps. Each table is of the same runs of one baseline. Intervals are over "
        "tasks, of the mean over seeds. They leave out the noise of training, which the "
        "difference of each seed and the standard deviation of these show.",
        "",
    ]
    for rows in sorted(groups.values(), key=lambda rows: rows[0]["baseline"]):
        lines += [
            _heading(rows[0]),
            "",
            "| system | meta-test | difference | each seed | inductive | training |",
            "|---|---|---|---|---|---|",
            *(_against_row(row) for row in rows),
            "",
        ]
    return lines


def choice_table(stored: list[Row]) -> list[str]:
    """One table of all settings that were chosen on validation classes."""
    lines = [
        "Settings chosen on validation classes, never on those of the test; what won is "
        "bold:",
        "",
        "| recipe | field | seeds | what decides | values |",
        "|---|---|---|---|---|",
    ]
    for row in stored:
        cells = []
        for value, found in row["rows"].items():
            diverged = found["mean"] is None
            shown = "diverged" if diverged else _plain(row["measure"], found)
            text = f"{value}: {shown}"
            cells.append(f"**{text}**" if value == row["best"] else text)
        name = " ".join([row["recipe"], *row["overrides"]])
        lines.append(
            f"| {name} | {row['field']} | {len(row['seeds'])} | {row['measure']}, "
            f"{row['num_tasks']} tasks | {'; '.join(cells)} |"
        )
    return [*lines, ""]


def system_of(row: Row) -> Row:
    """The part of a comparison that is of the system."""
    return row["rows"].get("system") or row["rows"][row["system"]]


def baseline_of(row: Row) -> Row:
    """The part of a comparison that is of the baseline."""
    return row["rows"].get("baseline") or row["rows"][row["baseline"]]


def system_name(row: Row) -> str:
    """Name of the system, with what was overridden and where it was judged."""
    return " ".join([row["system"], *row["overrides"], *_judged_on(row)])


def baseline_name(row: Row) -> str:
    """Name of the baseline, likewise. Older results overrode fields of both or of none."""
    own = row.get("baseline_overrides", row["overrides"])
    return " ".join([row["baseline"], *own, *_judged_on(row)])


def difference(row: Row) -> str:
    """The difference with its interval over tasks and its spread over seeds."""
    found, unit = row["difference"], 1
    digits, end = 3, ""
    if "query/accuracy" in system_of(row)["metrics"]:
        unit, digits, end = 100, 2, " points"
    text = f"{unit * found['mean']:+.{digits}f} ± {unit * found['ci95']:.{digits}f}{end}"
    spread = spread_of(found["seeds"], found.get("spread"))
    return text if spread is None else f"{text}, σ {unit * spread:.{digits}f} over seeds"


def metric(row: Row) -> str:
    """The metric that decides, with its interval over tasks."""
    if "query/accuracy" in row["metrics"]:
        return _value("query/accuracy", row["metrics"]["query/accuracy"])
    return f"MSE {_value('query/loss', row['metrics']['query/loss'])}"


def spread_of(values: list[float], stored: float | None = None) -> float | None:
    """Standard deviation over seeds, also of results that did not store it."""
    if stored is not None or len(values) < 2:
        return stored
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


def _judged_on(row: Row) -> list[str]:
    return [f"on {row['on']}"] if row.get("on") else []


def _runs_of_baseline(row: Row) -> tuple:
    """What tells runs of a baseline from others: their results, to the last digit."""
    return (baseline_name(row), tuple(baseline_of(row)["by_seed"]))


def _check_baselines(rows: list[Row]) -> None:
    seen: dict[tuple, Row] = {}
    for row in rows:
        if "origin" not in row:  # stored before it was recorded
            continue
        origin = row["origin"]
        machine = tuple(sorted((k, str(v)) for k, v in origin["machine"].items()))
        same = (baseline_name(row), len(row["seeds"]), row["fingerprint"], machine)
        first = seen.setdefault((*same, origin["code"]), row)
        if first is not row:
            raise ValueError(
                f"{first['benchmark']} and {row['benchmark']} have the baseline "
                f"{baseline_name(row)} of one code on one machine as "
                f"{baseline_of(first)['by_seed']} and {baseline_of(row)['by_seed']}. Run "
                "`against` again for both with the same --runs."
            )


def _heading(row: Row) -> str:
    base, origin = baseline_of(row), row.get("origin")
    seeds = ", ".join(_seed_value(row, value) for value in base["by_seed"])
    text = f"`{baseline_name(row)}` has {metric(base)} (seeds {seeds}), {base['num_tasks']}"
    if origin is None:
        commit = row.get("environment", {}).get("commit") or "unknown"
        return (
            f"{text} tasks; an older result (commit {commit}), whose machine, code and "
            "fingerprint of tasks were not recorded:"
        )
    machine = origin["machine"]
    return (
        f"{text} tasks `{row['fingerprint']}`; {machine['cpu']}, {machine['devices']} "
        f"device(s), jax {machine['jax']}, code `{origin['code']}` of {origin['commit']}:"
    )


def _against_row(row: Row) -> str:
    system = system_of(row)
    scale = 100 if "query/accuracy" in system["metrics"] else 1
    digits = 1 if scale == 100 else 3
    seeds = ", ".join(f"{scale * v:+.{digits}f}" for v in row["difference"]["seeds"])
    minutes = sum(system["training_seconds"]) / len(system["training_seconds"]) / 60
    way = "no" if system["transductive"] else "yes"
    return (
        f"| {system_name(row)}{_rates(system)} | {metric(system)} | {difference(row)} "
        f"| {seeds} | {way} | {minutes:.1f} min |"
    )


def _rates(system: Row) -> str:
    """Rates that a learner has found, of every seed."""
    if not system.get("learned_rates"):
        return ""
    words = [
        f"{name} {', '.join(f'{rates[name]:.2g}' for rates in system['learned_rates'])}"
        for name in system["learned_rates"][0]
    ]
    return f"; its rates end at {'; '.join(words)}"


def _seed_value(row: Row, value: float) -> str:
    if "query/accuracy" in baseline_of(row)["metrics"]:
        return f"{100 * value:.1f}"
    return f"{value:.3f}"


def _plain(measure: str, value: dict[str, Any]) -> str:
    if measure.endswith("accuracy"):
        return f"{100 * value['mean']:.1f} ± {100 * value['ci95']:.1f} %"
    return f"{value['mean']:.3f} ± {value['ci95']:.3f}"


def _value(measure: str, value: dict[str, Any]) -> str:
    if measure.endswith("accuracy"):
        return f"{100 * value['mean']:.2f} ± {100 * value['ci95']:.2f} %"
    return f"{value['mean']:.3f} ± {value['ci95']:.3f}"
