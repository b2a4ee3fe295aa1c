"""Vectors of texts without a vocabulary: hashed counts of words and of parts of words.

An n-gram of words or of characters is counted in one of a fixed number of buckets, which a
hash chooses. Its sign is from the same hash, so that n-grams that share a bucket cancel on
average (K. Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML
2009). Any language has such counts: characters serve where nothing parts words.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from metalearn.data.text.plain import check_texts, folded

# A word, or any other visible character by itself, so that no text is without one.
_WORD = re.compile(r"\w+|[^\w\s]")
MOST_BUCKETS = 2**16  # more would be slower than they are good for


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HashedTexts:
    """Function `texts -> float32 [I, D]`: unit vectors of tf-idf weighted, hashed counts.

    Attributes:
      words: Shortest and longest n-grams of words.
      characters: Shortest and longest n-grams of characters within a word and its borders.
      weights: Weight of each bucket, float32 `[D]`.
    """

    words: tuple[int, int]
    characters: tuple[int, int]
    weights: np.ndarray

    @property
    def num_features(self) -> int:
        """Number D of buckets."""
        return len(self.weights)

    @property
    def about(self) -> dict[str, Any]:
        """Name and settings, as JSON values."""
        return {
            "name": "hashed",
            "version": 1,  # of the n-grams and the hash
            "words": list(self.words),
            "characters": list(self.characters),
        }

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        counts = hashed_counts(
            texts, self.num_features, words=self.words, characters=self.characters
        )
        found = damped(counts) * self.weights
        # All counts of a text may cancel. Such a text stays at zero, and is no NaN.
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.where(norms == 0, 1, norms)


def hashed_texts(
    texts: Sequence[str],
    *,
    dim: int = 1024,
    words: tuple[int, int] = (1, 2),
    characters: tuple[int, int] = (3, 4),
) -> HashedTexts:
    """Fits the weights of hashed counts to the texts of meta-training.

    A count c becomes `sign(c) (1 + log |c|)`, times `1 + log((1 + I) / (1 + n))` for a
    bucket that n of the I texts fill. Rows then have length 1.

    Args:
      texts: The I training texts; their classes do not matter.
      dim: Number of buckets.
      words: Shortest and longest n-grams of words; (0, 0) for none.
      characters: Shortest and longest n-grams of characters; (0, 0) for none.

    Returns:
      A function `texts -> float32 [I, D]`.

    Raises:
      TypeError: something else than texts, or sizes that are no pair.
      ValueError: a text is empty, or a size is out of range.

    Example:
      >>> features = hashed_texts(["where is my card", "my card is lost"], dim=16)
      >>> features(["lost card"]).shape
      (1, 16)
    """
    words, characters = _pair("words", words), _pair("characters", characters)
    counts = hashed_counts(texts, dim, words=words, characters=characters)
    filled = np.count_nonzero(counts, axis=0)
    weights = 1 + np.log((1 + len(counts)) / (1 + filled))
    return HashedTexts(
        words=words, characters=characters, weights=weights.astype(np.float32)
    )


def hashed_counts(
    texts: Sequence[str], dim: int, *, words: tuple[int, int], characters: tuple[int, int]
) -> np.ndarray:
    """Signed counts of the n-grams of each text, float32 `[I, dim]`."""
    if not isinstance(dim, int) or isinstance(dim, bool) or not 2 <= dim <= MOST_BUCKETS:
        raise ValueError(
            f"dim is {dim!r}; expected a number of buckets from 2 to {MOST_BUCKETS}."
        )
    words, characters = _pair("words", words), _pair("characters", characters)
    if not words[1] and not characters[1]:
        raise ValueError("words and characters are both (0, 0); expected some n-grams.")
    texts = check_texts(texts)
    # Most n-grams come again and again, and a look-up costs a tenth of a hash.
    place = functools.cache(_place)
    found = np.zeros((len(texts), dim), np.float32)
    for row, text in enumerate(texts):
        codes = np.fromiter(map(place, ngrams(text, words, characters)), np.uint64)
        signs = 1.0 - 2.0 * (codes & 1)
        buckets = ((codes >> 1) % dim).astype(np.int64)
        found[row] = np.bincount(buckets, weights=signs, minlength=dim)
    return found


def _pair(name: str, limits: Any) -> tuple[int, int]:
    """The shortest and the longest n-gram of a kind, checked, as a tuple."""
    expected = (
        f"{name} is {limits!r}; expected the shortest and the longest n-gram, such as "
        "(1, 2), or (0, 0) for none."
    )
    if not isinstance(limits, (tuple, list)):
        raise TypeError(expected)
    if len(limits) != 2 or not all(type(n) is int for n in limits):
        raise ValueError(expected)
    low, high = limits
    if not (low == high == 0 or 1 <= low <= high):
        raise ValueError(expected)
    return low, high


def damped(counts: np.ndarray) -> np.ndarray:
    """`sign(c) (1 + log |c|)`, and 0 for 0."""
    sizes = np.abs(counts)
    return np.sign(counts) * (1 + np.log(np.maximum(sizes, 1)))


def ngrams(text: str, words: tuple[int, int], characters: tuple[int, int]) -> Iterator[str]:
    """The n-grams of a text, with their kind in front.

    A word that is shorter than an n-gram of characters counts once, with its borders.

    Example:
      >>> list(ngrams("my card", (2, 2), (5, 5)))
      ['w my card', 'c my ', 'c card', 'ccard ']
    """
    text = folded(text)
    found = _WORD.findall(text) if words[1] else []
    for size in range(max(words[0], 1), words[1] + 1):
        for start in range(len(found) - size + 1):
            yield "w " + " ".join(found[start : start + size])
    if not characters[1]:
        return
    for word in text.split():
        bordered = f" {word} "
        for size in range(max(characters[0], 1), characters[1] + 1):
            for start in range(max(len(bordered) - size + 1, 1)):
                yield "c" + bordered[start : start + size]
            if size >= len(bordered):
                break


def _place(ngram: str) -> int:
    """64 bits of an n-gram, the same in every process: the sign is the last of them."""
    # Halves of pairs of surrogates, which damaged text may hold, are hashed as well.
    data = ngram.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
