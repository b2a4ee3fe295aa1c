"""PLATIPUS: a distribution of initialisations, from which a task draws its own.

C. Finn, K. Xu, S. Levine. Probabilistic Model-Agnostic Meta-Learning. NeurIPS 2018.

What is computed. The prior of a task, given its support set, and in training its posterior,
given its query set, are diagonal Gaussians (algorithm 1):

    p(theta | support) = N(mu - gamma_p grad L(mu; support), sigma^2)
    q(theta | query)   = N(mu - gamma_q grad L(mu; query), v)

Training draws one `theta ~ q`, reparametrised; `phi` comes from `num_steps` of `inner_opt`
on the support loss from theta. Evaluation (algorithm 2) draws M samples `theta ~ p`, adapts
each alike and combines the predictions. Learned are mu, log sigma^2, log v, gamma_p and
gamma_q.

How to train it. In training theta has seen the queries, so `query/loss` and
`query/accuracy` there are better than those of evaluation; the metric `kl` is what that
cost. A heavy KL term at the start holds everything back. So train for a while with a small
`kl_weight`, or start from `variables.params["model"]` of `maml`, and hand the variables on;
learners with other weights, steps or samples share them.

What differs from other code. We know of none by the authors. A reimplementation by others
has one scalar gamma_p and gamma_q (here `scalar_rates=True`), where the paper multiplies
coordinate by coordinate. It takes these shifts by `num_steps` steps, where the paper takes
one, as it is here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bayesian.ensemble import (
    Combine,
    check_combine,
    combine_outputs,
)
from metalearn.algorithms.bayesian.gaussian import draw, gaussian_kl
from metalearn.algorithms.options import DEFAULTS, Options, takes_options
from metalearn.core import checks, kinds, metrics, trees
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.losses import mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PyTree
from metalearn.inner import (
    Adapted,
    Descent,
    Normaliser,
    Unrolled,
    descent,
    normaliser,
    unroll,
)
from metalearn.inner.differentiate import is_second_order, refuse_implicit


@takes_options()
def platipus(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    combine: Combine,
    num_steps: int = 1,
    num_samples: int = 10,
    kl_weight: float | None = None,
    initial_std: float = 0.02,
    initial_rate: float = 0.01,
    scalar_rates: bool = False,
    **options: Unpack[Options],
) -> MetaLearner:
    """Learns a Gaussian of initialisations; what is ambiguous stays a choice of samples.

    Training draws `theta ~ q = N(mu - gamma_q grad L(mu; query), v)`, adapts it to `phi`
    and minimises `L(phi; query) + kl_weight KL(q | p)`. Evaluation draws M samples from
    `p = N(mu - gamma_p grad L(mu; support), sigma^2)`, adapts each, combines predictions.

    What differs from other code, and how to train it, stands at the top of the file.

    Args:
      model: The network.
      loss_fn: Mean loss of one task; minus the mean log-likelihood for a true bound.
      inner_opt: An optax transformation.
      combine: Way in which M predictions become one: "probabilities" for classification,
        whose outputs are then log-probabilities of the mixture; "mean" for regression. See
        `bayesian.ensemble`; its `members` gives each sample's own.
      num_steps: S, inner steps of the adaptation, at least 1; each shift is one step.
      num_samples: M, samples of evaluation.
      kl_weight: Weight of the KL divergence, which is a sum over parameters; 0 or more.
        `None` is 1 / Q for Q valid queries: the evidence bound per query, if `loss_fn` is
        minus the mean log-likelihood. For errors of variance s^2 under `ml.losses.mse` of
        one output that bound has `2 s^2 / Q`.
      initial_std: sigma and sqrt(v) that training begins with, positive; well below the
        size of the weights, else samples forget mu.
      initial_rate: gamma_p and gamma_q that training begins with, 0 or more.
      scalar_rates: Whether gamma_p and gamma_q are one number each for all parameters
        instead of one for each parameter.
      differentiation: Way of derivatives through the adaptation and the shifts, see
        `metalearn.inner.differentiate`.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt and have a distribution;
        all when `None`. The others are points, learned outside.
      norm: Batch-norm policy, see `metalearn.inner.norm`. The gradients that shift the
        means see the statistics of their own examples under "support" and "batch".
      **options: See `metalearn.algorithms.options.Options`.

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
    chosen: Options = {**DEFAULTS, "name": "platipus", **options}
    refuse_implicit(chosen["name"], chosen["differentiation"])
    checks.whole_number("num_steps", num_steps, least=1)
    checks.whole_number("num_samples", num_samples, least=1)
    check_combine(combine)
    checks.number("initial_std", initial_std, positive=True)
    checks.number("initial_rate", initial_rate)
    if kl_weight is not None:
        checks.number("kl_weight", kl_weight)
    parts = _parts(model, loss_fn, inner_opt, num_steps, scalar_rates, chosen)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        return _first_variables(parts, key, task, initial_std, initial_rate)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support)
        # Samples need a key in any case; the model has one only if one was given.
        keys = (jax.random.key(0), None, None)
        k_draw, k_shift, k_adapt = keys if key is None else jax.random.split(key, 3)
        params = variables.params
        mean = _shifted(parts, variables, "prior", support, support, k_shift, train=False)

        def one(k_draw: Key) -> Adapted:
            theta = draw(k_draw, mean, params["prior_log_variance"])
            return _adapt(parts, variables, theta, support, k_adapt, train=False)[0]

        return jax.vmap(one)(jax.random.split(k_draw, num_samples))

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Adapted)
        one = lambda adapted: parts.frame.predict(adapted, x, key=key, mask=mask)[0]
        return combine_outputs(jax.vmap(one)(adapted), combine)

    def objective(variables: Variables, task: Task, *, key: Key):
        return _objective(parts, kl_weight, variables, task, key)

    config = config_of(
        chosen["name"],
        num_steps=num_steps,
        num_samples=num_samples,
        kl_weight=kl_weight,
        combine=combine,
        initial_std=initial_std,
        initial_rate=initial_rate,
        scalar_rates=scalar_rates,
        differentiation=chosen["differentiation"],
        norm=chosen["norm"],
    )
    estimate = gradient_estimator(objective, task_chunk=chosen["task_chunk"])
    made = MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))
    return made._replace(masks_absent=chosen["mask_absent_classes"])


class _Parts(NamedTuple):
    """What both the shifts and the adaptation are made of.

    Attributes:
      loss_fn: Loss of one task.
      inner_opt: Optimiser of the adaptation.
      frame: The adaptation from a theta.
      policy: How batch norm is applied.
      scalar_rates: Whether gamma is one number for all parameters.
      options: All options.
    """

    loss_fn: LossFn
    inner_opt: optax.GradientTransformation
    frame: Descent
    policy: Normaliser
    scalar_rates: bool
    options: Options

    def split(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """The parameters that have a distribution, and the points."""
        return trees.split(params, self.options["adapt_filter"])


def _parts(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    num_steps: int,
    scalar_rates: bool,
    options: Options,
) -> _Parts:
    second_order = is_second_order(options["differentiation"])
    checks.inner_optimiser(inner_opt, None, second_order=second_order)
    frame = descent(
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        differentiation=options["differentiation"],
        adapt_filter=options["adapt_filter"],
        norm=options["norm"],
        mask_absent_classes=options["mask_absent_classes"],
    )
    policy = normaliser(model, options["norm"], num_steps)
    return _Parts(loss_fn, inner_opt, frame, policy, scalar_rates, options)


def _first_variables(
    parts: _Parts, key: Key, task: Task, std: float, rate: float
) -> Variables:
    """The mean and the points, two variances and two rates."""
    variables = parts.frame.init(key, task)
    moving = parts.split(variables.params)[0]
    if is_second_order(parts.options["differentiation"]):
        checks.inner_optimiser_on(moving, parts.inner_opt, None)
    params = {"model": variables.params}
    for which in ("prior", "posterior"):  # arrays of their own, to be donated
        params[f"{which}_log_variance"] = jax.tree.map(
            lambda p: jnp.full_like(p, 2 * math.log(std)), moving
        )
        params[f"{which}_rate"] = (
            jnp.full((), rate, jnp.result_type(float))
            if parts.scalar_rates
            else jax.tree.map(lambda p: jnp.full_like(p, rate), moving)
        )
    return Variables(params=params, state=variables.state)


def _objective(
    parts: _Parts, kl_weight: float | None, variables: Variables, task: Task, key: Key
) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
    """What is minimised outside: the query loss of one theta, and the divergence."""
    k_prior, k_posterior, k_draw, k_adapt, k_query = jax.random.split(key, 5)
    support, query = task.support, task.query
    prior, posterior = (
        (
            _shifted(parts, variables, which, examples, support, k, train=True),
            variables.params[f"{which}_log_variance"],
        )
        for which, examples, k in (
            ("prior", support, k_prior),
            ("posterior", query, k_posterior),
        )
    )
    theta = draw(k_draw, *posterior)
    adapted, path = _adapt(parts, variables, theta, support, k_adapt, train=True)
    outputs, query_state = parts.frame.predict(
        adapted, query.x, key=k_query, train=True, mask=query.mask
    )
    report = metrics.of_task(parts.loss_fn, outputs, query)
    report = {f"query/{k}": value for k, value in report.items()}
    kl = gaussian_kl(*posterior, *prior)
    report |= {"support/loss": path.losses[0], "kl": kl}
    weight = kl_weight
    if weight is None:
        weight = 1 / jnp.maximum(jnp.sum(query.mask), 1).astype(kl.dtype)
    state = parts.frame.collect(variables.state, path, query_state)
    return report["query/loss"] + weight * kl, (state, report)


def _shifted(
    parts: _Parts,
    variables: Variables,
    which: str,
    examples: Examples,
    support: Examples,
    key: Key | None,
    *,
    train: bool,
) -> PyTree:
    """`mu - gamma grad L(mu; examples)` of the parameters that have a distribution.

    Args:
      parts: Parts of the learner.
      variables: Variables of the learner.
      which: Whose gamma, "prior" or "posterior".
      examples: Examples of the shift.
      support: Support set, which tells the classes that are present.
      key: Key of the forward pass.
      train: Whether in training.
    """
    rate = variables.params[f"{which}_rate"]
    mu, points = parts.split(variables.params["model"])

    def loss(mu: PyTree, step: Array) -> tuple[Array, tuple]:
        params, state = trees.merge(mu, points), variables.state
        outputs, _ = parts.policy.support(
            params, state, examples, step, key=key, train=train
        )
        if parts.options["mask_absent_classes"]:
            present = present_classes(support, outputs.shape[-1])
            outputs = mask_absent(outputs, present)
        return parts.loss_fn(outputs, examples), ()

    def move(grads: PyTree, _: Any) -> PyTree:
        if parts.scalar_rates:
            return jax.tree.map(lambda g: -rate.astype(g.dtype) * g, grads)
        return jax.tree.map(lambda r, g: -r * g, rate, grads)

    step, how = optax.stateless(move), parts.options["differentiation"]
    return unroll(loss, mu, step, num_steps=1, differentiation=how).params


def _adapt(
    parts: _Parts,
    variables: Variables,
    theta: PyTree,
    support: Examples,
    key: Key | None,
    *,
    train: bool,
) -> tuple[Adapted, Unrolled]:
    """The inner steps from a sample of the initialisation."""
    points = parts.split(variables.params["model"])[1]
    start = Variables(params=trees.merge(theta, points), state=variables.state)
    return parts.frame.adapt(start, None, support, key=key, train=train)
