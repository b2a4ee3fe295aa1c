"""Sharp-MAML: MAML that seeks flat minima, in the inner loop, the outer one, or both.

M. Abbas, Q. Xiao, L. Chen, P.-Y. Chen, T. Chen. Sharp-MAML: Sharpness-Aware
Model-Agnostic Meta Learning. ICML 2022. It applies P. Foret, A. Kleiner, H. Mobahi,
B. Neyshabur. Sharpness-Aware Minimization for Efficiently Improving Generalization.
ICLR 2021 (SAM).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import Hooks, bilevel
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks
from metalearn.core.learner import Estimate, MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task
from metalearn.core.types import Array, Key, LossFn, PyTree
from metalearn.inner.hoist import explicit, hoist


@takes_options()
def sharp_maml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 1,
    inner_radius: float = 0.05,
    outer_radius: float = 0.05,
    through_perturbation: bool = False,
    **options: Unpack[Options],
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
      num_steps: K, inner steps, at least 0.
      inner_radius: Length of the inner perturbation, 0 or more; 0 switches it off.
      outer_radius: Length of the outer perturbation, 0 or more; 0 switches it off.
      through_perturbation: Whether second derivatives see how `e_k` depends on `phi_k`.
      differentiation: See `metalearn.inner.differentiate`; not "mixed" with
        `through_perturbation`, for then what is differentiated is no gradient of a
        function and has no symmetric derivative.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt and are perturbed inside;
        all when `None`.
      norm: Batch-norm policy, see `metalearn.inner.norm`; statistics are collected where
        nothing is perturbed.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` with the variables and `Adapted` objects of `maml`. Metrics are those
      at theta; `outer/sharpness` is by how much the query loss of a task is higher
      at the perturbed parameters (0 if the outer part is off).

    Raises:
      ValueError: an option is out of range, or `inner_opt` has no finite second derivative.

    Example:
      >>> learner = ml.sharp_maml(model, ml.losses.cross_entropy, optax.sgd(0.1),
      ...                         inner_radius=0.0, outer_radius=0.05)  # "up"
    """
    for label, radius in (("inner_radius", inner_radius), ("outer_radius", outer_radius)):
        checks.number(label, radius)
    if through_perturbation and options.get("differentiation") == "mixed":
        raise ValueError(
            "differentiation='mixed' needs symmetric second derivatives, which a step "
            "differentiated through its perturbation has not. Use 'remat' or 'nested' for "
            "less memory, or through_perturbation=False."
        )

    def around(loss: Loss, params: PyTree) -> Loss:
        # Here, for `unroll` does not look into the rule of `sharpened` for what no step
        # changes.
        loss = hoist(loss, params, jnp.zeros((), jnp.int32))
        return sharpened(loss, float(inner_radius), through=through_perturbation)

    hooks = Hooks(
        around=around if inner_radius and num_steps else None,
        settings={
            "inner_radius": float(inner_radius),
            "outer_radius": float(outer_radius),
            "through_perturbation": through_perturbation,
        },
    )
    learner = bilevel(
        "sharp_maml",
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=hooks,
        **options,
    )

    def estimate(variables: Variables, tasks: Task, *, key: Key) -> Estimate:
        here = learner.estimate(variables, tasks, key=key)
        sharpness = jnp.zeros_like(here.metrics["query/loss"])
        grads = here.grads
        if outer_radius:
            params = jax.tree.map(
                jnp.add, variables.params, perturbation(here.grads, float(outer_radius))
            )
            worst = Variables(params=params, state=variables.state)
            there = learner.estimate(worst, tasks, key=key)
            sharpness = there.metrics["query/loss"] - here.metrics["query/loss"]
            grads = there.grads
        report = {**here.metrics, "outer/sharpness": sharpness}
        return Estimate(grads=grads, state=here.state, metrics=report)

    return learner._replace(estimate=estimate)


def perturbation(grads: PyTree, radius: float) -> PyTree:
    """`radius g / |g|` over all leaves together; zero where the gradient is zero."""
    square = optax.tree.norm(grads, squared=True)
    # Where the gradient is zero there is no direction. Inside, too, for the derivative of
    # the root of zero is infinite, and zero times infinity no number.
    scale = jnp.where(
        square > 0, radius * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0
    )
    return jax.tree.map(lambda g: scale.astype(g.dtype) * g, grads)


Loss = Callable[[PyTree, Array], tuple[Array, PyTree]]


def sharpened(loss_fn: Loss, radius: float, *, through: bool) -> Loss:
    """The same loss; what is taken for its gradient is that at the perturbed parameters.

    Args:
      loss_fn: `(params, step) -> (loss, aux)`, as `unroll` wants it.
      radius: Length of the perturbation.
      through: Whether a derivative of this gradient passes through the perturbation.
    """

    def held(params: PyTree, step: Array) -> tuple[Array, PyTree]:
        value, slope = jax.value_and_grad(loss_fn, has_aux=True)(params, step)
        # SAM holds the perturbation constant, so only `there` is differentiated.
        (loss, aux), slope = jax.lax.stop_gradient((value, slope))
        worst = jax.tree.map(jnp.add, params, perturbation(slope, radius))
        there, _ = loss_fn(worst, step)
        # The value is the loss here, the derivative that of the loss there.
        return loss + (there - jax.lax.stop_gradient(there)), aux

    def moving(params: PyTree, step: Array) -> tuple[Array, PyTree]:
        # A slope that moves with its perturbation is the gradient of no function, so that
        # it has to be written down as a rule.
        closed, real, others = explicit(loss_fn, params, step)

        def loss(params: PyTree, real: list, others: list, step: Array):
            return closed(real, others, params, step)

        @jax.custom_vjp
        def call(*args: PyTree) -> tuple[Array, PyTree]:
            return loss(*args)

        def backward(kept: tuple, cotangents: tuple) -> tuple:
            params, *rest = kept
            slope = jax.grad(loss, has_aux=True)(params, *rest)[0]
            worst = jax.tree.map(jnp.add, params, perturbation(slope, radius))
            slopes = jax.grad(loss, argnums=(0, 1), has_aux=True)(worst, *rest)[0]
            slopes = jax.tree.map(lambda s: cotangents[0].astype(s.dtype) * s, slopes)
            return (*slopes, *jax.tree.map(lambda _: None, rest[1:]))

        call.defvjp(lambda *args: (call(*args), args), backward)
        return call(params, real, others, step)

    return moving if through else held
