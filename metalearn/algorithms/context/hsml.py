"""Hierarchically structured meta-learning: tasks are clustered, clusters shape the start.

H. Yao, Y. Wei, J. Huang, Z. Li. Hierarchically Structured Meta-learning. ICML 2019.

The support set becomes a vector `g`; `g` is routed softly through a small tree of learned
clusters, whose root gives `h`; a gate made of `g` and `h` scales every parameter of the
shared initialisation. From there on it is MAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metalearn.algorithms.bilevel import Start, bilevel
from metalearn.algorithms.context.clusters import (
    Route,
    climb,
    dense,
    gate_init,
    gates,
    linear,
    tree_init,
)
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PyTree
from metalearn.inner.differentiate import refuse_implicit
from metalearn.models import set_encoder


def hsml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: Any,
    *,
    num_steps: int = 5,
    tree: Sequence[int] = (4, 2, 1),
    hidden: int = 40,
    aggregator: str = "gru",
    routing: str = "gaussian",
    sigma: float = 2.0,
    reconstruction: float = 0.01,
    gate_bias: float = 2.0,
    example_size: int = 20,
    features: Model | None = None,
    num_ways: int | None = None,
    name: str = "hsml",
    **options: Any,
) -> MetaLearner:
    """MAML from an initialisation that a learned hierarchy of tasks makes for each task.

    With support examples `e_j = F(x_j, y_j)`: `g` and the reconstruction loss `L_r` from an
    autoencoder of the `e_j` (section 4.1); leaves
    `p_k = softmax_k(-|g - c_k|^2 / (2 sigma))`, `h_k = p_k tanh(W_k g + b_k)`; layers above
    `h_m = sum_k a_km tanh(W_m h_k + b_m)` (4.2); gate `o = sigmoid(W [g; h] + b)` and
    `phi_0 = theta * o` for every parameter (4.3); outer loss `L(phi_K; query) + xi L_r`.

    Differs from the released code: clusters above the leaves are Gaussian as in the paper
    (`routing="linear"` is the code's softmax of a linear layer); the target of the
    reconstruction is held constant, which otherwise falls by shrinking the embedding; gates
    start near one (`gate_bias=0` is the code's); the support set is not embedded in the
    order of its classes unless it is given so.

    Args:
      model: The network whose parameters are gated.
      loss_fn: Loss of one task.
      inner_opt: As in `maml`; the paper takes SGD.
      num_steps: K.
      tree: Clusters of each layer, leaves first; the last is the root, 1. `()` leaves the
        tree out: the gate sees `g` alone, as in `mumomaml`.
      hidden: D, size of `g` and `h`; 40 for curves, 128 for images in the paper.
      aggregator: "gru", a recurrent autoencoder, which depends on the order of the support
        set; or "mean", which does not.
      routing: "gaussian" or "linear", above the leaves.
      sigma: Width of the clusters; 2 for curves, 10 for images.
      reconstruction: xi, weight of `L_r`.
      gate_bias: Of the sigmoid at the start.
      example_size: Size of `e_j`.
      features: A model without state that turns inputs into vectors; flattened inputs if
        `None`.
      num_ways: W for class labels, which then enter `e_j` one-hot; `None` for real targets.
      name: What `describe` calls it.
      **options: Those of `metalearn.algorithms.bilevel.bilevel`.

    Returns:
      A `MetaLearner`; `adapt(...).info` is the `Route` of the task. Its params are
      `{"model": ..., "structure": ...}`.

    Raises:
      ValueError: a number out of range, a tree without a single root, or an unknown
        aggregator or routing; in `init` and `adapt`: class labels without `num_ways`, real
        targets with it, or inputs that are no single array without `features`.

    Example:
      >>> model = ml.from_linen(ml.models.MLP(1))
      >>> learner = ml.hsml(model, ml.losses.mse, optax.sgd(1e-3))
    """
    checks.known_options(hsml, options, bilevel, but=("more", "start", "settings"))
    refuse_implicit(name, options.get("differentiation"))
    if not isinstance(tree, Sequence):
        raise ValueError(f"tree is {tree!r}; expected numbers of clusters, as (4, 2, 1).")
    tree = tuple(tree)
    _check(tree, hidden, aggregator, routing)
    checks.whole_number("example_size", example_size, least=1)
    if num_ways is not None:
        checks.whole_number("num_ways", num_ways, least=1)
    checks.number("sigma", sigma, positive=True)
    checks.number("reconstruction", reconstruction)
    checks.number("gate_bias", gate_bias, signed=True)
    embed = {"gru": set_encoder.recurrent, "mean": set_encoder.pooled}[aggregator]

    def examples_of(structure: PyTree, support: Examples) -> Array:
        x = support.x
        if features is not None:
            variables = Variables(params=structure["features"], state={})
            x = features.apply(variables, x, mask=support.mask)[0]
        _check_data(x, support.y, num_ways)
        x = x.reshape((x.shape[0], -1))
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            x = x.astype(float)  # else real targets would be cut to integers beside it
        y = support.y if num_ways is None else jax.nn.one_hot(support.y, num_ways)
        return jnp.concatenate([x, y.reshape((x.shape[0], -1)).astype(x.dtype)], -1)

    def more(key: Key, params: PyTree, task: Task) -> dict[str, PyTree]:
        k_features, k_example, k_embed, k_tree, k_gate = jax.random.split(key, 5)
        structure: dict[str, Any] = {}
        if features is not None:
            variables = features.init(k_features, task.support.x)
            if jax.tree.leaves(variables.state):
                raise ValueError(
                    "features keeps running statistics; expected a model without state, "
                    "for example with norm='layer' or norm='none'."
                )
            structure["features"] = variables.params
        size = jax.eval_shape(lambda s: examples_of(structure, s), task.support).shape[-1]
        structure["example"] = dense(k_example, size, example_size)
        structure["embed"] = embed.init(k_embed, example_size, hidden)
        structure["tree"] = tree_init(k_tree, tree, hidden, routing)
        inputs = hidden * (2 if tree else 1)
        structure["gate"] = gate_init(k_gate, params, inputs, gate_bias)
        return {"structure": structure}

    def start(params: PyTree, support: Examples, *, key: Any, train: bool) -> Start:
        del key, train
        structure = params["structure"]
        rows = linear(structure["example"], examples_of(structure, support))
        g, loss = embed.apply(structure["embed"], rows, support.mask)
        context, route = g, Route(g, jnp.ones((1,), g.dtype), ())
        if tree:
            h, route = climb(structure["tree"], g, sigma=sigma)
            context = jnp.concatenate([g, h])
        gate = gates(structure["gate"], context)
        return Start(
            params=jax.tree.map(jnp.multiply, params["model"], gate),
            hparams=params.get("inner"),
            loss=reconstruction * loss,
            report={"structure/reconstruction": loss},
            info=route,
        )

    return bilevel(
        name,
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        more=more,
        start=start,
        settings={
            "tree": str(tree),
            "hidden": hidden,
            "aggregator": aggregator,
            "routing": routing,
            "sigma": sigma,
            "reconstruction": reconstruction,
            "gate_bias": gate_bias,
        },
        **options,
    )


def mumomaml(model: Model, loss_fn: LossFn, inner_opt: Any, **options: Any) -> MetaLearner:
    """MAML whose initialisation a task embedding modulates, without clusters.

    In the manner of R. Vuorio, S.-H. Sun, H. Hu, J. Lim. Multimodal Model-Agnostic
    Meta-Learning via Task-Aware Modulation. NeurIPS 2019; here the gate of `hsml`, of which
    this is the ablation, takes the place of their modulation of layers.
    """
    checks.known_options(
        mumomaml, options, hsml, bilevel, but=("more", "start", "settings")
    )
    return hsml(model, loss_fn, inner_opt, **{"name": "mumomaml", "tree": (), **options})


def add_leaf(variables: Variables, key: Key) -> Variables:
    """One more leaf cluster, with a random centre; all other parameters stay.

    The learner goes on with it as it is; its outer optimiser is to be started anew
    (section 4.4, continual adaptation).

    Args:
      variables: Of `hsml`.
      key: Of the centre and the map.
    """
    structure = variables.params["structure"]
    if not structure["tree"]:
        raise ValueError("variables have no tree of clusters to grow; they are mumomaml's.")
    leaves, *upper = structure["tree"]
    (fresh,) = tree_init(key, (1,), leaves["b"].shape[-1], "gaussian")
    leaves = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new.astype(old.dtype)]), leaves, fresh
    )
    params = {**variables.params, "structure": {**structure, "tree": [leaves, *upper]}}
    return Variables(params=params, state=variables.state)


def _check(
    tree: tuple[int, ...],
    hidden: int,
    aggregator: str,
    routing: str,
) -> None:
    checks.whole_number("hidden", hidden, least=1)
    for num in tree:
        checks.whole_number("each layer of tree", num, least=1)
    if tree and (len(tree) < 2 or tree[-1] != 1):
        raise ValueError(
            f"tree is {tree}; expected the clusters of two layers or more, leaves first, "
            "with one node as the root, such as (4, 2, 1)."
        )
    for option, value, known in (
        ("aggregator", aggregator, ("gru", "mean")),
        ("routing", routing, ("gaussian", "linear")),
    ):
        if value not in known:
            raise ValueError(f"{option} is {value!r}; expected one of {', '.join(known)}.")


def _check_data(x: Any, y: Any, num_ways: int | None) -> None:
    if not hasattr(x, "reshape") or not hasattr(y, "reshape"):
        raise ValueError(
            f"hsml got a {type(x).__name__} as inputs and a {type(y).__name__} as targets; "
            "expected arrays. For inputs of several arrays give a model that turns them "
            "into vectors: features=..."
        )
    labels = jnp.issubdtype(y.dtype, jnp.integer)
    if labels and num_ways is None:
        raise ValueError(
            f"hsml got class labels of dtype {y.dtype}, which must enter the examples "
            "one-hot; give num_ways=. Make real targets floats."
        )
    if not labels and num_ways is not None:
        raise ValueError(
            f"hsml got targets of dtype {y.dtype} and num_ways={num_ways}; expected class "
            "labels, integers. For real targets leave num_ways out."
        )
