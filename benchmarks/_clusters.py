"""What the clusters of `ml.hsml` have found about families that it is never told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

import metalearn as ml
from metalearn.apps import plots


def routes(
    learner: ml.MetaLearner,
    variables: ml.Variables,
    sampler: ml.TaskSampler,
    num: int,
    *,
    chunk: int = 100,
) -> tuple[dict[str, np.ndarray], Any]:
    """`info` of the tasks that `evaluate` draws with seed 0, and their routes.

    The route is None for a learner without a tree.
    """

    def one(number: Any) -> Any:
        key = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 3)[0]
        task = sampler.sample(sampler.data, key)
        return task.info, getattr(learner.adapt(variables, task.support), "info", None)

    run = jax.jit(lambda numbers: jax.lax.map(one, numbers, batch_size=chunk))
    info, route = jax.device_get(run(np.arange(num)))
    return info, route if getattr(route, "upper", ()) else None


def mean(values: np.ndarray) -> dict[str, float]:
    """Mean over tasks with the half-width of its 95 % interval."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return {"mean": float(values.mean()), "ci95": float(half), "tasks": len(values)}


def information(families: np.ndarray, leaves: np.ndarray, num: int) -> dict[str, Any]:
    """Normalised mutual information of the strongest leaf with the family."""
    from sklearn.metrics import normalized_mutual_info_score

    strongest = leaves.argmax(-1)
    rng = np.random.default_rng(0)
    shuffled = [
        normalized_mutual_info_score(rng.permutation(families), strongest)
        for _ in range(100)
    ]
    return {
        "nmi": float(normalized_mutual_info_score(families, strongest)),
        "nmi_shuffled_max_of_100": float(max(shuffled)),
        "leaf_share_by_family": [
            leaves[families == i].mean(0).round(4).tolist() for i in range(num)
        ],
    }


def draw(
    path: Path, families: np.ndarray, route: Any, names: tuple[str, ...], title: str
) -> None:
    """The tree with the share of each family in every cluster."""
    by_family = lambda x: np.stack(
        [np.asarray(x)[families == i].mean(0) for i in range(len(names))]
    )
    plots.cluster_tree(
        path,
        by_family(route.leaves),
        [by_family(a) for a in route.upper],
        names,
        title=title,
    )
