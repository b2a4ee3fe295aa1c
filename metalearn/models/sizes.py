"""Sizes of networks, checked before a layer of them is made."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from metalearn.core import checks


def check_sizes(network: nn.Module) -> None:
    """Checks the fields `num_outputs`, `width` and `widths` of a network that has them.

    Raises:
      ValueError: one is no count of 1 or more, or `widths` is no sequence of such.
    """
    for name in ("num_outputs", "width"):
        value = getattr(network, name, None)
        if value is not None:
            checks.whole_number(name, value, least=1)
    widths: Any = getattr(network, "widths", ())
    if not isinstance(widths, (tuple, list)):
        raise ValueError(
            f"widths is {widths!r}; expected sizes of the hidden layers, such as (40, 40)."
        )
    for width in widths:
        checks.whole_number("a width of widths", width, least=1)
