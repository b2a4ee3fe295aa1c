"""Checks of shapes, dtypes and structures, with messages that name the remedy."""

from __future__ import annotations

import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import given as given_
from metalearn.core import losses, trees
from metalearn.core.keys import check_key
from metalearn.core.model import Model
from metalearn.core.optimisers import inner_optimiser, inner_optimiser_on, inner_rate
from metalearn.core.task import Examples, Task
from metalearn.core.updates import is_differentiable

__all__ = [
    "adapt_filter",
    "inner_optimiser",
    "inner_optimiser_on",
    "inner_rate",
    "is_differentiable",
    "MOST",
    "loss",
    "mask_of_bools",
    "model",
    "network",
    "number",
    "one_of",
    "one_set",
    "one_task",
    "unread",
    "values_of_task",
    "whole_number",
]


MOST = 2**31 - 1  # counts and sizes are int32


def whole_number(name: str, value: Any, *, least: int, most: int = MOST) -> None:
    """Checks a count.

    Raises:
      ValueError: the value is not an integer, or is outside `least` to `most`.
    """
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or value < least:
        raise ValueError(f"{name} is {value!r}; expected an integer of {least} or more.")
    if value > most:
        raise ValueError(f"{name} is {value}; expected an integer of {most} or less.")


def number(name: str, value: Any, *, positive: bool = False, signed: bool = False) -> None:
    """Raises a `ValueError` unless `value` is a finite number in range.

    The number has to be 0 or more. With `positive` it has to be above 0; with `signed` any
    finite number passes. It is judged as jax keeps it: in float32, 1e300 is infinite and
    1e-300 is 0.
    """
    expected = "" if signed else " above 0" if positive else " of 0 or more"
    kept, dtype = math.nan, jax.dtypes.canonicalize_dtype(np.float64)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            with np.errstate(over="ignore"):
                kept = float(np.asarray(float(value)).astype(dtype))
        except OverflowError:  # an integer of hundreds of digits
            kept = math.inf
        # Smaller ones are flushed to 0 by the compiler, where numpy keeps them.
        kept = 0.0 if abs(kept) < np.finfo(dtype).tiny else kept
        below = not signed and (value < 0 or (positive and kept == 0))
        if math.isfinite(kept) and not below:
            return
    given = repr(value)
    if len(given) > 60:  # a transformation, an array
        long = isinstance(value, int)
        given = (
            f"an integer of {len(given)} digits" if long else f"a {type(value).__name__}"
        )
    # What is written down is in range, but not what is computed with.
    changed = kept in (0, math.inf, -math.inf) and kept != value
    lost = f" It is {kept:g} in {dtype}." if changed else ""
    raise ValueError(f"{name} is {given}; expected a finite number{expected}.{lost}")


def share(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a number from 0 to 1."""
    number(name, value)
    if value > 1:
        raise ValueError(f"{name} is {value}; expected a number from 0 to 1.")


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises a `ValueError` unless `value` is one of the choices."""
    if not isinstance(value, str) or value not in choices:  # an array has no one truth
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}.")


def unread(build: Callable[..., Any], values: Mapping[str, Any], reader: str) -> None:
    """Refuses options that were given though nothing reads them.

    Args:
      build: The constructor, whose signature has their defaults.
      values: Values of the options that nothing reads, by name.
      reader: Settings that would read them, for the message.

    Raises:
      ValueError: a value is not the default.
    """
    defaults = inspect.signature(build).parameters
    for name, value in values.items():
        default = defaults[name].default
        if value != default:
            raise ValueError(
                f"{name} is {value!r}, which has no effect: it is read with {reader} "
                f"alone. Leave it at {default!r}, or choose settings that read it."
            )


def adapt_filter(select: Any) -> None:
    """Refuses what selects no parameters.

    Raises:
      TypeError: not `None`, a function or a regular expression.
      ValueError: a word that is no regular expression.
    """
    if isinstance(select, str):
        trees.path_filter(select)
    elif select is not None and not callable(select):
        raise TypeError(
            f"adapt_filter is a {type(select).__name__}; expected None, a regular "
            "expression of paths such as 'head', or a function (path, leaf) -> bool, such "
            "as lambda path, leaf: 'head' in path."
        )


def model(value: Any, name: str = "model") -> None:
    """Checks what a learner is given as its network.

    Raises:
      TypeError: it is not a `Model`; says which adapter makes one of it.
    """
    if isinstance(value, Model):
        for part in ("init", "apply"):
            if not callable(getattr(value, part)):
                raise TypeError(
                    f"{name}.{part} is a {type(getattr(value, part)).__name__}; expected a "
                    "function. A flax module is wrapped by ml.from_linen(module)."
                )
        return
    given, made = network(value)
    raise TypeError(f"{name} is {given}; expected an ml.Model. {made}")


def network(value: Any) -> tuple[str, str]:
    """What was given in place of a `Model`, and what makes a model of it."""
    is_class = inspect.isclass(value)
    kind = value if is_class else type(value)
    given = f"the class {kind.__name__}" if is_class else f"a {kind.__name__}"
    homes = {f"{base.__module__}.".split(".")[0] for base in kind.__mro__}
    bases = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    if "flax.linen.module.Module" in bases:
        call = f"{kind.__name__}(...)" if is_class else "module"
        return f"{given} of flax.linen", f"Write ml.from_linen({call})."
    if any(base.startswith("flax.nnx.") and base.endswith("Module") for base in bases):
        return (
            f"{given} of flax.nnx",
            f"Write ml.from_nnx(lambda rngs: {kind.__name__}(..., rngs=rngs)).",
        )
    if homes & {"torch", "keras", "tensorflow"}:
        home = sorted(homes & {"torch", "keras", "tensorflow"})[0]
        return (
            f"{given} of {home}",
            "JAX cannot differentiate it; write the network in flax and wrap it by "
            "ml.from_linen(module) or ml.from_nnx(make).",
        )
    by_functions = (
        "Write ml.from_apply_fn(init, apply) with init(key, x) -> params and "
        "apply(params, x) -> outputs"
    )
    if "equinox" in homes:
        return f"{given} of equinox", (
            f"{by_functions}: init makes the module and returns the part of "
            "equinox.partition that is arrays, apply combines them and maps over rows."
        )
    if isinstance(value, tuple) and callable(getattr(value, "init", None)):
        return given, (
            f"{by_functions}, e.g. apply=lambda params, x: net.apply(params, None, x)."
        )
    if isinstance(value, str):
        return repr(value), (
            "Write ml.from_linen(module) with a network of ml.models, such as "
            "ml.from_linen(ml.models.Conv4(5)), or one of your own."
        )
    if value is None:
        given = "None"
    if callable(value) and not is_class:
        return given, f"{by_functions}; a flax module is wrapped by ml.from_linen(module)."
    return given, (
        "Wrap a flax.linen module by ml.from_linen(module), an nnx module by "
        "ml.from_nnx(make), plain functions by ml.from_apply_fn(init, apply)."
    )


def loss(value: Any, name: str = "loss_fn") -> None:
    """Checks what a learner is given as its loss.

    Raises:
      TypeError: it is not a function.
    """
    if callable(value) and not inspect.isclass(value) and not isinstance(value, Model):
        if given_.takes(value, 2):
            return
        raise TypeError(
            f"{name} takes {inspect.signature(value)}; expected a function (outputs, "
            "examples) -> scalar, such as ml.losses.mse."
        )
    hint = "such as ml.losses.mse or ml.losses.cross_entropy"
    given = f"a {type(value).__name__}"
    if inspect.isclass(value):
        given = f"the class {value.__name__}"
    elif value is None or isinstance(value, (str, numbers.Number)):
        given = repr(value)
        if isinstance(value, str) and callable(getattr(losses, value, None)):
            hint = f"without quotes: ml.losses.{value}"
    elif isinstance(value, Model):
        hint += "; the model comes first, then the loss"
    elif isinstance(value, tuple) and callable(getattr(value, "update", None)):
        hint += "; the optimiser comes after the loss"
    raise TypeError(
        f"{name} is {given}; expected a function (outputs, examples) -> scalar, {hint}."
    )


def one_set(examples: Examples, name: str) -> None:
    """Checks that `examples` are of one task and agree on their leading axis.

    Raises:
      TypeError: `examples` are not `Examples`, or the mask is not of bools.
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
    mask_of_bools(examples.mask, f"{name}.mask")
    num = jnp.shape(examples.mask)[0]
    for part in ("x", "y"):
        for leaf in jax.tree.leaves(getattr(examples, part)):
            if jnp.shape(leaf)[:1] != (num,):
                raise ValueError(
                    f"{name}.{part} has shape {jnp.shape(leaf)} but {name}.mask has "
                    f"{num} rows. All need the same leading axis [N]."
                )


def mask_of_bools(mask: Any, name: str) -> None:
    """Raises a `TypeError` for a mask of numbers, which would pick rows by their index."""
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(
            f"{name} has the dtype {jnp.result_type(mask)}; expected bool, True for a "
            "valid row. Write mask.astype(bool), or make the set by ml.Examples.of(x, y, "
            "mask)."
        )


def one_task(task: Task, *keys: Any) -> None:
    """Checks a single task, see `one_set`, and the keys that are given with it."""
    for key in keys:
        check_key(key)
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
        _warn_of_bytes(examples.x, f"{name}.x")
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


def _warn_of_bytes(x: Any, name: str) -> None:
    """Warns of images of bytes, which samplers and `predict` would map to 0..1."""
    for leaf in jax.tree.leaves(x):
        image = leaf.ndim == 4 and leaf.shape[-1] in (1, 3, 4)
        if image and leaf.dtype == jnp.uint8:
            warnings.warn(
                f"{name} holds images of bytes, which the network meets as 0..255, whereas "
                "the samplers of ml.data, ml.tasks.from_tasks and ml.predict map them to "
                "0..1. Divide them by 255 in the sampler.",
                stacklevel=3,
            )
