"""Classes of a graph for training, validation and test, by the number of a split."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal, get_args

import numpy as np

from metalearn.data import arguments

PARTS = ("train", "validation", "test")
MOST_SPLITS = 1_000_000
Held = Literal["classes", "nodes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeSplit:
    """Nodes and classes of the parts.

    Attributes:
      nodes: Nodes of each part, int64, in order. No node is in two parts.
      classes: Classes of each part. Those of the test are in no other part.
    """

    nodes: dict[str, np.ndarray]
    classes: dict[str, tuple[int, ...]]


def num_splits(num_classes: int, test_classes: int) -> int:
    """Number of choices of the test classes.

    Raises:
      ValueError: a number is no count.
    """
    arguments.count("num_classes", num_classes, least=1)
    arguments.count("test_classes", test_classes, least=1)
    return math.comb(num_classes, test_classes)


def split_nodes(
    labels: np.ndarray,
    *,
    number: int = 1,
    test_classes: int = 2,
    validation: Held = "classes",
    validation_classes: int = 2,
    validation_share: float = 0.2,
) -> NodeSplit:
    """Splits the labelled nodes of a graph.

    The splits are all choices of the test classes in lexicographic order: split 1 tests on
    the first classes.

    Args:
      labels: Class of each node, int `[V]` of `0..C-1`, or -1.
      number: Number of the split, from 1.
      test_classes: Number of classes of the test.
      validation: What validation holds back from training: "classes", which are new like
        those of the test, or "nodes" of the training classes, which leaves more classes
        for training and does not see whether a learner fits new classes.
      validation_classes: Number of classes of validation, drawn by the number of the split.
      validation_share: Share of the nodes of each training class for validation.

    Raises:
      TypeError: the labels are no whole numbers.
      ValueError: a label or an option is out of range, there is no such split, or no class
        is left for training.
    """
    labels = arguments.integers("labels", labels, least=-1)
    if not len(labels):
        raise ValueError("there is no label; expected one for each node.")
    arguments.count("split_number", number, least=1)
    arguments.count("test_classes", test_classes, least=1)
    arguments.one_of("validation", validation, get_args(Held))
    if validation == "classes":  # the other option is not read
        arguments.count("validation_classes", validation_classes, least=1)
    else:
        arguments.share("validation_share", validation_share)
    num = int(labels.max()) + 1
    held = validation_classes if validation == "classes" else 0
    if test_classes + held >= num:
        raise ValueError(
            f"{test_classes} test and {held} validation classes leave none of {num} for "
            "training. Lower app.test_classes or app.validation_classes, or choose "
            "app.validation nodes."
        )
    total = num_splits(num, test_classes)
    if not 1 <= number <= min(total, MOST_SPLITS):
        raise ValueError(
            f"split_number is {number}; expected 1 to {min(total, MOST_SPLITS):,}, the "
            f"choices of {test_classes} of {num} classes."
        )
    choices = itertools.combinations(range(num), test_classes)
    test = next(itertools.islice(choices, number - 1, None))
    others = [c for c in range(num) if c not in test]
    rng = np.random.default_rng([number, num, test_classes])
    if validation == "classes":
        drawn = rng.permutation(others)[:validation_classes]
        of_validation = tuple(sorted(int(c) for c in drawn))
        train = tuple(c for c in others if c not in of_validation)
        classes = {"train": train, "validation": of_validation, "test": test}
        nodes = {
            part: np.flatnonzero(np.isin(labels, chosen))
            for part, chosen in classes.items()
        }
        return NodeSplit(nodes=nodes, classes=classes)
    held_back = np.zeros(len(labels), bool)
    for c in others:
        of_class = rng.permutation(np.flatnonzero(labels == c))
        held_back[of_class[: round(validation_share * len(of_class))]] = True
    classes = {"train": tuple(others), "validation": tuple(others), "test": test}
    known = np.isin(labels, others)
    nodes = {
        "train": np.flatnonzero(known & ~held_back),
        "validation": np.flatnonzero(known & held_back),
        "test": np.flatnonzero(np.isin(labels, test)),
    }
    return NodeSplit(nodes=nodes, classes=classes)
