"""What the registry says of a learner, and how a learner is made from its record."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from metalearn.core.learner import MetaLearner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a table says of a system.

    Attributes:
      name: Name in `metalearn`, as in `ml.maml`.
      title: Name in the literature, as in "MAML++".
      paper: Authors, venue and year.
      good_for: Purpose in a few words.
      published: A number that the paper or another source prints, and where; empty where
        no source could be read and no second source quotes one.
      result: Stem of the stored result in `benchmarks/results/` that measures it here.
    """

    name: str
    title: str
    paper: str = ""
    good_for: str = ""
    published: str = ""
    result: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record(Card):
    """A learner: its card, and what its signature does not say.

    Attributes:
      build: The constructor.
      networks: Networks with layers that the learner needs, by the name of the network
        that they replace: "mlp", "conv4".
      start: Whether the learner can be asked for a prediction after no inner step.
      fixed_head: Whether the model has a logit for each class of a training task; else it
        is an encoder, and test tasks may have more classes.
      outer: The outer optimiser of its own, `(learning_rate, *, inner, ...)`, where
        `inner` is a direction such as `optax.scale_by_adam()`.
      since: Options that came after runs had been stored, with what the learner did before:
        what a stored record without them means.
      batches: What the query set of a training task has to be, for learners of one
        persistent model: "clean" labels, another of several "domains", that with unlabelled
        images of a "target" domain beside it, or a "quiz" beside a teacher; or "planned"
        tasks, which a learner chooses itself; or "episodes", which it plays itself.
        Applications of other tasks refuse such a learner.
      tiny: Arguments of a small instance for the conformance suite.
      curves: Whether that instance regresses curves; else it classifies.
      traits: What the instance declares, as keyword arguments of
        `metalearn.testing.check_learner`.
    """

    build: Callable[..., MetaLearner]
    networks: Mapping[str, type[nn.Module]] = dataclasses.field(default_factory=dict)
    start: bool = True
    fixed_head: bool = True
    outer: Callable[..., Any] | None = None
    since: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batches: str = ""
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curves: bool = False
    traits: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fits_fewer_ways(self) -> bool:
        """Whether tasks may have fewer classes than those of training.

        An encoder serves any number. With a fixed head the constructor has to take
        `mask_absent_classes`, or `num_ways` and make the head itself. A persistent model
        has no support set that would tell the classes.
        """
        if self.batches not in ("", "planned"):
            return False
        taken = parameters(self.build)
        return not self.fixed_head or not {"mask_absent_classes", "num_ways"}.isdisjoint(
            taken
        )

    @property
    def family(self) -> str:
        """Folder of the learner, "baselines", or "own" for a constructor of the user's."""
        module = self.build.__module__
        return module.split(".")[2] if module.startswith("metalearn.algorithms.") else "own"

    def make(self, offers: Mapping[str, Any], **settings: Any) -> MetaLearner:
        """The learner from what its surroundings offer and settings of its own.

        Args:
          offers: Values by the names of parameters, such as `model`, `loss_fn`,
            `num_ways`; those that the constructor does not take are left out.
          **settings: Further arguments of the constructor.
        """
        taken = parameters(self.build)
        return self.build(**{k: v for k, v in offers.items() if k in taken}, **settings)


def record(
    build: Callable[..., MetaLearner], title: str, paper: str, **rest: Any
) -> Record:
    """The record of a constructor, whose name is that of the learner."""
    return Record(build=build, name=build.__name__, title=title, paper=paper, **rest)


def parameters(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of a constructor by name, those of its `Options` included."""
    try:
        found = inspect.signature(build, eval_str=True).parameters
    except NameError:  # of a type that is imported for type checkers alone
        found = inspect.signature(build).parameters
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in found.items() if p.kind not in kinds}
