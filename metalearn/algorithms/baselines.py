"""The two baselines every paper needs: joint training with and without fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalearn.core import checks, kinds, labels, metrics, trees
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.types import Key, LossFn, PathFilter, PyTree, TaskChunk
from metalearn.inner import Adapted, descent
from metalearn.inner.norm import JointNorm, check_alone


def no_adaptation(
    model: Model,
    loss_fn: LossFn,
    *,
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """One model for all tasks, trained on their support and query sets, without adapting.

    What a meta-learner is worth is its distance from this. On tasks whose labels are
    permuted at random it stays at chance.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      norm: Batch-norm policy: "support", "batch" or "running"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".
    """
    learner = fine_tune(
        model, loss_fn, optax.identity(), num_steps=0, norm=norm, task_chunk=task_chunk
    )
    return learner._replace(config=config_of("no_adaptation", norm=norm))


def fine_tune(
    model: Model,
    loss_fn: LossFn,
    opt: optax.GradientTransformation,
    *,
    num_steps: int,
    num_classes: int | None = None,
    num_ways: int | None = None,
    adapt_filter: PathFilter | str | None = None,
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """Joint training on all tasks, then plain fine-tuning on the support set.

    Without `num_classes` the model is trained to predict support and query of every task
    directly, which makes sense where targets mean the same in all tasks (regression).

    With `num_classes` it is "Baseline" of W.-Y. Chen et al., A Closer Look at Few-shot
    Classification, ICLR 2019: `model` gives features, a linear classifier over all
    training classes is trained on them (the tasks' `info["class_ids"]` `[W]` say which
    they are), and at test a new linear head of `num_ways` classes is fitted to the
    support set; with `adapt_filter=None` only that head moves.

    Args:
      model: The network, or the feature extractor `[N, D]` with `num_classes`.
      loss_fn: Loss of one task.
      opt: An optax transformation for the fine-tuning.
      num_steps: K, fine-tuning steps on the whole support set.
      num_classes: Number of training classes.
      num_ways: Classes of a task at test; needed with `num_classes`.
      adapt_filter: What fine-tuning moves: a regular expression or `(path, leaf) -> bool`
        over `body/...` and `head/...`, or over the model's own paths without
        `num_classes`.
      norm: Batch-norm policy: "support", "batch" or "running"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`.

    Raises:
      ValueError: `num_classes` without `num_ways`, or tasks without `class_ids`.
    """
    checks.model(model)
    checks.inner_optimiser(opt, None, second_order=False)
    _check_counts(num_classes, num_ways)
    with_head = num_classes is not None
    network = _with_head(model) if with_head else model
    if with_head and adapt_filter is None:
        adapt_filter = lambda path, leaf: path.startswith("head")
    inner = descent(
        network,
        loss_fn,
        opt,
        num_steps=num_steps,
        differentiation="first_order",
        adapt_filter=adapt_filter,
        norm=norm,
    )
    if norm == "per_step":
        raise ValueError(
            "norm='per_step' keeps statistics of inner steps, and joint training has "
            "none. Choose 'running', 'support' or 'batch'."
        )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        if not with_head:
            return inner.init(key, task)
        body = model.init(key, task.support.x)
        features = jax.eval_shape(
            lambda v, x: model.apply(v, x, train=True)[0], body, task.support.x
        )
        trees.one_array(features, "the output of the model", "features [N, D]")
        head = _linear(features.shape[-1], num_classes, features.dtype)
        params = {"body": body.params, "head": head}
        check_alone(network, params, body.state, task.support.x, norm)
        return Variables(params=params, state=body.state)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support)
        if with_head:
            trained = variables.params["head"]["kernel"]
            head = _linear(trained.shape[0], num_ways, trained.dtype)
            params = {**variables.params, "head": head}
            variables = Variables(params=params, state=variables.state)
        return inner.adapt(variables, None, support, key=key)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return inner.predict(adapted, x, key=key, mask=mask)[0]

    def objective(variables: Variables, task: Task, *, key: Key):
        examples = concatenate(task.support, task.query)
        if with_head:
            examples = labels.of_training(examples, task.info)
        outputs, state = network.apply(
            variables, examples.x, key=key, train=True, mask=examples.mask
        )
        if norm != "running":
            state = variables.state  # nothing ever reads the averages
        report = metrics.of_task(loss_fn, outputs, examples)
        report = {f"joint/{k}": v for k, v in report.items()}
        return report["joint/loss"], (state, report)

    config = config_of("fine_tune", num_steps=num_steps, num_classes=num_classes, norm=norm)
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    made = MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))
    return made._replace(training_classes=num_classes)


def _with_head(body: Model) -> Model:
    """`body` followed by a linear head, params `{"body": ..., "head": ...}`."""

    def of(fn: Callable) -> Callable:
        def apply(variables, x, **given):
            inner = Variables(params=variables.params["body"], state=variables.state)
            features, state = fn(inner, x, **given)
            head = variables.params["head"]
            return features @ head["kernel"] + head["bias"][None], state

        return apply

    split = None if body.split is None else of(body.split)
    return Model(body.init, of(body.apply), split, f"{body.about}, with a linear head")


def _check_counts(num_classes: int | None, num_ways: int | None) -> None:
    if (num_classes is None) != (num_ways is None):
        raise ValueError(
            f"num_classes={num_classes} and num_ways={num_ways}: give both (features and "
            "a new linear head for each task) or neither (the model as it is)."
        )
    for name, value in (("num_classes", num_classes), ("num_ways", num_ways)):
        if value is not None:
            checks.whole_number(name, value, least=2)


def _linear(num_in: int, num_out: int, dtype: Any) -> dict[str, jax.Array]:
    """A zero head: the start at which no class is preferred."""
    return {
        "kernel": jnp.zeros((num_in, num_out), dtype),
        "bias": jnp.zeros((num_out,), dtype),
    }
