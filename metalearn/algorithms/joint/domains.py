"""Sets of several domains: equal shares of rows, in the order of the domains.

A task of several domains has `info["domains"]`, `[D]`: the numbers of the domains of its
support set, whose first `N / D` rows are of the first of them, and so on. The query set is
of one further domain, `info["held_out"]`. Without `domains` the support set is one domain.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metalearn.core.pairing import paired
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, LossFn, PyTree


def number_of(task: Task) -> int:
    """D, the number of domains of the support set of one task.

    Raises:
      ValueError: `info["domains"]` is not `[D]`, or the rows have no D equal shares.
    """
    ids = task.info.get("domains")
    if ids is None:
        return 1
    rows = task.support.mask.shape[0]
    if jnp.ndim(ids) != 1 or not ids.shape[0] or rows % ids.shape[0]:
        raise ValueError(
            f"info['domains'] has shape {jnp.shape(ids)} for a support set of {rows} rows; "
            "expected the number of each domain, [D], where D divides the rows: equal "
            "shares, in the order of the domains."
        )
    return ids.shape[0]


def shares(tree: PyTree, num: int) -> PyTree:
    """Leaves `[N, ...]` as `[num, N / num, ...]`."""
    return jax.tree.map(
        lambda leaf: leaf.reshape((num, leaf.shape[0] // num, *leaf.shape[1:])), tree
    )


def losses_of(loss_fn: LossFn, outputs: PyTree, examples: Examples, num: int) -> Array:
    """Loss of each domain, `[num]`."""
    one = lambda outputs, examples: paired(loss_fn, outputs, examples)
    return jax.vmap(one)(shares(outputs, num), shares(examples, num))
