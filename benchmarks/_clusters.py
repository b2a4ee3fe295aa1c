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


def separation(families: np.ndarray, embeddings: np.ndarray) -> dict[str, float]:
    """How well families can be read from embeddings `[T, D]`.

    The family is decoded from one half of the tasks for the other: by a linear classifier
    and by ten neighbours. The rest is what clusters that see embeddings alone could find:
    information of the family with k-means of 4 and of 16 clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.neighbors import KNeighborsClassifier

    scale = embeddings.std(0).max()
    x = (embeddings - embeddings.mean(0)) / scale
    half = len(x) // 2
    score = lambda judge: float(
        judge.fit(x[:half], families[:half]).score(x[half:], families[half:])
    )
    found = {
        "linear_accuracy": score(LogisticRegression(C=1e3, max_iter=2000)),
        "neighbours_accuracy": score(KNeighborsClassifier(10)),
    }
    for num in (4, 16):
        labels = KMeans(num, n_init=4, random_state=0).fit_predict(x)
        found[f"nmi_of_{num}_means"] = float(normalized_mutual_info_score(families, labels))
    return found


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


def project(path: Path, found: dict[str, Any], names: tuple[str, ...]) -> None:
    """Embeddings of each variant in two dimensions, coloured by family and by leaf.

    Args:
      path: Path of a .png file.
      found: `family` `[T]`, `g` `[T, D]` and `leaves` `[T, K]` of each variant.
      names: Names of the families.
    """
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    figure = plots.figure_of(3.0 * len(found), 8.4)
    axes = figure.subplots(3, len(found), squeeze=False)
    for column, (name, run) in zip(axes.T, found.items(), strict=True):
        g, family, leaf = run["g"], run["family"], run["leaves"].argmax(-1)
        half = len(g) // 2
        flat = PCA(2).fit_transform(g)[half:]
        judged = LinearDiscriminantAnalysis(n_components=2).fit(g[:half], family[:half])
        panels = (
            ("principal components, by family", flat, family[half:]),
            ("principal components, by leaf", flat, leaf[half:]),
            ("discriminants, by family", judged.transform(g[half:]), family[half:]),
        )
        for ax, (title, at, labels) in zip(column, panels, strict=True):
            for value in range(max(len(names), leaf.max() + 1)):
                rows = labels == value
                ax.scatter(
                    *at[rows].T,
                    s=4,
                    lw=0,
                    alpha=0.7,
                    color=plots.FAMILY_COLOURS[value],
                    label=names[value] if "family" in title else None,
                )
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"{name}\n{title}" if at is flat else title, fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=7, markerscale=2)
    figure.savefig(path, dpi=110)
