"""Training flags of modules: which argument it is, and what its truth means.

| name | true means | switches |
|---|---|---|
| `train`, `training`, `is_training`, `train_mode`, ... | training | noise and statistics |
| `eval`, `inference`, `is_test`, `eval_mode`, ... | evaluation | noise and statistics |
| `deterministic` | evaluation | noise |
| `use_running_average`, `use_running_stats`, ... | evaluation | statistics |
| `use_batch_stats`, `update_stats`, ... | training | statistics |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

Switch = Literal["both", "noise", "batch"]

TRAINING = {"train", "training"}
EVALUATION = {"eval", "evaluate", "evaluating", "evaluation", "infer", "inference"}
EVALUATION |= {"inferring", "test", "testing", "predict", "predicting", "prediction"}
FILLERS = {"", "is", "in", "do", "mode", "phase", "flag", "time", "stage"}
# Names that switch one of the two: what their truth means, and which.
SPECIAL: dict[str, tuple[bool, Switch]] = {
    "deterministic": (False, "noise"),
    "is_deterministic": (False, "noise"),
    "stochastic": (True, "noise"),
    "use_dropout": (True, "noise"),
    "enable_dropout": (True, "noise"),
    "apply_dropout": (True, "noise"),
    "use_running_average": (False, "batch"),
    "use_running_averages": (False, "batch"),
    "use_running_stats": (False, "batch"),
    "use_running_statistics": (False, "batch"),
    "use_global_stats": (False, "batch"),
    "use_batch_stats": (True, "batch"),
    "use_batch_statistics": (True, "batch"),
    "update_stats": (True, "batch"),
    "update_batch_stats": (True, "batch"),
    "update_state": (True, "batch"),
}


class Flag(NamedTuple):
    """One training flag.

    Attributes:
      name: Name of the argument.
      when_true: Whether its truth means training.
      switch: What it switches: "noise", "batch" statistics, or "both".
    """

    name: str
    when_true: bool
    switch: Switch

    def value(self, *, noise: bool, batch: bool, both: bool) -> bool:
        """What the argument gets for noise, batch statistics, and a flag of both."""
        on = {"noise": noise, "batch": batch, "both": both}[self.switch]
        return on == self.when_true

    def __str__(self) -> str:
        return f"{self.name}={self.when_true} in training"


def known(name: str) -> Flag | None:
    """The flag of a name, if the name tells its sense."""
    plain = name.lower()
    if plain in SPECIAL:
        return Flag(name, *SPECIAL[plain])
    words = [word for word in plain.split("_") if word not in FILLERS]
    negated = len(words) == 2 and words[0] in ("not", "no")
    if len(words) - negated != 1:
        return None
    if words[-1] in TRAINING:
        return Flag(name, not negated, "both")
    if words[-1] in EVALUATION:
        return Flag(name, negated, "both")
    return None


def accepts(fn: Callable, name: str) -> bool:
    """Whether a function has an argument of a name."""
    return name in _parameters(fn)


def find(call: Callable, given: Any, owner: str) -> tuple[Flag, ...]:
    """The training flags of a module.

    Args:
      call: The function with the flag, e.g. `type(module).__call__`.
      given: "auto" for the names whose sense is known, `None` for no flag, or the name of
        an argument, or several. `"not NAME"` says that its truth means evaluation; a name
        that tells nothing counts as true in training.
      owner: Name of the module, for messages.

    Raises:
      TypeError: a name is not an argument of the function.
    """
    parameters = _parameters(call)
    if isinstance(given, str) and given == "auto":
        found = [known(name) for name, p in parameters.items() if _is_switch(p)]
        return tuple(flag for flag in found if flag is not None)
    if given is None:
        return ()
    return tuple(_named(n, parameters, owner) for n in _names(given))


def _names(given: Any) -> Sequence[str]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise TypeError(
            f"train_kw is {given!r}; expected the name of the argument that gets the "
            "training flag, several names, None, or 'auto'."
        )
    return names


def _named(given: str, parameters: dict[str, inspect.Parameter], owner: str) -> Flag:
    name = given.removeprefix("not ").strip()
    if name not in parameters:
        takes = ", ".join(parameters) or "nothing"
        raise TypeError(
            f"train_kw is {given!r}, but {owner}.__call__ takes {takes}. Name one of "
            "them, or give train_kw=None for a module without a training flag."
        )
    found = known(name)
    switch = "both" if found is None else found.switch
    if given.startswith("not "):
        return Flag(name, False, switch)
    return Flag(name, True, switch) if found is None else found


def _parameters(fn: Callable) -> dict[str, inspect.Parameter]:
    try:
        found = dict(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        return {}
    found.pop("self", None)
    return found


def _is_switch(parameter: inspect.Parameter) -> bool:
    """Whether the argument can be a flag: its default, if it has one, is none or a bool."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    if parameter.kind is parameter.POSITIONAL_ONLY:
        return False
    # By identity: a default may be an array, and 0 is equal to False.
    return any(parameter.default is d for d in (parameter.empty, None, True, False))


def values(
    flags: Sequence[Flag], *, noise: bool, batch: bool, both: bool | None = None
) -> dict[str, bool]:
    """Keyword arguments that ask for noise and batch statistics.

    A flag of both says training where either is on, unless `both` decides.
    """
    both = noise or batch if both is None else both
    return {flag.name: flag.value(noise=noise, batch=batch, both=both) for flag in flags}


def described(flags: Sequence[Flag]) -> str:
    """The flags and their senses in words."""
    return ", ".join(map(str, flags)) if flags else "no training flag"
