"""What users give as arrays: refused where jax would change it in silence."""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import trees
from metalearn.core.types import PyTree


def check_kept(tree: PyTree, name: str) -> None:
    """Checks that arrays become arrays of jax with the same values.

    Args:
      tree: Arrays of NumPy, jax or a table.
      name: What they are called in messages.

    Raises:
      ValueError: values are masked, or are beyond the 32 bits that jax keeps.
    """
    for leaf in jax.tree.leaves(tree):
        check_unmasked(leaf, name)
        if not isinstance(leaf, jax.Array) and hasattr(leaf, "__array__"):
            _check_width(np.asarray(leaf), name)


def flag(name: str, value: Any) -> None:
    """Raises a `TypeError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected True or False.")


def takes(given: Callable[..., Any], num: int) -> bool:
    """Whether a function can be called with `num` arguments by position."""
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):  # written in C: nothing is known
        return True
    try:
        signature.bind(*[None] * num)
    except TypeError:
        return False
    return True


def one_form(words: np.ndarray) -> np.ndarray:
    """Text with one form of each accented letter (NFC), so that equal words are equal.

    Numbers stay as they are, and so does what is no text among other objects.
    """
    if words.dtype.kind == "O":
        clean = np.empty_like(words)
        for place in np.ndindex(words.shape):
            value = words[place]
            text = type(value) is str
            clean[place] = unicodedata.normalize("NFC", value) if text else value
        return clean
    if words.dtype.kind not in "UT":
        return words
    found, place = np.unique(words.astype(str), return_inverse=True)
    clean = [unicodedata.normalize("NFC", str(word)) for word in found]
    return np.asarray(clean, dtype=str)[place].reshape(words.shape)


def check_unmasked(values: Any, name: str) -> None:
    """Raises a `ValueError` if values of a masked array are masked."""
    if np.ma.is_masked(values):
        num = int(np.ma.getmaskarray(values).sum())
        raise ValueError(
            f"{name} is a masked array of which {num} values are masked; expected none, "
            "since what stands under a mask would be taken. Fill them, or leave those "
            "rows out."
        )


def _check_width(array: np.ndarray, name: str) -> None:
    if array.dtype.kind not in "iuf" or not array.size:
        return
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    if kept == array.dtype:
        return
    limits = jnp.iinfo(kept) if array.dtype.kind in "iu" else jnp.finfo(kept)
    finite = array[np.isfinite(array)]
    low, high = finite.min(initial=0), finite.max(initial=0)
    if low < limits.min or high > limits.max:
        remedy = "Scale them"
        if array.dtype.kind in "iu":
            remedy = "Number the values from 0 (numpy.unique(..., return_inverse=True))"
        raise ValueError(
            f"{name} holds values from {low} to {high}, beyond the {kept} that jax keeps "
            f"of {array.dtype}. {remedy}, or set jax_enable_x64."
        )


def check_arrays(tree: PyTree) -> None:
    """Checks that leaves are arrays with values, for a checkpoint.

    Raises:
      TypeError: a leaf is something else; names its path.
    """
    for path, leaf in zip(trees.leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        word = "traced" if isinstance(leaf, jax.core.Tracer) else ""
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            word = f"a {type(leaf).__name__}"
        elif leaf.dtype == object:
            word = "an array of objects"
        if word:
            raise TypeError(
                f"{path or 'the tree'} is {word}; checkpoints hold arrays. Give numbers as "
                "numpy.asarray(number), and other facts in extra."
            )
