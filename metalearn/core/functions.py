"""Models from plain functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from metalearn.core import flags as flags_
from metalearn.core import kinds, probe
from metalearn.core.adapted import Lowering, check_lowering, lowered
from metalearn.core.keys import check_key
from metalearn.core.model import Model, Variables
from metalearn.core.types import Key, PyTree


def from_apply_fn(
    init: Callable[[Key, PyTree], PyTree],
    apply: Callable[..., PyTree],
    *,
    lower: Lowering = True,
) -> Model:
    """A model without state from two plain functions.

    Args:
      init: Function `(key, x) -> params`.
      apply: Function `(params, x) -> outputs`, which may also take `key`, `mask` and a
        training flag: `train`, or another name that tells its sense, such as
        `deterministic` or `inference` (see `metalearn.core.flags`).
      lower: Whether convolutions become matrix products, and pooling selections (see
        `metalearn.lowering`); "pooling" leaves convolutions as they are: faster on a
        card in TF32 for ResNet-12 with `task_chunk=1`, and where tasks share weights.

    Returns:
      A `Model` whose state is `{}`. As there are no running averages, its training flag
      means noise such as dropout: it is on in meta-training, and off in all adaptation and
      prediction at test.

    Raises:
      TypeError: `init` or `apply` is not a function; `lower` is something else.
      ValueError: `init` finds that evaluation draws at random.

    Example:
      >>> model = ml.from_apply_fn(
      ...     lambda key, x: {"w": jax.random.normal(key, x.shape[-1:])},
      ...     lambda params, x: x @ params["w"],
      ... )
    """
    for name, fn in (("init", init), ("apply", apply)):
        if not callable(fn):
            raise TypeError(f"{name} is a {type(fn).__name__}; expected a function.")
    check_lowering(lower)
    optional = [name for name in ("key", "mask") if flags_.accepts(apply, name)]
    owner = getattr(apply, "__name__", type(apply).__name__)
    flags = flags_.find(apply, "auto", owner)
    kinds.function("init", init, ("key", "x"), "lambda key, x: {'w': jnp.zeros(3)}")
    told = [*optional, *flags_.values(flags, noise=False, batch=False)]
    if not kinds.takes(functools.partial(apply, **dict.fromkeys(told)), 2):
        raise TypeError(
            f"apply takes {inspect.signature(apply)}; expected (params, x), and beside "
            "them at most key, mask and a training flag."
        )

    def outputs_of(params: PyTree, x: PyTree, train: bool, **given) -> PyTree:
        given = {name: given[name] for name in optional}
        return apply(params, x, **given, **flags_.values(flags, noise=train, batch=train))

    def model_init(key: Key, x: PyTree) -> Variables:
        check_key(key)
        params = init(key, x)
        if "key" in optional:
            probe.check_evaluation(_evaluation, params, {}, x, owner=owner, remedy=remedy)
        return Variables(params=params, state={})

    def _evaluation(params: PyTree, state: PyTree, x: PyTree, key: Key):
        return outputs_of(params, x, False, key=key, mask=None), state

    remedy = (
        f"The training flag taken is {flags_.described(flags)}. Take `train` and draw only "
        "if it is true: def apply(params, x, key=None, train=False). A model that is meant "
        "to draw in evaluation is written as ml.Model(init, apply)."
    )

    def model_apply(variables, x, *, key=None, train=False, mask=None):
        def run(variables, x, key, mask):
            return outputs_of(variables.params, x, train, key=key, mask=mask)

        return lowered(run, lower)(variables, x, key, mask), variables.state

    about = f"function {owner}, {flags_.described(flags)}"
    return Model(model_init, model_apply, None, about)
