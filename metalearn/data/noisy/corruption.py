"""Wrong labels and long tails, made by number: equal seeds make equal ones."""

from __future__ import annotations

import numpy as np

from metalearn.data import arguments

FLIPS = ("uniform", "pair", "background")


def flipped(
    labels: np.ndarray, num_classes: int, *, share: float, kind: str = "uniform", seed: int
) -> np.ndarray:
    """Labels of which a share is wrong.

    The number of wrong labels is `share` of the examples that can have one, rounded; with
    "background" these are the examples of the other classes. Splits, tails and flips of one
    seed are drawn apart.

    Args:
      labels: True classes, int `[I]` of `0..C-1`.
      num_classes: C, 2 or more.
      share: Share of wrong labels, in 0..1.
      kind: Kind of the wrong label: "uniform", any other class; "pair", the next class,
        and the first after the last; "background", class 0, which so has no wrong label.
      seed: Seed of the draw.

    Returns:
      Labels `[I]`.

    Raises:
      TypeError: the labels are no whole numbers.
      ValueError: an option is out of range, or a label is.

    Example:
      >>> labels = np.array([0, 1, 2, 0])
      >>> flipped(labels, 3, share=1.0, kind="pair", seed=0).tolist()
      [1, 2, 0, 1]
    """
    arguments.number("the share of flips", share)
    arguments.count("num_classes", num_classes, least=1)
    arguments.seed(seed)
    labels = arguments.integers("labels", labels)
    if not 0 <= share <= 1:
        raise ValueError(f"the share of flips is {share}; expected a share in 0..1.")
    arguments.one_of("the kind of flips", kind, FLIPS)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; expected 2 classes or more.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels are {labels.min()}..{labels.max()}; expected 0..{num_classes - 1}."
        )
    rng = np.random.default_rng([seed, 2])
    able = np.flatnonzero(labels > 0) if kind == "background" else np.arange(len(labels))
    wrong = rng.permutation(able)[: round(share * len(able))]
    found = labels.copy()
    if kind == "background":
        found[wrong] = 0
    else:
        most = num_classes if kind == "uniform" else 2
        steps = rng.integers(1, most, len(wrong))
        found[wrong] = (labels[wrong] + steps) % num_classes
    return found


def long_tail(
    labels: np.ndarray, num_classes: int, *, imbalance: float, seed: int
) -> np.ndarray:
    """Numbers of the examples that stay, so that later classes are ever rarer.

    Class c keeps `n imbalance^(-c / (C - 1))` examples, rounded and 1 at least, where n is
    the size of the largest class; or all it has, if these are fewer.

    Args:
      labels: Classes, int `[I]`.
      num_classes: C.
      imbalance: Ratio of the first class to the last, 1 or more.
      seed: Seed of the draw.

    Returns:
      Rows that stay, sorted.

    Raises:
      TypeError: the labels are no whole numbers.
      ValueError: the ratio is below 1 or not finite, a label is of no class, or there is
        none.

    Example:
      >>> rows = long_tail(np.repeat([0, 1, 2], 100), 3, imbalance=100, seed=0)
      >>> np.bincount(np.repeat([0, 1, 2], 100)[rows]).tolist()
      [100, 10, 1]
    """
    arguments.number("the imbalance", imbalance)
    arguments.count("num_classes", num_classes, least=1)
    arguments.seed(seed)
    labels = arguments.integers("labels", labels, least=0, below=num_classes)
    if not len(labels):
        raise ValueError("there is no label; expected one or more.")
    if imbalance < 1:
        raise ValueError(
            f"the imbalance is {imbalance}; expected the ratio of the largest class to the "
            "smallest, 1 or more."
        )
    rng = np.random.default_rng([seed, 1])
    counts = np.bincount(labels, minlength=num_classes)
    kept = []
    for number, count in enumerate(counts):
        power = number / max(num_classes - 1, 1)
        wanted = max(round(counts.max() * imbalance**-power), 1)
        rows = np.flatnonzero(labels == number)
        kept.append(rng.permutation(rows)[: min(wanted, count)])
    return np.sort(np.concatenate(kept)).astype(np.int64)
