"""Bayesian MAML: a set of particles adapts by Stein variational gradient descent.

J. Yoon, T. Kim, O. Dia, S. Kim, Y. Bengio, S. Ahn. Bayesian Model-Agnostic Meta-Learning.
NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack, get_args

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bayesian.builder import (
    AdaptedParticles,
    particle_learner,
    query_loss,
)
from metalearn.algorithms.bayesian.ensemble import Combine, joint_loss
from metalearn.algorithms.bayesian.posterior import CLASSIFICATION, REGRESSION, Posterior
from metalearn.algorithms.bayesian.svgd import svgd
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, losses
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.task import concatenate
from metalearn.core.types import Array, LossFn

Objective = Literal["chaser", "query", "joint"]


@takes_options()
def bmaml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_particles: int = 10,
    num_steps: int = 1,
    leader_steps: int = 1,
    leader_opt: optax.GradientTransformation | None = None,
    posterior: Posterior | None = None,
    objective: Objective = "chaser",
    repulsion: float = 1.0,
    **options: Unpack[Options],
) -> MetaLearner:
    """Learns M initialisations from which SVGD samples the posterior of a task.

    Adaptation: the particles, weights with their log-precisions, take K steps
    `theta_m <- theta_m + eps (1/M) sum_j [k(theta_j, theta_m) grad log p(theta_j | support)
    + grad_j k(theta_j, theta_m)]`, see `bayesian.svgd`. Outer objective: the chaser
    loss `sum_m |theta_m^K - sg[theta_m^(K+s)]|^2`. The leader goes on from `theta^K` for s
    steps on the posterior of support and query together and has no gradient; precisions
    do not count in the distance. Predictions are averages over the particles.

    The log-likelihood is a sum over examples, so rates are small. Particles far apart
    take `1/M` of the step that each would take alone: for N targets of one number with
    precision p, eps acts as a rate of `eps p N / (2 M)` on the mean squared error, which
    should be one that `maml` could have. The chaser loss is a sum over particles and
    weights: use an outer optimiser that does not mind, such as Adam.

    Differs from the released code: its repulsion is half of the kernel's derivative
    (`repulsion=0.5`); its median runs over all `M^2` distances, with the zeros of the
    diagonal; noise of deviation 1e-3 parts its first log-precisions. The paper's
    alternative to the chaser loss is the likelihood of the queries, all of them under one
    particle and then averaged, `objective="joint"`; `"query"` averages query by query, as
    predictions do.

    Args:
      model: The network.
      loss_fn: Mean loss of one task, for reports and the objectives "query" and "joint";
        for the latter minus a mean log-likelihood.
      inner_opt: eps, an optax transformation that gets the direction of SVGD, with leaves
        `[M, ...]`; paper: `optax.sgd(1e-3)`.
      num_particles: M; one ascends to the mode of the posterior.
      num_steps: K, inner steps, at least 1.
      leader_steps: s, at least 1; only the chaser loss reads it.
      leader_opt: The leader's optimiser; `None` for `inner_opt` with its state.
      posterior: `None` for `REGRESSION` with `ml.losses.mse` and `CLASSIFICATION` with
        `ml.losses.cross_entropy`, see `bayesian.posterior`.
      objective: Outer objective: "chaser", "query" for the loss of the averaged
        prediction, or "joint", see `bayesian.ensemble.joint_loss`.
      repulsion: Factor of the second term; 0 for none.
      differentiation: See `metalearn.inner.differentiate`; "first_order" still
        differentiates the kernel.
      adapt_filter: `(path, leaf) -> bool`, by the path: weights that each particle has of
        its own; all when `None`. The others are shared and learned outside only, e.g. a
        feature extractor under particles of the head.
      norm: Batch-norm policy, see `metalearn.inner.norm`; each particle has statistics of
        its own.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner`. Its params are those of the model with a leading axis M on the
      weights that adapt; where a precision has a `Gamma`, `{"model": these,
      "log_precision": {"data" or "weights": [M]}}`. The adapted object is a
      `metalearn.inner.Adapted` with the particles in `params` and their log-precisions
      in `info`. Predictions `[Q, W]` of a classifier are log-probabilities.

    Raises:
      ValueError: an option is out of range, or `loss_fn` tells no posterior.

    Example:
      >>> learner = ml.bmaml(model, ml.losses.mse, optax.sgd(1e-3), num_particles=10)
    """
    checks.one_of("objective", objective, get_args(Objective))
    checks.whole_number("leader_steps", leader_steps, least=1)
    _check_leader(leader_opt, objective, leader_steps)
    if posterior is None:
        known = {losses.mse: REGRESSION, losses.cross_entropy: CLASSIFICATION}
        posterior = _for_loss("posterior", loss_fn, known)
    elif not isinstance(posterior, Posterior):
        raise ValueError(
            f"posterior is a {type(posterior).__name__}; expected a Posterior, such as "
            "REGRESSION or CLASSIFICATION of metalearn.algorithms.bayesian.posterior."
        )
    outers = {
        "chaser": chaser(leader_opt, leader_steps),
        "query": query_loss,
        "joint": joint,
    }
    settings = {
        "objective": objective,
        "leader_steps": leader_steps,
        "repulsion": repulsion,
        "data_precision": str(posterior.data_precision),
        "weight_precision": str(posterior.weight_precision),
    }
    return particle_learner(
        "bmaml",
        model,
        loss_fn,
        inner_opt,
        posterior,
        mixing=svgd(repulsion=repulsion),
        num_particles=num_particles,
        num_steps=num_steps,
        outer=outers[objective],
        settings=settings,
        **options,
    )


@takes_options()
def emaml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_particles: int = 10,
    num_steps: int = 1,
    combine: Combine | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """An ensemble of M MAML learners that meet in the prediction only.

    The baseline of the paper: every member descends the mean `loss_fn` from an
    initialisation of its own; the outer objective is the sum of their query losses, so
    each has the meta-gradient it would have alone, unless `adapt_filter` makes them share.

    Args:
      model: The network.
      loss_fn: Mean loss of one task.
      inner_opt: An optax transformation; rates are those of `maml`.
      num_particles: M, members.
      num_steps: K, inner steps, at least 1.
      combine: How M predictions become one: "probabilities" or "mean", see
        `bayesian.ensemble`; `None` for the first with `ml.losses.cross_entropy` and the
        second with `ml.losses.mse`.
      adapt_filter: As in `bmaml`: weights that each member has of its own; all when `None`.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` with the params of the model; leaves that adapt are `[M, ...]`.

    Raises:
      ValueError: an option is out of range, or `loss_fn` does not tell how to combine.

    Example:
      >>> learner = ml.emaml(model, ml.losses.mse, optax.sgd(0.01), num_particles=10)
    """
    if combine is None:
        known = {losses.mse: "mean", losses.cross_entropy: "probabilities"}
        combine = _for_loss("combine", loss_fn, known)
    posterior = Posterior(
        log_likelihood=lambda outputs, examples, _: -loss_fn(outputs, examples),
        weight_precision=0.0,
        combine=combine,
    )

    def each_loss(done: AdaptedParticles, loss_fn: LossFn) -> tuple[Array, dict]:
        each = jax.vmap(lambda outputs: loss_fn(outputs, done.task.query))
        return jnp.sum(each(done.outputs)), {}

    return particle_learner(
        "emaml",
        model,
        loss_fn,
        inner_opt,
        posterior,
        mixing=optax.identity(),
        num_particles=num_particles,
        num_steps=num_steps,
        outer=each_loss,
        settings={},
        **options,
    )


def chaser(
    leader_opt: optax.GradientTransformation | None, leader_steps: int
) -> Callable[[AdaptedParticles, LossFn], tuple[Array, dict]]:
    """The chaser loss as an outer objective.

    Args:
      leader_opt: The leader's optimiser; `None` for the inner one with its state.
      leader_steps: s.
    """

    def outer(done: AdaptedParticles, loss_fn: LossFn) -> tuple[Array, dict]:
        del loss_fn
        path, task = done.path, done.task
        # The leader stands still for the chaser. It is cut off before its steps, so that
        # none of them is stored for a derivative.
        start = (done.variables, path, done.adapted.present)
        led = done.inner.further(
            *jax.lax.stop_gradient(start),
            concatenate(task.support, task.query),
            key=done.key,
            opt=leader_opt,
            num_steps=leader_steps,
        )
        gaps = jax.tree.map(
            lambda chaser, leader: jnp.sum(jnp.square(chaser - leader)),
            path.params["weights"],
            led.params["weights"],
        )
        loss = sum(jax.tree.leaves(gaps))
        return loss, {"chaser/loss": loss}

    return outer


def joint(done: AdaptedParticles, loss_fn: LossFn) -> tuple[Array, dict]:
    """The loss of the whole query set under one particle, averaged over particles."""
    query = done.task.query
    each = jax.vmap(lambda outputs: loss_fn(outputs, query))(done.outputs)
    num = jnp.maximum(jnp.sum(query.mask), 1).astype(each.dtype)
    loss = joint_loss(each, num)
    return loss, {"joint/loss": loss}


def _check_leader(leader_opt: Any, objective: Objective, num_steps: int) -> None:
    """Refuses what leads nowhere, and an optimiser where nobody leads."""
    if leader_opt is None:
        return
    if not isinstance(leader_opt, optax.GradientTransformation):
        raise TypeError(
            f"leader_opt is a {type(leader_opt).__name__}; expected None or an optax "
            "transformation such as optax.sgd(1e-3)."
        )
    if objective != "chaser":
        raise ValueError(
            f"leader_opt is given, but objective={objective!r} has no leader. Leave it "
            "out, or use objective='chaser'."
        )
    try:
        checks.inner_optimiser(leader_opt, None, second_order=False)
        checks.inner_rate(leader_opt, num_steps)
    except (TypeError, ValueError) as error:
        raise type(error)(f"leader_opt: {error}") from None


def _for_loss(option: str, loss_fn: LossFn, known: dict) -> Any:
    checks.loss(loss_fn)
    for loss, value in known.items():
        if loss_fn is loss:
            return value
    raise ValueError(
        f"{option} is not given, and loss_fn is neither ml.losses.mse nor "
        f"ml.losses.cross_entropy, so it cannot be told. Give {option}=."
    )
