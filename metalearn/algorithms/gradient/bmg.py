"""BMG: the meta-learner chases a target that it reaches itself by further steps.

S. Flennerhag, Y. Schroecker, T. Zahavy, H. van Hasselt, D. Silver, S. Singh. Bootstrapped
Meta-Learning. ICLR 2022.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from metalearn.algorithms.bilevel import Episode, bilevel
from metalearn.core import checks, metrics, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, LossFn, PyTree
from metalearn.inner import Adapted, descent, normaliser
from metalearn.inner.differentiate import refuse_implicit

MATCHES = ("kl", "l2")


def bmg(
    model: Model,
    loss_fn: LossFn,
    inner_opt: Any,
    *,
    num_steps: int = 1,
    target_steps: int = 1,
    target_rate: float = 0.1,
    match: str = "kl",
    temperature: float = 1.0,
    **options: Any,
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
      num_steps: K, at least 1.
      target_steps: L, at least 1, the last of which is that on the query set.
      target_rate: Size of the last step, a finite number of 0 or more. With 0 and L = 1
        there is nothing to learn: the target is the learner.
      match: "kl" or "l2".
      temperature: Positive; for "kl" only. Predictions of both sides are softened by it.
      **options: `differentiation`, `adapt_filter`, `inner_hparams`, `norm` ("support",
        "batch" or "running"), `mask_absent_classes`, `task_chunk` and `name` of `maml`.

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
    checks.known_options(bmg, options, bilevel, but=("outer", "settings"))
    refuse_implicit("bmg", options.get("differentiation"))
    checks.whole_number("num_steps", num_steps, least=1)
    checks.whole_number("target_steps", target_steps, least=1)
    if match not in MATCHES:
        raise ValueError(f"match is {match!r}; expected one of {', '.join(MATCHES)}.")
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
    policy = normaliser(model, norm, num_steps)

    def target_of(episode: Episode) -> tuple[Adapted, Array]:
        """The target, and the query loss before its last step."""
        # Cut off here, so that nothing below has a derivative, or is stored for one.
        learner, hparams, opt_state = jax.lax.stop_gradient(
            (episode.adapted, episode.start.hparams, episode.path.opt_state)
        )
        support, query = episode.task.support, episode.task.query
        k_steps, k_settle = jax.random.split(jax.random.fold_in(episode.key, 1))
        begin = Variables(params=learner.params, state=learner.state)
        reached, _ = further.adapt(
            begin, hparams, support, key=k_steps, train=True, opt_state=opt_state
        )

        def settled(params: PyTree) -> Adapted:
            state = policy.settle(params, learner.state, support, key=k_settle)
            return learner.replace(params=params, state=state)

        def query_loss(params: PyTree) -> Array:
            outputs, _ = episode.predict(
                settled(params), query.x, key=episode.key, mask=query.mask
            )
            return loss_fn(outputs, query)

        loss, slope = jax.value_and_grad(query_loss)(reached.params)
        params = jax.tree.map(
            lambda p, g: p - float(target_rate) * g, reached.params, slope
        )
        return settled(params), loss

    def outer(episode: Episode, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
        query = episode.task.query

        def predict(adapted: Adapted) -> tuple[PyTree, PyTree]:
            return episode.predict(adapted, query.x, key=episode.key, mask=query.mask)

        outputs, state = predict(episode.adapted)
        target, target_loss = target_of(episode)
        if match == "kl":
            check_logits(outputs, query)
            loss = divergence(predict(target)[0], outputs, query.mask, float(temperature))
        else:
            loss = half_squared_distance(target.params, episode.adapted.params)
        report = metrics.of_task(loss_fn, outputs, query)
        report = {f"query/{name}": value for name, value in report.items()}
        report |= {"match/loss": loss, "target/loss": target_loss}
        return loss, report, state

    settings = {
        "target_steps": target_steps,
        "target_rate": float(target_rate),
        "match": match,
        "temperature": float(temperature),
    }
    return bilevel(
        options.pop("name", "bmg"),
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        outer=outer,
        settings=settings,
        **options,
    )


def divergence(target: Array, logits: Array, mask: Array, temperature: float) -> Array:
    """Mean over valid rows of `KL(softmax(target / T) || softmax(logits / T))`.

    Args:
      target: Logits `[Q, W]` of the target; no derivative is taken with respect to them.
      logits: `[Q, W]`, of the learner.
      mask: Bool `[Q]`.
      temperature: T.
    """
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(target) / temperature)
    log_q = jax.nn.log_softmax(logits / temperature)
    p = jnp.exp(log_p)
    # A class that is masked for both may be at minus infinity: not a number, without this.
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
