"""Sharp-MAML: MAML that seeks flat minima, in the inner loop, the outer one, or both.

M. Abbas, Q. Xiao, L. Chen, P.-Y. Chen, T. Chen. Sharp-MAML: Sharpness-Aware
Model-Agnostic Meta Learning. ICML 2022. It applies P. Foret, A. Kleiner, H. Mobahi,
B. Neyshabur. Sharpness-Aware Minimization for Efficiently Improving Generalization.
ICLR 2021 (SAM).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metalearn import _checks, _tree, metrics
from metalearn._task import Examples, Task
from metalearn._typing import Array, Key, LossFn, PathFilter, PyTree
from metalearn.bilevel import refuse_implicit
from metalearn.estimators import gradient_estimator
from metalearn.inner import Adapted, Unrolled, descent, normaliser, unroll
from metalearn.inner.differentiate import is_second_order
from metalearn.inner.hoist import explicit, hoist
from metalearn.learner import Estimate, MetaLearner, config_of
from metalearn.losses import mask_absent, present_classes
from metalearn.model import Model, Variables


def sharp_maml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 1,
    inner_radius: float = 0.05,
    outer_radius: float = 0.05,
    through_perturbation: bool = False,
    differentiation: str = "reverse",
    adapt_filter: PathFilter | None = None,
    norm: str = "support",
    mask_absent_classes: bool = False,
    task_chunk: int | str = "auto",
    name: str = "sharp_maml",
) -> MetaLearner:
    """MAML whose gradients are taken where the loss is highest nearby.

    - Inner step: `phi_{k+1} = phi_k - alpha grad L(phi_k + e_k; support)` with
      `e_k = inner_radius g / |g|`, `g = grad L(phi_k; support)`. The norm is Euclidean and
      over all parameters that adapt, together; each task has its own.
    - Outer gradient: with `h` the meta-gradient of the whole batch of tasks at theta, that
      of the same tasks at `theta + outer_radius h / |h|`, norm over all parameters. The
      inner loops start there, and their perturbations are computed anew. The optimiser
      applies it to theta.

    The paper's names: Sharp-MAML_low with `outer_radius=0`, Sharp-MAML_up with
    `inner_radius=0`, Sharp-MAML_both with neither. With both 0 it is MAML. A gradient of
    zero is not perturbed. The outer part takes two meta-gradients a step and the inner
    part two gradients a step.

    Adaptation perturbs in evaluation as well, as in the released code. That code lets the
    meta-gradient pass through `e_k`, which is `through_perturbation=True`; here it is held
    constant unless asked, as SAM holds it. The outer perturbation is constant in both.
    The code has one radius for both parts, 0.05.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation, given the perturbed gradients.
      num_steps: K, at least 0.
      inner_radius: Length of the inner perturbation, 0 or more; 0 switches it off.
      outer_radius: Length of the outer one.
      through_perturbation: Whether second derivatives see how `e_k` depends on `phi_k`.
      differentiation: As in `maml`; not "mixed" with `through_perturbation`, for then what
        is differentiated is no gradient of a function and has no symmetric derivative.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt; all when `None`.
      norm: Batch-norm policy, see `metalearn.inner.norm`; statistics are collected where
        nothing is perturbed.
      mask_absent_classes: For tasks with a variable number of ways.
      task_chunk: Tasks handled at once, or "auto".
      name: What `describe` calls it.

    Returns:
      A `MetaLearner` with the parameters of the model and `Adapted` objects. Metrics are
      those at theta; `outer/sharpness` is by how much the query loss of a task is higher
      at the perturbed parameters (0 if the outer part is off).

    Raises:
      ValueError: an option is out of range, or `inner_opt` has no finite second derivative.

    Example:
      >>> learner = ml.sharp_maml(model, ml.losses.cross_entropy, optax.sgd(0.1),
      ...                         inner_radius=0.0, outer_radius=0.05)  # "up"
    """
    refuse_implicit("sharp_maml", differentiation)
    _checks.whole_number("num_steps", num_steps, least=0)
    for label, radius in (("inner_radius", inner_radius), ("outer_radius", outer_radius)):
        number = isinstance(radius, numbers.Real) and not isinstance(radius, bool)
        if not (number and math.isfinite(radius) and radius >= 0):
            raise ValueError(
                f"{label} is {radius!r}; expected a finite number of 0 or more, the length "
                "of the perturbation, e.g. 0.05; 0 switches it off."
            )
    if through_perturbation and differentiation == "mixed":
        raise ValueError(
            "differentiation='mixed' needs symmetric second derivatives, which a step "
            "differentiated through its perturbation has not. Use 'remat' or 'nested' for "
            "less memory, or through_perturbation=False."
        )
    second_order = is_second_order(differentiation) and num_steps > 0
    _checks.inner_optimiser(inner_opt, None, second_order=second_order)
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
        _checks.one_task(task)
        variables = frame.init(key, task)
        if second_order:
            moving = _tree.split(variables.params, adapt_filter)[0]
            _checks.inner_optimiser_on(moving, inner_opt, None)
        return variables

    def solve(
        variables: Variables, support: Examples, key: Key | None, train: bool
    ) -> tuple[Adapted, Unrolled]:
        if not (inner_radius and num_steps):
            return frame.adapt(variables, None, support, key=key, train=train)
        theta, fixed = _tree.split(variables.params, adapt_filter)
        # As `descent` splits it, so that draws are those of MAML.
        _, k_model, k_settle = [None] * 3 if key is None else jax.random.split(key, 3)

        def loss(phi: PyTree, step: Array) -> tuple[Array, PyTree]:
            outputs, state = policy.support(
                _tree.merge(phi, fixed),
                variables.state,
                support,
                step,
                key=None if k_model is None else jax.random.fold_in(k_model, step),
                train=train,
            )
            present = None
            if mask_absent_classes:
                present = present_classes(support, outputs.shape[-1])
                outputs = mask_absent(outputs, present)
            return loss_fn(outputs, support), (state, present)

        # Here, for what stands in a rule of its own `unroll` does not take out.
        loss = hoist(loss, theta, jnp.zeros((), jnp.int32))
        path = unroll(
            sharpened(loss, float(inner_radius), through=through_perturbation),
            theta,
            inner_opt,
            num_steps=num_steps,
            differentiation=differentiation,
        )
        params = _tree.merge(path.params, fixed)
        state = policy.settle(params, variables.state, support, key=k_settle)
        states, present = path.aux
        present = jax.tree.map(lambda p: p[-1], present)
        adapted = Adapted(params=params, state=state, present=present)
        return adapted, path._replace(aux=states)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        _checks.one_set(support, "support")
        return solve(variables, support, key, False)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        return frame.predict(adapted, x, key=key, mask=mask)[0]

    def objective(variables: Variables, task: Task, *, key: Key):
        k_adapt, k_query = jax.random.split(key)
        adapted, path = solve(variables, task.support, k_adapt, True)
        query = task.query
        outputs, query_state = frame.predict(
            adapted, query.x, key=k_query, train=True, mask=query.mask
        )
        report = metrics.of_task(loss_fn, outputs, query)
        report = {f"query/{name}": value for name, value in report.items()}
        if num_steps:
            report["support/loss"] = path.losses[0]
        state = frame.collect(variables.state, path, query_state)
        return report["query/loss"], (state, report)

    meta_gradient = gradient_estimator(objective, task_chunk=task_chunk)

    def estimate(variables: Variables, tasks: Task, *, key: Key) -> Estimate:
        here = meta_gradient(variables, tasks, key=key)
        sharpness = jnp.zeros_like(here.metrics["query/loss"])
        grads = here.grads
        if outer_radius:
            params = jax.tree.map(
                jnp.add, variables.params, ascent(here.grads, float(outer_radius))
            )
            worst = Variables(params=params, state=variables.state)
            there = meta_gradient(worst, tasks, key=key)
            sharpness = there.metrics["query/loss"] - here.metrics["query/loss"]
            grads = there.grads
        report = {**here.metrics, "outer/sharpness": sharpness}
        return Estimate(grads=grads, state=here.state, metrics=report)

    config = config_of(
        name,
        inner_opt=inner_opt,
        num_steps=num_steps,
        inner_radius=float(inner_radius),
        outer_radius=float(outer_radius),
        through_perturbation=through_perturbation,
        differentiation=str(differentiation),
        norm=norm,
    )
    return MetaLearner(init, adapt, predict, estimate, config)


def ascent(grads: PyTree, radius: float) -> PyTree:
    """`radius g / |g|` over all leaves together; zero where the gradient is zero."""
    square = optax.tree.norm(grads, squared=True)
    # Not the root of zero, whose derivative is infinite.
    scale = jnp.where(
        square > 0, radius * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0
    )
    return jax.tree.map(lambda g: scale.astype(g.dtype) * g, grads)


Loss = Callable[[PyTree, Array], tuple[Array, PyTree]]


def sharpened(loss_fn: Loss, radius: float, *, through: bool) -> Loss:
    """The same loss; what is taken for its gradient is that at the perturbed parameters.

    Args:
      loss_fn: `(params, step) -> (loss, aux)`, as `unroll` wants it.
      radius: Of the perturbation.
      through: Whether a derivative of this gradient passes through the perturbation.
    """

    def held(params: PyTree, step: Array) -> tuple[Array, PyTree]:
        value, slope = jax.value_and_grad(loss_fn, has_aux=True)(params, step)
        (loss, aux), slope = jax.lax.stop_gradient((value, slope))
        worst = jax.tree.map(jnp.add, params, ascent(slope, radius))
        there, _ = loss_fn(worst, step)
        return loss + (there - jax.lax.stop_gradient(there)), aux

    def moving(params: PyTree, step: Array) -> tuple[Array, PyTree]:
        # No function has this gradient, so the gradient is written down as a rule.
        closed, real, others = explicit(loss_fn, params, step)

        def loss(params: PyTree, real: list, others: list, step: Array):
            return closed(real, others, params, step)

        @jax.custom_vjp
        def call(*args: PyTree) -> tuple[Array, PyTree]:
            return loss(*args)

        def backward(kept: tuple, cotangents: tuple) -> tuple:
            params, *rest = kept
            slope = jax.grad(loss, has_aux=True)(params, *rest)[0]
            worst = jax.tree.map(jnp.add, params, ascent(slope, radius))
            slopes = jax.grad(loss, argnums=(0, 1), has_aux=True)(worst, *rest)[0]
            slopes = jax.tree.map(lambda s: cotangents[0].astype(s.dtype) * s, slopes)
            return (*slopes, *jax.tree.map(lambda _: None, rest[1:]))

        call.defvjp(lambda *args: (call(*args), args), backward)
        return call(params, real, others, step)

    return moving if through else held
