"""Optimisers of the inner and the outer loop as records of settings."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """An optimiser of the inner loop.

    Attributes:
      name: Name of the optimiser in optax.
      rate: Learning rate.
      b1: Decay of the first moment of adam; Reptile's paper uses 0.
      eps_root: Number under the square root of adam. At 0 the second derivative is infinite
        if a gradient is zero.
    """

    name: Literal["sgd", "adam", "none"] = "sgd"
    rate: float = 0.01
    b1: float = 0.9
    eps_root: float = 1e-8

    def build(self) -> optax.GradientTransformation | None:
        """The optax transformation; `None` for "none"."""
        if self.name == "none":
            return None
        if self.name == "sgd":
            return optax.sgd(self.rate)
        return optax.adam(self.rate, b1=self.b1, eps_root=self.eps_root)

    def unread(self) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        idle = {} if self.name == "adam" else dict.fromkeys(("b1", "eps_root"), "name adam")
        return idle | ({"rate": "name sgd or adam"} if self.name == "none" else {})


def sgd(rate: float) -> Optimiser:
    """Gradient descent."""
    return Optimiser("sgd", rate)


def adam(rate: float, b1: float = 0.9, eps_root: float = 1e-8) -> Optimiser:
    """Adam, with finite second derivatives."""
    return Optimiser("adam", rate, b1, eps_root)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """The outer optimiser, its schedule and its clipping.

    Attributes:
      name: Name of the optimiser: "adam", or "sgd" as in Reptile.
      rate: Learning rate at the start.
      schedule: Schedule by which the rate falls over the steps.
      halve_every: Steps between halvings of the schedule "halving".
      halve_by: Factor of such a halving.
      clip: Largest global norm of the meta-gradient; no clipping if None.
      clip_value: Largest size of a coordinate of the meta-gradient; no clipping if None. It
        comes before the other two.
      clip_array: Largest norm of each array of the meta-gradient; no clipping if None.
      momentum: Momentum of sgd, from 0 to below 1.
    """

    name: Literal["adam", "sgd"] = "adam"
    rate: float = 2e-3
    schedule: Literal["cosine", "constant", "linear", "halving"] = "cosine"
    halve_every: int = 2000
    halve_by: float = 0.5
    clip: float | None = None
    clip_value: float | None = None
    clip_array: float | None = None
    momentum: float = 0.0

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for training with `steps` outer steps."""
        rate = {
            "constant": lambda: optax.constant_schedule(self.rate),
            "cosine": lambda: optax.cosine_decay_schedule(self.rate, steps),
            "linear": lambda: optax.linear_schedule(self.rate, 0.0, steps),
            "halving": lambda: optax.exponential_decay(
                self.rate, self.halve_every, self.halve_by, staircase=True
            ),
        }[self.schedule]()
        if self.name == "sgd":
            opt = optax.sgd(rate, momentum=self.momentum or None)
        else:
            opt = optax.adam(rate)
        opt = clipped(opt, self.clip)
        before = []
        if self.clip_value is not None:
            before.append(optax.clip(self.clip_value))
        if self.clip_array is not None:
            before.append(clip_each_array(self.clip_array))
        return optax.chain(*before, opt) if before else opt

    def unread(self) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        idle = {} if self.name == "sgd" else {"momentum": "name sgd"}
        if self.schedule == "halving":
            return idle
        return idle | dict.fromkeys(("halve_every", "halve_by"), "schedule halving")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnOuter:
    """An outer optimiser that belongs to a learner; a subclass has its own settings.

    Attributes:
      direction: Direction that the learned rate multiplies: "adam" for that of adam, "sgd"
        for the gradient.
      clip: Largest global norm of the meta-gradient; no clipping if None.
    """

    constructor: ClassVar[Any]
    direction: Literal["adam", "sgd"] = "adam"
    clip: float | None = None

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation; the number of steps is not used."""
        del steps
        shared = [field.name for field in dataclasses.fields(OwnOuter)]
        own = {k: v for k, v in vars(self).items() if k not in shared}
        inner = optax.scale_by_adam() if self.direction == "adam" else None
        return clipped(type(self).constructor(**own, inner=inner), self.clip)

    def unread(self) -> dict[str, str]:
        """Fields without effect: none."""
        return {}


def clipped(
    opt: optax.GradientTransformation, clip: float | None
) -> optax.GradientTransformation:
    """The optimiser, with clipping by global norm in front unless `clip` is None."""
    if clip is None:
        return opt
    # Clipped before the optimiser: after adam the norm no longer depends on the gradient's.
    return optax.chain(optax.clip_by_global_norm(clip), opt)


def clip_each_array(limit: float) -> optax.GradientTransformation:
    """Clips the norm of each array by itself, as LEO's released code does."""
    one = optax.clip_by_global_norm(limit)

    def clip(grads: Any, params: Any) -> Any:
        del params
        return jax.tree.map(lambda g: one.update(g, optax.EmptyState())[0], grads)

    return optax.stateless(clip)
