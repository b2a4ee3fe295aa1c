"""Gradients of an outer loss through a persistent inner model.

A learner of `ml.algorithms` starts its inner loop anew for each task. Here the inner model
lives on: its training is the inner problem, and the hyper-parameters are what shapes it,
such as the strength of a regulariser, a weight for each example, or a learning rate.

| function | inner problem | costs |
|---|---|---|
| `implicit`, `implicit_gradient` | solved, by any solver | one linear solve |
| `unrolled` | K steps of an optimiser, the last T differentiated | T steps backward |
| `sama` | one step of any optimiser | four gradients, that of the step among them |
| `lookahead` | one virtual step on weighted losses | two gradients, one product |

All but `implicit` return a `Hypergradient`. Call them within `jax.jit`: outside of it, most
compile anew at every call.
"""

from metalearn.hypergradient.implicit import (
    Solved,
    fixed_point,
    implicit,
    implicit_gradient,
)
from metalearn.hypergradient.linear import Linear
from metalearn.hypergradient.lookahead import lookahead
from metalearn.hypergradient.result import Hypergradient
from metalearn.hypergradient.sama import sama
from metalearn.hypergradient.unrolled import unrolled
from metalearn.hypergradient.weights import by_group, normalised

__all__ = [
    "Hypergradient",
    "Linear",
    "Solved",
    "by_group",
    "fixed_point",
    "implicit",
    "implicit_gradient",
    "lookahead",
    "normalised",
    "sama",
    "unrolled",
]
