"""Adaptation of a set of networks that ascend the posterior of a task together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bayesian.posterior import (
    Posterior,
    initial_precisions,
    log_posterior,
)
from metalearn.core import checks, trees
from metalearn.core.keys import fold_key, split_key
from metalearn.core.losses import mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree
from metalearn.inner.descent import Adapted, descent
from metalearn.inner.differentiate import Differentiation, is_second_order
from metalearn.inner.norm import Normaliser, NormPolicy, normaliser
from metalearn.inner.unroll import Unrolled, unroll


class Ascent(NamedTuple):
    """Adaptation and prediction of M particles under one set of options.

    Attributes:
      init: `(key, task) -> Variables`. Params are those of M networks or, where
        precisions are sampled too, `{"model": ..., "log_precision": ...}`.
      adapt: `(variables, support, *, key, train=False) -> (Adapted, Unrolled)`; particles
        are `{"weights": the adapted subset, "log_precision": ...}`.
      further: `(variables, unrolled, present, examples, *, key, opt, num_steps)
        -> Unrolled`: goes on from there on other examples, in training; with the state
        of the optimiser if `opt` is `None`.
      members: `(adapted, x, *, key, train, mask) -> (outputs [M, Q, ...], state)`.
      collect: `(state, unrolled, query_state) -> state` after a training task.
    """

    init: Callable[..., Variables]
    adapt: Callable[..., tuple[Adapted, Unrolled]]
    further: Callable[..., Unrolled]
    members: Callable[..., tuple[Array, PyTree]]
    collect: Callable[..., PyTree]


def ascent(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    posterior: Posterior,
    *,
    mixing: optax.GradientTransformation,
    num_particles: int,
    num_steps: int,
    differentiation: Differentiation,
    adapt_filter: PathFilter | str | None,
    norm: NormPolicy,
    mask_absent_classes: bool,
) -> Ascent:
    """Gradient ascent of M particles on a posterior as a record of pure functions.

    Args:
      model: The network of one particle.
      loss_fn: Mean loss of one task.
      inner_opt: An optax transformation of leaves `[M, ...]`.
      posterior: What is ascended.
      mixing: Stands before `inner_opt`, e.g. `bayesian.svgd.svgd()`; with
        `optax.identity()` particles know nothing of one another.
      num_particles: M.
      num_steps: K, inner steps, at least 1.
      differentiation: See `metalearn.inner.differentiate`.
      adapt_filter: Which weights are particles; the others are shared.
      norm: Batch-norm policy, see `metalearn.inner.norm`.
      mask_absent_classes: Whether absent classes get a logit that never wins.
    """
    checks.whole_number("num_particles", num_particles, least=1)
    checks.whole_number("num_steps", num_steps, least=1)
    second_order = is_second_order(differentiation)
    checks.inner_optimiser(inner_opt, None, second_order=second_order)
    networks = population(model, num_particles, adapt_filter)
    frame = descent(
        networks,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        differentiation=differentiation,
        adapt_filter=adapt_filter,
        norm=norm,
    )
    particles = _Particles(
        posterior, normaliser(networks, norm, num_steps), adapt_filter, num_steps
    )

    def init(key: Key, task: Any) -> Variables:
        variables = frame.init(key, task)
        moving = trees.split(variables.params, adapt_filter)[0]
        if second_order:
            checks.inner_optimiser_on(moving, inner_opt, None)
        logs = initial_precisions(posterior, num_particles)
        if not logs:
            return variables
        params = {"model": variables.params, "log_precision": logs}
        return Variables(params=params, state=variables.state)

    def adapt(variables, support, *, key, train=False):
        k_loss, k_settle = split_key(key)
        start, shared = particles.split(variables.params)
        energy = functools.partial(
            _energy, particles, shared, variables.state, support, key=k_loss, train=train
        )
        present = _present(energy(None), start, support) if mask_absent_classes else None
        path = unroll(
            energy(present),
            start,
            optax.chain(mixing, inner_opt),
            num_steps=num_steps,
            differentiation=differentiation,
        )
        params, policy = trees.merge(path.params["weights"], shared), particles.policy
        adapted = Adapted(
            params=params,
            state=policy.settle(params, variables.state, support, key=k_settle),
            present=present,
            info=path.params["log_precision"],
        )
        return adapted, path

    def further(variables, path, present, examples, *, key, opt, num_steps):
        shared, state = particles.split(variables.params)[1], variables.state
        return unroll(
            _energy(particles, shared, state, examples, present, key=key, train=True),
            path.params,
            optax.chain(mixing, inner_opt if opt is None else opt),
            num_steps=num_steps,
            opt_state=path.opt_state if opt is None else None,
        )

    return Ascent(init, adapt, further, particles.members, particles.collect)


class _Particles(NamedTuple):
    """What particles ascend.

    Attributes:
      posterior: The density.
      policy: How batch norm is applied in their networks.
      adapt_filter: Which weights are particles.
      num_steps: K.
    """

    posterior: Posterior
    policy: Normaliser
    adapt_filter: PathFilter | str | None
    num_steps: int

    def split(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Weights and log-precisions of each particle, and the weights they share."""
        weights, logs = params, {}
        if initial_precisions(self.posterior, 1):
            weights, logs = params["model"], params["log_precision"]
        moving, shared = trees.split(weights, self.adapt_filter)
        return {"weights": moving, "log_precision": logs}, shared

    def members(self, adapted, x, *, key, train, mask) -> tuple[Array, PyTree]:
        """Outputs of each particle, and the states of their networks."""
        outputs, state = self.policy.query(
            adapted.params, adapted.state, x, key=key, train=train, mask=mask
        )
        return _hide_absent(outputs, adapted.present), state

    def collect(self, state: PyTree, path: Unrolled, query_state: PyTree) -> PyTree:
        """The state after a training task."""
        return self.policy.collect(state, path.aux[0], query_state)


def _energy(
    them: _Particles,
    shared: PyTree,
    state: PyTree,
    examples: Examples,
    present: Array | None,
    *,
    key: Key | None,
    train: bool,
) -> Callable[[PyTree, Array], tuple[Array, tuple[PyTree, Array]]]:
    """`(particles, step) -> (minus the sum of log-posteriors, (state, outputs))`."""

    def loss(particles: PyTree, step: Array) -> tuple[Array, tuple[PyTree, Array]]:
        outputs, new_state = them.policy.support(
            trees.merge(particles["weights"], shared),
            state,
            examples,
            jnp.minimum(step, them.num_steps - 1),  # `further` may take more steps
            key=fold_key(key, step),
            train=train,
        )
        outputs = _hide_absent(outputs, present)
        each = jax.vmap(lambda p, o: log_posterior(them.posterior, p, o, examples))
        return -jnp.sum(each(particles, outputs)), (new_state, outputs)

    return loss


def _present(energy: Callable, particles: PyTree, support: Examples) -> Array:
    """Classes with a support example, bool `[W]`; W is that of the outputs."""
    outputs = jax.eval_shape(energy, particles, jnp.zeros((), jnp.int32))[1][1]
    return present_classes(support, outputs.shape[-1])


def _hide_absent(outputs: Array, present: Array | None) -> Array:
    """Outputs `[M, N, W]` in which absent classes never win."""
    if present is None:
        return outputs
    return jax.vmap(mask_absent, in_axes=(0, None))(outputs, present)


def population(model: Model, num: int, select: PathFilter | str | None = None) -> Model:
    """Networks of one architecture as one model.

    Args:
      model: The network.
      num: M; each is initialised from a key of its own, and draws from one of its own.
      select: `(path, leaf) -> bool`: weights that each has of its own; all when `None`.
        The others are shared: what depends on them alone is computed once.

    Returns:
      A `Model` with weights `[M, ...]`, except shared ones, outputs and state `[M, ...]`.

    Raises:
      ValueError: in `init`: `select` depends on shapes, to which M is added.
    """

    def init(key: Key, x: PyTree) -> Variables:
        made = jax.vmap(lambda k: model.init(k, x))(jax.random.split(key, num))
        moving, shared = trees.split(made.params, select)
        shared = jax.tree.map(lambda leaf: leaf[0], shared)
        params = trees.merge(moving, shared)
        one = jax.tree.map(lambda leaf: leaf[0], made.params)
        for tree in (one, params):
            found = trees.leaf_paths(trees.split(tree, select)[0])
            if found != trees.leaf_paths(moving):
                raise ValueError(
                    "adapt_filter selects other weights of one network than of "
                    f"{num} with a leading axis, so it depends on shapes. Choose weights "
                    "by their paths, e.g. lambda path, leaf: path.startswith('head')."
                )
        return Variables(params=params, state=made.state)

    def of_each(fn: Callable) -> Callable:
        def apply(variables, x, *, key=None, mask=None, **switches):
            moving, shared = trees.split(variables.params, select)
            there = jax.tree.leaves(moving)[0].shape[0]  # fewer for `ensemble.members`
            keys = None if key is None else jax.random.split(key, there)

            def one(moving: PyTree, state: PyTree, key: Key | None):
                own = Variables(params=trees.merge(moving, shared), state=state)
                return fn(own, x, key=key, mask=mask, **switches)

            return jax.vmap(one)(moving, variables.state, keys)

        return apply

    checks.model(model)
    split = None if model.split is None else of_each(model.split)
    return Model(init, of_each(model.apply), split, f"{num} of {model.about}")
