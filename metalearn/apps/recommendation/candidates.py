"""Items to ask a new user about: evidence candidates, popular ones, and random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from metalearn.core import checks
from metalearn.core.task import Examples
from metalearn.core.types import Array
from metalearn.data.ratings import Ratings

Kind = Literal["evidence", "popular", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """An item to ask about.

    Attributes:
      item: Row of the item in `Ratings.items`.
      score: Score by which it was chosen, in 0..1; larger is better.
      num_raters: Number of training users who rated it.
    """

    item: int
    score: float
    num_raters: int


def candidates(
    ratings: Ratings,
    rows: np.ndarray,
    *,
    num: int = 20,
    kind: Kind = "evidence",
    norms: Any = None,
    seed: int = 0,
) -> list[Candidate]:
    """Items whose ratings say most of a new user, best first.

    Evidence candidates (H. Lee et al., MeLU, KDD 2019) have a large product of
    two scores, each divided by its maximum: the mean over users of what a rating of the
    item would move (`metalearn.algorithms.gradient.evidence`), and the number of users who
    rated it. Popular candidates have the second score alone, random ones are drawn.

    Args:
      ratings: The ratings.
      rows: Numbers of the ratings of training.
      num: Number of items.
      kind: Kind of the choice.
      norms: Movement by each of `rows`, `[len(rows)]`, for evidence.
      seed: Seed of the draw of random ones among all items that were rated.

    Returns:
      `num` candidates, or as many as items were rated.

    Raises:
      ValueError: `num` is below 1, the kind is unknown, no rating is given, or norms are
        missing, of another length, or not finite.
    """
    if kind not in ("evidence", "popular", "random"):
        raise ValueError(f"kind is {kind!r}; expected evidence, popular or random.")
    rows = _numbers_of(ratings, rows)
    checks.whole_number("num", num, least=1)
    if not len(rows):
        raise ValueError(
            "rows name no rating; expected the numbers of one rating or more of training."
        )
    item = ratings.item[rows]
    counts = np.bincount(item, minlength=len(ratings.items)).astype(float)
    scores = counts / counts.max()
    if kind == "evidence":
        scores = scores * _means(norms, item, counts)
    elif kind == "random":
        scores = np.random.default_rng(seed).random(len(counts))
    rated = np.flatnonzero(counts)
    # Stable, so that equal scores are in the order of the items.
    chosen = rated[np.argsort(-scores[rated], kind="stable")][:num].tolist()
    return [
        Candidate(item=i, score=float(scores[i]), num_raters=int(counts[i])) for i in chosen
    ]


def _numbers_of(ratings: Ratings, rows: Any) -> np.ndarray:
    """Numbers of ratings; a mask `[R]` of all of them stands for the numbers it has.

    Raises:
      ValueError: they are no numbers of ratings.
    """
    found = np.asarray(rows)
    if found.dtype == bool and found.shape == ratings.rating.shape:
        found = np.flatnonzero(found)
    whole = found.ndim == 1 and found.dtype.kind in "iu"
    if not whole or (len(found) and not 0 <= found.min() <= found.max() < len(ratings)):
        raise ValueError(
            f"rows have shape {found.shape} and dtype {found.dtype}; expected numbers of "
            f"ratings, from 0 to {len(ratings) - 1}, or a mask of all."
        )
    return found


def _means(norms: Any, item: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean movement by an item, divided by the largest, `[I]`."""
    found = None if norms is None else np.asarray(norms, np.float64)
    if found is None or found.shape != item.shape:
        told = "missing" if found is None else f"of shape {found.shape}"
        raise ValueError(f"norms are {told}; expected one for each of {len(item)} rows.")
    if not (np.isfinite(found) & (found >= 0)).all():
        bad = int((~(np.isfinite(found) & (found >= 0))).argmax())
        raise ValueError(
            f"norms have {found[bad]} for row {bad}; expected finite numbers of 0 or more. "
            "A network whose weights are not finite gives others."
        )
    sums = np.bincount(item, weights=found, minlength=len(counts))
    means = sums / np.maximum(counts, 1)
    return means / max(means.max(), np.finfo(float).tiny)


def movements(
    norm_of: Callable[[Examples], Array],
    ratings: Ratings,
    rows: np.ndarray,
    *,
    batch: int = 4096,
) -> np.ndarray:
    """Movement by each rating, each by itself.

    Args:
      norm_of: Function `Examples -> [N]`, such as `evidence` with all but the examples.
      ratings: The ratings.
      rows: Numbers of the ratings, `[R]`.
      batch: Number of ratings at once.

    Returns:
      Norms `[R]`.
    """
    checks.whole_number("batch", batch, least=1)
    rows = _numbers_of(ratings, rows)
    run = jax.jit(norm_of)
    found = [np.zeros(0, np.float32)]
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        # The last batch is filled up, so that all share one program.
        filled = np.resize(some, batch)
        x = {
            "content": ratings.content_of(filled),
            "user": ratings.user[filled],
            "item": ratings.item[filled],
        }
        examples = Examples.of(x, ratings.rating[filled][:, None])
        found.append(np.asarray(run(examples))[: len(some)])
    return np.concatenate(found)
