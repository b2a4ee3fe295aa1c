"""Adaptation of a model by values of an objective on the support set alone.

What `inner.descent` is for losses, for objectives that nothing can differentiate.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from metalearn.algorithms.gradient.evolution import as_scalar, climb, evolve
from metalearn.core import trees
from metalearn.core.losses import mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree
from metalearn.inner.descent import Adapted
from metalearn.inner.norm import NormPolicy, normaliser


def search(
    model: Model,
    objective_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    adaptation: str,
    num_steps: int,
    num_queries: int,
    sigma: float,
    adapt_filter: PathFilter | str | None = None,
    norm: NormPolicy = "support",
    mask_absent_classes: bool = False,
) -> Callable[..., tuple[Adapted, None]]:
    """Adaptation by evolution strategies or hill climbing, see `gradient.evolution`.

    Args:
      model: The network.
      objective_fn: `(outputs, examples) -> scalar`, any function; minimised.
      inner_opt: An optax transformation, for "es".
      adaptation: "es" or "hill_climbing".
      num_steps: Steps, or rounds.
      num_queries: Pairs, or moves, of each step.
      sigma: Width of the pairs or moves.
      adapt_filter: `(path, leaf) -> bool`, which parameters move; all when `None`.
      norm: Batch-norm policy, see `metalearn.inner.norm`; not "per_step".
      mask_absent_classes: For tasks with a variable number of ways.

    Returns:
      `(variables, support, *, key, train=False) -> (Adapted, None)`, which needs its key.
      There is no path of losses, as `inner.descent` has.
    """
    policy = normaliser(model, norm, num_steps)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None, train: bool = False
    ) -> tuple[Adapted, None]:
        if key is None:
            raise ValueError(
                f"adaptation={adaptation!r} draws at random; give a key: "
                "adapt(variables, support, key=jax.random.key(0))."
            )
        theta, fixed = trees.split(variables.params, adapt_filter)
        k_search, k_model, k_settle = jax.random.split(key, 3)
        present = None

        def outputs_of(phi: PyTree) -> PyTree:
            params = trees.merge(phi, fixed)
            return policy.support(
                params, variables.state, support, 0, key=k_model, train=train
            )[0]

        if mask_absent_classes:
            width = jax.eval_shape(outputs_of, theta).shape[-1]
            present = present_classes(support, width)

        def value(phi: PyTree) -> Array:
            outputs = outputs_of(phi)
            outputs = outputs if present is None else mask_absent(outputs, present)
            return as_scalar(objective_fn(outputs, support))

        keys = jax.random.split(k_search, (num_steps, num_queries))
        if adaptation == "es":
            phi = evolve(value, theta, inner_opt, keys, sigma)
        else:
            phi = climb(value, theta, keys, sigma)
        params = trees.merge(phi, fixed)
        state = policy.settle(params, variables.state, support, key=k_settle)
        return Adapted(params=params, state=state, present=present), None

    return adapt
