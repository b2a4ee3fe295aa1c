"""CAVIA: a small context vector adapts, the network does not.

L. Zintgraf, K. Shiarlis, V. Kurin, K. Hofmann, S. Whiteson. Fast Context Adaptation via
Meta-Learning. ICML 2019.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import Hooks, Start, bilevel
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, LossFn, PyTree


@takes_options(but=("adapt_filter",))
def cavia(
    model: Model,
    loss_fn: LossFn,
    *,
    rate: float = 1.0,
    num_steps: int = 1,
    context: str = r"(^|/)context$",
    clip: float | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Adapts a context vector that starts at zero for every task; learns all the rest.

    Adaptation: `c_0 = 0`, `c_{k+1} = c_k - alpha grad_c L(f_{c_k, theta}; support)`.
    Outer objective: the mean over tasks of `L(f_{c_K, theta}; query)`, differentiated with
    respect to theta through the adaptation.

    The context is a parameter of the model and stands in the tree of `Variables.params`,
    but is not learned: its meta-gradient is zero, and whatever it holds, a task starts at
    zero.

    The weights that read the context must not be zero, else it has no gradient and nothing
    is ever learned: initialise those of a FiLM layer at random, as `FilmConv4` does.

    The released code differs from the paper and this in that batch norm uses the
    statistics of each batch, the queries' too (here `norm="batch"`). Its losses are means,
    so the printed rates need no factor. They hold for a layer that starts as the released
    one does, see `FilmConv4`: a step reaches less far from larger scales and offsets. Scale
    and offset of norm layers do not adapt; nothing does but the context.

    Args:
      model: A network with a context, e.g. `ml.models.ContextMLP` or
        `ml.models.FilmConv4`.
      loss_fn: Loss of one task.
      rate: Inner rate alpha; the paper uses 1. The scale of the context is free: `s` times
        as large with weights `1/s` as large is the same function, for a rate `s^2` as
        large. So MAML's rates do not fit here, and another start of these weights needs
        another rate; the outer loop learns their size only slowly.
      num_steps: K, inner steps; the paper uses 1 for regression and 2 for mini-ImageNet.
      context: Regular expression found in the paths of the context parameters.
      clip: Bound on every coordinate of the meta-gradient of each task, before the mean
        over tasks; `None` for no bound. The released regression code has 10; that for
        mini-ImageNet clips the mean instead, which is `optax.clip(10.0)` in the outer
        optimiser. A clip of single tasks makes each of the tasks handled at once keep
        weights of its own, as MAML does; without it they share them.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` whose adapted object is a `metalearn.inner.Adapted`, with theta
      unchanged and the context of the task in its params. Its variables are those of
      `maml`.

    Raises:
      ValueError: `rate` is not a finite number, `clip` not a positive one; in `init`: no
        parameter of the model, or every one, is a context.

    Example:
      >>> model = ml.from_linen(ml.models.ContextMLP())
      >>> learner = ml.cavia(model, ml.losses.mse, clip=10.0)
      >>> learner.adapt(variables, task.support).params["context"]  # [5]
    """
    checks.number("rate", rate, signed=True)
    if clip is not None:
        checks.number("clip", clip, positive=True)
    checks.model(model)
    is_context = trees.path_filter(context)

    def reset(params: PyTree) -> PyTree:
        moving, shared = trees.split(params, is_context)
        return trees.merge(jax.tree.map(jnp.zeros_like, moving), shared)

    def model_init(key: Key, x: PyTree) -> Variables:
        variables = model.init(key, x)
        moving, shared = trees.split(variables.params, is_context)
        if not jax.tree.leaves(moving) or not jax.tree.leaves(shared):
            found = "no" if jax.tree.leaves(shared) else "every"
            raise ValueError(
                f"context={context!r} occurs in {found} parameter path; expected it in "
                "those of the vectors that adapt. Use a model with a context, such as "
                "ml.models.ContextMLP, or name its parameter. The paths are: "
                + ", ".join(trees.leaf_paths(variables.params))
            )
        return Variables(params=reset(variables.params), state=variables.state)

    def start(params: PyTree, support: Examples, *, key: Key | None, train: bool) -> Start:
        del key
        shared = params["model"]
        if train and clip is not None:
            shared = clip_each(shared, support.mask[0], float(clip))
        return Start(reset(shared))

    return bilevel(
        "cavia",
        model._replace(init=model_init),
        loss_fn,
        optax.sgd(rate),
        num_steps=num_steps,
        hooks=Hooks(start=start, settings={"rate": float(rate), "clip": clip}),
        adapt_filter=is_context,
        **options,
    )


def clip_each(params: PyTree, of_task: Array, limit: float) -> PyTree:
    """The same params; what comes back to them as a gradient is clipped, task by task.

    Args:
      params: Parameters that all tasks share.
      of_task: Any scalar that is the task's own. Without it `vmap` over tasks would leave
        this function outside, as one that no task changes, and the sum of their gradients
        would be clipped instead of each.
      limit: Bound on the absolute value of every coordinate.
    """

    # A rule of its own, for a clip is the derivative of no function.
    @jax.custom_vjp
    def same(params: PyTree, of_task: Array) -> PyTree:
        own = of_task.astype(bool)
        # Both branches are the same: the choice only makes the params the task's own.
        return jax.tree.map(lambda p: jnp.where(own, p, p), params)

    def backward(kept: None, grads: PyTree) -> tuple[PyTree, None]:
        del kept
        return jax.tree.map(lambda g: jnp.clip(g, -limit, limit), grads), None

    same.defvjp(lambda *args: (same(*args), None), backward)
    return same(params, of_task)
