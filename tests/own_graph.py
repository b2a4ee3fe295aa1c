"""A small graph of a user's own: classes that link to their kind, and two words each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CLASSES, OF_CLASS = 6, 9


def own_graph(seed=0):
    """Features, links and labels; the last node has no link."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), OF_CLASS)
    num = len(labels)
    features = rng.random((num, 2 * CLASSES)) < 0.15
    features[np.arange(num), 2 * labels] |= rng.random(num) < 0.8
    edges = [
        (u, v)
        for u in range(num - 1)
        for v in range(u + 1, num - 1)
        if rng.random() < (0.25 if labels[u] == labels[v] else 0.02)
    ]
    return features.astype(np.float32), np.asarray(edges), labels


def write_own_graph(folder: Path) -> Path:
    """graph.npz in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    features, edges, labels = own_graph()
    np.savez(folder / "graph.npz", features=features, edges=edges, labels=labels)
    return folder
