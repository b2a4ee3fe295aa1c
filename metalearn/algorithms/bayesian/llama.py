"""LLAMA: MAML as empirical Bayes, with the curvature of the task's posterior.

E. Grant, C. Finn, S. Levine, T. Darrell, T. Griffiths. Recasting Gradient-Based
Meta-Learning as Hierarchical Bayes. ICLR 2018. The name is that of the paper's lightweight
Laplace approximation for meta-adaptation.

What stands behind the objective. It is minus the logarithm of the evidence up to what does
not depend on theta, for `eta = 1` and losses that are sums. Batch norm's statistics are
held fixed in the curvature, at those of predictions.

What differs from the paper, of which we know of no released code. It has K-FAC, which needs
to see the layers of a network. Here "kronecker" takes any array of two or more axes as a
matrix of (all axes but the last) x (last). From its exact block of `sum_n G_n`, of trace
`t`, it takes the partial traces `A`, `B` for `A (x) B / t`. Like K-FAC it is exact for a
dense layer and one example, and it keeps the trace of the block. It does not assume inputs
and gradients of a layer independent. The determinant is exact in the eigenvalues, without
factored damping. Objectives that are written as `L + eta log det H` have half of this eta.

How the paper predicts. It draws samples for sinusoids as `num_samples` does, and predicts
by `phi` in classification.

What memory is needed. It is the derivative of every output of every support example in
every parameter, `N W P` numbers a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bayesian.ensemble import (
    Combine,
    check_combine,
    combine_outputs,
)
from metalearn.algorithms.bayesian.laplace import (
    CURVATURES,
    Curvature,
    Laplace,
    check_blocks,
    laplace,
    output_hessian,
)
from metalearn.algorithms.bilevel import AdaptedTask, Hooks, bilevel, last_step
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, kinds, losses, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree
from metalearn.inner import Adapted, Descent, descent
from metalearn.inner.norm import NormPolicy


@takes_options()
def llama(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 1,
    eta: float = 1e-6,
    prior_precision: float = 1e-3,
    likelihood_weight: float = 1.0,
    curvature: Curvature = "kronecker",
    head: str = "head",
    num_samples: int = 0,
    combine: Combine | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML that also asks for a posterior of large volume at the adapted parameters.

    The steps of MAML find a mode `phi` of the posterior of a task under the prior that
    initialisation, rate and number of steps imply. Laplace's approximation integrates
    around it, and the objective of a task becomes

        L(phi; query) + eta/2 log det H,    H = sum_n G_n(phi; support) + tau I

    `G_n` is the generalised Gauss-Newton matrix of the log-likelihood of one support
    example, which for a softmax is its Fisher information. With `num_samples` predictions
    are the mixture of `phi + H^-1/2 noise`; without, those of `phi`.

    What differs from the paper stands at the top of the file, as does the memory needed.

    Args:
      model: The network.
      loss_fn: Mean over examples of minus the log-likelihood, twice differentiable and
        convex in the outputs, e.g. `ml.losses.cross_entropy`.
      inner_opt: An optax transformation.
      num_steps: S, inner steps.
      eta: Weight of the determinant, 0 or more; 0 is MAML. The mean loss of the queries
        is the Q-th part of their sum, so the evidence has `eta = 1/Q`; the paper's weight
        is of the order of 1e-6.
      prior_precision: tau, positive: isotropic precision of the prior of phi around theta.
        Samples deviate by `tau^-1/2` in directions that no support example speaks of, so
        for them take one over the variance of the weights, and much more for a network of
        many.
      likelihood_weight: Factor that makes a log-likelihood of `loss_fn` in H: for
        `ml.losses.mse` of one output with errors of variance s^2 it is `1 / (2 s^2)`.
      curvature: Part of H that is kept. "kronecker": one block an array; those of one axis
        are exact. "diagonal": the exact diagonal. "last_layer": one exact block of the
        head alone, the other parameters have neither determinant nor noise.
      head: Regular expression found in the paths of the head's parameters, for
        "last_layer".
      num_samples: M, samples of evaluation, or 0 for `phi` itself.
      combine: Way in which M predictions become one: "probabilities" for classification,
        whose outputs are then log-probabilities; "mean" for regression. `None` for the
        second with `ml.losses.mse` and else the first.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt, and have a posterior;
        all when `None`.
      norm: Batch-norm policy: "support", "running" or "per_step"; see
        `metalearn.inner.norm`.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` with the variables of `maml`. Its adapted object is an `Adapted`,
      under `num_samples` with a leading axis M on every leaf, drawn by the key of `adapt`;
      without one by a fixed key, the same draws for every task. The metric
      `laplace/log_det` is log det H.

    Raises:
      ValueError: an option is out of range; `norm="batch"`, under which examples have no
        curvature of their own; in `init`: a block is larger than 2048, or `head` occurs
        in no path of a parameter that adapts.

    Example:
      >>> learner = ml.llama(model, ml.losses.cross_entropy, optax.sgd(0.05), eta=1e-4)
    """
    adapt_filter, norm = options.get("adapt_filter"), options.get("norm", "support")
    settings = {
        "eta": eta,
        "prior_precision": prior_precision,
        "likelihood_weight": likelihood_weight,
        "curvature": curvature,
        "num_samples": num_samples,
    }
    _check(**settings, norm=norm)
    if combine is None:
        combine = "mean" if loss_fn is losses.mse else "probabilities"
    check_combine(combine)
    frame = descent(
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        norm=norm,
        mask_absent_classes=options.get("mask_absent_classes", False),
    )
    uncertain = _uncertain(curvature, head, adapt_filter)
    numbers = (likelihood_weight, prior_precision, curvature)

    def posterior(adapted: Adapted, support: Examples) -> Laplace:
        return _posterior(frame, loss_fn, uncertain, adapted, support, *numbers)

    def outer(done: AdaptedTask, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
        loss, report, state = last_step(done, loss_fn)
        if eta:
            log_det = posterior(done.adapted, done.task.support).log_det
            loss, report = loss + 0.5 * eta * log_det, report | {"laplace/log_det": log_det}
        return loss, report, state

    learner = bilevel(
        "llama",
        _checked(model, uncertain, curvature, head),
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(outer=outer, settings=settings),
        **options,
    )
    return _with_samples(learner, posterior, uncertain, num_samples, combine)


def _check(
    eta: float,
    prior_precision: float,
    likelihood_weight: float,
    curvature: Curvature,
    num_samples: int,
    norm: NormPolicy,
) -> None:
    """Refuses numbers out of range, and what has no curvature."""
    checks.number("eta", eta)
    checks.number("prior_precision", prior_precision, positive=True)
    checks.number("likelihood_weight", likelihood_weight, positive=True)
    checks.one_of("curvature", curvature, CURVATURES)
    checks.whole_number("num_samples", num_samples, least=0)
    if norm == "batch":
        raise ValueError(
            "norm='batch' lets examples influence one another, but llama adds up the "
            "curvature of single ones. Use norm='support', 'running' or 'per_step'."
        )


def _uncertain(
    curvature: Curvature, head: str, adapt_filter: PathFilter | str | None
) -> PathFilter:
    """Which parameters have a posterior."""
    in_head = trees.path_filter(head)
    if isinstance(adapt_filter, str):
        adapt_filter = trees.path_filter(adapt_filter)

    def uncertain(path: str, leaf: Any) -> bool:
        if curvature == "last_layer" and not in_head(path, leaf):
            return False
        return adapt_filter is None or adapt_filter(path, leaf)

    return uncertain


def _with_samples(
    learner: MetaLearner,
    posterior: Callable[[Adapted, Examples], Laplace],
    uncertain: PathFilter,
    num_samples: int,
    combine: Combine,
) -> MetaLearner:
    """A learner whose predictions are mixtures of samples, or itself if these are none.

    Args:
      learner: The learner that finds the mode.
      posterior: `(adapted, support) -> Laplace`, the posterior around a mode.
      uncertain: Parameters that have a posterior.
      num_samples: M, samples of a task, or 0 for the mode itself.
      combine: Way in which M predictions become one.
    """

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        # Samples need a key in any case; the model has one only if one was given.
        keys = (jax.random.key(0), None)
        k_draw, k_adapt = keys if key is None else jax.random.split(key)
        adapted = learner.adapt(variables, support, key=k_adapt)
        if not num_samples:
            return adapted
        around = posterior(adapted, support)
        return _samples(around, uncertain, adapted, k_draw, num_samples)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        if not num_samples:
            return learner.predict(adapted, x, key=key, mask=mask)
        kinds.adapted(adapted, Adapted)
        each = jax.vmap(lambda one: learner.predict(one, x, key=key, mask=mask))(adapted)
        return combine_outputs(each, combine)

    return learner._replace(adapt=adapt, predict=predict)


def _samples(
    around: Laplace, uncertain: PathFilter, mode: Adapted, key: Key, num: int
) -> Adapted:
    """Draws from the posterior around a mode, with a leading axis on every leaf."""
    params, rest = trees.split(mode.params, uncertain)

    def one(key: Key) -> Adapted:
        moved = jax.tree.map(jnp.add, params, around.draw(key))
        return mode.replace(params=trees.merge(moved, rest))

    return jax.vmap(one)(jax.random.split(key, num))


def _posterior(
    frame: Descent,
    loss_fn: LossFn,
    uncertain: PathFilter,
    adapted: Adapted,
    support: Examples,
    weight: float,
    precision: float,
    curvature: Curvature,
) -> Laplace:
    """Laplace's approximation around adapted parameters.

    Args:
      frame: Applies the adapted model.
      loss_fn: Loss of one task.
      uncertain: Which parameters have a posterior.
      adapted: The mode.
      support: The examples that the posterior has seen.
      weight: Makes a log-likelihood of `loss_fn`.
      precision: tau.
      curvature: What is kept of H.
    """
    params, rest = trees.split(adapted.params, uncertain)

    def predict(adapted: Adapted, x: PyTree) -> Array:
        return frame.predict(adapted, x)[0]

    def outputs(params: PyTree, x: PyTree) -> Array:
        """`[D]`, of one example."""
        whole = adapted.replace(params=trees.merge(params, rest))
        row = jax.tree.map(lambda leaf: leaf[None], x)
        return jnp.ravel(predict(whole, row)[0])

    like = jax.eval_shape(predict, adapted, support.x)
    rows = jax.vmap(outputs, in_axes=(None, 0))(params, support.x)
    trees.one_array(rows, "the output of the network", "[N, W], for its curvature")
    jacobian = jax.vmap(jax.jacrev(outputs), in_axes=(None, 0))(params, support.x)
    hessian = output_hessian(loss_fn, rows.reshape(like.shape), support)
    return laplace(jacobian, weight * hessian, precision, curvature)


def _checked(model: Model, uncertain: PathFilter, curvature: Curvature, head: str) -> Model:
    """The model, whose `init` refuses parameters that no posterior can be made of."""

    def init(key: Key, x: PyTree) -> Variables:
        variables = model.init(key, x)
        chosen = trees.split(variables.params, uncertain)[0]
        if curvature == "last_layer" and not jax.tree.leaves(chosen):
            raise ValueError(
                f"head={head!r} occurs in no path of a parameter that adapts, so nothing "
                "would have a posterior. The paths are: "
                + ", ".join(trees.leaf_paths(variables.params))
            )
        check_blocks(chosen, curvature)
        return variables

    return model._replace(init=init)
