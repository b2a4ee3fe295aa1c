"""WarpGrad: layers that stay during adaptation and learn to precondition it.

S. Flennerhag, A. Rusu, R. Pascanu, F. Visin, H. Yin, R. Hadsell. Meta-Learning with Warped
Gradient Descent. ICLR 2020.

What the objective of omega does. In it theta_k is held constant: a derivative goes through
one step and never through the path to it. So it does not care how many steps came before,
and memory does not grow with K. The start theta_0 has an objective of its own, and neither
sees the other's parameters.

What differs from the paper. The states are those of the adaptation to the tasks of this
outer step. The paper fills a buffer with states of many tasks, passes over it in shuffled
small batches, one update of omega each, and then fills it anew. That becomes this where the
buffer is filled anew before each update and used whole. What is lost is the reuse of
states: an adaptation of hundreds of steps pays for one update of omega here, and for many
there. What is won is that no state is stale.

What differs from the released code. Its approximation takes no step and differentiates
`L(theta_k, omega)`. Its Leap leaves out the difference of losses. The two batches of a step
are drawn there from the training data of the task; here they are the support and the query
set.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.gradient.leap import pull
from metalearn.core import checks, kinds, metrics, trees
from metalearn.core.estimators import mean_estimator
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PyTree, TaskChunk
from metalearn.inner import Adapted, Descent, descent
from metalearn.inner.differentiate import (
    Differentiation,
    is_second_order,
    refuse_implicit,
)
from metalearn.inner.norm import NormPolicy

Initialisation = Literal["maml", "leap", "fixed"]
INITIALISATIONS: tuple[str, ...] = get_args(Initialisation)


def warpgrad(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    warp: str = r"(^|/)warp",
    initialisation: Initialisation = "maml",
    approximate: bool = False,
    differentiation: Differentiation = "reverse",
    norm: NormPolicy = "support",
    mask_absent_classes: bool = False,
    task_chunk: TaskChunk = "auto",
    name: str = "warpgrad",
) -> MetaLearner:
    """Learns warp layers omega that make every single step of the adaptation better.

    Adaptation moves the task layers theta alone: `theta_{k+1} = theta_k - alpha grad
    L(theta_k, omega; support)`; what is learned in omega shapes that gradient. The
    objective of omega is, in the mean over tasks and the states k = 0..K-1 that
    adaptation meets, with theta_k held constant,

        L(theta_k - alpha grad L(theta_k, omega; support), omega; query)

    What differs from the paper stands at the top of the file.

    Args:
      model: A network with warp layers, e.g. `ml.models.WarpMLP` or `ml.models.WarpConv4`.
        Linear warps behind every product, as in T-nets, are `ml.models.TNetMLP` with
        `warp=r"(^|/)transform$"`.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation; its state, such as momentum, is carried along and
        held constant like theta_k. Paper: `optax.sgd(0.1)`.
      num_steps: K, at least 1. A learner with another number takes the same variables.
      warp: Regular expression found in the paths of omega, and in no other.
      initialisation: Rule by which theta_0 is learned. "maml": by the query loss after K
        steps (Warp-MAML). "leap": by the length of the path of `(theta, support loss)`
        (Flennerhag et al. 2019, see `gradient.leap`). "fixed": not at all, its
        gradient is zero; keep weight decay away from it.
      approximate: Whether the derivative through the step is dropped: omega is then
        learned by the query loss at the states `theta_1..theta_K`.
      differentiation: Way of the derivative of "maml" through the steps, see
        `metalearn.inner.differentiate`; "first_order" for the approximation of the
        paper's first-order relatives.
      norm: Policy "support", "batch" or "running", see `metalearn.inner.norm`.
      mask_absent_classes: Whether to mask absent classes, where the number of ways varies.
      task_chunk: Tasks handled at once, or "auto".
      name: Name of the learner in `describe`.

    Returns:
      A `MetaLearner` with the parameters of the model and `Adapted` objects. The metric
      "warp/loss" is the objective of omega; "path/length" that of Leap. Different outer
      rates for theta_0 and omega are `optax.partition`.

    Raises:
      ValueError: an option is out of range, or the optimiser has no finite second
        derivative; in `init`: `warp` is found in no path or in every one.

    Example:
      >>> model = ml.from_linen(ml.models.WarpMLP())
      >>> learner = ml.warpgrad(model, ml.losses.mse, optax.sgd(0.01))
    """
    checks.whole_number("num_steps", num_steps, least=1)
    _check_words(initialisation, approximate, norm)
    refuse_implicit("warpgrad", differentiation)
    by_maml, by_leap = initialisation == "maml", initialisation == "leap"
    second_order = not approximate or (by_maml and is_second_order(differentiation))
    checks.inner_optimiser(inner_opt, None, second_order=second_order)
    is_warp = trees.path_filter(warp)
    moves = lambda path, leaf: not is_warp(path, leaf)
    shared = dict(adapt_filter=moves, norm=norm, mask_absent_classes=mask_absent_classes)
    frames = _frames(
        model, loss_fn, inner_opt, num_steps, differentiation, approximate, **shared
    )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        variables = model.init(key, task.support.x)
        theta, omega = trees.split(variables.params, moves)
        _check_warps(theta, omega, warp)
        if second_order:
            checks.inner_optimiser_on(theta, inner_opt, None)
        return variables

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support)
        return frames.whole.adapt(variables, None, support, key=key)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return frames.whole.predict(adapted, x, key=key, mask=mask)[0]

    def gradient(variables: Variables, task: Task, *, key: Key) -> tuple[PyTree, tuple]:
        at = _Point(*trees.split(variables.params, moves), variables.state)
        (of_theta, of_omega), aux = _along_the_path(
            frames, loss_fn, inner_opt, at, task, key, num_steps, by_leap
        )
        if by_maml:
            of_theta = jax.grad(_after_the_path)(at.theta, frames, loss_fn, at, task, key)
        return trees.merge(of_theta, of_omega), aux

    config = config_of(
        name,
        num_steps=num_steps,
        warp=warp,
        initialisation=initialisation,
        approximate=approximate,
        differentiation=differentiation,
        norm=norm,
    )
    estimate = mean_estimator(gradient, task_chunk=task_chunk)
    made = MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))
    return made._replace(masks_absent=mask_absent_classes)


class _Frames(NamedTuple):
    """Adaptations of one model.

    Attributes:
      whole: The K steps.
      single: One step, whose derivative in omega is that of the objective.
      watched: One step, whose support loss can be differentiated.
    """

    whole: Descent
    single: Descent
    watched: Descent


def _frames(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    num_steps: int,
    differentiation: Differentiation,
    approximate: bool,
    **shared: Any,
) -> _Frames:
    """The adaptations of a model; `shared` are options of `descent` that all have."""

    def steps(number: int, how: Differentiation) -> Descent:
        return descent(
            model, loss_fn, inner_opt, num_steps=number, differentiation=how, **shared
        )

    return _Frames(
        whole=steps(num_steps, differentiation),
        single=steps(1, "first_order" if approximate else "reverse"),
        watched=steps(1, "reverse"),
    )


class _Point(NamedTuple):
    """Where an adaptation stands: task layers, warp layers, state of the model."""

    theta: PyTree
    omega: PyTree
    state: PyTree

    def variables(self) -> Variables:
        return Variables(params=trees.merge(self.theta, self.omega), state=self.state)


def _along_the_path(
    frames: _Frames,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    start: _Point,
    task: Task,
    key: Key,
    num_steps: int,
    by_leap: bool,
) -> tuple[tuple[PyTree, PyTree], tuple]:
    """Gradients of theta (by Leap, else zero) and of omega, with the state and metrics.

    The gradient in omega is taken within the loop over the states, so none of them is kept.
    """

    def step(carry: tuple, k: Array):
        theta, opt_state, (of_theta, of_omega) = carry
        at, k_step = start._replace(theta=theta), jax.random.fold_in(key, k)

        def objective(omega: PyTree) -> tuple[Array, tuple]:
            here = at._replace(omega=omega)
            loss, aux = _step_from(frames, loss_fn, here, opt_state, task, k_step)
            return loss / num_steps, aux

        grads, (end, opt_state, report, state) = jax.grad(objective, has_aux=True)(
            start.omega
        )
        of_omega = jax.tree.map(jnp.add, of_omega, grads)
        if by_leap:
            force, report["path/length"] = _pull_of(frames, at, end, task, k_step)
            of_theta = jax.tree.map(jnp.add, of_theta, force)
        return (end, opt_state, (of_theta, of_omega)), (report, state)

    zeros = jax.tree.map(jnp.zeros_like, (start.theta, start.omega))
    carry = (start.theta, inner_opt.init(start.theta), zeros)
    steps = jnp.arange(num_steps, dtype=jnp.int32)
    (_, _, grads), (per_step, states) = jax.lax.scan(step, carry, steps)
    report, state = jax.tree.map(lambda leaf: leaf[-1], (per_step, states))
    report["support/loss"] = per_step["support/loss"][0]
    report["warp/loss"] = per_step["query/loss"].mean(0)
    if by_leap:
        report["path/length"] = per_step["path/length"].sum(0)
    return grads, (state, report)


def _step_from(
    frames: _Frames, loss_fn: LossFn, at: _Point, opt_state: PyTree, task: Task, key: Key
) -> tuple[Array, tuple]:
    """One step, and the query loss after it, for the derivative in omega."""
    k_step, k_query = jax.random.split(key)
    adapted, path = frames.single.adapt(
        at.variables(), None, task.support, key=k_step, train=True, opt_state=opt_state
    )
    loss, report, query_state = _query_loss(frames, loss_fn, adapted, task, k_query)
    report["support/loss"] = path.losses[0]
    state = frames.single.collect(at.state, path, query_state)
    return loss, (path.params, path.opt_state, report, state)


def _pull_of(
    frames: _Frames, at: _Point, end: PyTree, task: Task, key: Key
) -> tuple[PyTree, Array]:
    """Leap's gradient of the length of the segment to `end`, and that length."""
    k_step, _ = jax.random.split(key)

    def support_loss(theta: PyTree) -> Array:
        variables = at._replace(theta=theta).variables()
        _, path = frames.watched.adapt(
            variables, None, task.support, key=k_step, train=True
        )
        return path.losses[0]

    return pull(support_loss, at.theta, end)


def _after_the_path(
    theta: PyTree, frames: _Frames, loss_fn: LossFn, at: _Point, task: Task, key: Key
) -> Array:
    """The objective of MAML: the query loss after all steps from theta."""
    k_adapt, k_query = jax.random.split(key)
    variables = at._replace(theta=theta).variables()
    adapted, _ = frames.whole.adapt(variables, None, task.support, key=k_adapt, train=True)
    return _query_loss(frames, loss_fn, adapted, task, k_query)[0]


def _query_loss(
    frames: _Frames, loss_fn: LossFn, adapted: Adapted, task: Task, key: Key
) -> tuple[Array, dict[str, Array], PyTree]:
    """The loss, the report and the state of the model after the queries."""
    query = task.query
    outputs, state = frames.whole.predict(
        adapted, query.x, key=key, train=True, mask=query.mask
    )
    report = metrics.of_task(loss_fn, outputs, query)
    return report["loss"], {f"query/{k}": v for k, v in report.items()}, state


def _check_words(initialisation: str, approximate: bool, norm: str) -> None:
    checks.one_of("initialisation", initialisation, INITIALISATIONS)
    if not isinstance(approximate, bool):
        raise ValueError(f"approximate is {approximate!r}; expected True or False.")
    if norm == "per_step":
        raise ValueError(
            "norm='per_step' keeps statistics of every inner step, but warpgrad learns "
            "from single steps whatever their number. Use 'support', 'batch' or 'running'."
        )


def _check_warps(theta: PyTree, omega: PyTree, warp: str) -> None:
    """Raises a `ValueError` unless there are both task and warp layers."""
    if not jax.tree.leaves(theta) or not jax.tree.leaves(omega):
        found = "no" if jax.tree.leaves(theta) else "every"
        paths = trees.leaf_paths(trees.merge(theta, omega))
        raise ValueError(
            f"warp={warp!r} occurs in {found} parameter path; expected it in those of the "
            "warp layers. Use a model such as ml.models.WarpMLP, or name its layers. The "
            "paths are: " + ", ".join(paths)
        )
