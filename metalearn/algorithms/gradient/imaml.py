"""iMAML: the meta-gradient of a proximal minimum, whatever path led to it.

A. Rajeswaran, C. Finn, S. Kakade, S. Levine. Meta-Learning with Implicit Gradients.
NeurIPS 2019.

What it costs. Nothing of the path is kept, so memory does not depend on `num_steps`, and
the optimiser need not be differentiable.

How near the minimum was. The formula of the meta-gradient holds at the minimum. Metrics of
a task say how near it was:

- `inner/residual`: the length of the gradient of the inner objective at the end.
- `solve/residual`: what conjugate gradients left, relative.
- `solve/negative_curvature`: 1 where `I + H / lam` was found not to be positive. There the
  solve ends with what it has, in its first step with the gradient of first-order MAML.

Where negative curvature is the rule, as for images with batch norm, damp: `lam=2.0,
pull_back=True, damping=22.0` learned there, no damping did not.

If `inner/residual` grows while training, the inner loop has begun to diverge. The
meta-gradient hardly sees directions of high curvature, so nothing holds the curvature down,
and a stiff spring asks for more of it. Lower the inner rate, or `lam`. A spring at every
step is far stiffer than the one pull of the released code, which at the paper's rate and
`lam=2` takes back a fifth of the way.

What differs from the released code. It takes plain steps on the support loss and then one
on the proximal term (`pull_back=True`). It solves with `(1 + d) I + H / (lam + 10)` for
`d = 1`. Its direction at `lam=2` is that of `damping=22`, six times as long. It evaluates
with `lam = 0`. Here adaptation is the same in training and evaluation; for `lam = 0` give
the parameters to `ml.fomaml` as those of its model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.core import checks, kinds, metrics, trees
from metalearn.core.estimators import mean_estimator
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.losses import mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.pairing import paired
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree, TaskChunk
from metalearn.inner import Adapted, Descent, Unrolled, descent, normaliser, unroll
from metalearn.inner.conjugate import conjugate_gradients
from metalearn.inner.norm import Normaliser, NormPolicy


def imaml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 16,
    lam: float = 2.0,
    cg_steps: int = 5,
    damping: float = 0.0,
    pull_back: bool = False,
    adapt_filter: PathFilter | str | None = None,
    norm: NormPolicy = "support",
    mask_absent_classes: bool = False,
    task_chunk: TaskChunk = "auto",
    name: str = "imaml",
) -> MetaLearner:
    """Learns an initialisation to which the solution of a task is held by a spring.

    Inner problem: `phi = argmin L(phi; support) + lam/2 |phi - theta|^2` (equation 4), here
    `num_steps` of `inner_opt` from `theta`. Meta-gradient, with the Hessian `H` of the
    support loss at `phi`: `(I + H / lam)^-1 grad L(phi; query)` (lemma 1, equation 6),
    solved by conjugate gradients (algorithm 2). Parameters that do not adapt get their part
    by the same theorem.

    What differs from the released code stands at the top of the file. What the metrics
    `inner/residual`, `solve/residual` and `solve/negative_curvature` say, and what to do
    about them, stands there as well.

    Args:
      model: The network.
      loss_fn: Loss of one task, twice differentiable in the outputs.
      inner_opt: An optax transformation; paper: `optax.sgd(0.1)` on Omniglot.
      num_steps: Inner steps; paper: 16 for 5 ways, 25 for 20.
      lam: Stiffness of the spring, positive: with 0 the minimum would not depend on the
        initialisation. For plain adaptation use `ml.maml`.
      cg_steps: Most steps of conjugate gradients; as many as parameters move is exact.
      damping: Number added to the diagonal of the Hessian in the solve.
      pull_back: Whether the proximal term leaves the steps, and one step on it follows
        them. The end is then no minimum, and `inner/residual` shows it.
      adapt_filter: Parameters that adapt: a regular expression that occurs in their paths,
        or `(path, leaf) -> bool`; all when `None`.
      norm: Policy "support", "batch" or "running", see `metalearn.inner.norm`. Every step
        sees the whole support set and the same key, so there is one function to minimise.
      mask_absent_classes: Whether to mask absent classes, where the number of ways varies.
      task_chunk: Tasks handled at once, or "auto".
      name: Name of the learner in `describe`.

    Returns:
      A `MetaLearner` with the parameters of the model and `Adapted` objects. Train it with
      Adam; paper: `optax.adam(1e-3, eps=1e-3)`.

    Raises:
      ValueError: an option is out of range, or `norm="per_step"`, under which every inner
        step has another objective.

    Example:
      >>> learner = ml.imaml(model, ml.losses.cross_entropy, optax.sgd(0.1), num_steps=16)
    """
    checks.whole_number("num_steps", num_steps, least=1)
    checks.whole_number("cg_steps", cg_steps, least=1)
    checks.inner_optimiser(inner_opt, None, second_order=False)
    checks.number("lam", lam, positive=True)
    checks.number("damping", damping)
    # A scalar of NumPy would be of a dtype of its own.
    lam, damping = float(lam), float(damping)
    if norm == "per_step":
        raise ValueError(
            "norm='per_step' gives every inner step an objective of its own, but imaml "
            "needs the minimum of one. Use 'support', 'batch' or 'running'."
        )
    frame = descent(
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        adapt_filter=adapt_filter,
        norm=norm,
        mask_absent_classes=mask_absent_classes,
    )
    solve = _solver(
        normaliser(model, norm, num_steps),
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        lam=lam,
        pull_back=pull_back,
        adapt_filter=adapt_filter,
        mask_absent_classes=mask_absent_classes,
    )
    gradient = _implicit_gradient(
        solve, frame, loss_fn, lam=lam, damping=damping, cg_steps=cg_steps
    )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        return frame.init(key, task)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support)
        end = solve(variables, support, key, train=False)
        return end.adapted(end.phi, end.fixed)

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return frame.predict(adapted, x, key=key, mask=mask)[0]

    config = config_of(
        name,
        num_steps=num_steps,
        lam=lam,
        cg_steps=cg_steps,
        damping=damping,
        pull_back=pull_back,
        norm=norm,
    )
    estimate = mean_estimator(gradient, task_chunk=task_chunk)
    made = MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))
    return made._replace(masks_absent=mask_absent_classes)


class _End(NamedTuple):
    """Where the inner loop of one task ends.

    Attributes:
      theta: Start of the parameters that adapt.
      phi: End of the parameters that adapt.
      fixed: The parameters that do not adapt.
      path: The inner loop.
      slope: `(phi, fixed) -> gradient` of the support loss in phi.
      adapted: `(phi, fixed) -> Adapted`, the model with these parameters.
    """

    theta: PyTree
    phi: PyTree
    fixed: PyTree
    path: Unrolled
    slope: Callable[[PyTree, PyTree], PyTree]
    adapted: Callable[[PyTree, PyTree], Adapted]


def _solver(
    policy: Normaliser,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int,
    lam: float,
    pull_back: bool,
    adapt_filter: PathFilter | str | None,
    mask_absent_classes: bool,
) -> Callable[..., _End]:
    """`(variables, support, key, *, train) -> _End` of the inner problem (equation 4)."""

    def solve(
        variables: Variables, support: Examples, key: Key | None, *, train: bool
    ) -> _End:
        theta, fixed = trees.split(variables.params, adapt_filter)
        k_loss, k_settle = split_key(key)

        def support_loss(phi: PyTree, fixed: PyTree) -> tuple[Array, Array | None]:
            params = trees.merge(phi, fixed)
            outputs, _ = policy.support(
                params, variables.state, support, 0, key=k_loss, train=train
            )
            present = None
            if mask_absent_classes:
                present = present_classes(support, outputs.shape[-1])
                outputs = mask_absent(outputs, present)
            return paired(loss_fn, outputs, support), present

        def inner_loss(phi: PyTree, step: Any) -> tuple[Array, Array | None]:
            del step
            loss, present = support_loss(phi, fixed)
            return loss if pull_back else loss + _spring(lam, phi, theta), present

        path = unroll(inner_loss, theta, inner_opt, num_steps=num_steps)
        phi = path.params
        if pull_back:
            updates, _ = inner_opt.update(_pull(lam, phi, theta), path.opt_state, phi)
            phi = optax.apply_updates(phi, updates)
        present = jax.tree.map(lambda p: p[-1], path.aux)

        def slope(phi: PyTree, fixed: PyTree) -> PyTree:
            return jax.grad(support_loss, has_aux=True)(phi, fixed)[0]

        def adapted(phi: PyTree, fixed: PyTree) -> Adapted:
            params = trees.merge(phi, fixed)
            state = policy.settle(params, variables.state, support, key=k_settle)
            return Adapted(params=params, state=state, present=present)

        return _End(theta, phi, fixed, path, slope, adapted)

    return solve


def _implicit_gradient(
    solve: Callable[..., _End],
    frame: Descent,
    loss_fn: LossFn,
    *,
    lam: float,
    damping: float,
    cg_steps: int,
) -> Callable[..., tuple[PyTree, tuple]]:
    """The meta-gradient of one task at the end of its inner loop (lemma 1)."""

    def gradient(variables: Variables, task: Task, *, key: Key) -> tuple[PyTree, tuple]:
        k_adapt, k_query = jax.random.split(key)
        end = solve(variables, task.support, k_adapt, train=True)
        phi, fixed = end.phi, end.fixed

        def query_loss(phi: PyTree, fixed: PyTree):
            query = task.query
            outputs, state = frame.predict(
                end.adapted(phi, fixed), query.x, key=k_query, train=True, mask=query.mask
            )
            report = metrics.of_task(loss_fn, outputs, query)
            return report["loss"], (report, state)

        (wanted, direct), (report, query_state) = jax.grad(
            query_loss, argnums=(0, 1), has_aux=True
        )(phi, fixed)
        inner_slope, curved = jax.linearize(lambda p: end.slope(p, fixed), phi)
        solved = conjugate_gradients(
            lambda v: jax.tree.map(lambda h, x: x + (h + damping * x) / lam, curved(v), v),
            wanted,
            max_steps=cg_steps,
        )
        if jax.tree.leaves(fixed):
            through = jax.vjp(lambda f: end.slope(phi, f), fixed)[1](solved.x)[0]
            direct = jax.tree.map(lambda d, t: d - t / lam, direct, through)
        residual = jax.tree.map(jnp.add, inner_slope, _pull(lam, phi, end.theta))
        report = {f"query/{k}": value for k, value in report.items()} | {
            "support/loss": end.path.losses[0],
            "inner/residual": optax.tree.norm(residual),
            "solve/residual": solved.residual,
            "solve/negative_curvature": solved.negative_curvature.astype(jnp.float32),
        }
        state = frame.collect(variables.state, end.path, query_state)
        return trees.merge(solved.x, direct), (state, report)

    return gradient


def _spring(lam: float, phi: PyTree, theta: PyTree) -> Array:
    """`lam/2 |phi - theta|^2`."""
    squares = jax.tree.map(lambda p, t: jnp.sum(jnp.square(p - t)), phi, theta)
    return 0.5 * lam * sum(jax.tree.leaves(squares))


def _pull(lam: float, phi: PyTree, theta: PyTree) -> PyTree:
    """The gradient of `_spring` in phi."""
    return jax.tree.map(lambda p, t: lam * (p - t), phi, theta)
