"""WarpGrad: layers that stay during adaptation and learn to precondition it.

S. Flennerhag, A. Rusu, R. Pascanu, F. Visin, H. Yin, R. Hadsell. Meta-Learning with Warped
Gradient Descent. ICLR 2020.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.gradient.leap import pull
from metalearn.core import checks, metrics, trees
from metalearn.core.estimators import check_chunk, mean_estimator
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PyTree
from metalearn.inner import Adapted, descent
from metalearn.inner.differentiate import is_second_order, refuse_implicit

INITIALISATIONS = ("maml", "leap", "fixed")


def warpgrad(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    warp: str = r"(^|/)warp",
    initialisation: str = "maml",
    approximate: bool = False,
    differentiation: str = "reverse",
    norm: str = "support",
    mask_absent_classes: bool = False,
    task_chunk: int | str = "auto",
    name: str = "warpgrad",
) -> MetaLearner:
    """Learns warp layers omega that make every single step of the adaptation better.

    Adaptation moves the task layers theta alone: `theta_{k+1} = theta_k - alpha grad
    L(theta_k, omega; support)`; what is learned in omega shapes that gradient. The
    objective of omega is, in the mean over tasks and the states k = 0..K-1 that
    adaptation meets,

        L(theta_k - alpha grad L(theta_k, omega; support), omega; query)

    with theta_k held constant: a derivative through one step and never through the path
    to it, so it does not care how many steps came before, and memory does not grow with
    K. The start theta_0 has an objective of its own, and neither sees the other's
    parameters.

    The states are those of the adaptation to the tasks of this outer step. The paper fills
    a buffer with states of many tasks, passes over it in shuffled small batches, one update
    of omega each, and then fills it anew. That becomes this where the buffer is filled anew
    before each update and used whole. What is lost is the reuse of states: an adaptation of
    hundreds of steps pays for one update of omega here, and for many there. What is won is
    that no state is stale.

    Differs from the released code: its approximation takes no step and differentiates
    `L(theta_k, omega)`, and its Leap leaves out the difference of losses. The two batches
    of a step are drawn there from the training data of the task; here they are the support
    and the query set.

    Args:
      model: A network with warp layers, e.g. `ml.models.WarpMLP` or `ml.models.WarpConv4`.
        Linear warps behind every product, as in T-nets, are `ml.models.TNetMLP` with
        `warp=r"(^|/)transform$"`.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation; its state, such as momentum, is carried along and
        held constant like theta_k. Paper: `optax.sgd(0.1)`.
      num_steps: K, at least 1. A learner with another number takes the same variables.
      warp: Regular expression found in the paths of omega, and in no other.
      initialisation: How theta_0 is learned. "maml": by the query loss after K steps
        (Warp-MAML). "leap": by the length of the path of `(theta, support loss)`
        (Flennerhag et al. 2019, see `gradient.leap`). "fixed": not at all, its
        gradient is zero; keep weight decay away from it.
      approximate: Drops the derivative through the step: omega is then learned by the
        query loss at the states `theta_1..theta_K`.
      differentiation: Of "maml", see `metalearn.inner.differentiate`; "first_order" for
        the approximation of the paper's first-order relatives.
      norm: "support", "batch" or "running", see `metalearn.inner.norm`.
      mask_absent_classes: For tasks with a variable number of ways.
      task_chunk: Tasks handled at once, or "auto".
      name: What `describe` calls it.

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
    if initialisation not in INITIALISATIONS:
        raise ValueError(
            f"initialisation is {initialisation!r}; expected one of "
            f"{', '.join(INITIALISATIONS)}."
        )
    if not isinstance(approximate, bool):
        raise ValueError(f"approximate is {approximate!r}; expected True or False.")
    if norm == "per_step":
        raise ValueError(
            "norm='per_step' keeps statistics of every inner step, but warpgrad learns "
            "from single steps whatever their number. Use 'support', 'batch' or 'running'."
        )
    refuse_implicit("warpgrad", differentiation)
    check_chunk(task_chunk)
    by_maml = initialisation == "maml"
    second_order = not approximate or (by_maml and is_second_order(differentiation))
    checks.inner_optimiser(inner_opt, None, second_order=second_order)
    is_warp = trees.path_filter(warp)

    def frame(steps: int, how: str):
        return descent(
            model,
            loss_fn,
            inner_opt,
            num_steps=steps,
            differentiation=how,
            adapt_filter=lambda path, leaf: not is_warp(path, leaf),
            norm=norm,
            mask_absent_classes=mask_absent_classes,
        )

    whole = frame(num_steps, differentiation)
    single = frame(1, "first_order" if approximate else "reverse")
    watched = frame(1, "reverse")  # whose support loss can be differentiated

    def split(params: PyTree) -> tuple[PyTree, PyTree]:
        """theta and omega."""
        return trees.split(params, lambda path, leaf: not is_warp(path, leaf))

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task)
        variables = model.init(key, task.support.x)
        theta, omega = split(variables.params)
        if not jax.tree.leaves(theta) or not jax.tree.leaves(omega):
            found = "no" if jax.tree.leaves(theta) else "every"
            raise ValueError(
                f"warp={warp!r} occurs in {found} parameter path; expected it in those of "
                "the warp layers. Use a model such as ml.models.WarpMLP, or name its "
                "layers. The paths are: " + ", ".join(trees.leaf_paths(variables.params))
            )
        if second_order:
            checks.inner_optimiser_on(theta, inner_opt, None)
        return variables

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        checks.one_set(support, "support")
        return whole.adapt(variables, None, support, key=key)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        return whole.predict(adapted, x, key=key, mask=mask)[0]

    def query_loss(adapted: Adapted, task: Task, key: Key):
        query = task.query
        outputs, state = whole.predict(
            adapted, query.x, key=key, train=True, mask=query.mask
        )
        report = metrics.of_task(loss_fn, outputs, query)
        return report["loss"], ({f"query/{k}": v for k, v in report.items()}, state)

    def step_from(theta, opt_state, omega, state, task: Task, key: Key):
        """One step from theta and the query loss after it, for the derivative in omega."""
        k_step, k_query = jax.random.split(key)
        variables = Variables(params=trees.merge(theta, omega), state=state)
        adapted, path = single.adapt(
            variables, None, task.support, key=k_step, train=True, opt_state=opt_state
        )
        loss, (report, query_state) = query_loss(adapted, task, k_query)
        report = {**report, "support/loss": path.losses[0]}
        query_state = single.collect(state, path, query_state)
        return loss, (path.params, path.opt_state, report, query_state)

    def pull_of(theta, end, omega, state, task: Task, key: Key):
        """Leap's gradient of the length of the segment to `end`, and that length."""
        k_step, _ = jax.random.split(key)

        def support_loss(theta: PyTree) -> Array:
            variables = Variables(params=trees.merge(theta, omega), state=state)
            how = dict(key=k_step, train=True)
            return watched.adapt(variables, None, task.support, **how)[1].losses[0]

        return pull(support_loss, theta, end)

    def along_the_path(variables: Variables, tasks: Task, keys: Key):
        """Sums over the tasks: gradients of theta (by Leap, else zero) and of omega."""
        state, (theta, omega) = variables.state, split(variables.params)
        num = keys.shape[0]
        first = jax.tree.map(lambda p: jnp.broadcast_to(p[None], (num, *p.shape)), theta)
        zeros = jax.tree.map(jnp.zeros_like, (theta, omega))
        shared = (None, None, 0, 0)  # omega, state, task, key

        def step(carry: tuple, k: Array):
            theta, opt_state, (of_theta, of_omega) = carry
            step_keys = jax.vmap(lambda key: jax.random.fold_in(key, k))(keys)

            def total(omega: PyTree):
                losses, aux = jax.vmap(step_from, in_axes=(0, 0, *shared))(
                    theta, opt_state, omega, state, tasks, step_keys
                )
                return jnp.sum(losses) / num_steps, aux

            grads, aux = jax.grad(total, has_aux=True)(omega)
            end, opt_state, report, states = aux
            of_omega = jax.tree.map(jnp.add, of_omega, grads)
            if initialisation == "leap":
                pulls, report["path/length"] = jax.vmap(pull_of, in_axes=(0, 0, *shared))(
                    theta, end, omega, state, tasks, step_keys
                )
                of_theta = jax.tree.map(lambda o, p: o + p.sum(0), of_theta, pulls)
            return (end, opt_state, (of_theta, of_omega)), (report, states)

        carry = (first, jax.vmap(inner_opt.init)(first), zeros)
        steps = jnp.arange(num_steps, dtype=jnp.int32)
        (_, _, grads), (report, states) = jax.lax.scan(step, carry, steps)
        per_step, last = report, jax.tree.map(lambda leaf: leaf[-1], (report, states))
        report = {**last[0], "support/loss": per_step["support/loss"][0]}
        report["warp/loss"] = per_step["query/loss"].mean(0)
        if "path/length" in per_step:
            report["path/length"] = per_step["path/length"].sum(0)
        return grads, (last[1], report)

    def through_the_path(theta: PyTree, omega, state, tasks: Task, keys: Key) -> Array:
        """The objective of MAML, summed over the tasks."""
        variables = Variables(params=trees.merge(theta, omega), state=state)

        def of_task(task: Task, key: Key) -> Array:
            k_adapt, k_query = jax.random.split(key)
            how = dict(key=k_adapt, train=True)
            adapted, _ = whole.adapt(variables, None, task.support, **how)
            return query_loss(adapted, task, k_query)[0]

        return jnp.sum(jax.vmap(of_task)(tasks, keys))

    def summed(variables: Variables, tasks: Task, keys: Key):
        (of_theta, of_omega), aux = along_the_path(variables, tasks, keys)
        if by_maml:
            theta, omega = split(variables.params)
            of_theta = jax.grad(through_the_path)(
                theta, omega, variables.state, tasks, keys
            )
        return trees.merge(of_theta, of_omega), aux

    config = config_of(
        name,
        inner_opt=inner_opt,
        num_steps=num_steps,
        warp=warp,
        initialisation=initialisation,
        approximate=approximate,
        differentiation=str(differentiation),
        norm=norm,
    )
    estimate = mean_estimator(summed, task_chunk=task_chunk)
    return MetaLearner(init, adapt, predict, estimate, config)
