"""Few-shot GNN: a graph of the support examples and one query, with learned edges.

V. Garcia, J. Bruna. Few-Shot Learning with Graph Neural Networks. ICLR 2018. Differences
from the paper and its released code:

- Layer norm stands where they have batch norm: over the features of a node, and over those
  of a pair. Batch norm would mix the graphs of a batch, which are tasks and queries, so
  that a query would be classified by help of the others. `layer_norm=False` leaves it out.
- The class of a query is unknown: zeros in place of its label, as in the code. The paper
  gives it equal shares of all classes.
- Nothing normalises the logits, and no edge is dropped: the code does both for Omniglot.
- Only edges that matter are computed: those of a pair once, since they do not depend on its
  order; in the first layer those between support examples once for all queries; and in the
  last those of the query, whose logits alone are read.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from metalearn.algorithms.embedding import EMBEDDING, EmbeddingOptions, Head, embedded
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, loops
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, PyTree
from metalearn.models.dense import dense, linear

# The usual variance loses the digits of a small spread around a large mean.
_NORM = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)


class _Graph(NamedTuple):
    """The support examples: nodes `[N, D + W]`, valid ones, edges of the first layer."""

    nodes: Array
    valid: Array
    edges: Array


@takes_options(of=EMBEDDING)
def few_shot_gnn(
    encoder: Model,
    *,
    num_ways: int,
    num_layers: int = 2,
    node_features: int = 48,
    edge_widths: tuple[int, ...] = (192, 192, 96, 96),
    layer_norm: bool = True,
    query_chunk: int | None = None,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by a graph network over the support examples and a query.

    A node starts as `v_i = [f(x_i), label of i]`. A layer computes edges and then adds
    features to each node: `A_ij = softmax over j != i of MLP(|v_i - v_j|)`, `v_i <- [v_i,
    LeakyReLU(norm([v_i, sum_j A_ij v_j] W))]`. A last layer of this form, with one output a
    class and nothing after it, gives the logits of the query's node.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, number of classes of a label and of logits. Tasks may have fewer, but the
        classes of the paper's tasks are as many in training as at test.
      num_layers: Number of layers before the last.
      node_features: Number of features that a layer adds to each node; 2 or more with
        layer norm, which leaves nothing of one.
      edge_widths: Sizes of the hidden layers of the network that makes an edge; likewise.
      layer_norm: Whether the features of nodes and edges are normalised.
      query_chunk: Number of queries at once; all when `None`. A query has `N (N + 1) / 2`
        edges in each layer after the first. With a number, training stores none of their
        features and computes them again, which takes longer.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the nodes of the support set and the edges of
      the first layer between them. Each query has a graph of its own.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.few_shot_gnn(ml.from_linen(ml.models.Conv4()), num_ways=5)
    """
    checks.whole_number("num_layers", num_layers, least=1)
    # The norm of a layer of one feature is its bias, whatever comes in.
    least = 2 if layer_norm else 1
    checks.whole_number("node_features", node_features, least=least)
    if not isinstance(edge_widths, (tuple, list)):
        raise ValueError(f"edge_widths is {edge_widths!r}; expected sizes, e.g. (96, 96).")
    for width in edge_widths:
        checks.whole_number("a width of edge_widths", width, least=least)
    if query_chunk is not None:
        checks.whole_number("query_chunk", query_chunk, least=1)

    def init(key: Key, like: Array) -> PyTree:
        size, params = like.shape[-1] + num_ways, {}
        for layer, k in enumerate(jax.random.split(key, num_layers + 1)):
            last = layer == num_layers
            outputs = num_ways if last else node_features
            normed = layer_norm and not last
            params[f"layer_{layer}"] = _layer(k, size, outputs, edge_widths, layer_norm)
            if normed:
                params[f"layer_{layer}"]["norm"] = _norm_init(outputs)
            size += outputs
        return jax.tree.map(lambda leaf: leaf.astype(like.dtype), params)

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> _Graph:
        labels = jax.nn.one_hot(support.y, num_ways, dtype=support.x.dtype)
        nodes = jnp.concatenate([support.x, labels], -1)
        return _Graph(nodes, support.mask, _edges(params["layer_0"], nodes))

    def logits_of(params: PyTree, graph: _Graph, x: Array) -> Array:
        """Logits `[W]` of one query; its node is the last."""
        query = jnp.concatenate([x, jnp.zeros((num_ways,), x.dtype)])
        nodes = jnp.concatenate([graph.nodes, query[None]])
        valid = jnp.concatenate([graph.valid, jnp.ones((1,), bool)])
        for layer in range(num_layers):
            of_layer = params[f"layer_{layer}"]
            if layer == 0:
                edges = _bordered(graph.edges, _edges_of_last(of_layer, nodes))
            else:
                edges = _edges(of_layer, nodes)
            others = valid[None] & ~jnp.eye(nodes.shape[0], dtype=bool)
            new = _gathered(of_layer, nodes, nodes, _shares(edges, others))
            new = _normed(of_layer, new)
            nodes = jnp.concatenate([nodes, jax.nn.leaky_relu(new)], -1)
        of_layer = params[f"layer_{num_layers}"]
        edges = _edges_of_last(of_layer, nodes)[None]
        shares = _shares(edges, graph.valid[None])
        return _gathered(of_layer, nodes[-1:], nodes[:-1], shares)[0]

    def score(params: PyTree, graph: _Graph, x: Array) -> Array:
        of_each = jax.vmap(lambda row: logits_of(params, graph, row))
        return of_each(x) if query_chunk is None else _in_chunks(of_each, x, query_chunk)

    settings = {
        "num_layers": num_layers,
        "node_features": node_features,
        "edge_widths": tuple(edge_widths),
        "layer_norm": layer_norm,
        "query_chunk": query_chunk,
    }
    head = Head(fit=fit, score=score, init=init)
    return embedded(
        "few_shot_gnn", encoder, head, num_ways=num_ways, settings=settings, **options
    )


def _layer(key: Key, size: int, outputs: int, widths, layer_norm: bool) -> PyTree:
    """Parameters of a layer on nodes of this size."""
    k_node, *keys = jax.random.split(key, len(widths) + 2)
    edge, inputs = {}, size
    for i, (k, width) in enumerate(zip(keys, (*widths, 1))):
        edge[f"dense_{i}"] = dense(k, inputs, width)
        if layer_norm and i < len(widths):
            edge[f"dense_{i}"]["norm"] = _norm_init(width)
        inputs = width
    return {"edge": edge, "node": dense(k_node, 2 * size, outputs)}


def _norm_init(size: int) -> PyTree:
    return {"scale": jnp.ones((size,)), "bias": jnp.zeros((size,))}


def _normed(params: PyTree, rows: Array) -> Array:
    """Rows after the layer norm of these parameters, if they have one."""
    return _NORM.apply({"params": params["norm"]}, rows) if "norm" in params else rows


def _edge(params: PyTree, apart: Array) -> Array:
    """Unnormalised edges `[P]` from distances of features `[P, F]`."""
    last = len(params["edge"]) - 1
    for i in range(last):
        layer = params["edge"][f"dense_{i}"]
        apart = jax.nn.leaky_relu(_normed(layer, linear(layer, apart)))
    return linear(params["edge"][f"dense_{last}"], apart)[:, 0]


def _edges(params: PyTree, nodes: Array) -> Array:
    """Unnormalised edges among nodes `[M, F]`, `[M, M]`, each pair computed once."""
    num = nodes.shape[0]
    ends = np.stack(np.triu_indices(num, 1))
    # The diagonal takes the number before those of pairs; nothing reads it.
    places = np.zeros((num, num), np.int32)
    places[ends[0], ends[1]] = places[ends[1], ends[0]] = 1 + np.arange(ends.shape[1])
    first, second = nodes[ends]
    pairs = _edge(params, jnp.abs(first - second))
    return jnp.concatenate([jnp.zeros((1,), pairs.dtype), pairs])[places]


def _edges_of_last(params: PyTree, nodes: Array) -> Array:
    """Unnormalised edges of the last node with the others, `[M - 1]`."""
    return _edge(params, jnp.abs(nodes[:-1] - nodes[-1:]))


def _bordered(edges: Array, border: Array) -> Array:
    """A symmetric matrix `[N, N]` with a further row and column, `[N + 1, N + 1]`."""
    last = jnp.concatenate([border, jnp.zeros((1,), border.dtype)])
    return jnp.concatenate([jnp.concatenate([edges, border[:, None]], 1), last[None]])


def _shares(edges: Array, others: Array) -> Array:
    """Edges normalised over the other nodes, bool like the edges; zero elsewhere.

    Each row sums to 1, but a row of zeros where there is no other node.
    """
    # Finite, since a row of -inf alone has no softmax.
    edges = jnp.where(others, edges, jnp.finfo(edges.dtype).min)
    return jnp.where(others, jax.nn.softmax(edges, axis=-1), 0)


def _gathered(params: PyTree, own: Array, nodes: Array, shares: Array) -> Array:
    """New features from nodes' own and from what their edges bring."""
    return linear(params["node"], jnp.concatenate([own, shares @ nodes], -1))


def _in_chunks(of_each, x: Array, chunk: int) -> Array:
    """A function of rows, applied to a few at a time, without storing what is between."""
    num = x.shape[0]
    rows = jnp.pad(x, ((0, -num % chunk), (0, 0))).reshape((-1, chunk, x.shape[-1]))
    step = jax.checkpoint(lambda carry, part: (carry, of_each(part)), prevent_cse=False)
    _, out = loops.scan(step, (), rows)
    return out.reshape((-1, out.shape[-1]))[:num]
