"""What was given where a learner, variables, a function or a count is wanted.

The likeliest slips are one attribute away: a result in place of its variables, a trainer in
place of its learner. The messages name that attribute.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metalearn.core import checks
from metalearn.core.given import flag as flag
from metalearn.core.given import takes as takes
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables


def count(name: str, value: Any, *, least: int = 1, most: int = checks.MOST) -> int:
    """A whole number in range, as Python's own: others cannot be written as JSON.

    Raises:
      ValueError: not an integer, or outside `least` to `most`.
    """
    checks.whole_number(name, value, least=least, most=most)
    return int(value)


def function(
    name: str, given: Any, arguments: Sequence[str], example: str, *, optional: bool = False
) -> None:
    """Checks that a function takes the arguments that it will be called with.

    Args:
      name: Name of the argument that holds the function.
      given: Value to check.
      arguments: Names of what it will be called with, by position.
      example: Something to write in its place.
      optional: Whether `None` passes.

    Raises:
      TypeError: not a function, or one of other arguments.
    """
    if optional and given is None:
        return
    wanted = f"a function ({', '.join(arguments)})"
    if not callable(given):
        shown = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
        raise TypeError(f"{name} is {shown}; expected {wanted}, such as {example}.")
    if not takes(given, len(arguments)):
        raise TypeError(
            f"{name} takes {inspect.signature(given)}; expected {wanted}, such as "
            f"{example}."
        )


def learner(given: Any, name: str = "learner") -> None:
    """Raises a `TypeError` unless `given` is a `MetaLearner`; says how to get one."""
    if isinstance(given, MetaLearner):
        for part in ("init", "adapt", "predict", "estimate"):
            fn = getattr(given, part)
            if fn is not None and not callable(fn):
                raise TypeError(
                    f"{name}.{part} is a {type(fn).__name__}; expected a function. See "
                    "ml.MetaLearner for the arguments of each."
                )
        return
    remedy = "Make one, such as ml.maml(model, ml.losses.mse, optax.sgd(0.01))."
    if isinstance(getattr(given, "learner", None), MetaLearner):
        remedy = f"Give its learner: {name}.learner."
    elif isinstance(given, Model):
        remedy = "A model adapts only within a learner: ml.maml(model, loss_fn, inner_opt)."
    elif inspect.isfunction(given):
        remedy = f"Call the function {given.__name__} first, if it makes a learner."
    raise TypeError(f"{name} is a {type(given).__name__}; expected a MetaLearner. {remedy}")


def instance(given: Any, kind: type, name: str, remedy: str) -> None:
    """Raises a `TypeError` unless `given` is of a class of this package."""
    if not isinstance(given, kind):
        raise TypeError(
            f"{name} is a {type(given).__name__}; expected {kind.__name__}. {remedy}"
        )


def variables(given: Any, name: str = "variables") -> None:
    """Raises a `TypeError` unless `given` is `Variables`; says where to find them."""
    if isinstance(given, Variables):
        return
    remedy = "Give those of a result, result.variables, or of learner.init(key, task)."
    if isinstance(getattr(given, "variables", None), Variables):
        remedy = "Give its variables: .variables."
    elif isinstance(getattr(getattr(given, "state", None), "variables", None), Variables):
        remedy = "Give those of its state: .state.variables."
    elif isinstance(given, dict):
        remedy = (
            "Parameters alone lack the state that belongs to them: give the variables that "
            "they come from, result.variables or those of learner.init(key, task)."
        )
    elif isinstance(given, (tuple, list)) and not hasattr(given, "_fields"):
        remedy = "Give one of its parts, such as variables[0]."
    raise TypeError(f"{name} is a {type(given).__name__}; expected Variables. {remedy}")


def adapted(given: Any, kind: type) -> None:
    """Raises a `TypeError` unless `given` is of the class that `adapt` returns."""
    instance(given, kind, "adapted", "Give learner.adapt(variables, support).")


def adaptation(given: Any, support: Any, parts: Sequence[str] = ()) -> None:
    """Checks what `adapt` is given; see `variables` and `checks.one_set`.

    Args:
      given: Variables of the learner.
      support: One support set.
      parts: Names of the parts that the params have to have.

    Raises:
      TypeError: another kind of object.
      ValueError: shapes do not fit, the support set has no row, or the params lack one of
        the parts. Further parts are allowed: what one learner trained may serve another.
    """
    variables(given)
    params = given.params
    found = sorted(map(str, params)) if isinstance(params, Mapping) else []
    if not set(parts) <= set(found):
        raise _of_another(f"their params have the parts {found}; expected {list(parts)}.")
    checks.one_set(support, "support")
    if not support.mask.shape[0]:
        raise ValueError(
            "the support set has no row; expected one or more. A task without examples has "
            "a row of zeros whose mask is False."
        )


@contextlib.contextmanager
def own_params(params: Any) -> Iterator[None]:
    """Says of params without a part that is looked for that another learner made them.

    Other missing keys are a matter of the code that looks, and stay as they are.
    """
    try:
        yield
    except KeyError as error:
        if (
            not isinstance(params, Mapping)
            or error.args[:1] == ()
            or error.args[0] in params
        ):
            raise
        raise _of_another(f"their params have no part {error}.") from error


def _of_another(why: str) -> ValueError:
    return ValueError(
        f"variables are those of another learner: {why} Give result.variables of this "
        "learner, or those of learner.init(key, task)."
    )
