"""BMG: the meta-learner chases a target that it reaches itself by further steps.

S. Flennerhag, Y. Schroecker, T. Zahavy, H. van Hasselt, D. Silver, S. Singh. Bootstrapped
Meta-Learning. ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack, get_args

import jax
import jax.numpy as jnp

from metalearn.algorithms.bilevel import AdaptedTask, Hooks, bilevel
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, metrics, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, InnerHparams, InnerOpt, LossFn, PyTree
from metalearn.inner import Adapted, Descent, Normaliser, descent, normaliser

Match = Literal["kl", "l2"]


@takes_options()
def bmg(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    num_steps: int = 1,
    target_steps: int = 1,
    target_rate: float = 0.1,
    match: Match = "kl",
    temperature: float = 1.0,
    inner_hparams: InnerHparams | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Learns an initialisation whose K steps arrive where more steps would have led.

    The learner `x` is the model after K inner steps on the support set. The target goes on
    from there, with a copy of the state of the inner optimiser: L - 1 more steps on the
    support set, then one on the query set, `t = x_{K+L-1} - target_rate grad
    L(x_{K+L-1}; query)`. Outer objective: the mean over tasks of `mu(t, x_K)`, with no
    derivative through `t`. So the horizon is K + L steps, while derivatives are taken
    through K only.

    Matching functions `mu`:

    - "kl": the mean over the queries of `KL(p_t || p_x)`, target first, with
      `p = softmax(logits / temperature)`. Near the target its derivative is that of the
      squared distance, multiplied by the Fisher matrix of the predictions.
    - "l2": `|t - x|^2 / 2` over all parameters of the model. With L = 1 the meta-gradient
      is exactly `target_rate` times that of MAML.

    The last step of the target moves every parameter, also those that `adapt_filter` keeps
    from adapting. Meta-gradients shrink with `target_rate`: scale the rate of a plain outer
    SGD, or use Adam.

    The paper leaves target and matching function open and has both of these. Taking the
    queries for the last step as well as for the match, and the temperature, are choices
    made here.

    Args:
      model: The network; for "kl" with logits `[Q, W]`, `W >= 2`.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation, or a function `hparams -> transformation` whose
        `hparams` are learned as well, by matching.
      num_steps: K, inner steps, at least 1.
      target_steps: L, steps of the target, at least 1; the last is that on the query set.
      target_rate: Size of the last step, a finite number of 0 or more. With 0 and L = 1
        there is nothing to learn: the target is the learner.
      match: Matching function mu, "kl" or "l2".
      temperature: Positive; for "kl" only. Predictions of both sides are softened by it.
      inner_hparams: As in `maml`.
      norm: Batch-norm policy: "support", "batch" or "running"; see `metalearn.inner.norm`.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` whose variables and adapted objects are those of `maml`. The metrics
      of a task hold `match/loss`, and `target/loss`, the query loss where the last step of
      the target begins.

    Raises:
      ValueError: an option is out of range; `norm="per_step"`, which has no statistics for
        the steps of the target; in `estimate`: "kl" without logits and class indices.

    Example:
      >>> learner = ml.bmg(model, ml.losses.cross_entropy, optax.sgd(0.1), num_steps=1,
      ...                  target_steps=5, target_rate=0.1)
    """
    checks.whole_number("num_steps", num_steps, least=1)
    checks.whole_number("target_steps", target_steps, least=1)
    checks.one_of("match", match, get_args(Match))
    checks.number("target_rate", target_rate)
    checks.number("temperature", temperature, positive=True)
    norm = options.get("norm", "support")
    if norm == "per_step":
        raise ValueError(
            "norm='per_step' keeps statistics for the K inner steps, but the target takes "
            "further ones. Use 'support', 'batch' or 'running'."
        )
    further = descent(
        model,
        loss_fn,
        inner_opt,
        num_steps=target_steps - 1,
        differentiation="first_order",
        adapt_filter=options.get("adapt_filter"),
        norm=norm,
        mask_absent_classes=options.get("mask_absent_classes", False),
    )
    target_of = _target(further, normaliser(model, norm, num_steps), float(target_rate))
    settings = {
        "target_steps": target_steps,
        "target_rate": float(target_rate),
        "match": match,
        "temperature": float(temperature),
    }
    hooks = Hooks(
        outer=_matching(target_of, match, float(temperature)),
        inner_hparams=inner_hparams,
        settings=settings,
    )
    return bilevel(
        "bmg", model, loss_fn, inner_opt, num_steps=num_steps, hooks=hooks, **options
    )


def _target(further: Descent, policy: Normaliser, rate: float) -> Callable:
    """`(adapted task, loss_fn) -> (target, query loss before its last step)`.

    Args:
      further: The L - 1 steps on the support set.
      policy: How batch norm is applied.
      rate: Size of the last step, that on the query set.
    """

    def target_of(done: AdaptedTask, loss_fn: LossFn) -> tuple[Adapted, Array]:
        # The target is a constant of the objective. It is cut off here, before its steps,
        # so that none of them is stored for a derivative.
        learner, hparams, opt_state = jax.lax.stop_gradient(
            (done.adapted, done.start.hparams, done.path.opt_state)
        )
        support, query = done.task.support, done.task.query
        k_steps, k_settle = jax.random.split(jax.random.fold_in(done.key, 1))
        begin = Variables(params=learner.params, state=learner.state)
        reached, _ = further.adapt(
            begin, hparams, support, key=k_steps, train=True, opt_state=opt_state
        )

        def settled(params: PyTree) -> Adapted:
            state = policy.settle(params, learner.state, support, key=k_settle)
            return learner.replace(params=params, state=state)

        def query_loss(params: PyTree) -> Array:
            outputs, _ = done.predict(
                settled(params), query.x, key=done.key, mask=query.mask
            )
            return loss_fn(outputs, query)

        loss, slope = jax.value_and_grad(query_loss)(reached.params)
        params = jax.tree.map(lambda p, g: p - rate * g, reached.params, slope)
        return settled(params), loss

    return target_of


def _matching(target_of: Callable, match: Match, temperature: float) -> Callable:
    """The outer objective of `bilevel`: `mu(t, x_K)`."""

    def outer(done: AdaptedTask, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
        query = done.task.query

        def predict(adapted: Adapted) -> tuple[PyTree, PyTree]:
            return done.predict(adapted, query.x, key=done.key, mask=query.mask)

        outputs, state = predict(done.adapted)
        target, target_loss = target_of(done, loss_fn)
        if match == "kl":
            check_logits(outputs, query)
            loss = divergence(predict(target)[0], outputs, query.mask, temperature)
        else:
            loss = half_squared_distance(target.params, done.adapted.params)
        report = metrics.of_task(loss_fn, outputs, query)
        report = {f"query/{name}": value for name, value in report.items()}
        report |= {"match/loss": loss, "target/loss": target_loss}
        return loss, report, state

    return outer


def divergence(target: Array, logits: Array, mask: Array, temperature: float) -> Array:
    """Mean over valid rows of `KL(softmax(target / T) || softmax(logits / T))`.

    Args:
      target: Logits `[Q, W]` of the target; no derivative is taken with respect to them.
      logits: `[Q, W]`, of the learner.
      mask: Bool `[Q]`.
      temperature: T.
    """
    # The learner chases the target; the target must not come to meet it.
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(target) / temperature)
    log_q = jax.nn.log_softmax(logits / temperature)
    p = jnp.exp(log_p)
    # A class that is masked for both may be at minus infinity, whose difference from
    # itself is not a number.
    gaps = jnp.where(p > 0, log_p - log_q, 0)
    return trees.masked_mean(jnp.sum(p * gaps, axis=-1), mask)


def half_squared_distance(target: PyTree, params: PyTree) -> Array:
    """`|t - x|^2 / 2` over all leaves."""
    squares = jax.tree.map(lambda t, x: jnp.sum(jnp.square(t - x)), target, params)
    return 0.5 * sum(jax.tree.leaves(squares))


def check_logits(outputs: Any, query: Examples) -> None:
    """Raises a `ValueError` unless these are logits of a classification task."""
    shape, y = getattr(outputs, "shape", ()), query.y
    classes = hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.integer)
    if len(shape) != 2 or shape[-1] < 2 or not classes:
        raise ValueError(
            f"match='kl' got outputs of shape {shape} and targets of dtype "
            f"{getattr(y, 'dtype', type(y).__name__)}; expected logits [Q, W] with W >= 2 "
            "and integer class indices. Use match='l2' for other outputs."
        )
