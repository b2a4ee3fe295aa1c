"""Digests of what is stored and read again, compared whenever it is read.

Disks, networks and editors change bytes, and a changed float is still a float. So
everything that is stored carries the SHA-256 of its contents, and what does not match its
digest is never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

SEAL = "digest"


class Damaged(ValueError):
    """Stored bytes are not those that were written."""


def damaged(where: object, what: str, remedy: str) -> Damaged:
    """The error of stored bytes that have changed; always of this form.

    Args:
      where: Path of the file or folder.
      what: What of it has changed and how that is known, in words.
      remedy: What to do, in a sentence.
    """
    return Damaged(f"{where} is not as it was written: {what}. {remedy}")


def of_tree(tree: Any) -> str:
    """Digest of the structure and of all arrays of a tree, keys of random numbers too."""
    leaves, structure = jax.tree.flatten(tree)
    found = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.update(of_array(leaf).encode())
    return found.hexdigest()


def of_array(array: Any) -> str:
    """Digest of dtype, shape and contents.

    Example:
      >>> of_array(np.float32([1, 2])) == of_array(np.float32([[1, 2]]))
      False
    """
    array = np.asarray(array)
    found = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    # As bytes, because hashlib does not read the dtypes of ml_dtypes.
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return found.hexdigest()


def of_json(value: Any) -> str:
    """Digest of a JSON-able value; the order of keys does not count."""
    # Keys become text first: numbers would be sorted in another order than their text.
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def of_file(path: Path) -> str:
    """Digest of the contents of a file, read once from beginning to end."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(value: dict[str, Any], *, free: Collection[str] = ()) -> dict[str, Any]:
    """The same dictionary with the digest of its entries.

    Args:
      value: JSON-able dictionary.
      free: Names of entries that may change.

    Example:
      >>> check_seal(sealed({"seed": 0}), where="config.json", remedy="Restore it.")
    """
    return {**value, SEAL: seal_of(value, free=free)}


def seal_of(value: dict[str, Any], *, free: Collection[str] = ()) -> str:
    """Digest that `sealed` adds."""
    return of_json({k: v for k, v in value.items() if k not in {SEAL, *free}})


def check_seal(
    value: Any, *, where: object, remedy: str, free: Collection[str] = ()
) -> None:
    """Compares a dictionary that was read with its digest.

    Raises:
      Damaged: it has none, or has changed.
    """
    if not isinstance(value, dict) or SEAL not in value:
        raise damaged(where, "it has no digest of its contents", remedy)
    if value[SEAL] != seal_of(value, free=free):
        raise damaged(where, "its contents differ from their digest", remedy)
