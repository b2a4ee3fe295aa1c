"""PLATIPUS: a distribution of initialisations, from which a task draws its own.

C. Finn, K. Xu, S. Levine. Probabilistic Model-Agnostic Meta-Learning. NeurIPS 2018.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bayesian.ensemble import check_combine, combine_outputs
from metalearn.algorithms.bayesian.gaussian import draw, gaussian_kl
from metalearn.core import checks, metrics, trees
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.losses import mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree
from metalearn.inner import Adapted, descent, normaliser, unroll
from metalearn.inner.differentiate import is_second_order, refuse_implicit


def platipus(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    combine: str,
    num_steps: int = 1,
    num_samples: int = 10,
    kl_weight: float | None = None,
    initial_std: float = 0.02,
    initial_rate: float = 0.01,
    scalar_rates: bool = False,
    differentiation: str = "reverse",
    adapt_filter: PathFilter | None = None,
    norm: str = "support",
    mask_absent_classes: bool = False,
    task_chunk: int | str = "auto",
    name: str = "platipus",
) -> MetaLearner:
    """Learns a Gaussian of initialisations; what is ambiguous stays a choice of samples.

    The prior of a task, given its support set, and in training its posterior, given its
    query set, are diagonal Gaussians (algorithm 1):

        p(theta | support) = N(mu - gamma_p grad L(mu; support), sigma^2)
        q(theta | query)   = N(mu - gamma_q grad L(mu; query), v)

    Training: one `theta ~ q`, reparametrised; `phi` from `num_steps` of `inner_opt` on the
    support loss from theta; objective `L(phi; query) + kl_weight KL(q | p)`. Evaluation
    (algorithm 2): M samples `theta ~ p`, each adapted alike, predictions combined. Learned
    are mu, log sigma^2, log v, gamma_p and gamma_q.

    In training theta has seen the queries, so `query/loss` and `query/accuracy` there are
    better than those of evaluation; the metric `kl` is what that cost. A heavy KL term at
    the start holds everything back: train for a while with a small `kl_weight`, or start
    from the parameters of `maml`, and hand the variables on; learners with other weights,
    steps or samples share them.

    We know of no code by the authors. A reimplementation by others has one scalar gamma_p
    and gamma_q (here `scalar_rates=True`), where the paper multiplies coordinate by
    coordinate, and takes these shifts by `num_steps` steps, where the paper takes one.

    Args:
      model: The network.
      loss_fn: Mean loss of one task; minus the mean log-likelihood for a true bound.
      inner_opt: An optax transformation.
      combine: How M predictions become one: "probabilities" for classification, whose
        outputs are then log-probabilities of the mixture; "mean" for regression. See
        `bayesian.ensemble`; its `members` gives each sample's own.
      num_steps: S, at least 1; those of the adaptation, each shift is one step.
      num_samples: M, of evaluation.
      kl_weight: Of the KL divergence, which is a sum over parameters; 0 or more. `None`
        is 1 / Q for Q valid queries: the evidence bound a query, if `loss_fn` is minus the
        mean log-likelihood. For errors of variance s^2 under `ml.losses.mse` of one
        output that bound has `2 s^2 / Q`.
      initial_std: sigma and sqrt(v) that training begins with, positive; well below the
        size of the weights, else samples forget mu.
      initial_rate: gamma_p and gamma_q that training begins with, 0 or more.
      scalar_rates: One number for all parameters instead of one for each.
      differentiation: Of the adaptation and of the shifts: "reverse", "remat", "nested",
        "mixed" or "first_order", see `metalearn.inner.differentiate`.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt and have a distribution;
        all when `None`. The others are points, learned outside.
      norm: Batch-norm policy, see `metalearn.inner.norm`. The gradients that shift the
        means see the statistics of their own examples under "support" and "batch".
      mask_absent_classes: For tasks with a variable number of ways.
      task_chunk: Tasks handled at once, or "auto".
      name: What `describe` calls it.

    Returns:
      A `MetaLearner` with params `{"model": mu and the points, "prior_log_variance",
      "posterior_log_variance", "prior_rate", "posterior_rate"}`. `adapt` gives an
      `Adapted` whose leaves have a leading axis M, of samples drawn by `key`; without one
      by a fixed key, the same draws for every task.

    Raises:
      ValueError: an option is out of range, or `inner_opt` has no finite second
        derivative.

    Example:
      >>> learner = ml.platipus(
      ...     model, ml.losses.cross_entropy, optax.sgd(0.05), combine="probabilities"
      ... )
      >>> adapted = learner.adapt(variables, task.support, key=jax.random.key(0))
      >>> log_probabilities = learner.predict(adapted, task.query.x)  # [Q, W]
    """
    refuse_implicit(name, differentiation)
    checks.whole_number("num_steps", num_steps, least=1)
    checks.whole_number("num_samples", num_samples, least=1)
    second_order = is_second_order(differentiation)
    checks.inner_optimiser(inner_opt, None, second_order=second_order)
    check_combine(combine)
    checks.number("initial_std", initial_std, positive=True)
    checks.number("initial_rate", initial_rate)
    if kl_weight is not None:
        checks.number("kl_weight", kl_weight)
    frame = descent(
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        differentiation=differentiation,
        adapt_filter=adapt_filter,
        norm=norm,
        mask_absent_classes=mask_absent_classes,
    )
    policy = normaliser(model, norm, num_steps)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task)
        variables = frame.init(key, task)
        moving = trees.split(variables.params, adapt_filter)[0]
        if second_order:
            checks.inner_optimiser_on(moving, inner_opt, None)
        params = {"model": variables.params}
        for which in ("prior", "posterior"):  # arrays of their own, to be donated
            params[f"{which}_log_variance"] = jax.tree.map(
                lambda p: jnp.full_like(p, 2 * math.log(initial_std)), moving
            )
            params[f"{which}_rate"] = (
                jnp.full((), initial_rate, jnp.result_type(float))
                if scalar_rates
                else jax.tree.map(lambda p: jnp.full_like(p, initial_rate), moving)
            )
        return Variables(params=params, state=variables.state)

    def shifted(
        variables: Variables,
        rate: PyTree,
        examples: Examples,
        support: Examples,
        key: Key | None,
        train: bool,
    ) -> PyTree:
        """`mu - rate grad L(mu; examples)`, of the parameters that adapt."""
        mu, points = trees.split(variables.params["model"], adapt_filter)

        def loss(mu: PyTree, step: Array) -> tuple[Array, tuple]:
            outputs, _ = policy.support(
                trees.merge(mu, points),
                variables.state,
                examples,
                step,
                key=key,
                train=train,
            )
            if mask_absent_classes:
                present = present_classes(support, outputs.shape[-1])
                outputs = mask_absent(outputs, present)
            return loss_fn(outputs, examples), ()

        def move(grads: PyTree, _: Any) -> PyTree:
            if scalar_rates:
                return jax.tree.map(lambda g: -rate.astype(g.dtype) * g, grads)
            return jax.tree.map(lambda r, g: -r * g, rate, grads)

        step = optax.stateless(move)
        return unroll(loss, mu, step, num_steps=1, differentiation=differentiation).params

    def adapted_from(variables, theta, support, key, train):
        points = trees.split(variables.params["model"], adapt_filter)[1]
        start = Variables(params=trees.merge(theta, points), state=variables.state)
        return frame.adapt(start, None, support, key=key, train=train)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        checks.one_set(support, "support")
        # Samples need a key in any case; the model has one only if one was given.
        keys = (jax.random.key(0), None, None)
        k_draw, k_shift, k_adapt = keys if key is None else jax.random.split(key, 3)
        params = variables.params
        prior = (
            shifted(variables, params["prior_rate"], support, support, k_shift, False),
            params["prior_log_variance"],
        )

        def one(k_draw: Key) -> Adapted:
            theta = draw(k_draw, *prior)
            return adapted_from(variables, theta, support, k_adapt, False)[0]

        return jax.vmap(one)(jax.random.split(k_draw, num_samples))

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        def one(adapted: Adapted) -> Array:
            return frame.predict(adapted, x, key=key, mask=mask)[0]

        return combine_outputs(jax.vmap(one)(adapted), combine)

    def objective(variables: Variables, task: Task, *, key: Key):
        k_prior, k_posterior, k_draw, k_adapt, k_query = jax.random.split(key, 5)
        params, support, query = variables.params, task.support, task.query
        prior, posterior = (
            (
                shifted(variables, params[f"{which}_rate"], examples, support, k, True),
                params[f"{which}_log_variance"],
            )
            for which, examples, k in (
                ("prior", support, k_prior),
                ("posterior", query, k_posterior),
            )
        )
        theta = draw(k_draw, *posterior)
        adapted, path = adapted_from(variables, theta, support, k_adapt, True)
        outputs, query_state = frame.predict(
            adapted, query.x, key=k_query, train=True, mask=query.mask
        )
        report = metrics.of_task(loss_fn, outputs, query)
        report = {f"query/{k}": value for k, value in report.items()}
        kl = gaussian_kl(*posterior, *prior)
        report |= {"support/loss": path.losses[0], "kl": kl}
        weight = kl_weight
        if weight is None:
            weight = 1 / jnp.maximum(jnp.sum(query.mask), 1).astype(kl.dtype)
        state = frame.collect(variables.state, path, query_state)
        return report["query/loss"] + weight * kl, (state, report)

    config = config_of(
        name,
        inner_opt=inner_opt,
        num_steps=num_steps,
        num_samples=num_samples,
        kl_weight=kl_weight,
        combine=combine,
        initial_std=initial_std,
        initial_rate=initial_rate,
        scalar_rates=scalar_rates,
        differentiation=str(differentiation),
        norm=norm,
    )
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    return MetaLearner(init, adapt, predict, estimate, config)
