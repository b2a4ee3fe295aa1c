"""G-Meta: prototypes in a space that an inner loop adapts, for nodes by their subgraphs.

K. Huang, M. Zitnik. Graph Meta Learning via Local Subgraphs. NeurIPS 2020. Differences:

- The outer gradient is of second order, as the paper has it. The released code takes inner
  gradients without their graph, which is of first order.
- Prototypes of the queries are those of the weights after the last inner step. The released
  code keeps those of the step before.
- The distance is the squared Euclidean one of the released code, times `scale`.
- The learner is apart from the graph. The encoder gets whatever an example is; examples
  that are subgraphs of static size come from `metalearn.data.graphs`, whose encoder is
  `ml.models.GCN`. There is one graph with classes that are new at test, the setting
  "single graph, disjoint label" of the paper, and nodes are classified, not links.
- Layers of `ml.models.GCN` have links of a node with itself, the last one no ReLU, and no
  linear layer follows.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.bilevel import AdaptedTask, Hooks, bilevel
from metalearn.algorithms.embedding import check_embeddings, class_means, seen
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, metrics, trees
from metalearn.core.keys import split_key
from metalearn.core.labels import outside
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, InnerOpt, Key, LossFn, PyTree
from metalearn.inner import Adapted


@takes_options(but=("mask_absent_classes",))
def g_meta(
    encoder: Model,
    inner_opt: InnerOpt,
    *,
    num_ways: int,
    num_steps: int = 10,
    scale: float = 1.0,
    **options: Unpack[Options],
) -> MetaLearner:
    """Prototypical networks whose encoder adapts to a task by gradient descent.

    The support loss is the prototypical loss of the support set by its own class means:
    `phi_{k+1} = phi_k - alpha grad L_proto(phi_k; support, support)`. The outer loss is
    that of the queries by the class means of the support set, both embedded with `phi_K`,
    differentiated through the adaptation.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`, such as `ml.models.GCN` of
        subgraphs.
      inner_opt: As in `maml`.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      num_steps: K, inner steps; 0 gives prototypical networks. The paper uses 10 in
        training and 20 at test on a citation graph.
      scale: Factor of the distances.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner`, as `maml` gives it. `adapted.info` are the class means `[W, D]`.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.MLP(None, widths=(16,)))
      >>> learner = ml.g_meta(encoder, optax.sgd(0.01), num_ways=2)
    """
    checks.model(encoder, "encoder")
    checks.whole_number("num_ways", num_ways, least=2)
    checks.number("scale", scale, positive=True)

    def means_of(outputs: PyTree, support: Examples) -> Array:
        return class_means(_embedded(outputs, support), num_ways)

    def logits_of(outputs: PyTree, means: Array, present: Array) -> Array:
        # Without |f(x)|^2, which is common to all classes.
        x = trees.widened(outputs)
        logits = -scale * (jnp.sum(jnp.square(means), -1)[None] - 2 * x @ means.T)
        return mask_absent(logits, present)

    def support_loss(outputs: PyTree, examples: Examples) -> Array:
        means, x = means_of(outputs, examples), _embedded(outputs, examples).x
        logits = logits_of(x, means, present_classes(examples, num_ways))
        return cross_entropy(logits, examples)

    def query_loss(done: AdaptedTask, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
        del loss_fn
        support, query = done.task.support, done.task.query
        k_support, k_query = jax.random.split(done.key)
        outputs, _ = done.predict(done.adapted, support.x, key=k_support, mask=support.mask)
        means, present = means_of(outputs, support), present_classes(support, num_ways)
        outputs, state = done.predict(done.adapted, query.x, key=k_query, mask=query.mask)
        logits = logits_of(_embedded(outputs, query).x, means, present)
        report = metrics.of_task(cross_entropy, logits, query)
        # A label outside belongs to no mean, so only this tells of it.
        wrong = outside(support, num_ways) > 0
        report = {f"query/{name}": value for name, value in report.items()}
        loss = report["query/loss"] * jnp.where(wrong, jnp.nan, 1)
        return loss, report, state

    made = bilevel(
        "g_meta",
        encoder,
        support_loss,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(outer=query_loss, settings={"num_ways": num_ways, "scale": scale}),
        **options,
    )

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        k_adapt, k_embed = split_key(key)
        adapted = made.adapt(variables, support, key=k_adapt)
        outputs = made.predict(adapted, support.x, key=k_embed, mask=support.mask)
        return adapted.replace(
            info=means_of(outputs, support), present=present_classes(support, num_ways)
        )

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        outputs = made.predict(_plain(adapted), x, key=key, mask=mask)
        check_embeddings(outputs, x)
        return logits_of(outputs, adapted.info, adapted.present)

    return made._replace(
        adapt=adapt, predict=predict, loss_fn=cross_entropy, masks_absent=True
    )


def _plain(adapted: Adapted) -> Adapted:
    """Without the classes of the task: the encoder has no logits to mask."""
    return adapted.replace(present=None) if isinstance(adapted, Adapted) else adapted


def _embedded(outputs: PyTree, examples: Examples) -> Examples:
    """Embedded examples whose masked rows are zero."""
    check_embeddings(outputs, examples.x)
    return seen(trees.widened(outputs), examples)
