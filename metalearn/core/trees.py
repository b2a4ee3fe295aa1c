"""Splitting parameter trees by path, and means that respect masks."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from metalearn.core.types import Array, PathFilter, PyTree


def path_string(path) -> str:
    """The key path of a leaf as text, such as `"Dense_0/kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_paths(tree: PyTree) -> list[str]:
    """Paths of all leaves, in the order of `jax.tree.leaves`.

    Example:
      >>> leaf_paths({"head": {"bias": 0, "kernel": 0}, "scale": 0})
      ['head/bias', 'head/kernel', 'scale']
    """
    return [path_string(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]


def split(tree: PyTree, select: PathFilter | str | None) -> tuple[PyTree, PyTree]:
    """Splits a tree into two trees of its shape, each with `None` for the leaves of the
    other.

    Args:
      tree: Any pytree of arrays.
      select: Function `(path, leaf) -> bool`, or a regular expression that occurs in the
        paths; `None` selects every leaf.

    Returns:
      The selected part and the rest, which `merge` joins again.

    Example:
      >>> split({"body": 1, "head": 2}, path_filter("head"))
      ({'body': None, 'head': 2}, {'body': 1, 'head': None})
    """
    if select is None:
        return tree, jax.tree.map(lambda _: None, tree)
    if isinstance(select, str):
        select = path_filter(select)
    # `None` is an empty subtree to JAX: derivatives and optimisers see the selected leaves
    # only, and the shape of the tree is kept for `merge`.
    chosen = jax.tree_util.tree_map_with_path(
        lambda p, x: bool(select(path_string(p), x)), tree
    )
    selected = jax.tree.map(lambda x, c: x if c else None, tree, chosen)
    rest = jax.tree.map(lambda x, c: None if c else x, tree, chosen)
    return selected, rest


def merge(selected: PyTree, rest: PyTree) -> PyTree:
    """Undoes `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, selected, rest, is_leaf=lambda x: x is None
    )


def widened(leaf: Array) -> Array:
    """The same numbers, floating ones in float32 at least; for sums and means."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def one_array(value: PyTree, name: str, wanted: str) -> None:
    """Raises a `TypeError` for containers of arrays where one array is wanted.

    Args:
      value: What was found.
      name: What it is called in the message.
      wanted: What is expected, such as "logits [N, W]".
    """
    if not hasattr(value, "dtype"):
        raise TypeError(
            f"{name} is a {type(value).__name__}; expected one array, {wanted}. Let the "
            "network return that array alone."
        )


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean over axis 0 of the rows whose mask is set; 0 if no mask is set.

    Args:
      values: Rows `[N, ...]`.
      mask: Mask of the valid rows, bool `[N]`.

    Returns:
      The mean, `[...]`, in float32 at least: a sum in bfloat16 stops growing after some
      hundred rows. Masked rows influence neither the value nor the gradient, even if the
      rows hold NaN.

    Raises:
      ValueError: the mask is not of bools, or has other rows than the values.

    Example:
      >>> values = jnp.array([1.0, 3.0, jnp.nan])
      >>> float(ml.masked_mean(values, jnp.array([True, True, False])))
      2.0
    """
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    if mask.dtype != jnp.bool_ or mask.shape != values.shape[: mask.ndim]:
        raise ValueError(
            f"masked_mean got values {list(values.shape)} and a mask {mask.dtype}"
            f"{list(mask.shape)}; expected [N, ...] and bool [N]. A weighted mean is "
            "jnp.sum(weights * values) / jnp.sum(weights)."
        )
    values = widened(values)
    weights = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    # Replaced and not multiplied by 0, because 0 times NaN is NaN. The derivative of a
    # masked row is 0, so whatever computes `values` needs a finite derivative in that row.
    total = jnp.sum(jnp.where(weights, values, 0), axis=0)
    # Without a valid row: 0 / 1 and not 0 / 0.
    return total / jnp.maximum(jnp.sum(mask), 1).astype(total.dtype)


def all_finite(tree: PyTree) -> Array:
    """Whether every floating leaf is finite everywhere, a bool scalar."""
    leaves = [
        jnp.all(jnp.isfinite(x))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    if not leaves:
        return jnp.array(True)
    # A product. Of `all` the compiler makes a chain of operations, one a leaf, and copies
    # the whole chain into the program of each leaf that is selected by the answer. With
    # hundreds of leaves that is minutes of compiling.
    found = jnp.stack(leaves).astype(jnp.float32)
    return jnp.dot(found, jnp.ones_like(found)) == len(leaves)


def path_filter(pattern: str) -> PathFilter:
    """Function `(path, leaf) -> bool`: whether the regular expression occurs in the path.

    Raises:
      ValueError: `pattern` is not a regular expression.
    """
    try:
        regex = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{pattern!r} is no regular expression ({error}); expected one that occurs in "
            'paths of parameters, such as "head" or r"(^|/)warp".'
        ) from None
    return lambda path, leaf: regex.search(path) is not None
