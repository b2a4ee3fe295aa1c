"""Learners that classify in meta-training and use at test what the network has learned.

Meta-training of the whole family is plain classification of all training classes. What
differs is how a new task is classified: by a `Head` among frozen embeddings (`pretrained`),
or by a network of which a part moves. As meta-training is the same, so are the variables:
what one learner of linear classification has trained serves the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EncoderNorm,
    Fitted,
    Head,
    embedder,
    seen,
)
from metalearn.core import checks, kinds, labels, metrics
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key, PyTree, TaskChunk

PARTS = ("encoder", "classifier")  # of the params
LAG = 100  # outer steps over which the mean feature is averaged

_kernel = jax.nn.initializers.lecun_normal()


class Classifier(NamedTuple):
    """A classifier of embeddings whose weights are trained.

    Attributes:
      init: Function `(key, like, num) -> params` for `num` classes, where `like` has the
        shape and dtype of embeddings.
      logits: Function `(params, x) -> logits [N, num]` of embeddings `[N, D]`.
    """

    init: Callable[[Key, Any, int], PyTree]
    logits: Callable[[PyTree, Array], Array]


def _linear_init(key: Key, like: Any, num: int) -> PyTree:
    kernel = _kernel(key, (like.shape[-1], num), like.dtype)
    return {"kernel": kernel, "bias": jnp.zeros((num,), like.dtype)}


LINEAR = Classifier(_linear_init, lambda p, x: x @ p["kernel"] + p["bias"][None])


class Joint(NamedTuple):
    """One task in meta-training.

    Attributes:
      report: Loss and accuracy among all training classes, "joint/loss" and
        "joint/accuracy".
      state: State of the learner after this task.
      support: Embedded support set, with the labels of the task.
      query: Embedded query set.
    """

    report: dict[str, Array]
    state: PyTree
    support: Examples
    query: Examples


class Pretraining(NamedTuple):
    """Classification of all training classes: the meta-training of this family.

    The params are `{"encoder": ..., "classifier": ...}`. The state is `{"model": ...,
    "mean": [D], "step": int32}`: that of the encoder, the mean feature, the outer steps
    that were done.

    Attributes:
      init: Function `(key, task) -> Variables`.
      joint: Function `(variables, task, *, key) -> Joint`.
      embed: Function `(variables, x, *, mask=None) -> embeddings [N, D]` in evaluation.
      config: Pairs for `config_of`.
    """

    init: Callable[[Key, Task], Variables]
    joint: Callable[..., Joint]
    embed: Callable[..., Array]
    config: Mapping[str, Any]


def pretraining(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    classifier: Classifier = LINEAR,
    norm: EncoderNorm = "running",
) -> Pretraining:
    """Classification of all training classes, support and query of a task together.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_classes: Number of training classes; `task.info["class_ids"]` `[W]` say which of
        them a task has.
      num_ways: W, number of logits in a task.
      classifier: The classifier of the training classes.
      norm: Batch norm of the encoder; see `EmbeddingOptions`.

    Raises:
      TypeError: `encoder` is no model.
      ValueError: an option is out of range.
    """
    checks.model(encoder, "encoder")
    checks.one_of("norm", norm, get_args(EncoderNorm))
    checks.whole_number("num_classes", num_classes, least=2)
    checks.whole_number("num_ways", num_ways, least=2)
    run = embedder(encoder, norm=norm)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        k_encoder, k_classifier = jax.random.split(key)
        made = encoder.init(k_encoder, task.support.x)
        like = jax.eval_shape(
            lambda v, x: run(v, x, key=k_encoder, train=True)[0], made, task.support.x
        )
        classes = classifier.init(k_classifier, like, num_classes)
        state = {
            "model": made.state,
            "mean": jnp.zeros(like.shape[1:], like.dtype),
            "step": jnp.zeros((), jnp.int32),
        }
        return Variables(
            params={"encoder": made.params, "classifier": classes}, state=state
        )

    def joint(variables: Variables, task: Task, *, key: Key) -> Joint:
        both = concatenate(task.support, task.query)
        x, model = run(encoder_of(variables), both.x, key=key, train=True, mask=both.mask)
        rows = seen(x, both)
        logits = classifier.logits(variables.params["classifier"], rows.x)
        report = metrics.of_task(cross_entropy, logits, labels.of_training(rows, task.info))
        num = task.support.mask.shape[0]
        return Joint(
            report={f"joint/{name}": value for name, value in report.items()},
            state=_next(variables.state, model, rows),
            support=jax.tree.map(lambda leaf: leaf[:num], rows),
            query=jax.tree.map(lambda leaf: leaf[num:], rows),
        )

    def embed(variables: Variables, x: PyTree, *, mask: Array | None = None) -> Array:
        return run(encoder_of(variables), x, key=None, train=False, mask=mask)[0]

    config = {"num_classes": num_classes, "num_ways": num_ways, "norm": norm}
    return Pretraining(init, joint, embed, config)


def pretrained(
    name: str,
    encoder: Model,
    head: Head,
    *,
    num_classes: int,
    num_ways: int,
    settings: Mapping[str, Any],
    classifier: Classifier = LINEAR,
    centred: bool = False,
    norm: EncoderNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """A learner that trains a classifier, drops it, and adapts a head to frozen embeddings.

    Args:
      name: Name of the algorithm.
      encoder: Network from inputs to embeddings `[N, D]`.
      head: The classifier of a task, without parameters of its own.
      num_classes: Number of training classes.
      num_ways: W, number of logits in a task.
      settings: The hyper-parameters of the head, for `describe`.
      classifier: The classifier of the training classes.
      centred: Whether the mean feature of meta-training is taken from all embeddings.
      norm: Batch norm of the encoder; see `EmbeddingOptions`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`, see `Pretraining` for its variables; `adapt` gives a `Fitted`.

    Raises:
      TypeError: `encoder` is no model.
      ValueError: an option is out of range.
    """
    base = pretraining(
        encoder,
        num_classes=num_classes,
        num_ways=num_ways,
        classifier=classifier,
        norm=norm,
    )
    adapt, predict = frozen(base, head, num_ways, centred=centred)
    return learner_of(name, base, adapt, predict, settings, task_chunk=task_chunk)


def frozen(
    base: Pretraining, head: Head, num_ways: int, *, centred: bool = False
) -> tuple[Callable, Callable]:
    """`adapt` and `predict` of a head among frozen embeddings.

    The params of the head are the part "head" of the learner's, if there is one.
    """

    parts = PARTS if head.init is None else (*PARTS, "head")

    def embed(variables: Variables, x: PyTree, mask: Array | None) -> Array:
        embeddings = base.embed(variables, x, mask=mask)
        return embeddings - variables.state["mean"][None] if centred else embeddings

    def adapt(variables: Variables, support: Examples, *, key: Key | None = None):
        kinds.adaptation(variables, support, parts)
        rows = seen(embed(variables, support.x, support.mask), support)
        fitted = head.fit(variables.params.get("head", {}), rows, key=key)
        present = present_classes(rows, num_ways)
        return Fitted(fitted=fitted, present=present, variables=variables)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Fitted)
        embeddings = embed(adapted.variables, x, mask)
        params = adapted.variables.params.get("head", {})
        return mask_absent(head.score(params, adapted.fitted, embeddings), adapted.present)

    return adapt, predict


def learner_of(
    name: str,
    base: Pretraining,
    adapt: Callable,
    predict: Callable,
    settings: Mapping[str, Any],
    *,
    init: Callable | None = None,
    objective: Callable | None = None,
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """A learner whose meta-training is classification, unless it has its own objective."""

    def classify(variables: Variables, task: Task, *, key: Key):
        done = base.joint(variables, task, key=key)
        return done.report["joint/loss"], (done.state, done.report)

    return MetaLearner(
        base.init if init is None else init,
        adapt,
        predict,
        gradient_estimator(objective or classify, task_chunk=task_chunk),
        config_of(name, **settings, **base.config),
        cross_entropy,
        training_classes=base.config["num_classes"],
    )


def encoder_of(variables: Variables) -> Variables:
    """Variables of the encoder."""
    return Variables(params=variables.params["encoder"], state=variables.state["model"])


def _next(state: PyTree, model: PyTree, rows: Examples) -> PyTree:
    """State of the learner after one training task."""
    old, done = state["mean"], state["step"] + 1
    # The plain mean over the first steps; later ones forget those of another network.
    share = jnp.maximum(1 / done.astype(old.dtype), 1 / LAG)
    moved = old + share * (masked_mean(rows.x, rows.mask) - old)
    return {
        "model": model,
        "mean": jnp.where(jnp.any(rows.mask), moved, old),
        "step": done,
    }
