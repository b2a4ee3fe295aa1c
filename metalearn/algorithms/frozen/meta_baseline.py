"""Meta-Baseline: a classifier of all classes, then episodes of cosines to class means.

Y. Chen, Z. Liu, H. Xu, T. Darrell, X. Wang. Meta-Baseline: Exploring Simple Meta-Learning
for Few-Shot Learning. ICCV 2021. `nearest_centroid` is their Classifier-Baseline, which
stops after the first stage.

Differences from the released code: both stages draw tasks, so a batch of the first stage is
support and query of a few tasks; one optimiser goes through both, with its rate and its
memory (the paper starts the second stage with a smaller, constant rate: give a schedule);
the encoder of the first stage is not chosen by validation.
"""

from __future__ import annotations

from typing import Unpack

import jax

from metalearn.algorithms.embedding import EMBEDDING, EmbeddingOptions
from metalearn.algorithms.frozen.builder import frozen, learner_of, pretraining
from metalearn.algorithms.frozen.centroids import cosine_head
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, metrics
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task
from metalearn.core.types import Key


@takes_options(of=EMBEDDING)
def meta_baseline(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    pretrain_steps: int,
    scale: float = 10.0,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Trains a classifier of all classes, then cosines to class means in episodes.

    `c_k = mean of f(x_i) over y_i = k`, `logit_k = tau cos(f(x), c_k)` with a learned tau.
    The first `pretrain_steps` outer steps minimise the cross-entropy of a linear classifier
    of all training classes on support and query, the later ones that of the queries by
    these logits. Every step reports both, as "joint/..." and "query/...".

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_classes: Number of training classes.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      pretrain_steps: Number of outer steps of the first stage.
      scale: tau at the start.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner` with params `{"encoder": ..., "classifier": ..., "head": {"scale":
      tau}}`; `adapted.fitted` are the centroids `[W, D]`, of length one. An outer optimiser
      with weight decay shrinks tau in the first stage too.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.ResNet12(global_pool=True))
      >>> learner = ml.meta_baseline(
      ...     encoder, num_classes=64, num_ways=5, pretrain_steps=20_000
      ... )
    """
    checks.whole_number("pretrain_steps", pretrain_steps, least=0)
    checks.number("scale", scale, positive=True)
    base = pretraining(
        encoder,
        num_classes=num_classes,
        num_ways=num_ways,
        norm=options.get("norm", "running"),
    )
    head = cosine_head(num_ways, scale=scale, learned=True)
    adapt, predict = frozen(base, head, num_ways)

    def init(key: Key, task: Task) -> Variables:
        assert head.init is not None  # its scale is learned
        made = base.init(key, task)
        params = {**made.params, "head": head.init(key, made.state["mean"])}
        return Variables(params=params, state=made.state)

    def objective(variables: Variables, task: Task, *, key: Key):
        done, params = base.joint(variables, task, key=key), variables.params["head"]
        means = head.fit(params, done.support)
        present = present_classes(done.support, num_ways)
        logits = mask_absent(head.score(params, means, done.query.x), present)
        report = metrics.of_task(cross_entropy, logits, task.query)
        report = {f"query/{name}": value for name, value in report.items()}
        report |= done.report
        # Both are a few products behind the encoder, which runs once. What is not chosen
        # gets no gradient.
        first = variables.state["step"] < pretrain_steps
        loss = jax.lax.select(first, report["joint/loss"], report["query/loss"])
        return loss, (done.state, report)

    return learner_of(
        "meta_baseline",
        base,
        adapt,
        predict,
        {"pretrain_steps": pretrain_steps, "scale": scale},
        init=init,
        objective=objective,
        task_chunk=options.get("task_chunk", "auto"),
    )._replace(masks_absent=True)
