"""The `options` of a recipe: arguments of a function as words, "name=value" each."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Any


def parse(pairs: Sequence[str], makers: Sequence[Callable[..., Any]]) -> dict[str, Any]:
    """Reads options.

    Args:
      pairs: "name=value" each; a value that is no Python literal is a word.
      makers: The functions whose keyword-only arguments are the known names.

    Raises:
      ValueError: one is no such pair, a name comes twice, no maker has an argument of it,
        or what is neither true nor false is given for a switch.
    """
    known = [name for maker in makers for name in arguments(maker)]
    switches = {name for maker in makers for name in _switches(maker)}
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name not in known or not equals:
            raise ValueError(
                f"options has {pair!r}; expected NAME=VALUE with one of "
                f"{', '.join(dict.fromkeys(known))}."
            )
        if name in found:
            raise ValueError(f"options has {name!r} twice; give it once.")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
        if name in switches:
            # The word "false" is a true value.
            words = {"true": True, "false": False}
            if str(value).lower() not in words:
                raise ValueError(f"options has {pair!r}; expected {name}=True or =False.")
            found[name] = words[value.lower()]
    return found


def arguments(maker: Callable[..., Any]) -> list[str]:
    """Keyword-only arguments of a learner that a recipe may set by its options."""
    return [
        name
        for name, parameter in inspect.signature(maker).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in _NOT_OPTIONS
    ]


def _switches(maker: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(maker).parameters
    return [n for n in arguments(maker) if isinstance(parameters[n].default, bool)]


# Fields of the recipe, and what only an algorithm's file or the data gives.
_NOT_OPTIONS = (
    *("num_steps", "task_chunk", "name", "norm", "mask_absent_classes", "settings"),
    *("more", "start", "outer", "trajectory", "count_steps", "inner_hparams"),
    *("adapt_filter", "features", "num_ways", "rate", "initial_rate", "inner"),
    *("around", "objective_fn", "leader_opt", "posterior"),  # functions and records
)
