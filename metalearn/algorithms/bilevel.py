"""Learners that adapt a model by gradient descent: one builder for the whole family.

Inside, `inner.descent` moves parameters on the support loss; outside, the query loss after
that is differentiated. An algorithm says by functions of its own where a task starts
(`start`), what is learned beside the model (`more`), what is minimised outside (`outer`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalearn.core import checks, metrics, trees
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree
from metalearn.inner import Adapted, Descent, Unrolled, descent
from metalearn.inner.differentiate import is_second_order


class Start(NamedTuple):
    """Where the adaptation to one task begins.

    Attributes:
      params: phi_0, all parameters of the model.
      hparams: Of the inner optimiser, if that learns some.
      loss: Scalar that the outer objective adds, e.g. a reconstruction loss.
      report: Scalars for the metrics of the task.
      info: What `Adapted.info` shows, e.g. how a task was routed.
    """

    params: PyTree
    hparams: PyTree = None
    loss: Any = 0.0
    report: Any = None
    info: PyTree = None


class Episode(NamedTuple):
    """One task after the adaptation, for `outer`.

    Attributes:
      task: The task.
      start: What `start` gave.
      path: The inner loop, with its trajectory if `trajectory=True`.
      at: `step -> Adapted` after that many inner steps, with the model's state after the
        last one; needs the trajectory.
      adapted: After the last one.
      predict: `(adapted, x, *, key, mask) -> (outputs, state)` in training mode.
      step: Outer steps done before this one; `None` unless `count_steps`.
      key: For draws of the outer objective.
    """

    task: Task
    start: Start
    path: Unrolled
    at: Callable[[Any], Adapted]
    adapted: Adapted
    predict: Callable[..., tuple[PyTree, PyTree]]
    step: Array | None
    key: Key


def last_step(episode: Episode, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
    """The query loss after the last inner step (Finn et al. 2017, algorithm 1).

    Returns:
      The loss, the report of the task and the state of the model after its queries.
    """
    query = episode.task.query
    outputs, state = episode.predict(
        episode.adapted, query.x, key=episode.key, mask=query.mask
    )
    report = metrics.of_task(loss_fn, outputs, query)
    report = {f"query/{name}": value for name, value in report.items()}
    return report["query/loss"], report, state


def bilevel(
    name: str,
    model: Model,
    loss_fn: LossFn,
    inner_opt: Any,
    *,
    num_steps: int,
    differentiation: Any = "reverse",
    adapt_filter: PathFilter | None = None,
    inner_hparams: PyTree | Callable[[Key, PyTree], PyTree] | None = None,
    norm: str = "support",
    mask_absent_classes: bool = False,
    task_chunk: int | str = "auto",
    more: Callable[[Key, PyTree, Task], dict[str, PyTree]] | None = None,
    start: Callable[..., Start] | None = None,
    outer: Callable[..., tuple[Array, dict, PyTree]] = last_step,
    trajectory: bool = False,
    count_steps: bool = False,
    first_order_until: int = 0,
    around: Callable[[Callable, PyTree], Callable] | None = None,
    settings: dict[str, Any] | None = None,
) -> MetaLearner:
    """Builds a learner of the MAML family.

    Args:
      name: What `describe` calls it.
      model: The network.
      loss_fn: Loss of one task, of the support and of the query set.
      inner_opt: An optax transformation, or `hparams -> transformation`.
      num_steps: K, inner steps.
      differentiation: See `metalearn.inner.differentiate`.
      adapt_filter: Which parameters of the model move inside; all when `None`.
      inner_hparams: Initial hyper-parameters of `inner_opt`, or
        `(key, adapted params) -> hparams`; learned outside.
      norm: Batch-norm policy, see `metalearn.inner.norm`.
      mask_absent_classes: For tasks with a variable number of ways.
      task_chunk: Tasks handled at once, or "auto".
      more: `(key, model params, task) -> {name: params}`: learned outside as well.
      start: `(params, support, *, key, train) -> Start`. Without one, a task starts at
        the params of the model.
      outer: `(episode, loss_fn) -> (loss, report, query state)`.
      trajectory: Whether `outer` sees the params around every step.
      count_steps: Whether `outer` is told the number of the outer step.
      first_order_until: Outer steps during which second derivatives are dropped.
      around: What the inner steps descend in place of the support loss, see
        `metalearn.inner.descent`.
      settings: Further pairs for `describe`.

    Returns:
      A `MetaLearner`. With `inner_hparams` or `more` its params are
      `{"model": ..., "inner": hparams, **more}`, else those of the model. Where steps are
      counted its state is `{"model": ..., "step": int32}`.

    Raises:
      ValueError: an option is out of range, or the inner optimiser has no finite second
        derivative.
    """
    second_order = is_second_order(differentiation) and num_steps > 0
    checks.inner_optimiser(inner_opt, inner_hparams, second_order=second_order)
    checks.whole_number("first_order_until", first_order_until, least=0)
    nested = inner_hparams is not None or more is not None
    counted = count_steps or first_order_until > 0
    inner, first_order = (
        descent(
            model,
            loss_fn,
            inner_opt,
            num_steps=num_steps,
            differentiation=choice,
            adapt_filter=adapt_filter,
            norm=norm,
            mask_absent_classes=mask_absent_classes,
            trajectory=trajectory,
            around=around,
        )
        for choice in (differentiation, "first_order")
    )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task)
        k_model, k_inner = jax.random.split(key)
        variables = inner.init(k_model, task)
        moving, hparams = trees.split(variables.params, adapt_filter)[0], inner_hparams
        if callable(hparams):
            hparams = hparams(k_inner, moving)
        if second_order:
            checks.inner_optimiser_on(moving, inner_opt, hparams)
        state = variables.state
        if counted:
            state = {"model": state, "step": jnp.zeros((), jnp.int32)}
        if not nested:
            return Variables(params=variables.params, state=state)
        params = {"model": variables.params}
        if hparams is not None:
            # With a dtype: a weakly typed number would compile the second step again.
            params["inner"] = jax.tree.map(
                lambda h: jnp.asarray(h, jnp.result_type(h)), hparams
            )
        if more is not None:
            k_more = jax.random.fold_in(k_inner, 1)
            params |= more(k_more, variables.params, task)
        return Variables(params=params, state=state)

    def begin(params: PyTree, support: Examples, key: Key | None, train: bool) -> Start:
        if start is not None:
            return start(params, support, key=key, train=train)
        return Start(params["model"], params.get("inner")) if nested else Start(params)

    def adapted_from(
        variables: Variables, support: Examples, key: Key | None, train: bool
    ) -> tuple[Start, Adapted, Unrolled]:
        k_start, k_adapt = (None, key) if start is None else _split(key)
        first = begin(variables.params, support, k_start, train)
        state = variables.state["model"] if counted else variables.state
        model_variables = Variables(params=first.params, state=state)

        def run(how: Descent) -> tuple[Adapted, Unrolled]:
            return how.adapt(
                model_variables, first.hparams, support, key=k_adapt, train=train
            )

        if train and first_order_until:
            adapted, path = jax.lax.cond(
                variables.state["step"] < first_order_until,
                lambda: run(first_order),
                lambda: run(inner),
            )
        else:
            adapted, path = run(inner)
        return first, adapted.replace(info=first.info), path

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        checks.one_set(support, "support")
        return adapted_from(variables, support, key, False)[1]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        return inner.predict(adapted, x, key=key, mask=mask)[0]

    def objective(variables: Variables, task: Task, *, key: Key):
        k_adapt, k_query = jax.random.split(key)
        first, adapted, path = adapted_from(variables, task.support, k_adapt, True)

        def at(step: Any) -> Adapted:
            moving = jax.tree.map(lambda leaf: leaf[step], path.trajectory)
            fixed = trees.split(adapted.params, adapt_filter)[1]
            return adapted.replace(params=trees.merge(moving, fixed))

        def predict_in_training(adapted, x, *, key, mask=None):
            return inner.predict(adapted, x, key=key, train=True, mask=mask)

        episode = Episode(
            task=task,
            start=first,
            path=path,
            at=at,
            adapted=adapted,
            predict=predict_in_training,
            step=variables.state["step"] if counted else None,
            key=k_query,
        )
        loss, report, query_state = outer(episode, loss_fn)
        if num_steps:
            report = {**report, "support/loss": path.losses[0]}
        if counted:
            model_state, step = variables.state["model"], variables.state["step"]
            collected = inner.collect(model_state, path, query_state)
            state = {"model": collected, "step": step + 1}
        else:
            state = inner.collect(variables.state, path, query_state)
        return loss + first.loss, (state, {**report, **(first.report or {})})

    config = config_of(
        name,
        inner_opt=inner_opt,
        num_steps=num_steps,
        differentiation=str(differentiation),
        norm=norm,
        learned_inner=inner_hparams is not None,
        **(settings or {}),
    )
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    return MetaLearner(init, adapt, predict, estimate, config)


def _split(key: Key | None) -> tuple[Key | None, Key | None]:
    return (None, None) if key is None else tuple(jax.random.split(key))
