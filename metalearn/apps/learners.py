"""Settings of a learner: a record made from the signature of its constructor.

    from metalearn.apps import learners

    learners.HSML(inner_opt=sgd(1e-3), tree=(4, 2, 1))

The record has the keyword arguments of `ml.hsml` as fields, with their types, defaults and
help. The application adds the model, the loss and the number of ways. `settings_of` makes
such a record from any constructor.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin

from metalearn.algorithms import registry
from metalearn.algorithms.record import Record, parameters
from metalearn.apps.optimisers import Optimiser, OwnOuter
from metalearn.apps.records import from_json, members, to_json
from metalearn.core import losses
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.environments import bernoulli_bandit
from metalearn.policies import policy_for

# Arguments of the application, and `name`, which only code can give.
FROM_APPLICATION = ("num_ways", "num_classes", "mask_absent_classes", "name")
PLAIN = (int, float, str, bool, type(None))
INNER_OPTIMISERS = ("inner_opt", "opt")
RESERVED = ("record", "build", "check_builds", "steps", "refuse_policy", "offers", "self")


def _not_run(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a network was run before there were data")


_NEVER_RUN = Model(_not_run, _not_run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """Settings of a learner; each constructor has a subclass with its arguments as fields.

    Attributes:
      record: Record of the constructor in the registry.
    """

    record: ClassVar[Record]

    @property
    def name(self) -> str:
        """Name in the registry, or "package.module:function"."""
        return self.record.name

    def build(self, offers: Mapping[str, Any], **changes: Any) -> MetaLearner:
        """The learner.

        Args:
          offers: Values of the application for parameters of the constructor, by name, see
            `Record.make`.
          **changes: Arguments that replace those of the settings.
        """
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own = {k: v.build() if isinstance(v, Optimiser) else v for k, v in own.items()}
        # A setting that the user can see wins over the offer of the application.
        offers = {k: v for k, v in offers.items() if k not in own}
        return self.record.make(offers, **own | changes)

    def check_builds(self) -> None:
        """Asks the constructor whether it takes the settings, before there are data.

        Raises:
          TypeError: a setting is of another kind.
          ValueError: a setting is out of range.
        """
        # Those of this package compute nothing; what others do with a model is not known.
        if self.record.family == "own":
            return
        loss_fn = losses.mse if self.record.curves else losses.cross_entropy
        offers: dict[str, Any] = {"model": _NEVER_RUN, "encoder": _NEVER_RUN}
        offers["loss_fn"] = loss_fn
        bandit = bernoulli_bandit()
        offers |= {"environment": bandit, "policy": policy_for(bandit)}
        self.build({**offers, "num_ways": 2, "num_classes": 2})

    def refuse_policy(self, reader: str) -> None:
        """Refuses a policy of batch norm that no layer of the network reads.

        Args:
          reader: Setting that would read the policy, for the message.

        Raises:
          ValueError: `norm` is set to something else than its default.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        value = getattr(self, "norm", None)
        if value != defaults.get("norm"):
            raise ValueError(
                f"learner.norm={value!r} has no effect with the other settings: it is read "
                f"by {reader}. Leave it at {defaults['norm']!r}."
            )

    def steps(self, number: int) -> dict[str, int]:
        """Arguments for `build` with which adaptation takes the given number of steps.

        Raises:
          ValueError: the learner takes no number of steps.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in ("eval_steps", "num_steps"):
            if name in names:
                return {name: number}
        if number == 0 and self.record.start:  # it never takes a step
            return {}
        raise ValueError(f"{self.name} takes no number of inner steps. Leave it out.")


def settings_of(name: str) -> type[Learner]:
    """The record of settings of a learner in the registry, or of any constructor.

    Args:
      name: Name of a learner, or "package.module:function".

    Raises:
      ValueError: see `registry.find`.

    Example:
      >>> settings_of("maml")(inner_opt=sgd(0.4), num_steps=1)
    """
    return _settings(registry.find(name))


def _settings(record: Record) -> type[Learner]:
    # By the function too: a notebook defines a constructor again under the same name.
    return _settings_by_function(record.name, record.build)


@functools.lru_cache(maxsize=256)
def _settings_by_function(name: str, build: Callable[..., MetaLearner]) -> type[Learner]:
    record = registry.find(name)
    return _make(_camel(record.title), Learner, build, {"record": record})


def own_outer(record: Record) -> type[OwnOuter] | None:
    """The record of settings of the outer optimiser that belongs to a learner."""
    return None if record.outer is None else _outer_by_name(record.name)


@functools.lru_cache(maxsize=256)
def _outer_by_name(name: str) -> type[OwnOuter]:
    record = registry.find(name)
    title = f"{_camel(record.title)}Outer"
    assert record.outer is not None
    return _make(title, OwnOuter, record.outer, {"constructor": staticmethod(record.outer)})


def _make(title: str, base: type, build: Callable[..., Any], shared: dict) -> Any:
    """A frozen subclass of `base` with the plain arguments of a constructor as fields."""
    told, own = arguments(build), _fields(build, optimisers=base is Learner)
    fields = [
        (name, kind)
        if default is inspect.Parameter.empty
        else (name, kind, dataclasses.field(default=default))
        for name, (kind, default) in own.items()
    ]
    made = dataclasses.make_dataclass(
        title, fields, bases=(base,), frozen=True, kw_only=True, namespace=shared
    )
    kinds = typing.get_type_hints(base) | {name: kind for name, (kind, _) in own.items()}
    help_of = arguments(base) | told
    names = [field.name for field in dataclasses.fields(made)]
    # The types as objects: `get_type_hints` would look for their names in this module.
    made.__field_types__ = {name: kinds[name] for name in names}
    summary = (inspect.getdoc(build) or title).split("\n")[0]
    lines = [f"  {name}: {help_of.get(name, '')}".rstrip() for name in names]
    made.__doc__ = "\n".join([summary, "", "Attributes:", *lines])
    made.__module__ = __name__
    return made


def _fields(build: Callable[..., Any], *, optimisers: bool) -> dict[str, tuple[Any, Any]]:
    """Type and default of each argument that is plain, or an inner optimiser."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, parameter in parameters(build).items():
        if name in FROM_APPLICATION:
            continue
        kinds, default = members(parameter.annotation), parameter.default
        if parameter.annotation is parameter.empty:  # a constructor without annotations
            kinds = (type(default),)
        if optimisers and name in INNER_OPTIMISERS:
            # What stands for None on the command line; another default is no setting.
            default = Optimiser("none") if default is None else parameter.empty
            found[name] = (Optimiser, default)
            continue
        plain = tuple(kind for kind in kinds if _is_plain(kind))
        if not plain or plain == (type(None),):
            continue
        if name in RESERVED:
            raise ValueError(
                f"{build.__name__} has an argument {name!r}, which settings of a learner "
                f"use themselves; expected none of {', '.join(RESERVED)}. Rename it."
            )
        found[name] = (_union(plain), default)
    return found


def _is_plain(kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return all(member in PLAIN or member is Ellipsis for member in get_args(kind))
    return kind in PLAIN or get_origin(kind) is Literal


def _union(kinds: tuple[Any, ...]) -> Any:
    return typing.Union[tuple(dict.fromkeys(kinds))]  # noqa: UP007


def arguments(thing: Any) -> dict[str, str]:
    """Text of each argument in the docstring of a function, or attribute of a record."""
    text = inspect.getdoc(thing) or ""
    found = re.search(r"^(?:Args|Attributes):\n((?:  .*\n?|\n)*)", text, re.MULTILINE)
    parts = re.split(
        r"^  \*{0,2}(\w+): ", found.group(1) if found else "", flags=re.MULTILINE
    )
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {name: " ".join(text.split()) for name, text in pairs}


def _camel(title: str) -> str:
    """`"MAMLPlusPlus"` for "MAML++", `"FineTuning"` for "Fine-tuning"."""
    words = re.split(r"\W+|_", title.replace("+", " Plus"))
    return "".join(word[:1].upper() + word[1:] for word in words)


def as_json(learner: Learner) -> dict[str, Any]:
    """Name and settings as JSON values."""
    return {"name": learner.name, **to_json(learner)}


def read_json(settings: Mapping[str, Any]) -> Learner:
    """The inverse of `as_json`."""
    rest = dict(settings)
    kind = settings_of(rest.pop("name"))
    # An option that a stored record lacks came later, perhaps with another default.
    return from_json(kind, {**kind.record.since, **rest})


def __dir__() -> list[str]:
    return [*globals(), *(_camel(record.title) for record in registry.RECORDS)]


def __getattr__(title: str) -> Any:
    """Records by the titles of learners, such as `learners.HSML`."""
    for record in registry.RECORDS:
        if title == _camel(record.title):
            return _settings(record)
        if title == f"{_camel(record.title)}Outer" and record.outer is not None:
            return _outer_by_name(record.name)
    titles = [_camel(record.title) for record in registry.RECORDS]
    near = difflib.get_close_matches(title, titles)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise AttributeError(f"no learner has the title {title!r}.{hint}")
