"""Meta networks: loss gradients of the support set become fast weights, read by a query.

T. Munkhdalai, H. Yu. Meta Networks. ICML 2017; code released by T. Munkhdalai. Differences:

- The embedding function u and the base learner b are small heads on one shared encoder. In
  the paper each is a convolutional network whose layers all have fast weights.
- The representation loss is the cross-entropy for any number of shots, as in the released
  code. The paper has a contrastive loss where there is more than one.
- Inner gradients are inputs: no derivative flows through them unless `second_order`, as in
  the released code. The classifier of the representation loss then has no derivative and
  stays as it was drawn, there as here.
- The LSTM reads one gradient for each support example. The released code reads five, of a
  fifth of the examples each.
- The keys of the memory are linear, `h Q + h Q*`, while the representation loss is of
  `relu(h Q) C`. By the paper's rule for layers keys would be `relu(h Q) + relu(h Q*)`.
- All support examples make Q* unless `num_sampled` is given. The paper samples T of them.
- Classes that a task lacks are masked in the inner losses as in the outer one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.embedding import EMBEDDING, EmbeddingOptions, Head, embedded
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, loops
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import absent_logit, mask_absent, present_classes
from metalearn.core.model import Model
from metalearn.core.rows import drawn_order, unit
from metalearn.core.task import Examples, take
from metalearn.core.types import Array, Key, PyTree
from metalearn.inner.log_sign import log_sign
from metalearn.models.cells import lstm_init, lstm_start, lstm_step
from metalearn.models.dense import dense, glorot, linear

RANGE = 7.0  # of the logarithm of gradients, p of `log_sign`


class Memory(NamedTuple):
    """What a support set leaves behind.

    Attributes:
      representation: Fast weights Q* of the embedding function, `[D, E]`.
      keys: Embeddings R of the support examples, `[N, E]`.
      values: Fast weights M of the base learner for each example, leaves `[N, ...]`.
      mask: Mask of the valid rows, bool `[N]`.
    """

    representation: Array
    keys: Array
    values: PyTree
    mask: Array


@takes_options(of=EMBEDDING)
def meta_networks(
    encoder: Model,
    *,
    num_ways: int,
    representation: int = 64,
    hidden: int = 64,
    generator: int = 20,
    num_sampled: int | None = None,
    scale: float = 1.0,
    second_order: bool = False,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by slow weights, and by fast weights that loss gradients are turned into.

    With slow weights Q of an embedding function u, W of a base learner b, and `h = f(x)`:

    1. `Q* = d(grad_Q L_u(h_1), ..., grad_Q L_u(h_T))`, where d is an LSTM and `L_u` is the
       cross-entropy of `relu(h Q) C`.
    2. `M_i = m(grad_W L_b(h_i))` and `R_i = h_i Q + h_i Q*` for each support example, where
       m is a network of three layers and `L_b` is the cross-entropy of `b(W, h_i)`.
    3. For a query `a = softmax_i(scale cos(R_i, h Q + h Q*))` and `W* = sum of a_i M_i`.
       Layers of b have slow and fast weights, `g = relu(h W1) + relu(h W1*)`; the logits
       are `g W2 + g W2*`.

    Both m and d see the logarithm and the sign of the gradient of each weight by itself.
    Layers with fast weights have no bias. Training holds some ten numbers times
    `generator` for each weight of these layers and support example, so the encoder should
    give few features.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, number of logits. Classes absent from a support set get a logit that
        never wins.
      representation: E, size of the embeddings that address the memory.
      hidden: Width of the hidden layer of the base learner; 0 for a linear one.
      generator: Width of both generators of fast weights.
      num_sampled: T, number of support examples that the LSTM reads; all when `None`.
        Their choice and order are drawn by the key of `adapt`; without a key, the last are
        read in the given order.
      scale: Multiplies the cosines; 1 in the paper.
      second_order: Whether derivatives flow through the inner gradients too.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Memory`.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.meta_networks(ml.from_linen(ml.models.Conv4()), num_ways=5)
    """
    for name, value in (("representation", representation), ("generator", generator)):
        checks.whole_number(name, value, least=1)
    checks.whole_number("hidden", hidden, least=0)
    if num_sampled is not None:
        checks.whole_number("num_sampled", num_sampled, least=1)
    checks.number("scale", scale, positive=True)

    def init(key: Key, like: Array) -> PyTree:
        keys = iter(jax.random.split(key, 9))
        size, top = like.shape[-1], hidden or like.shape[-1]
        base = {"logits": glorot(next(keys), (top, num_ways))}
        if hidden:
            base["hidden"] = glorot(next(keys), (size, hidden))
        params = {
            "base": base,
            "representation": glorot(next(keys), (size, representation)),
            "classifier": glorot(next(keys), (representation, num_ways)),
            "d": {
                "lstm": lstm_init(next(keys), 2, generator),
                "out": dense(next(keys), generator, 1),
            },
            "m": [
                dense(next(keys), 2, generator),
                dense(next(keys), generator, generator),
                dense(next(keys), generator, 1),
            ],
        }
        return jax.tree.map(lambda leaf: leaf.astype(like.dtype), params)

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> Memory:
        present = present_classes(support, num_ways)
        of_each = lambda apply, weights, rows: _gradients(
            apply, weights, rows, present, second_order
        )
        order = drawn_order(key, support.mask, masked="first")
        if num_sampled is not None:
            order = order[-num_sampled:]  # masked rows come first
        sampled = take(support, order)
        classify = lambda q, h: jax.nn.relu(h @ q) @ params["classifier"]
        grads = of_each(classify, params["representation"], sampled)
        fast = _read_gradients(params["d"], grads, sampled.mask)
        values = jax.tree.map(
            lambda g: _each_weight(params["m"], log_sign(g, RANGE)),
            of_each(_base, params["base"], support),
        )
        keys = support.x @ params["representation"] + support.x @ fast
        return Memory(fast, keys, values, support.mask)

    def score(params: PyTree, memory: Memory, x: Array) -> Array:
        keys = x @ params["representation"] + x @ memory.representation
        cosines = scale * unit(keys) @ unit(memory.keys).T
        out = jnp.asarray(absent_logit(x.dtype), x.dtype)
        attention = jax.nn.softmax(jnp.where(memory.mask[None], cosines, out), axis=-1)
        fast = jax.tree.map(lambda m: jnp.tensordot(attention, m, 1), memory.values)
        return jax.vmap(_augmented, (None, 0, 0))(params["base"], fast, x)

    settings = {
        "representation": representation,
        "hidden": hidden,
        "generator": generator,
        "num_sampled": num_sampled,
        "scale": scale,
        "second_order": second_order,
    }
    head = Head(fit=fit, score=score, init=init)
    return embedded(
        "meta_networks", encoder, head, num_ways=num_ways, settings=settings, **options
    )


def _base(weights: PyTree, h: Array) -> Array:
    """The base learner with slow weights alone, `[..., W]`."""
    if "hidden" in weights:
        h = jax.nn.relu(h @ weights["hidden"])
    return h @ weights["logits"]


def _augmented(slow: PyTree, fast: PyTree, h: Array) -> Array:
    """The base learner whose layers have slow and fast weights, `[..., W]`."""
    if "hidden" in slow:
        h = jax.nn.relu(h @ slow["hidden"]) + jax.nn.relu(h @ fast["hidden"])
    return h @ slow["logits"] + h @ fast["logits"]


def _gradients(
    apply: Callable[[PyTree, Array], Array],
    weights: PyTree,
    rows: Examples,
    present: Array,
    second_order: bool,
) -> PyTree:
    """Gradient of the cross-entropy of each row by itself, leaves `[N, ...]`."""

    def loss(weights: PyTree, h: Array, y: Array) -> Array:
        logits = mask_absent(apply(weights, h[None]), present)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[None])[0]

    grads = jax.vmap(jax.grad(loss), (None, 0, 0))(weights, rows.x, rows.y)
    # They are inputs of the generators and constants of the outer loss.
    return grads if second_order else jax.lax.stop_gradient(grads)


def _read_gradients(params: PyTree, grads: Array, mask: Array) -> Array:
    """d: fast weights `[D, E]` from gradients `[T, D, E]`, each weight by itself."""

    def step(carry: PyTree, item: tuple[Array, Array]):
        grad, valid = item
        new, _ = lstm_step(params["lstm"], carry, grad)
        # A masked row is passed over.
        return jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry), None

    start = lstm_start(params["lstm"], *grads.shape[1:])
    items = log_sign(grads, RANGE), mask
    # The gates of every weight and step would be most of what training holds in memory.
    step = jax.checkpoint(step, prevent_cse=False)
    (state, _), _ = loops.scan(step, start, items)
    return linear(params["out"], state)[..., 0]


def _each_weight(layers: list[PyTree], x: Array) -> Array:
    """m: a network on each weight by itself, from `[..., 2]` to `[...]`."""
    for layer in layers[:-1]:
        x = jax.nn.relu(linear(layer, x))
    return linear(layers[-1], x)[..., 0]
