"""Learners that embed the examples of a task and classify among the embeddings.

A file of a family says how the embeddings of a support set classify those of queries: a
`Head`. What all of them share is here: batch norm, masked rows, absent classes and the
objective.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import jax
import jax.numpy as jnp

from metalearn.algorithms.options import Shared
from metalearn.core import checks, kinds, metrics, trees
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.losses import cross_entropy, mask_absent
from metalearn.core.model import Model, Variables, run
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.types import Array, Key, PyTree, TaskChunk
from metalearn.inner.norm import check_still

EncoderNorm = Literal["running", "batch"]


class EmbeddingOptions(TypedDict, total=False):
    """What users of a learner that embeds may pass on.

    Attributes:
      norm: "running": batch norm of the encoder learns from support and query together in
        training and uses its running averages at test (inductive); "batch": statistics of
        each batch at test too (transductive).
      task_chunk: Tasks handled at once, or "auto".
    """

    norm: EncoderNorm
    task_chunk: TaskChunk


EMBEDDING = Shared(EmbeddingOptions, {"norm": "running", "task_chunk": "auto"})


class Head(NamedTuple):
    """How the embeddings of a support set classify those of queries.

    The support set arrives as `Examples` whose x are embeddings `[N, D]`, or maps
    `[N, H, W, C]`, in float32 at least, and whose y are int32 `[N]`. Masked rows have x
    and y of zero; `mask` still says which they are.

    Attributes:
      fit: Function `(params, support, *, key=None) -> fitted`: what a task leaves behind.
      score: Function `(params, fitted, x) -> logits [Q, W]` of the embeddings of queries,
        each row by itself.
      init: Function `(key, like) -> params` of the head's own parameters, where `like` has
        the shape and dtype of embeddings; `None` if there are none.
      loss: Function `(params, fitted, support, query, logits, *, key) -> (loss, metrics)`
        for training, where query is embedded as support is; `None` for the cross-entropy
        of the logits.
    """

    fit: Callable[..., PyTree]
    score: Callable[[PyTree, PyTree, Array], Array]
    init: Callable[[Key, Any], PyTree] | None = None
    loss: Callable[..., tuple[Array, dict[str, Array]]] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a task leaves behind.

    Attributes:
      fitted: What the head made of the support set.
      present: Classes with at least one support example, bool `[W]`.
      variables: Variables of the learner, shared by all tasks.
    """

    fitted: PyTree
    present: Array
    variables: Variables


def embedded(
    name: str,
    encoder: Model,
    head: Head,
    *,
    num_ways: int,
    maps: bool = False,
    settings: Mapping[str, Any],
    norm: EncoderNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """A learner from an encoder and a head.

    The params are those of the encoder alone if the head has none, and otherwise
    `{"encoder": ..., "head": ...}`.

    Args:
      name: Name of the algorithm.
      encoder: Network from inputs to embeddings `[N, D]`.
      head: The classifier in the space of embeddings.
      num_ways: W, number of logits.
      maps: Whether embeddings may be maps `[N, H, W, C]` too.
      settings: The hyper-parameters of the head, for `describe`.
      norm: Batch norm of the encoder; see `EmbeddingOptions`.
      task_chunk: Tasks handled at once, or "auto".

    Raises:
      TypeError: `encoder` is no model.
      ValueError: an option is out of range.
    """
    checks.model(encoder, "encoder")
    checks.one_of("norm", norm, get_args(EncoderNorm))
    checks.whole_number("num_ways", num_ways, least=2)
    embed = embedder(encoder, norm=norm, maps=maps)
    parts = functools.partial(_parts, head)

    def fit(params, support: Examples, variables: Variables, key) -> Fitted:
        rows = jax.nn.one_hot(support.y, num_ways, dtype=bool) & support.mask[:, None]
        fitted = head.fit(params, support, key=key)
        return Fitted(fitted=fitted, present=rows.any(0), variables=variables)

    def logits_of(params, adapted: Fitted, embeddings: Array) -> Array:
        return mask_absent(head.score(params, adapted.fitted, embeddings), adapted.present)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        if head.init is None:
            return encoder.init(key, task.support.x)
        k_encoder, k_head = jax.random.split(key)
        variables = encoder.init(k_encoder, task.support.x)
        like = jax.eval_shape(
            lambda v, x: embed(v, x, key=k_encoder, train=True)[0],
            variables,
            task.support.x,
        )
        params = {"encoder": variables.params, "head": head.init(k_head, like)}
        return Variables(params=params, state=variables.state)

    def adapt(variables: Variables, support: Examples, *, key: Key | None = None) -> Fitted:
        kinds.adaptation(variables, support)
        encoder_, params = parts(variables)
        embeddings, _ = embed(encoder_, support.x, key=key, train=False, mask=support.mask)
        return fit(params, _seen(embeddings, support), variables, key)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Fitted)
        encoder_, params = parts(adapted.variables)
        embeddings, _ = embed(encoder_, x, key=key, train=False, mask=mask)
        return logits_of(params, adapted, embeddings)

    def objective(variables: Variables, task: Task, *, key: Key):
        k_embed, k_fit, k_loss = jax.random.split(key, 3)
        both = concatenate(task.support, task.query)
        encoder_, params = parts(variables)
        embeddings, state = embed(encoder_, both.x, key=k_embed, train=True, mask=both.mask)
        num = task.support.mask.shape[0]
        support = _seen(embeddings[:num], task.support)
        query = _seen(embeddings[num:], task.query)
        adapted = fit(params, support, variables, k_fit)
        logits = logits_of(params, adapted, query.x)
        report = metrics.of_task(cross_entropy, logits, task.query)
        report = {f"query/{k}": v for k, v in report.items()}
        if head.loss is None:
            return report["query/loss"], (state, report)
        loss, more = head.loss(params, adapted.fitted, support, query, logits, key=k_loss)
        return loss, (state, report | more)

    config = config_of(name, num_ways=num_ways, **settings, norm=norm)
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    return MetaLearner(
        init, adapt, predict, estimate, config, cross_entropy, masks_absent=True
    )


def embedder(
    encoder: Model, *, norm: EncoderNorm, maps: bool = False
) -> Callable[..., tuple[Array, PyTree]]:
    """Function `(variables, x, *, key, train, mask=None) -> (embeddings, state)`.

    Embeddings are in float32 at least: sums of many rows and differences of squares need
    more than 16 bits.
    """

    def embed(variables: Variables, x, *, key, train, mask=None):
        batch = train or norm == "batch"
        if batch and not train:
            check_still(encoder, variables.params, variables.state, x, norm)
        outputs, state = run(
            encoder, variables, x, key=key, noise=train, batch=batch, mask=mask
        )
        trees.one_array(outputs, "the output of the encoder", "embeddings [N, D]")
        if outputs.ndim != 2 and not (maps and outputs.ndim == 4):
            wanted = "[N, D], or maps [N, H, W, C]" if maps else "[N, D]"
            raise ValueError(
                f"the encoder gave embeddings of shape {outputs.shape}; expected {wanted}. "
                "Flatten or pool in the encoder."
            )
        return trees.widened(outputs), state

    return embed


def labels_of(examples: Examples) -> Array:
    """Class indices, wider than bytes, which hold no 300 classes; int32 `[N]`."""
    if not jnp.issubdtype(examples.y.dtype, jnp.integer):
        raise TypeError(
            f"the labels of the support set have dtype {examples.y.dtype}; expected class "
            "indices, integers [N]."
        )
    return examples.y.astype(jnp.int32)


def class_means(support: Examples, num_ways: int) -> Array:
    """Mean embedding of each class, `[W, ...]`; zero for a class without an example."""
    members = jax.nn.one_hot(support.y, num_ways, dtype=support.x.dtype)
    members = jnp.where(support.mask[:, None], members, 0)
    sums = jnp.tensordot(members.T, support.x, 1)
    counts = jnp.maximum(members.sum(0), 1)
    return sums / counts.reshape((-1,) + (1,) * (support.x.ndim - 1))


def _parts(head: Head, variables: Variables) -> tuple[Variables, PyTree]:
    """Variables of the encoder and params of the head."""
    if head.init is None:
        return variables, {}
    params = variables.params
    return Variables(params=params["encoder"], state=variables.state), params["head"]


def _seen(embeddings: Array, examples: Examples) -> Examples:
    """Examples as a head sees them."""
    valid = examples.mask.reshape((-1,) + (1,) * (embeddings.ndim - 1))
    return Examples(
        # Zero, because what a masked row holds may be NaN, and 0 times NaN is NaN.
        x=jnp.where(valid, embeddings, 0),
        y=jnp.where(examples.mask, labels_of(examples), 0),
        mask=examples.mask,
    )
