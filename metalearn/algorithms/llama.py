"""LLAMA: MAML as empirical Bayes, with the curvature of the task's posterior.

E. Grant, C. Finn, S. Levine, T. Darrell, T. Griffiths. Recasting Gradient-Based
Meta-Learning as Hierarchical Bayes. ICLR 2018. The name is that of the paper's lightweight
Laplace approximation for meta-adaptation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metalearn import _checks, _tree, losses
from metalearn._task import Examples, Task
from metalearn._typing import Array, Key, LossFn, PathFilter, PyTree
from metalearn.bilevel import Episode, bilevel, last_step, refuse_implicit
from metalearn.ensemble import COMBINE, combine_outputs
from metalearn.inner import Adapted, descent
from metalearn.learner import MetaLearner
from metalearn.model import Model, Variables

CURVATURES = ("kronecker", "diagonal", "last_layer")
LARGEST = 2048  # parameters of a dense block


def llama(
    model: Model,
    loss_fn: LossFn,
    inner_opt: Any,
    *,
    num_steps: int = 1,
    eta: float = 1e-6,
    prior_precision: float = 1e-3,
    likelihood_weight: float = 1.0,
    curvature: str = "kronecker",
    head: str = "head",
    num_samples: int = 0,
    combine: str | None = None,
    adapt_filter: PathFilter | None = None,
    norm: str = "support",
    name: str = "llama",
    **options: Any,
) -> MetaLearner:
    """MAML that also asks for a posterior of large volume at the adapted parameters.

    The steps of MAML find a mode `phi` of the posterior of a task under the prior that
    initialisation, rate and number of steps imply. Laplace's approximation integrates
    around it, and the objective of a task becomes

        L(phi; query) + eta/2 log det H,    H = sum_n G_n(phi; support) + tau I,

    minus the logarithm of the evidence up to what does not depend on theta, for `eta = 1`
    and losses that are sums. `G_n` is the generalised Gauss-Newton matrix of the
    log-likelihood of one support example, which for a softmax is its Fisher information.
    Batch norm's statistics are held fixed in it, at those of predictions.

    With `num_samples` predictions are the mixture of `phi + H^-1/2 noise`, by which the
    paper draws its samples of sinusoids; without, those of `phi`, as in its classification.

    Differs from the paper, of which we know of no released code: it has K-FAC, which
    needs to see the layers of a network. "kronecker" takes any array of two or more axes
    as a matrix of (all axes but the last) x (last) and the partial traces `A`, `B` of its
    exact block of `sum_n G_n`, of trace `t`, for `A (x) B / t`. Like K-FAC it is exact for
    a dense layer and one example, and it keeps the trace of the block; it does not assume
    inputs and gradients of a layer independent. The determinant is exact in the
    eigenvalues, without factored damping. Objectives that are written as
    `L + eta log det H` have half of this eta.

    Args:
      model: The network.
      loss_fn: Mean over examples of minus the log-likelihood, twice differentiable and
        convex in the outputs, e.g. `ml.losses.cross_entropy`.
      inner_opt: As in `maml`.
      num_steps: S, inner steps.
      eta: Weight of the determinant, 0 or more; 0 is MAML. The mean loss of the queries
        is the Q-th part of their sum, so the evidence has `eta = 1/Q`; the paper's weight
        is of the order of 1e-6.
      prior_precision: tau, positive: isotropic precision of the prior of phi around theta.
        Samples deviate by `tau^-1/2` in directions that no support example speaks of, so
        for them take one over the variance of the weights, and much more for a network of
        many.
      likelihood_weight: Makes a log-likelihood of `loss_fn` in H: for `ml.losses.mse` of
        one output with errors of variance s^2 it is `1 / (2 s^2)`.
      curvature: "kronecker": one block an array; those of one axis are exact.
        "diagonal": the exact diagonal. "last_layer": one exact block of the head alone,
        the other parameters have neither determinant nor noise.
      head: Regular expression found in the paths of the head's parameters, for
        "last_layer".
      num_samples: M, samples of evaluation, or 0 for `phi` itself.
      combine: How M predictions become one: "probabilities" for classification, whose
        outputs are then log-probabilities; "mean" for regression. `None` for the second
        with `ml.losses.mse` and else the first.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt, and have a posterior;
        all when `None`.
      norm: "support", "running" or "per_step", see `metalearn.inner.norm`.
      name: What `describe` calls it.
      **options: Those of `maml`: `differentiation`, `inner_hparams`,
        `mask_absent_classes`, `task_chunk`.

    Memory: the derivative of every output of every support example in every parameter,
    `N W P` numbers a task.

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
    refuse_implicit(name, options.get("differentiation"))
    _checks.number("eta", eta)
    _checks.number("prior_precision", prior_precision, positive=True)
    _checks.number("likelihood_weight", likelihood_weight, positive=True)
    _checks.whole_number("num_samples", num_samples, least=0)
    if combine is None:
        combine = "mean" if loss_fn is losses.mse else "probabilities"
    for option, value, known in (
        ("curvature", curvature, CURVATURES),
        ("combine", combine, COMBINE),
    ):
        if value not in known:
            raise ValueError(f"{option} is {value!r}; expected one of {', '.join(known)}.")
    if norm == "batch":
        raise ValueError(
            "norm='batch' lets examples influence one another, but llama adds up the "
            "curvature of single ones. Use norm='support', 'running' or 'per_step'."
        )
    frame = descent(
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        norm=norm,
        mask_absent_classes=options.get("mask_absent_classes", False),
    )
    in_head = _tree.path_filter(head)

    def uncertain(path: str, leaf: Any) -> bool:
        """Which parameters have a posterior."""
        if curvature == "last_layer" and not in_head(path, leaf):
            return False
        return adapt_filter is None or adapt_filter(path, leaf)

    def predict_all(adapted, x, *, key=None, mask=None) -> Array:
        return frame.predict(adapted, x, key=key, mask=mask)[0]

    def posterior(adapted: Adapted, support: Examples) -> Laplace:
        params, rest = _tree.split(adapted.params, uncertain)

        def outputs(params: PyTree, x: PyTree) -> Array:
            """`[D]`, of one example."""
            whole = adapted.replace(params=_tree.merge(params, rest))
            row = jax.tree.map(lambda leaf: leaf[None], x)
            return jnp.ravel(predict_all(whole, row)[0])

        like = jax.eval_shape(predict_all, adapted, support.x)
        rows = jax.vmap(outputs, in_axes=(None, 0))(params, support.x)
        jacobian = jax.vmap(jax.jacrev(outputs), in_axes=(None, 0))(params, support.x)
        hessian = output_hessian(loss_fn, rows.reshape(like.shape), support)
        return laplace(jacobian, likelihood_weight * hessian, prior_precision, curvature)

    def outer(episode: Episode, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
        loss, report, state = last_step(episode, loss_fn)
        if eta:
            log_det = posterior(episode.adapted, episode.task.support).log_det
            loss, report = loss + 0.5 * eta * log_det, report | {"laplace/log_det": log_det}
        return loss, report, state

    learner = bilevel(
        name,
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        adapt_filter=adapt_filter,
        norm=norm,
        outer=outer,
        settings={
            "eta": eta,
            "prior_precision": prior_precision,
            "likelihood_weight": likelihood_weight,
            "curvature": curvature,
            "num_samples": num_samples,
        },
        **options,
    )

    def init(key: Key, task: Task) -> Variables:
        variables = learner.init(key, task)
        nested = options.get("inner_hparams") is not None
        params = variables.params["model"] if nested else variables.params
        _check_blocks(_tree.split(params, uncertain)[0], params, curvature, head)
        return variables

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        keys = (jax.random.key(0), None)
        k_draw, k_adapt = keys if key is None else jax.random.split(key)
        adapted = learner.adapt(variables, support, key=k_adapt)
        if not num_samples:
            return adapted
        around = posterior(adapted, support)
        params, rest = _tree.split(adapted.params, uncertain)

        def one(key: Key) -> Adapted:
            moved = jax.tree.map(jnp.add, params, around.draw(key))
            return adapted.replace(params=_tree.merge(moved, rest))

        return jax.vmap(one)(jax.random.split(k_draw, num_samples))

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        if not num_samples:
            return predict_all(adapted, x, key=key, mask=mask)
        outputs = jax.vmap(lambda one: predict_all(one, x, key=key, mask=mask))(adapted)
        return combine_outputs(outputs, combine)

    return learner._replace(init=init, adapt=adapt, predict=predict)


class Laplace(NamedTuple):
    """A Gaussian of precision H.

    Attributes:
      log_det: Scalar, log det H.
      draw: `key -> deviations from the mean`, a tree like the parameters.
    """

    log_det: Array
    draw: Callable[[Key], PyTree]


def laplace(jacobian: PyTree, hessian: Array, precision: float, kind: str) -> Laplace:
    """The posterior from the derivatives of a network.

    Args:
      jacobian: Derivatives of the outputs of each example, leaves `[N, D, ...]`.
      hessian: Of the loss of each example in its outputs, `[N, D, D]`.
      precision: tau.
      kind: One of `CURVATURES`.

    Half precision is not enough for a determinant: it is found in single.
    """
    given = jax.tree.map(lambda leaf: leaf.dtype, jacobian)
    jacobian, hessian = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf,
        (jacobian, hessian),
    )
    found = _laplace(jacobian, hessian, precision, kind)

    def draw(key: Key) -> PyTree:
        return jax.tree.map(lambda leaf, like: leaf.astype(like), found.draw(key), given)

    return Laplace(found.log_det, draw)


def _laplace(jacobian: PyTree, hessian: Array, precision: float, kind: str) -> Laplace:
    weighted = jax.tree.map(
        lambda leaf: jnp.einsum("nij,nj...->ni...", hessian, leaf), jacobian
    )
    if kind == "last_layer":
        flat = jax.vmap(jax.vmap(lambda tree: ravel_pytree(tree)[0]))
        _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0, 0], jacobian))
        whole = _dense(flat(jacobian), flat(weighted), precision)
        return Laplace(whole.log_det, lambda key: unravel(whole.draw(key)))
    leaves, treedef = jax.tree.flatten(jacobian)
    blocks = [
        (_diagonal if kind == "diagonal" else _dense if leaf.ndim <= 3 else _kronecker)(
            leaf, other, precision
        )
        for leaf, other in zip(leaves, jax.tree.leaves(weighted), strict=True)
    ]

    def draw(key: Key) -> PyTree:
        keys = jax.random.split(key, len(blocks))
        draws = [block.draw(k) for block, k in zip(blocks, keys, strict=True)]
        return jax.tree.unflatten(treedef, draws)

    return Laplace(sum(block.log_det for block in blocks), draw)


def _diagonal(jacobian: Array, weighted: Array, precision: float) -> Laplace:
    found = jnp.sum(jacobian * weighted, axis=(0, 1)) + precision

    def draw(key: Key) -> Array:
        return jax.random.normal(key, found.shape, found.dtype) / jnp.sqrt(found)

    return Laplace(jnp.sum(jnp.log(found)), draw)


def _dense(jacobian: Array, weighted: Array, precision: float) -> Laplace:
    shape, rows = jacobian.shape[2:], math.prod(jacobian.shape[:2])
    left, right = jacobian.reshape(rows, -1), weighted.reshape(rows, -1)
    matrix = left.T @ right

    def draw(key: Key) -> Array:
        found, vectors = jnp.linalg.eigh(matrix)
        noise = jax.random.normal(key, found.shape, found.dtype)
        return (vectors @ (noise / jnp.sqrt(_clean(found) + precision))).reshape(shape)

    values = _clean(jnp.linalg.eigvalsh(matrix)) + precision
    return Laplace(jnp.sum(jnp.log(values)), draw)


def _kronecker(jacobian: Array, weighted: Array, precision: float) -> Laplace:
    shape, rows = jacobian.shape[2:], math.prod(jacobian.shape[:2])
    left, right = (a.reshape(rows, -1, shape[-1]) for a in (jacobian, weighted))
    inputs = jnp.einsum("kio,kjo->ij", left, right)
    outputs = jnp.einsum("kio,kip->op", left, right)
    # An array that nothing depends on has no trace; its block is the prior alone.
    trace = jnp.trace(inputs)
    outputs = outputs / jnp.where(trace > 0, trace, 1)

    def together(a: Array, b: Array) -> Array:
        return _clean(a)[:, None] * _clean(b)[None] + precision

    values = together(jnp.linalg.eigvalsh(inputs), jnp.linalg.eigvalsh(outputs))

    def draw(key: Key) -> Array:
        (a, left), (b, right) = jnp.linalg.eigh(inputs), jnp.linalg.eigh(outputs)
        noise = jax.random.normal(key, (a.size, b.size), a.dtype)
        return (left @ (noise / jnp.sqrt(together(a, b))) @ right.T).reshape(shape)

    return Laplace(jnp.sum(jnp.log(values)), draw)


def _clean(values: Array) -> Array:
    """Ascending eigenvalues `[P]`, with zeros for what may be rounding of the largest.

    Of zeros that makes small numbers of either sign, which tau may not outweigh.
    """
    rounding = values.size * jnp.finfo(values.dtype).eps * values[-1]
    return jnp.where(values > rounding, values, 0)


def output_hessian(loss_fn: LossFn, outputs: Array, examples: Examples) -> Array:
    """Second derivative of the loss of each example in its own outputs.

    Args:
      loss_fn: Mean loss of one task.
      outputs: `[N, ...]`, of D numbers an example.
      examples: Their targets, and the mask.

    Returns:
      `[N, D, D]`, zero for masked rows.
    """
    shape = outputs.shape[1:]

    def one(row: Array, x: PyTree, y: PyTree) -> Array:
        x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
        alone = Examples(x=x, y=y, mask=jnp.ones((1,), bool))
        return loss_fn(row.reshape(1, *shape), alone)

    rows = outputs.reshape(outputs.shape[0], -1)
    found = jax.vmap(jax.hessian(one))(rows, examples.x, examples.y)
    return jnp.where(examples.mask[:, None, None], found, 0)


def _check_blocks(chosen: PyTree, params: PyTree, curvature: str, head: str) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(chosen)
    if not leaves:
        raise ValueError(
            f"head={head!r} occurs in no path of a parameter that adapts, so nothing would "
            "have a posterior. The paths are: " + ", ".join(_tree.leaf_paths(params))
        )
    sizes = {}
    if curvature == "last_layer":
        sizes["the head"] = sum(leaf.size for _, leaf in leaves)
    elif curvature == "kronecker":
        for path, leaf in leaves:
            last = leaf.shape[-1] if leaf.ndim else 1
            sides = max(last, leaf.size // max(last, 1) if leaf.ndim > 1 else 1)
            sizes[_tree.path_string(path)] = sides
    for which, size in sizes.items():
        if size > LARGEST:
            raise ValueError(
                f"curvature={curvature!r} would factor a matrix of {size} x {size} for "
                f"{which}; the largest is {LARGEST}. Use curvature='diagonal', or let "
                "adapt_filter leave it out."
            )
