"""What the README's table says of a learner from results of whole applications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._intervals import student

MAE = "query/mae"
JOINT = "ratings-joint"


def _own(name: str, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The first row of a learner, with the name of its recipe."""
    return next(
        (recipe, found)
        for recipe, found in row["rows"].items()
        if found.get("settings", {}).get("learner", {}).get("name") == name
    )


def of_cold_start(name: str, row: dict[str, Any]) -> str:
    """Errors of new users, beside the joint model."""
    recipe, found = _own(name, row)
    parts = []
    for state, title in (("user", "new users"), ("both", "new users and items")):
        mae, joint = found["states"][state][MAE], row["rows"][JOINT]["states"][state][MAE]
        apart = joint["difference"]
        parts.append(
            f"{title}: MAE {mae['mean']:.3f} ± {mae['ci95']:.3f}, against `{JOINT}` "
            f"{apart['mean']:+.3f} ± {apart['ci95']:.3f}"
        )
    return f"`{recipe}` {'; '.join(parts)} (inductive, {row['seeds']} seeds)"


def of_warm_up(name: str, row: dict[str, Any]) -> str:
    """AUC of clicks on new items, beside the mean vector, of the first base model."""
    del name
    parts = []
    network, told = next(iter(row["networks"].items()))
    for phase in ("cold", "warm c"):
        rows = told["phases"][phase]
        gain = rows["mean"]["auc_gain"]
        parts.append(
            f"{network}, {phase}: AUC {np.mean(rows['generated']['auc']):.4f}, against "
            f"the mean vector {gain['mean']:+.4f}, σ {gain['spread']:.4f}"
        )
    return f"{'; '.join(parts)} (inductive, {row['seeds']} seeds)"


def of_labels(name: str, row: dict[str, Any]) -> str:
    """Accuracy beside plain training on the same batches."""
    recipe, found = _own(name, row)
    value = found["metrics"]["query/accuracy"]
    apart = found["difference"]
    return (
        f"`{recipe}` {100 * value['mean']:.1f} ± {100 * value['ci95']:.1f} %; against "
        f"`{next(iter(row['rows']))}` {100 * apart['mean']:+.1f} ± "
        f"{100 * apart['ci95']:.1f} points (inductive, {len(row['seeds'])} seeds)"
    )


def of_domains(name: str, row: dict[str, Any]) -> str:
    """Accuracy on unseen domains, beside joint training."""
    recipe, found = _own(name, row)
    seen = found["settings"]["app"].get("unlabelled")
    how = "transductive, the baseline inductive" if seen else "inductive"
    apart = found["difference"]
    half = "" if apart["ci95"] is None else f" ± {100 * apart['ci95']:.1f}"
    return (
        f"`{recipe}` on `{row['dataset']}` {100 * found['mean']:.1f} %, mean of "
        f"{len(row['targets'])} targets; against `{next(iter(row['rows']))}` "
        f"{100 * apart['mean']:+.1f}{half} points ({how}, {row['seeds']} seeds)"
    )


def of_places(name: str, row: dict[str, Any]) -> str:
    """Rankings in new areas, beside MAML and the fine-tuned joint model."""
    recipe, found = _own(name, row)
    parts = []
    for key, title in (("query/hit_rate@10", "HR@10"), ("query/choice_ndcg@10", "NDCG@10")):
        told = found["metrics"][key]
        each = []
        for other in ("places-maml", "places-fine-tune"):
            apart = row["rows"][other]["difference"][key]
            each.append(
                f"`{other}` {100 * apart['mean']:+.2f} ± {100 * apart['ci95']:.2f} points"
            )
        parts.append(
            f"{title} {100 * told['mean']:.1f} ± {100 * told['ci95']:.1f} %, against "
            f"{' and '.join(each)}"
        )
    return f"`{recipe}` {'; '.join(parts)} (inductive, {len(row['seeds'])} seeds)"


def of_distillation(name: str, row: dict[str, Any]) -> str:
    """Accuracy of the student of a teacher that learns, beside plain distillation."""
    recipe, found = next(
        (recipe, found)
        for recipe, found in row["rows"].items()
        if found["settings"]["learner"]["name"] == name
        if found["settings"]["learner"]["teacher_rate"]
    )
    value, apart = found["metrics"]["query/accuracy"], found["difference"]
    half = student(apart["seeds"])
    around = "" if half is None else f" ± {100 * half:.1f}"
    return (
        f"`{recipe}` {100 * value['mean']:.1f} ± {100 * value['ci95']:.1f} %; against "
        f"`{next(iter(row['rows']))}` {100 * apart['mean']:+.1f}{around} points "
        f"(inductive, {len(row['seeds'])} seeds)"
    )


OF_KIND: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "cold-start": of_cold_start,
    "warm-up": of_warm_up,
    "labels": of_labels,
    "domains": of_domains,
    "places": of_places,
    "distillation": of_distillation,
}
