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
from metalearn.core.labels import outside
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Model, Variables, kept_without_rows, run
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.types import Array, Key, PyTree, TaskChunk
from metalearn.inner.norm import check_alone, check_still

EncoderNorm = Literal["running", "batch"]


class EmbeddingOptions(TypedDict, total=False):
    """What users of a learner that embeds may pass on.

    Attributes:
      norm: "running": batch norm of the encoder learns from support and query together in
        training and uses its running averages at test (inductive); "batch": statistics of
        each batch at test too (transductive). Learners that classify among embeddings then
        normalise support and query each by itself in training as well.
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
        present = present_classes(support, num_ways)
        fitted = head.fit(params, support, key=key)
        return Fitted(fitted=fitted, present=present, variables=variables)

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
        kinds.adaptation(variables, support, ("encoder", "head") if head.init else ())
        encoder_, params = parts(variables)
        embeddings, _ = embed(encoder_, support.x, key=key, train=False, mask=support.mask)
        # In meta-training the variables are the learner's own.
        with kinds.own_params(params):
            return fit(params, seen(embeddings, support), variables, key)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Fitted)
        encoder_, params = parts(adapted.variables)
        embeddings, _ = embed(encoder_, x, key=key, train=False, mask=mask)
        return logits_of(params, adapted, embeddings)

    def objective(variables: Variables, task: Task, *, key: Key):
        k_embed, k_fit, k_loss = jax.random.split(key, 3)
        encoder_, params = parts(variables)
        together = functools.partial(_together, embed, apart=norm == "batch")
        (of_support, of_query), state = together(encoder_, task, key=k_embed)
        support, query = seen(of_support, task.support), seen(of_query, task.query)
        adapted = fit(params, support, variables, k_fit)
        logits = logits_of(params, adapted, query.x)
        report = metrics.of_task(cross_entropy, logits, task.query)
        report = {f"query/{k}": v for k, v in report.items()}
        loss, more = report["query/loss"], {}
        if head.loss is not None:
            given = support, query, logits
            loss, more = head.loss(params, adapted.fitted, *given, key=k_loss)
        # A label outside is no class to a mean, and another one to what compares labels. As
        # a factor, so that the gradient is NaN too.
        wrong = sum(outside(part, num_ways) for part in (task.support, task.query)) > 0
        loss = loss * jnp.where(wrong, jnp.nan, 1)
        return loss, (state, report | more)

    config = config_of(name, num_ways=num_ways, **settings, norm=norm)
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    return MetaLearner(
        init, adapt, predict, estimate, config, cross_entropy, masks_absent=True
    )


def exact(head: Head) -> Head:
    """The head with products in full precision, where a device has less by default.

    What solves linear systems needs it: rounding in a Gram matrix may be larger than the
    number on its diagonal that makes it positive.
    """

    def precisely(fn: Callable) -> Callable:
        @functools.wraps(fn)
        def precise(*args, **given):
            with jax.default_matmul_precision("highest"):
                return fn(*args, **given)

        return precise

    loss = None if head.loss is None else precisely(head.loss)
    return head._replace(fit=precisely(head.fit), score=precisely(head.score), loss=loss)


def embedder(
    encoder: Model, *, norm: EncoderNorm, maps: bool = False
) -> Callable[..., tuple[Array, PyTree]]:
    """Function `(variables, x, *, key, train, mask=None) -> (embeddings, state)`.

    Embeddings are in float32 at least: sums of many rows and differences of squares need
    more than 16 bits.
    """

    def embed(variables: Variables, x, *, key, train, mask=None):
        batch = train or norm == "batch"
        if norm == "batch":  # in training too: the first validation would be late
            check_still(encoder, variables.params, variables.state, x, norm)
            check_alone(encoder, variables.params, variables.state, x, norm)
        outputs, state = run(
            encoder, variables, x, key=key, noise=train, batch=batch, mask=mask
        )
        if batch:
            state = kept_without_rows(state, variables.state, mask)
        check_embeddings(outputs, x, maps)
        return trees.widened(outputs), state

    return embed


def check_embeddings(outputs: Any, x: PyTree, maps: bool = False) -> None:
    """Refuses what is no embedding, or no map where maps are taken, of each input x."""
    trees.one_array(outputs, "the output of the encoder", "embeddings [N, D]")
    wanted = "[N, D], or maps [N, H, W, C]" if maps else "[N, D]"
    given = f"the encoder gave embeddings of shape {outputs.shape}"
    if outputs.ndim != 2 and not (maps and outputs.ndim == 4):
        raise ValueError(f"{given}; expected {wanted}. Flatten or pool in the encoder.")
    num = jax.tree.leaves(x)[0].shape[0]
    if outputs.shape[0] != num or 0 in outputs.shape[1:]:
        raise ValueError(
            f"{given} for {num} inputs; expected {wanted} with N = {num} and no empty "
            "axis. Give one input as x[None]; take means over places, not over inputs."
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(
            f"the encoder gave embeddings of {outputs.dtype}; expected real numbers, such "
            "as float32, for anything else has no derivative. Convert them in the encoder."
        )


def labels_of(examples: Examples) -> Array:
    """Class indices, wider than bytes, which hold no 300 classes; int32 `[N]`."""
    y = examples.y
    if not jnp.issubdtype(y.dtype, jnp.integer) or y.ndim != 1:
        raise TypeError(
            f"the labels of the examples are {y.dtype}{list(y.shape)}; expected class "
            "indices, integers [N]."
        )
    return examples.y.astype(jnp.int32)


def class_means(support: Examples, num_ways: int) -> Array:
    """Mean embedding of each class, `[W, ...]`; zero for a class without an example."""
    shares = shares_of(support, num_ways)
    return jnp.tensordot(shares.T, support.x, 1)


def members_of(support: Examples, num_ways: int) -> Array:
    """1 where an example belongs to a class, `[N, W]`; nowhere for a masked row."""
    members = jax.nn.one_hot(support.y, num_ways, dtype=support.x.dtype)
    return jnp.where(support.mask[:, None], members, 0)


def shares_of(support: Examples, num_ways: int) -> Array:
    """Share of each example in its class, `[N, W]`; they sum to 1 in a class."""
    members = members_of(support, num_ways)
    return members / jnp.maximum(members.sum(0), 1)[None]


def _together(
    embed: Callable, variables: Variables, task: Task, *, key: Key, apart: bool
) -> tuple[tuple[Array, Array], PyTree]:
    """Embeddings of support and query in training, and the state after them.

    Both are one batch, whose statistics the averages are of. Where batches are normalised
    by themselves at test they are `apart` here too, as they will be there.
    """
    if not apart:
        both = concatenate(task.support, task.query)
        x, state = embed(variables, both.x, key=key, train=True, mask=both.mask)
        num = task.support.mask.shape[0]
        return (x[:num], x[num:]), state
    found, state = [], variables.state
    for part, k in zip((task.support, task.query), jax.random.split(key)):
        now = Variables(params=variables.params, state=state)
        x, state = embed(now, part.x, key=k, train=True, mask=part.mask)
        found.append(x)
    return (found[0], found[1]), state


def _parts(head: Head, variables: Variables) -> tuple[Variables, PyTree]:
    """Variables of the encoder and params of the head."""
    if head.init is None:
        return variables, {}
    params = variables.params
    return Variables(params=params["encoder"], state=variables.state), params["head"]


def seen(embeddings: Array, examples: Examples) -> Examples:
    """Embedded examples whose masked rows are zero, with int32 labels."""
    valid = examples.mask.reshape((-1,) + (1,) * (embeddings.ndim - 1))
    return Examples(
        # Zero, because what a masked row holds may be NaN, and 0 times NaN is NaN.
        x=jnp.where(valid, embeddings, 0),
        y=jnp.where(examples.mask, labels_of(examples), 0),
        mask=examples.mask,
    )
