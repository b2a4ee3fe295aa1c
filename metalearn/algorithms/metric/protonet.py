"""Prototypical networks: a class is the mean of its support embeddings.

J. Snell, K. Swersky, R. Zemel. Prototypical Networks for Few-shot Learning. NeurIPS 2017.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds, metrics, trees
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.losses import cross_entropy, mask_absent
from metalearn.core.model import Model, Variables, run
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.types import Array, Key, TaskChunk
from metalearn.inner.norm import check_still

EncoderNorm = Literal["running", "batch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prototypes:
    """What a task leaves behind.

    Attributes:
      means: Mean embedding of each class, `[W, D]`.
      present: Classes with at least one support example, bool `[W]`.
      encoder: Variables of the shared encoder.
    """

    means: Array
    present: Array
    encoder: Variables


def protonet(
    encoder: Model,
    *,
    num_ways: int,
    norm: EncoderNorm = "running",
    scale: float = 1.0,
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """Classifies by the squared Euclidean distance to class prototypes.

    `c_k = mean of f(x_i) over y_i = k`; `logit_k = -scale ||f(x) - c_k||^2` (equations 1
    and 2). The term `||f(x)||^2`, common to all classes, is left out: softmax ignores it
    and it costs digits.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      norm: "running": batch norm learns from support and query together in training and
        uses its running averages at test (inductive), as the paper's code; "batch":
        statistics of each batch at test too (transductive).
      scale: Multiplies the distances; use `1 / D` for wide embeddings.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner` whose adapted object is `Prototypes`. The paper trains with more
      ways than at test (60 on Omniglot) and the shots of the test.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.protonet(ml.from_linen(ml.models.Conv4()), num_ways=20)
    """
    checks.model(encoder, "encoder")
    checks.one_of("norm", norm, get_args(EncoderNorm))
    checks.whole_number("num_ways", num_ways, least=2)
    checks.number("scale", scale, positive=True)

    def embed(variables: Variables, x, *, key, train, mask=None):
        batch = train or norm == "batch"
        if batch and not train:
            check_still(encoder, variables.params, variables.state, x, norm)
        outputs, state = run(
            encoder, variables, x, key=key, noise=train, batch=batch, mask=mask
        )
        trees.one_array(outputs, "the output of the encoder", "embeddings [N, D]")
        if outputs.ndim != 2:
            raise ValueError(
                f"the encoder gave embeddings of shape {outputs.shape}; expected [N, D]. "
                "Flatten or pool in the encoder."
            )
        return outputs, state

    def prototypes(embedded: Array, support: Examples, encoder_: Variables):
        # A sum of many rows, and differences of squares, need more than 16 bits.
        embedded = trees.widened(embedded)
        members = jax.nn.one_hot(_labels(support), num_ways, dtype=embedded.dtype)
        # A masked row is nobody's example. What it holds is set to zero as well, for 0
        # times NaN is NaN.
        members = jnp.where(support.mask[:, None], members, 0)
        counts = members.sum(0)
        sums = members.T @ jnp.where(support.mask[:, None], embedded, 0)
        means = sums / jnp.maximum(counts, 1)[:, None]
        return Prototypes(means=means, present=counts > 0, encoder=encoder_)

    def logits(adapted: Prototypes, embedded: Array) -> Array:
        cross = 2 * trees.widened(embedded) @ adapted.means.T
        distance = jnp.sum(jnp.square(adapted.means), -1)[None] - cross
        return mask_absent(-scale * distance, adapted.present)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        return encoder.init(key, task.support.x)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Prototypes:
        kinds.adaptation(variables, support)
        embedded, _ = embed(variables, support.x, key=key, train=False, mask=support.mask)
        return prototypes(embedded, support, variables)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Prototypes)
        embedded, _ = embed(adapted.encoder, x, key=key, train=False, mask=mask)
        return logits(adapted, embedded)

    def objective(variables: Variables, task: Task, *, key: Key):
        both = concatenate(task.support, task.query)
        embedded, state = embed(variables, both.x, key=key, train=True, mask=both.mask)
        num = task.support.mask.shape[0]
        adapted = prototypes(embedded[:num], task.support, variables)
        outputs = logits(adapted, embedded[num:])
        report = metrics.of_task(cross_entropy, outputs, task.query)
        report = {f"query/{k}": v for k, v in report.items()}
        return report["query/loss"], (state, report)

    config = config_of("protonet", num_ways=num_ways, norm=norm, scale=scale)
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    return MetaLearner(
        init, adapt, predict, estimate, config, cross_entropy, masks_absent=True
    )


def _labels(support: Examples) -> Array:
    """Class indices, wider than bytes, which hold no 300 classes; int32 `[N]`."""
    if not jnp.issubdtype(support.y.dtype, jnp.integer):
        raise TypeError(
            f"the labels of the support set have dtype {support.y.dtype}; expected class "
            "indices, integers [N]."
        )
    return support.y.astype(jnp.int32)
