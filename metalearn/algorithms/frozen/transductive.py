"""Transductive fine-tuning: the support set starts a classifier, the queries sharpen it.

G. S. Dhillon, P. Chaudhari, A. Ravichandran, S. Soatto. A Baseline for Few-Shot Image
Classification. ICLR 2020.

Differences from the paper: every step descends the sum of both terms, where the released
code makes an update by each in turn (25 passes, two updates each); meta-training has no
label smoothing and no mixed images; batch norm uses its running averages all along. The
inductive form, in which no query tells of another, is `entropy_weight=0`; `fine_tune` is
one with a new head from zero. Queries are taken to be as many of each class, as in the
tasks of the paper: of other tasks the entropy asks too much.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Fitted,
    class_means,
    seen,
)
from metalearn.algorithms.frozen.builder import (
    LINEAR,
    PARTS,
    learner_of,
    pretraining,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, kinds
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.rows import unit
from metalearn.core.task import Examples
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, PyTree
from metalearn.inner import unroll


class Start(NamedTuple):
    """Where the fine-tuning of a task begins.

    Attributes:
      head: Classifier of the task, `{"kernel": [C, W], "bias": [W]}`.
      support: The support set itself, which every step sees.
    """

    head: PyTree
    support: Examples


@takes_options(but=("norm",), of=EMBEDDING)
def transductive_fine_tune(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    rate: float = 5e-5,
    num_steps: int = 25,
    entropy_weight: float = 1.0,
    eps: float = 1e-8,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Fine-tunes a classifier on the support set and on how sure it is of the queries.

    `h(x) = relu(z) / ||relu(z)||` of the logits z of all training classes. A classifier
    `h(x) W + b` starts at `w_k = norm(mean of relu(z_i) over y_i = k)`, `b = 0`. Then all
    weights, those of the network too, take `num_steps` steps of Adam on `CE(support) +
    entropy_weight * mean over queries of H(p)`. The steps need the queries, so `predict`
    takes them.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_classes: Number of training classes.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      rate: Rate of Adam.
      num_steps: Number of steps; 0 leaves the classifier of the support means.
      entropy_weight: Weight of the entropy of the queries; 0 is inductive.
      eps: Number below which Adam takes gradients for small.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Start`.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.transductive_fine_tune(encoder, num_classes=64, num_ways=5)
    """
    checks.number("rate", rate)
    checks.whole_number("num_steps", num_steps, least=0)
    checks.number("entropy_weight", entropy_weight)
    checks.number("eps", eps, positive=True)
    base = pretraining(encoder, num_classes=num_classes, num_ways=num_ways)

    def features(variables: Variables, x: PyTree, mask: Array) -> Array:
        embeddings = base.embed(variables, x, mask=mask)
        return jax.nn.relu(LINEAR.logits(variables.params["classifier"], embeddings))

    def adapt(variables: Variables, support: Examples, *, key=None) -> Fitted:
        kinds.adaptation(variables, support, PARTS)
        rows = seen(features(variables, support.x, support.mask), support)
        kernel = unit(class_means(rows, num_ways)).T
        head = {"kernel": kernel, "bias": jnp.zeros((num_ways,), kernel.dtype)}
        present = present_classes(rows, num_ways)
        labelled = Examples(x=support.x, y=rows.y, mask=rows.mask)
        fitted = Start(head=head, support=labelled)
        return Fitted(fitted=fitted, present=present, variables=variables)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Fitted)
        (head, support), state = adapted.fitted, adapted.variables.state
        num = support.mask.shape[0]
        both, valid = _beside(support, x, mask)

        def logits_of(params: PyTree) -> Array:
            network = Variables(params=params["network"], state=state)
            found = unit(features(network, both, valid))
            return mask_absent(LINEAR.logits(params["head"], found), adapted.present)

        def loss(params: PyTree, _: Array) -> tuple[Array, None]:
            logits = logits_of(params)
            unsure = masked_mean(_entropy(logits[num:]), valid[num:])
            return cross_entropy(logits[:num], support) + entropy_weight * unsure, None

        start = {"network": adapted.variables.params, "head": head}
        moved = unroll(
            loss,
            start,
            _adam(rate, eps),
            num_steps=num_steps,
            differentiation="first_order",
        )
        return logits_of(moved.params)[num:]

    settings = {
        "rate": rate,
        "num_steps": num_steps,
        "entropy_weight": entropy_weight,
        "eps": eps,
    }
    return learner_of(
        "transductive_fine_tune",
        base,
        adapt,
        predict,
        settings,
        task_chunk=options.get("task_chunk", "auto"),
    )


def _beside(support: Examples, x: PyTree, mask: Array | None) -> tuple[PyTree, Array]:
    """Support set and queries in one pass of the network, and which rows are valid."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support.x, x)
    if mask is None:
        rest = jax.tree.leaves(both)[0].shape[0] - support.mask.shape[0]
        mask = jnp.ones((rest,), bool)
    return both, jnp.concatenate([support.mask, mask])


def _entropy(logits: Array) -> Array:
    """Entropy of each row, in nats `[Q]`."""
    shares = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(shares) * shares, axis=-1)


def _adam(rate: float, eps: float) -> optax.GradientTransformation:
    """Adam, also where dtypes are strict: it takes a power with a count of steps."""
    made = optax.adam(rate, eps=eps)

    def update(grads, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return made.update(grads, state, params)

    return optax.GradientTransformation(made.init, update)
