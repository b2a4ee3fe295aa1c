"""TSA: adapters within a frozen network and a map behind it fit a task.

W.-H. Li, X. Liu, H. Bilen. Cross-domain Few-shot Learning with Task-specific Adapters. CVPR
2022. With the map alone it is the adaptation of their URL (Universal Representation
Learning from Multiple Domains for Few-shot Classification. ICCV 2021).

Differences from the released code: the frozen network is one classifier, not distilled from
networks of several domains; adapters start at zero in place of a ten-thousandth of the
identity, so that before the first step the features are exactly the frozen ones; nothing
reads the name of a domain to choose the rates. Adapters as channel-wise factors, and such
in series, are left out.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, Unpack, get_args

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
from metalearn.algorithms.frozen.builder import PARTS, learner_of, pretraining
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, kinds, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.rows import unit
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, PyTree
from metalearn.inner import unroll

ADAPTERS = r"(^|/)adapter_\d"
SCALE = 10.0

Adapts = Literal["both", "adapters", "alignment"]


class Tailored(NamedTuple):
    """What fits a task.

    Attributes:
      moved: What adapted: "adapters", like the encoder's params with `None` for what is
        frozen, and "alignment" `[D, D]`; one of them if the other is frozen.
      centroids: Class means of the adapted features, of length one, `[W, D]`.
    """

    moved: dict[str, PyTree]
    centroids: Array


@takes_options(but=("norm",), of=EMBEDDING)
def tsa(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    num_steps: int = 40,
    adapter_rate: float = 0.05,
    alignment_rate: float = 0.1,
    adapts: Adapts = "both",
    adapt_filter: str = ADAPTERS,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Fits adapters in a frozen network, and a map of its features, to the support set.

    `z' = f(x; A) V`, `c_k = mean of z'_i over y_i = k`, `logit_k = 10 cos(z', c_k)`. A and
    V take `num_steps` steps of Adadelta on the cross-entropy of the support set, in which
    each example is part of its own mean. A starts at zero and V as the identity. Batch norm
    is in evaluation throughout.

    Args:
      encoder: Network from inputs to embeddings `[N, D]` with adapters, such as
        `ml.models.AdapterConv4`. In meta-training its parameters named `adapter_0`,
        `adapter_1`, ... stay as they are.
      num_classes: Number of training classes.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      num_steps: Number of steps on the whole support set.
      adapter_rate: Rate of A. The paper takes 0.5 for domains that meta-training has not
        seen.
      alignment_rate: Rate of V. The paper takes 1 for such domains.
      adapts: Part that adapts: "both", "adapters" (A alone) or "alignment" (V alone, of any
        network).
      adapt_filter: Regular expression that occurs in the paths of A. With another one any
        parameters of any network are A, and meta-training trains them.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Tailored`.

    Raises:
      ValueError: an option is out of range; in `init` and `adapt`: no parameter is A.

    Example:
      >>> encoder = ml.from_linen(ml.models.AdapterConv4())
      >>> learner = ml.tsa(encoder, num_classes=64, num_ways=5)
    """
    checks.whole_number("num_steps", num_steps, least=0)
    checks.number("adapter_rate", adapter_rate)
    checks.number("alignment_rate", alignment_rate)
    checks.one_of("adapts", adapts, get_args(Adapts))
    checks.adapt_filter(adapt_filter)
    base = pretraining(encoder, num_classes=num_classes, num_ways=num_ways)
    optimiser = _adadelta({"adapters": adapter_rate, "alignment": alignment_rate}, adapts)

    def init(key: Key, task: Task) -> Variables:
        made = base.init(key, task)
        if adapts != "alignment":
            _adapters(made, adapt_filter)
        return made

    embed = functools.partial(_embed, base)

    def adapt(variables: Variables, support: Examples, *, key=None) -> Fitted:
        kinds.adaptation(variables, support, PARTS)
        present = present_classes(support, num_ways)

        def fit(moved: dict) -> tuple[Examples, Array]:
            rows = seen(embed(variables, moved, support.x, support.mask), support)
            return rows, unit(class_means(rows, num_ways))

        def loss(moved: dict, _: Array) -> tuple[Array, None]:
            rows, centroids = fit(moved)
            logits = mask_absent(_cosines(rows.x, centroids), present)
            return cross_entropy(logits, rows), None

        moved = unroll(
            loss,
            _start(variables, adapts, adapt_filter),
            optimiser,
            num_steps=num_steps,
            differentiation="first_order",
        ).params
        fitted = Tailored(moved=moved, centroids=fit(moved)[1])
        return Fitted(fitted=fitted, present=present, variables=variables)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Fitted)
        moved, centroids = adapted.fitted
        embeddings = embed(adapted.variables, moved, x, mask)
        return mask_absent(_cosines(embeddings, centroids), adapted.present)

    def objective(variables: Variables, task: Task, *, key: Key):
        done = base.joint(_with_still_adapters(variables), task, key=key)
        return done.report["joint/loss"], (done.state, done.report)

    settings = {
        "num_steps": num_steps,
        "adapter_rate": adapter_rate,
        "alignment_rate": alignment_rate,
        "adapts": adapts,
        "adapt_filter": adapt_filter,
    }
    return learner_of(
        "tsa",
        base,
        adapt,
        predict,
        settings,
        init=init,
        objective=objective,
        task_chunk=options.get("task_chunk", "auto"),
    )


def _start(variables: Variables, adapts: Adapts, adapt_filter: str) -> dict[str, PyTree]:
    """Where a task begins: adapters as they are, the alignment as the identity."""
    mean = variables.state["mean"]
    parts = {}
    if adapts != "alignment":
        parts["adapters"] = _adapters(variables, adapt_filter)
    if adapts != "adapters":
        parts["alignment"] = jnp.eye(mean.shape[0], dtype=mean.dtype)
    return parts


def _embed(
    base: Any, variables: Variables, moved: dict, x: PyTree, mask: Array | None
) -> Array:
    """Embeddings by the tailored network, aligned."""
    params = variables.params
    if "adapters" in moved:
        tailored = trees.merge(moved["adapters"], params["encoder"])
        params = {**params, "encoder": tailored}
    network = Variables(params=params, state=variables.state)
    embeddings = base.embed(network, x, mask=mask)
    return embeddings @ moved["alignment"] if "alignment" in moved else embeddings


def _cosines(x: Array, centroids: Array) -> Array:
    return SCALE * (unit(x) @ centroids.T)


def _adapters(variables: Variables, adapt_filter: str) -> PyTree:
    """The part of the encoder that adapts."""
    moving, rest = trees.split(variables.params["encoder"], adapt_filter)
    if not jax.tree.leaves(moving):
        raise ValueError(
            f"no parameter of the encoder fits adapt_filter={adapt_filter!r}, so nothing "
            "in it would adapt. Give a network with adapters, such as AdapterConv4, a "
            "filter of other parameters, or adapts='alignment'. The paths are: "
            + ", ".join(trees.leaf_paths(rest))
        )
    return moving


def _with_still_adapters(variables: Variables) -> Variables:
    adapters, rest = trees.split(variables.params["encoder"], ADAPTERS)
    # At zero they have a gradient, and the frozen network is to be the one without them.
    encoder = trees.merge(jax.lax.stop_gradient(adapters), rest)
    params = {**variables.params, "encoder": encoder}
    return Variables(params=params, state=variables.state)


def _adadelta(rates: dict[str, float], adapts: Adapts) -> optax.GradientTransformation:
    """Adadelta with a rate for each part that adapts."""
    parts = [part for part in rates if adapts in ("both", part)]
    return optax.partition(
        {part: optax.adadelta(rates[part]) for part in parts},
        {part: part for part in parts},
    )
