"""Learners that adapt a model by gradient descent: one builder for the whole family.

Inside, `inner.descent` moves parameters on the support loss. Outside, the query loss after
that is differentiated. What sets an algorithm apart stands in its `Hooks`: where a task
starts, what is learned beside the model, what is minimised outside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.options import Options, complete
from metalearn.core import checks, kinds, metrics, trees
from metalearn.core.estimators import gradient_estimator
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import (
    Array,
    InnerHparams,
    InnerOpt,
    Key,
    LossFn,
    PathFilter,
    PyTree,
)
from metalearn.inner import Adapted, Descent, Unrolled, descent
from metalearn.inner.differentiate import is_second_order, refuse_implicit


class Start(NamedTuple):
    """Where the adaptation to one task begins.

    Attributes:
      params: phi_0, all parameters of the model.
      hparams: Hyper-parameters of the inner optimiser, if some are learned.
      loss: Scalar that the outer objective adds, e.g. a reconstruction loss.
      report: Scalars for the metrics of the task.
      info: What `Adapted.info` shows, e.g. how a task was routed.
    """

    params: PyTree
    hparams: PyTree = None
    loss: Any = 0.0
    report: Any = None
    info: PyTree = None


class AdaptedTask(NamedTuple):
    """One training task after its adaptation; what the outer objective sees.

    Attributes:
      task: The task.
      start: Where its adaptation began.
      path: The inner loop, with its trajectory if `Hooks.trajectory`.
      at: `step -> Adapted` after that many inner steps, with the model's state after the
        last one; needs the trajectory.
      adapted: The model after the last step.
      predict: `(adapted, x, *, key, mask) -> (outputs, state)` in training mode.
      step: Outer steps done before this one, int32 scalar.
      key: Key for draws of the outer objective.
    """

    task: Task
    start: Start
    path: Unrolled
    at: Callable[[Any], Adapted]
    adapted: Adapted
    predict: Callable[..., tuple[PyTree, PyTree]]
    step: Array
    key: Key


def last_step(done: AdaptedTask, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
    """The query loss after the last inner step (Finn et al. 2017, algorithm 1).

    Returns:
      The loss, the report of the task and the state of the model after its queries.
    """
    query = done.task.query
    outputs, state = done.predict(done.adapted, query.x, key=done.key, mask=query.mask)
    report = metrics.of_task(loss_fn, outputs, query)
    report = {f"query/{name}": value for name, value in report.items()}
    return report["query/loss"], report, state


class Hooks(NamedTuple):
    """What an algorithm adds to the builder. Users of a learner never see it.

    Attributes:
      more: `(key, model params, task) -> {name: params}`: what is learned outside beside
        the model.
      start: `(params, support, *, key, train) -> Start`. Without one, a task starts at
        the params of the model.
      outer: `(adapted task, loss_fn) -> (loss, report, query state)`.
      trajectory: Whether `outer` sees the params around every step.
      first_order_until: Outer steps during which second derivatives are dropped.
      around: `(loss, params) -> loss`, what the inner steps descend in place of the support
        loss, see `metalearn.inner.descent`.
      inner_hparams: Initial hyper-parameters of the inner optimiser, or
        `(key, adapted params) -> hparams`; learned outside.
      settings: Further pairs for `describe`.
    """

    more: Callable[[Key, PyTree, Task], dict[str, PyTree]] | None = None
    start: Callable[..., Start] | None = None
    outer: Callable[[AdaptedTask, LossFn], tuple[Array, dict, PyTree]] = last_step
    trajectory: bool = False
    first_order_until: int = 0
    around: Callable[[Callable, PyTree], Callable] | None = None
    inner_hparams: InnerHparams | None = None
    settings: Mapping[str, Any] = {}


NO_HOOKS = Hooks()


def bilevel(
    name: str,
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    /,
    *,
    num_steps: int,
    hooks: Hooks = NO_HOOKS,
    **options: Unpack[Options],
) -> MetaLearner:
    """Builds a learner of the MAML family.

    Args:
      name: What `describe` calls the learner, unless `options` say otherwise.
      model: The network.
      loss_fn: Loss of one task, of the support and of the query set.
      inner_opt: An optax transformation, or `hparams -> transformation`.
      num_steps: K, inner steps.
      hooks: What sets the algorithm apart.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` with params `{"model": ..., **more}`, with `"inner"` where
      hyper-parameters are learned, and state `{"model": ..., "step": int32}`, the outer
      steps that were done.

    Raises:
      ValueError: an option is out of range, or the inner optimiser has no finite second
        derivative; in `adapt` and `estimate`: the variables have another shape.
    """
    chosen = complete(bilevel, name, options)
    checks.model(model)
    checks.loss(loss_fn)
    loop = _loop(model, loss_fn, inner_opt, num_steps, hooks, chosen)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        return _first_variables(loop, key, task)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support)
        return _adapt(loop, variables, support, key, train=False)[1]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return loop.whole.predict(adapted, x, key=key, mask=mask)[0]

    def objective(variables: Variables, task: Task, *, key: Key):
        k_adapt, k_query = jax.random.split(key)
        start, adapted, path = _adapt(loop, variables, task.support, k_adapt, train=True)
        step = variables.state["step"]
        done = AdaptedTask(
            task=task,
            start=start,
            path=path,
            at=functools.partial(_after, path, adapted, loop.adapt_filter),
            adapted=adapted,
            predict=functools.partial(loop.whole.predict, train=True),
            step=step,
            key=k_query,
        )
        loss, report, query_state = hooks.outer(done, loss_fn)
        if num_steps:
            report = {**report, "support/loss": path.losses[0]}
        state = loop.whole.collect(variables.state["model"], path, query_state)
        report = {**report, **(start.report or {})}
        return loss + start.loss, ({"model": state, "step": step + 1}, report)

    config = config_of(
        chosen["name"],
        num_steps=num_steps,
        differentiation=chosen["differentiation"],
        norm=chosen["norm"],
        learned_inner=hooks.inner_hparams is not None,
        **hooks.settings,
    )
    estimate = gradient_estimator(objective, task_chunk=chosen["task_chunk"])
    made = MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))
    return made._replace(masks_absent=chosen["mask_absent_classes"])


class _Loop(NamedTuple):
    """The inner loop of one learner.

    Attributes:
      inner_opt: An optax transformation, or `hparams -> transformation`.
      hooks: What sets the algorithm apart.
      adapt_filter: Which parameters of the model move.
      second_order: Whether the update of the optimiser is differentiated.
      whole: The adaptation, differentiated as the options say.
      first_order: The same steps, whose gradients count as constants.
    """

    inner_opt: InnerOpt
    hooks: Hooks
    adapt_filter: PathFilter | str | None
    second_order: bool
    whole: Descent
    first_order: Descent


def _loop(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    num_steps: int,
    hooks: Hooks,
    options: Options,
) -> _Loop:
    """Checks the options and makes the inner loop."""
    differentiation = options["differentiation"]
    refuse_implicit(options["name"], differentiation)
    second_order = is_second_order(differentiation) and num_steps > 0
    checks.inner_optimiser(inner_opt, hooks.inner_hparams, second_order=second_order)
    checks.whole_number("first_order_until", hooks.first_order_until, least=0)
    whole, first_order = (
        descent(
            model,
            loss_fn,
            inner_opt,
            num_steps=num_steps,
            differentiation=choice,
            adapt_filter=options["adapt_filter"],
            norm=options["norm"],
            mask_absent_classes=options["mask_absent_classes"],
            trajectory=hooks.trajectory,
            around=hooks.around,
        )
        for choice in (differentiation, "first_order")
    )
    selected = options["adapt_filter"]
    return _Loop(inner_opt, hooks, selected, second_order, whole, first_order)


def _first_variables(loop: _Loop, key: Key, task: Task) -> Variables:
    """The model, what is learned beside it, and no outer step done."""
    k_model, k_inner = jax.random.split(key)
    made = loop.whole.init(k_model, task)
    moving = trees.split(made.params, loop.adapt_filter)[0]
    hparams = loop.hooks.inner_hparams
    if callable(hparams):
        hparams = hparams(k_inner, moving)
    if loop.second_order or hparams is not None:
        checks.inner_optimiser_on(
            moving, loop.inner_opt, hparams, second_order=loop.second_order
        )
    params = {"model": made.params}
    if hparams is not None:
        # With a dtype: a weakly typed number would compile the second step again.
        params["inner"] = jax.tree.map(
            lambda h: jnp.asarray(h, jnp.result_type(h)), hparams
        )
    if loop.hooks.more is not None:
        params |= loop.hooks.more(jax.random.fold_in(k_inner, 1), made.params, task)
    state = {"model": made.state, "step": jnp.zeros((), jnp.int32)}
    return Variables(params=params, state=state)


def _adapt(
    loop: _Loop, variables: Variables, support: Examples, key: Key | None, *, train: bool
) -> tuple[Start, Adapted, Unrolled]:
    """Where a task starts, where it ends, and the way between."""
    _check_parts(variables)
    start, params = loop.hooks.start, variables.params
    if start is None:
        first = Start(params["model"], params.get("inner"))
    else:
        k_start, key = split_key(key)
        first = start(params, support, key=k_start, train=train)
    model_variables = Variables(params=first.params, state=variables.state["model"])

    def run(how: Descent) -> tuple[Adapted, Unrolled]:
        return how.adapt(model_variables, first.hparams, support, key=key, train=train)

    if train and loop.hooks.first_order_until:
        adapted, path = jax.lax.cond(
            variables.state["step"] < loop.hooks.first_order_until,
            lambda: run(loop.first_order),
            lambda: run(loop.whole),
        )
    else:
        adapted, path = run(loop.whole)
    return first, adapted.replace(info=first.info), path


def _after(
    path: Unrolled, adapted: Adapted, adapt_filter: PathFilter | str | None, step: Any
) -> Adapted:
    """The model after some of the inner steps."""
    moving = jax.tree.map(lambda leaf: leaf[step], path.trajectory)
    fixed = trees.split(adapted.params, adapt_filter)[1]
    return adapted.replace(params=trees.merge(moving, fixed))


def _check_parts(variables: Variables) -> None:
    for name, tree in (("params", variables.params), ("state", variables.state)):
        if not isinstance(tree, Mapping) or "model" not in tree:
            raise ValueError(
                f"variables.{name} has no part 'model', so the variables are those of "
                "another kind of learner. Expected what init makes. Those of a bare model "
                "are to be given as ml.Variables(params={'model': params}, "
                "state={'model': state, 'step': jnp.zeros((), jnp.int32)})."
            )
