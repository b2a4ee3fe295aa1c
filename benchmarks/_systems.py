"""The README's table of systems, from the registry and the stored results."""

from __future__ import annotations

from typing import Any

from benchmarks import _comparisons as of
from benchmarks import _measures
from metalearn.algorithms.registry import DRIVERS, RECORDS

START, END = "<!-- systems -->", "<!-- end of systems -->"


def rows(stored: list[dict[str, Any]]) -> list[str]:
    """Markdown lines: every learner with what is published and what was measured here."""
    results = {row["benchmark"]: row for row in stored}
    lines = [
        "| constructor | paper | good for | published | measured here |",
        "|---|---|---|---|---|",
    ]
    for system in (*RECORDS, *DRIVERS):
        shown = [results[system.result]] if system.result in results else []
        shown += _comparisons_of(system.name, stored, shown)
        ours = "; ".join(_measured(system.name, found) for found in shown)
        cells = (f"`ml.{system.name}`", system.paper, system.good_for, system.published)
        lines.append("| " + " | ".join([*cells, ours]) + " |")
    return lines


def _comparisons_of(
    name: str, stored: list[dict[str, Any]], shown: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Further comparisons of a learner under its recipes' own settings, good or bad.

    A learner that wins on one kind of task and loses on another shows both.
    """
    return [
        row
        for row in stored
        if row.get("kind") == "against"
        and row not in shown
        and not row["overrides"]
        and _learner(of.system_of(row)["settings"]) == name
    ]


def calibration_rows(row: dict[str, Any]) -> list[str]:
    """The table of a `calibration` result."""
    first = next(iter(row["rows"].values()))
    settings, rules = _app(first["settings"]), "both_rules" in first
    side, ways, shots = 28 // settings["shrink"], settings["ways"], settings["shots"]
    classes = settings.get("train_classes")
    what = f"Omniglot at {side}x{side}, {ways}-way {shots}-shot"
    if classes:
        what += f", meta-trained on {classes} characters in four rotations"
    if rules:
        what += ", whose support sets fit two rules, character and style"
    heads = ["accuracy", "negative log-likelihood", "difference", "calibration error"]
    if rules:
        heads[1:1] = ["where known"]
        heads += ["of whole query sets", "difference", "both rules"]
    lines = [
        f"Probabilities on the same tasks of {what}; inductive, {len(row['seeds'])} seeds, "
        "differences paired with the first row, with their standard deviation over "
        "seeds, calibration error of every seed in brackets; intervals are over tasks:",
        "",
        f"| recipe | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]
    for name, found in row["rows"].items():
        error = found["calibration_error"]
        seeds = ", ".join(f"{value:.3f}" for value in error["seeds"])
        cells = [
            _percent(found["accuracy"]),
            _interval(found["nll"]),
            _apart(found["nll_minus_first"]),
            f"{error['mean']:.4f} ({seeds})",
        ]
        if rules:
            cells[1:1] = [_percent(found["accuracy_where_known"])]
            cells += [
                _interval(found["joint_nll"]),
                _apart(found["joint_nll_minus_first"]),
                _percent(found["both_rules"]),
            ]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['mean']:.2f} ± {100 * value['ci95']:.2f} %"


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.4f} ± {value['ci95']:.4f}"


def _apart(value: dict[str, Any]) -> str:
    if not value["ci95"]:
        return ""
    spread = of.spread_of(value["seeds"], value.get("spread"))
    text = f"{value['mean']:+.4f} ± {value['ci95']:.4f}"
    return text if spread is None else f"{text}, σ {spread:.4f}"


def _measured(name: str, row: dict[str, Any]) -> str:
    """Our number of a system, from whatever kind of result measures it."""
    kind = row["kind"]
    if kind in _measures.OF_KIND:
        return _measures.OF_KIND[kind](name, row)
    if kind == "against":
        system = of.system_of(row)
        way = "transductive" if system["transductive"] else "inductive"
        return (
            f"`{of.system_name(row)}` {of.metric(system)}; against "
            f"`{of.baseline_name(row)}` {of.difference(row)} "
            f"({way}, {_seeds(row['seeds'])})"
        )
    if kind == "calibration":
        first = next(iter(row["rows"].values()))["calibration_error"]["mean"]
        parts = [
            f"`{recipe}` NLL {_short(found['nll'])}, against MAML "
            f"{_short(found['nll_minus_first'], '+')}; calibration error "
            f"{found['calibration_error']['mean']:.3f}, of MAML {first:.3f}"
            for recipe, found in row["rows"].items()
            if _learner(found["settings"]) == name
        ]
        return f"{'; '.join(parts)} (inductive, {_seeds(row['seeds'])})"
    if kind == "paired":
        apart = row["difference_points"]
        value = row["first_result"]["query/accuracy"]
        return (
            f"`{row['first']}` {100 * value['mean']:.1f} ± {100 * value['ci95']:.1f} %; "
            f"against `{row['second']}` {apart['mean']:+.1f} ± {apart['ci95']:.1f} points "
            "(inductive, one seed)"
        )
    if kind == "online":
        regrets = {n: r["regret"]["mean"] for n, r in row["rows"].items()}
        return (
            f"Rainbow MNIST: regret {regrets['ftml']:.1f}, from scratch "
            f"{regrets['scratch']:.1f}, on everything {regrets['toe']:.1f} (inductive, "
            f"{_seeds(row['rows']['ftml']['regret']['seeds'])})"
        )
    if kind == "families":
        found = next(
            (r for r in row["rows"].values() if _learner(r["settings"]) == name), None
        )
        if found is None:
            return ""
        value = found["query_mse"]
        return (
            f"four families of curves, 10 shots: MSE {value['mean']:.3f} ± "
            f"{value['ci95']:.3f} (inductive, one seed)"
        )
    if kind == "streams":
        found = next(r for r in row["rows"].values() if _learner(r["settings"]) == name)
        at = [100 * shown["mean"] for shown in found["presentations"]]
        return (
            f"streams of {found['ways']} classes: 1st presentation {at[0]:.1f}, 2nd "
            f"{at[1]:.1f}, last {at[-1]:.1f} % ({_seeds(found['by_seed'])})"
        )
    if kind == "bandits":
        known, new = (
            f"{_short(ratio)}, σ {ratio['spread']:.3f}"
            for ratio in (row["comparison"][k]["ratio"] for k in ("recurring", "new"))
        )
        return (
            f"regret on bandits that recur {known}, of that without the memory; on new "
            f"ones {new} ({_seeds(row['seeds'])})"
        )
    result = row["result"]
    way = "transductive" if result["transductive"] else "inductive"
    if "query/return" in result:
        told = _return(result["query/return"])
        steps = result["eval_steps"]
        return f"`{row['recipe']}` return {told} after {steps} updates ({way}, one seed)"
    value = result["query/accuracy"]
    return (
        f"`{row['recipe']}` {100 * value['mean']:.1f} ± {100 * value['ci95']:.1f} % "
        f"({way}, one seed)"
    )


def _return(value: dict[str, Any]) -> str:
    return f"{value['mean']:.1f} ± {value['ci95']:.1f}"


def _short(value: dict[str, Any], sign: str = "") -> str:
    return f"{value['mean']:{sign}.3f} ± {value['ci95']:.3f}"


def _seeds(seeds: list[int]) -> str:
    return "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _learner(settings: dict[str, Any]) -> str:
    """Name of the learner, also of settings stored when they were one flat record."""
    return settings["learner"]["name"] if "learner" in settings else settings["algorithm"]


def _app(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the application, likewise."""
    return settings.get("app", settings)
