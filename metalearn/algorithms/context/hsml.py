"""Hierarchically structured meta-learning: tasks are clustered, clusters shape the start.

H. Yao, Y. Wei, J. Huang, Z. Li. Hierarchically Structured Meta-learning. ICML 2019.

The support set becomes a vector `g`; `g` is routed softly through a small tree of learned
clusters, whose root gives `h`; a gate made of `g` and `h` scales every parameter of the
shared initialisation. From there on it is MAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import Hooks, Start, bilevel
from metalearn.algorithms.context.clusters import (
    Route,
    Routing,
    dense,
    gate_init,
    gates,
    linear,
    route_task,
    tree_init,
)
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, kinds
from metalearn.core.keys import check_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PyTree
from metalearn.models import set_encoder

Aggregator = Literal["gru", "mean"]
EMBEDDINGS = {"gru": set_encoder.recurrent, "mean": set_encoder.pooled}


@takes_options()
def hsml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    tree: tuple[int, ...] = (4, 2, 1),
    hidden: int = 40,
    aggregator: Aggregator = "gru",
    ordered: bool = True,
    routing: Routing = "gaussian",
    sigma: float = 2.0,
    reconstruction: float = 0.01,
    gate_bias: float = 2.0,
    example_size: int = 20,
    features: Model | None = None,
    num_ways: int | None = None,
    **options: Unpack[Options],
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
    start near one (`gate_bias=0` is the code's).

    Args:
      model: The network whose parameters are gated.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation; the paper takes SGD.
      num_steps: K, inner steps.
      tree: Clusters of each layer, leaves first; the last is the root, 1. `()` leaves the
        tree out: the gate sees `g` alone, as in `mumomaml`.
      hidden: D, the size of `g` and `h`; 40 for curves, 128 for images in the paper.
      aggregator: Autoencoder of the support set: "gru", a recurrent one, which depends on
        the order of the set; or "mean", which does not.
      ordered: Whether the aggregator reads the support set in order of its classes, as the
        released code does, or of the first number of each input where targets are real. On
        curves the order as given has 2.5 times the error (`benchmarks/NOTES.md`).
      routing: Shares above the leaves, "gaussian" or "linear".
      sigma: Width of the clusters; 2 for curves, 10 for images.
      reconstruction: xi, weight of `L_r`.
      gate_bias: Bias of the sigmoid at the start.
      example_size: Size of `e_j`.
      features: A model without state that turns inputs into vectors; flattened inputs if
        `None`.
      num_ways: W for class labels, which then enter `e_j` one-hot; `None` for real targets.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner`; `adapt(...).info` is the `Route` of the task. Its params are
      `{"model": ..., "structure": ...}`, its state is that of `maml`.

    Raises:
      ValueError: a number out of range, a tree without a single root, or an unknown
        aggregator or routing; in `init` and `adapt`: class labels without `num_ways`, real
        targets with it, or inputs that are no single array without `features`.

    Example:
      >>> model = ml.from_linen(ml.models.MLP(1))
      >>> learner = ml.hsml(model, ml.losses.mse, optax.sgd(1e-3))
    """
    if not isinstance(tree, Sequence):
        raise ValueError(f"tree is {tree!r}; expected numbers of clusters, as (4, 2, 1).")
    shape = Shape(
        tree=tuple(tree),
        hidden=hidden,
        aggregator=aggregator,
        ordered=ordered,
        routing=routing,
        sigma=sigma,
        gate_bias=gate_bias,
        example_size=example_size,
        features=features,
        num_ways=num_ways,
    )
    _check(shape)
    checks.number("reconstruction", reconstruction)

    def more(key: Key, params: PyTree, task: Task) -> dict[str, PyTree]:
        return {"structure": structure_init(shape, key, params, task)}

    def start(params: PyTree, support: Examples, *, key: Any, train: bool) -> Start:
        del key, train
        structure = params["structure"]
        context, route, loss = context_of(shape, structure, support)
        gate = gates(structure["gate"], context)
        return Start(
            params=jax.tree.map(jnp.multiply, params["model"], gate),
            loss=reconstruction * loss,
            report={"structure/reconstruction": loss},
            info=route,
        )

    settings = {
        "tree": shape.tree,
        "hidden": hidden,
        "aggregator": aggregator,
        "routing": routing,
        "sigma": sigma,
        "reconstruction": reconstruction,
        "gate_bias": gate_bias,
    }
    if ordered:  # left out otherwise, as in runs from before the option
        settings["ordered"] = True
    return bilevel(
        "hsml",
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(more=more, start=start, settings=settings),
        **options,
    )


@takes_options()
def mumomaml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    hidden: int = 40,
    aggregator: Aggregator = "gru",
    ordered: bool = True,
    reconstruction: float = 0.01,
    gate_bias: float = 2.0,
    example_size: int = 20,
    features: Model | None = None,
    num_ways: int | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML whose initialisation a task embedding modulates, without clusters.

    In the manner of R. Vuorio, S.-H. Sun, H. Hu, J. Lim. Multimodal Model-Agnostic
    Meta-Learning via Task-Aware Modulation. NeurIPS 2019; here the gate of `hsml`, of which
    this is the ablation, takes the place of their modulation of layers.

    Args:
      model: The network whose parameters are gated.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation.
      num_steps: K, inner steps.
      hidden: D, the size of the embedding.
      aggregator: Autoencoder of the support set, "gru" or "mean", as in `hsml`.
      ordered: Whether it reads the set in order, as in `hsml`.
      reconstruction: Weight of the reconstruction loss of the embedding.
      gate_bias: Bias of the sigmoid at the start.
      example_size: Size of an embedded support example.
      features: A model without state that turns inputs into vectors; flattened inputs if
        `None`.
      num_ways: W for class labels; `None` for real targets.
      **options: See `metalearn.algorithms.options.Options`.
    """
    return hsml(
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        tree=(),
        hidden=hidden,
        aggregator=aggregator,
        ordered=ordered,
        reconstruction=reconstruction,
        gate_bias=gate_bias,
        example_size=example_size,
        features=features,
        num_ways=num_ways,
        **{"name": "mumomaml", **options},
    )


def add_leaf(variables: Variables, key: Key) -> Variables:
    """One more leaf cluster, with a random centre; all other parameters stay.

    The learner goes on with it as it is; its outer optimiser is to be started anew
    (section 4.4, continual adaptation).

    Args:
      variables: Variables of `hsml`.
      key: Key for the centre and the map of the new cluster.

    Raises:
      TypeError: not `Variables`, or not a key.
      ValueError: there is no tree, as in variables of `mumomaml`.
    """
    kinds.variables(variables)
    check_key(key)
    params = variables.params
    structure = params.get("structure") if isinstance(params, Mapping) else None
    if not isinstance(structure, Mapping) or not structure.get("tree"):
        raise ValueError(
            "variables have no tree of clusters to grow; expected those of hsml. They are "
            "mumomaml's, or another learner's."
        )
    leaves, *upper = structure["tree"]
    (fresh,) = tree_init(key, (1,), leaves["b"].shape[-1], "gaussian")
    leaves = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new.astype(old.dtype)]), leaves, fresh
    )
    params = {**variables.params, "structure": {**structure, "tree": [leaves, *upper]}}
    return Variables(params=params, state=variables.state)


class Shape(NamedTuple):
    """The arguments of `hsml` that say what its structure is made of."""

    tree: tuple[int, ...]
    hidden: int
    aggregator: Aggregator
    ordered: bool
    routing: Routing
    sigma: float
    gate_bias: float
    example_size: int
    features: Model | None
    num_ways: int | None


def structure_init(shape: Shape, key: Key, params: PyTree, task: Task) -> PyTree:
    """What is learned beside the model: embedding, tree and gate.

    Args:
      shape: Sizes and parts of the structure.
      key: Key of the draws.
      params: Parameters of the model, each of which gets a gate.
      task: A task, of which the shapes matter.
    """
    k_features, k_example, k_embed, k_tree, k_gate = jax.random.split(key, 5)
    structure: dict[str, Any] = {}
    if shape.features is not None:
        variables = shape.features.init(k_features, task.support.x)
        if jax.tree.leaves(variables.state):
            raise ValueError(
                "features keeps running statistics; expected a model without state, "
                "for example with norm='layer' or norm='none'."
            )
        structure["features"] = variables.params
    rows = jax.eval_shape(lambda s: _pairs(shape, structure, s), task.support)
    structure["example"] = dense(k_example, rows.shape[-1], shape.example_size)
    embedding = EMBEDDINGS[shape.aggregator]
    structure["embed"] = embedding.init(k_embed, shape.example_size, shape.hidden)
    structure["tree"] = tree_init(k_tree, shape.tree, shape.hidden, shape.routing)
    inputs = shape.hidden * (2 if shape.tree else 1)
    structure["gate"] = gate_init(k_gate, params, inputs, shape.gate_bias)
    return structure


def context_of(
    shape: Shape, structure: PyTree, support: Examples
) -> tuple[Array, Route, Array]:
    """What the gate sees of a task (sections 4.1 and 4.2).

    Returns:
      The context, `[g; h]` or `g` without a tree; the route of the task; `L_r`.
    """
    rows, mask = _pairs(shape, structure, support), support.mask
    if shape.ordered:
        by = support.y
        if shape.num_ways is None:  # the input itself, not what learned features make of it
            by = jax.tree.leaves(support.x)[0].reshape((len(mask), -1))[:, 0]
        # Masked rows last, so that what they hold changes no place before them.
        order = jnp.lexsort((by, ~mask))
        rows, mask = rows[order], mask[order]
    embedding = EMBEDDINGS[shape.aggregator]
    examples = linear(structure["example"], rows)
    g, loss = embedding.apply(structure["embed"], examples, mask)
    if not shape.tree:
        return g, Route(g, jnp.ones((1,), g.dtype), ()), loss
    h, route = route_task(structure["tree"], g, sigma=shape.sigma)
    return jnp.concatenate([g, h]), route, loss


def _pairs(shape: Shape, structure: PyTree, support: Examples) -> Array:
    """Input and target of each support example as one vector, `[N, ...]`."""
    x = support.x
    if shape.features is not None:
        variables = Variables(params=structure["features"], state={})
        x = shape.features.apply(variables, x, mask=support.mask)[0]
    _check_data(x, support.y, shape.num_ways)
    x = x.reshape((x.shape[0], -1))
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(float)  # else real targets would be cut to integers beside it
    y = support.y
    if shape.num_ways is not None:
        y = jax.nn.one_hot(y, shape.num_ways)
    return jnp.concatenate([x, y.reshape((x.shape[0], -1)).astype(x.dtype)], -1)


def _check(shape: Shape) -> None:
    """Refuses what no structure can be made of."""
    if shape.features is not None:
        checks.model(shape.features, "features")
    checks.whole_number("hidden", shape.hidden, least=1)
    for num in shape.tree:
        checks.whole_number("each layer of tree", num, least=1)
    if shape.tree and (len(shape.tree) < 2 or shape.tree[-1] != 1):
        raise ValueError(
            f"tree is {shape.tree}; expected the clusters of two layers or more, leaves "
            "first, with one node as the root, such as (4, 2, 1)."
        )
    checks.one_of("aggregator", shape.aggregator, get_args(Aggregator))
    kinds.flag("ordered", shape.ordered)
    checks.one_of("routing", shape.routing, get_args(Routing))
    checks.whole_number("example_size", shape.example_size, least=1)
    if shape.num_ways is not None:
        checks.whole_number("num_ways", shape.num_ways, least=1)
    checks.number("sigma", shape.sigma, positive=True)
    checks.number("gate_bias", shape.gate_bias, signed=True)


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
