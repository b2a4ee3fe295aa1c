"""Checks of shapes, dtypes and structures, with messages that name the remedy."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from metalearn.core import cost
from metalearn.core.task import Examples, Task


def whole_number(name: str, value: Any, *, least: int) -> None:
    """Checks a count.

    Raises:
      ValueError: the value is not an integer, or is below `least`.
    """
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or value < least:
        raise ValueError(f"{name} is {value!r}; expected an integer of {least} or more.")


def number(name: str, value: Any, *, positive: bool = False, signed: bool = False) -> None:
    """Raises a `ValueError` unless `value` is a finite number in range.

    The number has to be 0 or more. With `positive` it has to be above 0; with `signed` any
    finite number passes.
    """
    expected = "" if signed else " above 0" if positive else " of 0 or more"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        below = not signed and (value <= 0 if positive else value < 0)
        if math.isfinite(value) and not below:
            return
    given = repr(value)
    if len(given) > 60:  # a transformation, an array
        given = f"a {type(value).__name__}"
    raise ValueError(f"{name} is {given}; expected a finite number{expected}.")


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises a `ValueError` unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}.")


def adapt_filter(select: Any) -> None:
    """Raises a `TypeError` unless `select` is `None` or a function."""
    if select is None or callable(select):
        return
    word = isinstance(select, str)
    given, part = (repr(select), select) if word else (f"a {type(select).__name__}", "head")
    raise TypeError(
        f"adapt_filter is {given}; expected None or a function (path, leaf) -> bool, such "
        f"as lambda path, leaf: {part!r} in path."
    )


def one_set(examples: Examples, name: str) -> None:
    """Checks that `examples` are of one task and agree on their leading axis.

    Raises:
      TypeError: `examples` are not `Examples`.
      ValueError: the leading axes differ, or the mask is not `[N]`.
    """
    if not isinstance(examples, Examples):
        raise TypeError(
            f"{name} is a {type(examples).__name__}; expected ml.Examples, made by "
            "ml.Examples.of(x, y)."
        )
    if jnp.ndim(examples.mask) != 1:
        raise ValueError(
            f"{name}.mask has shape {jnp.shape(examples.mask)}; expected [N]. For a "
            "batch of tasks call estimate or evaluate, not adapt."
        )
    num = jnp.shape(examples.mask)[0]
    for part in ("x", "y"):
        for leaf in jax.tree.leaves(getattr(examples, part)):
            if jnp.shape(leaf)[:1] != (num,):
                raise ValueError(
                    f"{name}.{part} has shape {jnp.shape(leaf)} but {name}.mask has "
                    f"{num} rows. All need the same leading axis [N]."
                )


def one_task(task: Task) -> None:
    """Checks a single task; see `one_set`."""
    if not isinstance(task, Task):
        raise TypeError(
            f"expected ml.Task, got {type(task).__name__}. Make one with "
            "ml.Task(support=ml.Examples.of(x, y), query=ml.Examples.of(x, y))."
        )
    one_set(task.support, "support")
    one_set(task.query, "query")


def values_of_task(task: Task, outputs_like: Any) -> None:
    """Checks concrete values of one task before training or evaluation starts.

    Args:
      task: Task with concrete arrays.
      outputs_like: Shape and dtype of the predictions for `task.query.x`.

    Raises:
      ValueError: inputs or targets are not finite, or labels exceed the logits.
    """
    for name in ("support", "query"):
        examples = getattr(task, name)
        mask = np.asarray(examples.mask)
        for part in ("x", "y"):
            for leaf in jax.tree.leaves(getattr(examples, part)):
                if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                    continue
                bad = int(np.sum(~np.isfinite(np.asarray(leaf))))
                if bad:
                    raise ValueError(
                        f"{name}.{part} holds {bad} non-finite values; expected finite "
                        "numbers, in masked rows too (0 times NaN is NaN in a gradient). "
                        "Clean the data, or put zeros in masked rows."
                    )
        y = examples.y
        if not (hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.integer)):
            continue
        if y.ndim != 1 or getattr(outputs_like, "ndim", 0) != 2:
            continue
        ways = outputs_like.shape[-1]
        labels = np.asarray(y)[mask]
        if labels.size and (labels.min() < 0 or labels.max() >= ways):
            raise ValueError(
                f"{name}.y holds labels {labels.min()}..{labels.max()}, but the model "
                f"gives {ways} logits; expected labels 0..{ways - 1}. Give the model at "
                "least as many outputs as the tasks have ways."
            )


def inner_optimiser(inner_opt: Any, hparams: Any, *, second_order: bool) -> None:
    """Checks an inner optimiser before anything is traced.

    Raises:
      TypeError: `inner_opt` is neither an optax transformation nor a function together
        with hparams.
      ValueError: the update has no finite derivative at a zero gradient, as that of
        `optax.adam` with `eps_root=0`. `inner_optimiser_on` finds the faults that show only
        on the parameters.
    """
    transformation = isinstance(inner_opt, optax.GradientTransformation)
    if not transformation and not (callable(inner_opt) and hparams is not None):
        raise TypeError(
            f"inner_opt is a {type(inner_opt).__name__}; expected an optax "
            "transformation such as optax.sgd(0.01), or a function "
            "`hparams -> transformation` together with inner_hparams."
        )
    if transformation and makes_nan(inner_opt):
        raise ValueError(
            "inner_opt makes updates that are NaN from finite gradients; its rate or its "
            "schedule is NaN. Give a finite rate."
        )
    if second_order and transformation and is_differentiable(inner_opt) is False:
        raise ValueError(_NOT_DIFFERENTIABLE)


_NOT_DIFFERENTIABLE = (
    "the inner optimiser has no finite derivative where a gradient is zero (the square "
    "root of Adam's second moment, with eps_root=0), so second-order meta-gradients "
    "become NaN. Use e.g. optax.adam(rate, eps_root=1e-8), plain optax.sgd, or "
    "differentiation='first_order'."
)
# Zeros among other numbers: the derivative of a root is infinite at a zero gradient.
_SAMPLE = [np.array([[0.0, 1.0], [0.5, 0.0]]), np.array([0.0, -1.0])]


def inner_optimiser_on(params: Any, inner_opt: Any, hparams: Any) -> None:
    """Checks an inner optimiser on the shapes of the parameters that it will move.

    This check covers the optimisers that `inner_optimiser` cannot judge: those made from
    hyper-parameters, and those that look at the structure of the parameters.

    Raises:
      ValueError: the update has no finite derivative at a zero gradient.
    """
    transformation = isinstance(inner_opt, optax.GradientTransformation)
    if transformation and is_differentiable(inner_opt) is not None:
        return  # decided when the learner was made

    def concrete(leaf: Any) -> Any:
        """The array itself, or a typical array in place of a traced one."""
        if isinstance(leaf, jax.core.Tracer):
            return np.full(leaf.shape, 0.1, leaf.dtype)
        return leaf

    with jax.ensure_compile_time_eval():
        flat, unflatten = ravel_pytree(
            jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.result_type(p)), params)
        )
        # Ones and zeros in turn, because a gradient of zeros only is a special case.
        grads = unflatten((jnp.arange(flat.size) % 2).astype(flat.dtype))
    if is_differentiable(inner_opt, grads, jax.tree.map(concrete, hparams)) is False:
        raise ValueError(_NOT_DIFFERENTIABLE)


def is_differentiable(
    inner_opt: Any, grads: Any = None, hparams: Any = None
) -> bool | None:
    """Whether two updates have finite derivatives with respect to the gradients.

    The result is `None` if the optimiser refuses the structure of the gradients.

    Args:
      inner_opt: An optax transformation, or a function of `hparams` that makes one.
      grads: Gradients, concrete arrays; a small sample if `None`.
      hparams: Hyper-parameters, concrete arrays.
    """
    if grads is None and hparams is None:
        return _differentiable_on_sample(inner_opt, jax.config.jax_enable_x64)
    return _differentiable(inner_opt, grads, hparams)


@functools.lru_cache(maxsize=64)
def _differentiable_on_sample(inner_opt: Any, x64: bool) -> bool | None:
    """The answer on the sample, kept because every `init` of a learner asks again.

    The argument `x64` is part of the key: the dtype of the sample depends on it.
    """
    del x64
    return _differentiable(inner_opt, _SAMPLE, None)


# Primitives whose derivatives are finite wherever their arguments are.
_SMOOTH = {
    *("add", "add_any", "broadcast_in_dim", "clamp", "convert_element_type", "dot_general"),
    *("eq", "ge", "gt", "jit", "le", "lt", "max", "min", "mul", "ne", "neg", "reduce_sum"),
    *("reshape", "select_n", "sign", "square", "squeeze", "sub"),
}


def _differentiable(inner_opt: Any, grads: Any, hparams: Any) -> bool | None:
    def moved(grads: Any) -> jax.Array:
        transformation = isinstance(inner_opt, optax.GradientTransformation)
        opt = inner_opt if transformation else inner_opt(hparams)
        params = jax.tree.map(jnp.ones_like, grads)
        state = opt.init(params)
        # Two updates, because some optimisers use their state only from the second one on.
        for _ in range(2):
            updates, state = opt.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(p) for p in jax.tree.leaves(params))

    with jax.ensure_compile_time_eval():
        # Numbers are needed here, even if a caller is being traced.
        grads = jax.tree.map(jnp.asarray, grads)
        try:
            # Most optimisers, such as momentum, consist of smooth primitives only. To see
            # that is cheap; compiling a derivative takes a tenth of a second.
            if _primitives(jax.make_jaxpr(moved)(grads).jaxpr) <= _SMOOTH:
                return True
            slopes = jax.jit(jax.grad(moved))(grads)
            return all(bool(jnp.all(jnp.isfinite(s))) for s in jax.tree.leaves(slopes))
        except (TypeError, ValueError, KeyError, IndexError):
            # The last: an optimiser with rates for a single step cannot take two.
            return None


def _primitives(jaxpr: Any) -> set[str]:
    """Names of the primitives of a jaxpr and of those inside it."""
    found = {eqn.primitive.name for eqn in jaxpr.eqns}
    inside = (sub for eqn in jaxpr.eqns for sub in cost.subjaxprs(eqn))
    return found.union(*map(_primitives, inside))


def makes_nan(opt: optax.GradientTransformation) -> bool:
    """Whether an optimiser holds a NaN, such as its rate, that reaches the updates.

    False as well if the optimiser refuses the structure of the sample.
    """

    def once(grads: Any) -> Any:
        return opt.update(grads, opt.init(grads), grads)[0]

    with jax.ensure_compile_time_eval():
        sample = [jnp.asarray(part, jnp.float32) for part in _SAMPLE]
        try:
            # To look for the number is cheap; only where there is one, it is computed with.
            if not _holds_nan(jax.make_jaxpr(once)(sample)):
                return False
            return any(bool(jnp.any(jnp.isnan(u))) for u in jax.tree.leaves(once(sample)))
        except Exception:  # it wants other parameters: judged on those of the learner
            return False


def _holds_nan(closed: Any) -> bool:
    """Whether a number that is written into a program is NaN."""

    def is_nan(value: Any) -> bool:
        dtype = getattr(value, "dtype", np.asarray(value).dtype)
        return jnp.issubdtype(dtype, jnp.floating) and bool(
            np.isnan(np.asarray(value)).any()
        )

    def inside(jaxpr: Any) -> bool:
        literals = [v.val for e in jaxpr.eqns for v in e.invars if hasattr(v, "val")]
        subs = [sub for eqn in jaxpr.eqns for sub in cost.subjaxprs(eqn)]
        return any(map(is_nan, literals)) or any(map(inside, subs))

    return any(map(is_nan, closed.consts)) or inside(closed.jaxpr)
