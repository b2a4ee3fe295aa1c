"""What models of linen and of nnx have in common: from one pass to a `Model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from metalearn import lowering
from metalearn.core import probe
from metalearn.core.keys import check_key
from metalearn.core.model import Model, Variables, with_a_row
from metalearn.core.types import Key, PyTree

# `(params, state, x, key, mask, *, noise, batch) -> (outputs, state)`.
Pass = Callable[..., tuple[PyTree, PyTree]]
# What of a model is exchanged for forms that are fast under the weights of each task:
# convolutions and pooling, pooling alone, nothing.
Lowering = bool | Literal["pooling"]


def check_lowering(lower: Any) -> None:
    """Raises a `TypeError` unless it is a `Lowering`."""
    if not isinstance(lower, bool) and not (isinstance(lower, str) and lower == "pooling"):
        raise TypeError(
            f"lower is {lower!r}; expected True, False or 'pooling' (convolutions stay)."
        )


def lowered(run: Callable, lower: Lowering) -> Callable:
    """One pass in the chosen forms; as it is where a probe asks what the model does."""
    if not lower or probe.probing():
        return run
    return lowering.lower(run, convolutions=lower is True)


def model_of(
    init: Callable[[Key, PyTree], tuple[PyTree, PyTree]],
    pass_: Pass,
    check: Callable[[PyTree, PyTree, PyTree], None],
    *,
    takes_mask: bool,
    lower: Lowering,
    about: str,
) -> Model:
    """A model from one pass that takes noise and batch statistics apart.

    Args:
      init: Function `(key, x) -> (params, state)` of a fresh module.
      pass_: One pass. Without batch statistics the state that it returns is not used, for
        modules count their calls.
      check: Function `(params, state, x)` that refuses what is no model; called once for
        each structure and shapes.
      takes_mask: Whether the pass looks at the mask of valid rows.
      lower: See `lowered`.
      about: What the model is, for `print`.
    """
    check_lowering(lower)
    passed: set = set()  # shapes of which the module was found to be well told

    def fresh(key: Key, x: PyTree) -> Variables:
        check_key(key)
        params, state = init(key, x)
        asked = probe.signature(params, state, x)
        if asked not in passed:
            check(params, state, x)
            passed.add(asked)
        return Variables(params=params, state=state)

    def passed_by(variables: Variables, x: PyTree, key: Any, mask: Any, **switches: bool):
        def run(variables, x, key, mask):
            return pass_(variables.params, variables.state, x, key, mask, **switches)

        outputs, new = lowered(run, lower)(variables, x, key, mask)
        return outputs, new if switches["batch"] else variables.state

    def apply(variables, x, *, key=None, train=False, mask=None):
        return passed_by(variables, x, key, mask, noise=train, batch=train)

    def split(variables, x, *, key=None, noise=False, batch=False, mask=None):
        return passed_by(variables, x, key, mask, noise=noise, batch=batch)

    if takes_mask:
        apply, split = with_a_row(apply, "train"), with_a_row(split, "batch")
    return Model(fresh, apply, split, about)
