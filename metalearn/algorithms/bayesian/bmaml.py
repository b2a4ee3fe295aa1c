"""Bayesian MAML: a set of particles adapts by Stein variational gradient descent.

J. Yoon, T. Kim, O. Dia, S. Kim, Y. Bengio, S. Ahn. Bayesian Model-Agnostic Meta-Learning.
NeurIPS 2018.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bayesian.builder import Episode, particle_learner, query_loss
from metalearn.algorithms.bayesian.ensemble import joint_loss
from metalearn.algorithms.bayesian.posterior import CLASSIFICATION, REGRESSION, Posterior
from metalearn.algorithms.bayesian.svgd import svgd
from metalearn.core import checks, losses
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.task import concatenate
from metalearn.core.types import Array, LossFn

OBJECTIVES = ("chaser", "query", "joint")


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
    objective: str = "chaser",
    repulsion: float = 1.0,
    name: str = "bmaml",
    **options: Any,
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
      num_steps: K, at least 1.
      leader_steps: s, at least 1; only the chaser loss reads it.
      leader_opt: The leader's optimiser; `None` for `inner_opt` with its state.
      posterior: `None` for `REGRESSION` with `ml.losses.mse` and `CLASSIFICATION` with
        `ml.losses.cross_entropy`, see `bayesian.posterior`.
      objective: "chaser", "query" for the loss of the averaged prediction, or "joint",
        see `bayesian.ensemble.joint_loss`.
      repulsion: Factor of the second term; 0 for none.
      name: What `describe` calls it.
      **options: `adapt_filter`, by the path, the weights each particle has of its own
        (all when `None`; the others are shared and learned outside only, e.g. a feature
        extractor under particles of the head); `differentiation`, where "first_order"
        still differentiates the kernel; `norm`, each particle having its own statistics;
        `mask_absent_classes`, `task_chunk`: those of `maml`.

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
    checks.known_options(
        bmaml, options, particle_learner, but=("mixing", "outer", "settings")
    )
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}."
        )
    checks.whole_number("leader_steps", leader_steps, least=1)
    if leader_opt is not None:
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
    if posterior is None:
        known = {losses.mse: REGRESSION, losses.cross_entropy: CLASSIFICATION}
        posterior = _for_loss("posterior", loss_fn, known)
    elif not isinstance(posterior, Posterior):
        raise ValueError(
            f"posterior is a {type(posterior).__name__}; expected a Posterior, such as "
            "REGRESSION or CLASSIFICATION of metalearn.algorithms.bayesian.posterior."
        )

    def chaser_loss(episode: Episode, loss_fn: LossFn) -> tuple[Array, dict]:
        path, task = episode.path, episode.task
        # Nothing of the leader is differentiated, so its steps store nothing.
        start = (episode.variables, path, episode.adapted.present)
        led = episode.inner.further(
            *jax.lax.stop_gradient(start),
            concatenate(task.support, task.query),
            key=episode.key,
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

    settings = {
        "objective": objective,
        "leader_steps": leader_steps,
        "leader_opt": leader_opt,
        "repulsion": repulsion,
        "likelihood": posterior.log_likelihood,
        "data_precision": str(posterior.data_precision),
        "weight_precision": str(posterior.weight_precision),
    }
    return particle_learner(
        name,
        model,
        loss_fn,
        inner_opt,
        posterior,
        mixing=svgd(repulsion=repulsion),
        num_particles=num_particles,
        num_steps=num_steps,
        outer={"chaser": chaser_loss, "query": query_loss, "joint": joint}[objective],
        settings=settings,
        **options,
    )


def emaml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_particles: int = 10,
    num_steps: int = 1,
    combine: str | None = None,
    name: str = "emaml",
    **options: Any,
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
      num_steps: K, at least 1.
      combine: "probabilities" or "mean", see `bayesian.ensemble`; `None` for the first
        with `ml.losses.cross_entropy` and the second with `ml.losses.mse`.
      name: What `describe` calls it.
      **options: Those of `bmaml`.

    Returns:
      A `MetaLearner` with the params of the model; leaves that adapt are `[M, ...]`.

    Raises:
      ValueError: an option is out of range, or `loss_fn` does not tell how to combine.

    Example:
      >>> learner = ml.emaml(model, ml.losses.mse, optax.sgd(0.01), num_particles=10)
    """
    checks.known_options(
        emaml, options, particle_learner, but=("mixing", "outer", "settings")
    )
    if combine is None:
        known = {losses.mse: "mean", losses.cross_entropy: "probabilities"}
        combine = _for_loss("combine", loss_fn, known)
    posterior = Posterior(
        log_likelihood=lambda outputs, examples, _: -loss_fn(outputs, examples),
        weight_precision=0.0,
        combine=combine,
    )

    def each_loss(episode: Episode, loss_fn: LossFn) -> tuple[Array, dict]:
        each = jax.vmap(lambda outputs: loss_fn(outputs, episode.task.query))
        return jnp.sum(each(episode.outputs)), {}

    return particle_learner(
        name,
        model,
        loss_fn,
        inner_opt,
        posterior,
        mixing=optax.identity(),
        num_particles=num_particles,
        num_steps=num_steps,
        outer=each_loss,
        **options,
    )


def joint(episode: Episode, loss_fn: LossFn) -> tuple[Array, dict]:
    """The loss of the whole query set under one particle, averaged over particles."""
    query = episode.task.query
    each = jax.vmap(lambda outputs: loss_fn(outputs, query))(episode.outputs)
    num = jnp.maximum(jnp.sum(query.mask), 1).astype(each.dtype)
    loss = joint_loss(each, num)
    return loss, {"joint/loss": loss}


def _for_loss(option: str, loss_fn: LossFn, known: dict) -> Any:
    for loss, value in known.items():
        if loss_fn is loss:
            return value
    raise ValueError(
        f"{option} is not given, and loss_fn is neither ml.losses.mse nor "
        f"ml.losses.cross_entropy, so it cannot be told. Give {option}=."
    )
