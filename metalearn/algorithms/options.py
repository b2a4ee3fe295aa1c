"""The options that learners share, and the one check of what their users pass on.

A constructor takes `**options: Unpack[Options]` and hands them to its builder. With the
decorator `takes_options` its signature and its docstring list them one by one.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypedDict, TypeVar

from metalearn.core import kinds
from metalearn.core.types import PathFilter, TaskChunk
from metalearn.inner.differentiate import Differentiation
from metalearn.inner.norm import NormPolicy

P = ParamSpec("P")
R = TypeVar("R")


class Options(TypedDict, total=False):
    """What users may pass on.

    Attributes:
      differentiation: How derivatives pass through the inner loop: "reverse"; "remat",
        "nested" or "mixed" for less memory; or "first_order", which drops the second
        derivatives. See `metalearn.inner.differentiate`.
      adapt_filter: Parameters that adapt: a regular expression that occurs in their paths,
        or `(path, leaf) -> bool`; all when `None`, scale and offset of norm layers too. The
        others are learned in the outer loop only.
      norm: Batch-norm policy: "support", "batch" (transductive), "running" or "per_step";
        see `metalearn.inner.norm`.
      mask_absent_classes: Whether classes without a support example get a logit that never
        wins, for tasks with a variable number of ways.
      task_chunk: Tasks handled at once, or "auto".
      name: What `describe` calls the learner.
    """

    differentiation: Differentiation
    adapt_filter: PathFilter | str | None
    norm: NormPolicy
    mask_absent_classes: bool
    task_chunk: TaskChunk
    name: str


class Shared(NamedTuple):
    """Options that several constructors share.

    Attributes:
      options: A `TypedDict` that describes each under `Attributes`.
      defaults: Defaults by name; that of `name` is the name of the constructor.
    """

    options: Any
    defaults: Mapping[str, Any]


DEFAULTS: Options = {
    "differentiation": "reverse",
    "adapt_filter": None,
    "norm": "support",
    "mask_absent_classes": False,
    "task_chunk": "auto",
}
ADAPTATION = Shared(Options, DEFAULTS)


def check(
    owner: Callable[..., Any],
    given: Iterable[str],
    but: Sequence[str] = (),
    of: Shared = ADAPTATION,
) -> None:
    """Refuses what is no option of a constructor.

    Args:
      owner: The constructor that was called, with parameters of its own.
      given: Names of the options that it would hand on.
      but: Shared options that the constructor decides itself.
      of: The shared options.

    Raises:
      TypeError: an option is unknown, or decided by `owner`; names the constructor and
        the options that it takes.
    """
    own = inspect.signature(owner).parameters.values()
    shared = of.options.__annotations__.keys() - set(but)
    known = sorted(shared | {p.name for p in own if p.kind is p.KEYWORD_ONLY})
    for option in given:
        if option in but:
            said = f"decides {option} itself; leave it out."
        elif option not in shared:
            near = difflib.get_close_matches(option, known)
            said = f"got an unknown option {option!r}."
            said += f" Did you mean {' or '.join(near)}?" if near else ""
        else:
            continue
        raise TypeError(f"{owner.__name__}() {said} It takes {', '.join(known)}.")


def complete(builder: Callable[..., Any], name: str, given: Options) -> Options:
    """The options that a builder was given, with defaults for the others.

    Raises:
      TypeError: an option is unknown, for a constructor that forgot `takes_options`.
    """
    check(builder, given)
    return {**DEFAULTS, "name": name, **given}


def takes_options(
    *, but: Sequence[str] = (), of: Shared = ADAPTATION
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a constructor take `**options: Unpack[Options]`, and no other.

    The options that are not in `but` replace `**options` in the signature, which has
    their defaults, and in the docstring, unless its `Args` describe one already.

    Args:
      but: Shared options that the constructor decides itself.
      of: The shared options; those of learners that adapt a model unless given.

    Returns:
      A decorator. The constructor calls `check` before anything else.
    """

    def decorate(constructor: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(constructor, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {parameter.name for parameter in own}
        default = {**of.defaults, "name": constructor.__name__}
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default[name], annotation=kind
            )
            for name, kind in typing.get_type_hints(of.options).items()
            if name not in names.union(but)
        ]

        # A word, or a rate for the flag that it is learned, would count as True.
        flags = {p.name for p in [*own, *shared] if p.annotation is bool}

        @functools.wraps(constructor)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check(constructor, [name for name in kwargs if name not in names], but, of)
            for flag in flags & kwargs.keys():
                kinds.flag(flag, kwargs[flag])
            return constructor(*args, **kwargs)

        checked.__signature__ = signature.replace(parameters=[*own, *shared])
        checked.shared_options = of
        described = [p.name for p in shared]
        checked.__doc__ = _with_options(constructor.__doc__, described, of.options)
        return checked

    return decorate


def _with_options(text: str | None, names: Sequence[str], options: Any) -> str | None:
    """A docstring whose line `**options:` has become the descriptions of the options."""
    if text is None or options.__doc__ is None:  # python -OO
        return text
    entries = dict(
        re.findall(r"^  (\w+): (.*(?:\n    .*)*)", inspect.cleandoc(options.__doc__), re.M)
    )
    before, _, rest = inspect.cleandoc(text).partition("\n  **options:")
    after = rest.partition("\n")[2]
    new = [f"  {n}: {entries[n]}" for n in names if f"\n  {n}:" not in before]
    return "\n".join([before, *new, after])
