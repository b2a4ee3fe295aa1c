"""MANN: a recurrent network that writes to rows of a memory which it hardly uses.

A. Santoro, S. Bartunov, M. Botvinick, D. Wierstra, T. Lillicrap. Meta-Learning with
Memory-Augmented Neural Networks. ICML 2016.

Where the paper leaves a choice:
- The write uses the read weights of the step before, whose item the label of this step
  belongs to.
- Each head writes to a row of its own, the first to the least used, the second to the one
  used second least, and so on. The paper's rule marks every row whose usage is no more than
  that of the R-th; where usages are equal, as at the start, these are all rows.
- Only the least used row is erased before a write. Once all rows have been written, the
  further heads therefore add to what the next ones hold.
- The controller emits a gate for each head at each step. The paper's formula reads like one
  learned number, which is the special case of a bias alone.
- `strength=True` multiplies the cosines by a number that the controller emits, as in the
  neural Turing machine that this memory is of. The paper has none, so that among M rows no
  read weight is above `1 / (1 + (M - 1) / e^2)`: reads are blurred.
- At the start nothing has been read: read weights, values and usage are zero.

Differences:
- The items are embeddings of an encoder that is trained along; the paper reads the pixels.
- The loss is a mean over the items and queries of a task (`streamed`), not a sum.

With `norm="batch"`, and in training with any encoder that has batch norm, an embedding
depends on the whole batch: an answer then knows the images, though not the labels, of items
that come later in the stream. Under `norm="running"` the batch of training has the queries
too.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import EMBEDDING, EmbeddingOptions, embedded
from metalearn.algorithms.memory import cells
from metalearn.algorithms.memory.stream import Reader, streamed
from metalearn.algorithms.options import takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.types import Array, Key, PyTree
from metalearn.models.dense import dense, linear

# Not zero, so that a row that was never written has a direction.
UNWRITTEN = 1e-6
# Below the squares of an unwritten row. An erased row has the norm 1e-6 by it, and a
# derivative of that size.
LEAST_SQUARE = 1e-12


class State(NamedTuple):
    """What is known of a task after some items.

    Attributes:
      cell: State of the controller.
      memory: Rows `[M, width]`.
      reads: Read weights of the last step, `[R, M]`.
      values: What was read at the last step, `[R, width]`.
      usage: How much each row was read and written lately, `[M]`.
    """

    cell: PyTree
    memory: Array
    reads: Array
    values: Array
    usage: Array


@takes_options(of=EMBEDDING)
def mann(
    encoder: Model,
    *,
    num_ways: int,
    hidden: int = 200,
    rows: int = 128,
    width: int = 40,
    reads: int = 4,
    decay: float = 0.95,
    strength: bool = False,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Binds examples to their labels in an external memory, by an LSTM that is learned.

    At each item, with gates `g` in 0..1, and with R heads that have a key `k` each:

        h_t = LSTM(h_{t-1}, [f(x_t), y_{t-1}, r_{t-1}])
        k_t = tanh(W_k h_t + b_k),   g_t = sigmoid(W_g h_t + b_g)
        w^w_t = g_t w^r_{t-1} + (1 - g_t) w^lu_{t-1}
        M_t = M_{t-1} without its least used row + sum over heads of w^w_t k_t
        w^r_t = softmax of b_t cos(k_t, M_t) over rows,   r_t = w^r_t M_t
        w^u_t = decay w^u_{t-1} + sum over heads of (w^r_t + w^w_t)
        logits_t = W_o [h_t, r_t] + b_o

    with `b_t = 1`, or learned, `b_t = 1 + softplus(W_b h_t + b_b)`.

    `w^lu` of head i is 1 at the row whose usage `w^u` is the i-th smallest, and no
    derivative passes through this choice. The label of an item arrives with the next item.
    A stream that is longer than the memory writes over the rows that were neither read nor
    written for longest.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, number of logits and of labels that can be read: fixed in training. A
        test task may have fewer classes.
      hidden: Number of units of the controller.
      rows: Number of rows of the memory.
      width: Number of entries of a row.
      reads: R, number of heads, each of which reads and writes; at most `rows`.
      decay: Factor of the usage from one item to the next, from 0 to 1.
      strength: Whether each head learns how sharply it reads; in the paper none does.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Reading`, whose carry is a `State`. With a
      key, `adapt` reads the support set in a random order; without, in the given one.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.mann(ml.from_linen(ml.models.Conv4()), num_ways=5, rows=32)
    """
    for name, value in {"hidden": hidden, "rows": rows, "width": width}.items():
        checks.whole_number(name, value, least=1)
    checks.whole_number("reads", reads, least=1)
    if reads > rows:
        raise ValueError(
            f"reads is {reads} and rows is {rows}; expected a row for each head. Give "
            f"reads={rows} or fewer, or more rows."
        )
    checks.number("decay", decay)
    if decay > 1:
        raise ValueError(f"decay is {decay}; expected a number from 0 to 1.")
    reader = _reader(hidden, rows, width, reads, decay, strength)
    settings = {"hidden": hidden, "rows": rows, "width": width, "reads": reads}
    return embedded(
        "mann",
        encoder,
        streamed(reader, num_ways),
        num_ways=num_ways,
        # As it was before there were strengths, so that older runs go on.
        settings={**settings, "decay": decay, **({"strength": True} if strength else {})},
        **options,
    )


def _reader(
    hidden: int, rows: int, width: int, reads: int, decay: float, strength: bool
) -> Reader:
    def init(key: Key, like: Any, num_ways: int) -> PyTree:
        k_x, k_cell, k_keys, k_gates, k_out = jax.random.split(key, 5)
        of_memory = reads * width
        own = {}
        if strength:
            # A key of its own that leaves the draws of the others as they are without.
            own["strengths"] = dense(jax.random.fold_in(key, 1), hidden, reads)
        return own | {
            "x": cells.of_gates(k_x, cells.lstm.gates, like.shape[-1], hidden),
            "cell": cells.lstm.init(k_cell, num_ways + of_memory, hidden),
            "keys": dense(k_keys, hidden, of_memory),
            "gates": dense(k_gates, hidden, reads),
            "out": dense(k_out, hidden + of_memory, num_ways),
        }

    def start(params: PyTree) -> State:
        dtype = params["x"].dtype
        return State(
            cell=cells.lstm.start(params["cell"]),
            memory=jnp.full((rows, width), UNWRITTEN, dtype),
            reads=jnp.zeros((reads, rows), dtype),
            values=jnp.zeros((reads, width), dtype),
            usage=jnp.zeros((rows,), dtype),
        )

    def step(params: PyTree, state: State, z: Array, label: Array):
        known = jnp.concatenate([label, state.values.reshape(-1)])
        cell, h = cells.lstm.step({**params["cell"], "bias": z}, state.cell, known)
        keys = jnp.tanh(linear(params["keys"], h)).reshape(reads, width)
        gates = jax.nn.sigmoid(linear(params["gates"], h))
        memory, written = write(state.memory, state.usage, state.reads, keys, gates)
        sharp = None
        if strength:
            sharp = 1 + jax.nn.softplus(linear(params["strengths"], h))
        found, values = read(memory, keys, sharp)
        logits = linear(params["out"], jnp.concatenate([h, values.reshape(-1)]))
        usage = used(state.usage, found, written, decay)
        return State(cell, memory, found, values, usage), logits

    return Reader(init=init, start=start, step=step, view=cells.of_embeddings)


def write(
    memory: Array, usage: Array, reads: Array, keys: Array, gates: Array
) -> tuple[Array, Array]:
    """Writes to the rows that were read last, and to those used least.

    Args:
      memory: Rows `[M, width]`.
      usage: Usage of the rows, `[M]`.
      reads: Read weights of the step before, `[R, M]`.
      keys: What each head writes, `[R, width]`.
      gates: Share of each head that goes where it read, `[R]`; the rest goes to a row
        that is hardly used.

    Returns:
      The memory, and the write weights `[R, M]`.
    """
    # The place in an order and not a threshold: equal usages are told apart, by number.
    least = jax.lax.top_k(-usage, reads.shape[0])[1]
    slots = jax.nn.one_hot(least, usage.shape[0], dtype=memory.dtype)
    gates = gates[:, None]
    weights = gates * reads + (1 - gates) * slots
    erased = memory * (1 - slots[0])[:, None]
    return erased + weights.T @ keys, weights


def read(memory: Array, keys: Array, strengths: Array | None = None) -> tuple[Array, Array]:
    """Reads by the cosine between keys `[R, width]` and rows `[M, width]`.

    Args:
      memory: Rows `[M, width]`.
      keys: What each head looks for, `[R, width]`.
      strengths: Factors of the cosines of each head, `[R]`; ones when `None`.

    Returns:
      The read weights `[R, M]`, and what was read, `[R, width]`.
    """
    cosines = _unit(keys) @ _unit(memory).T
    if strengths is not None:
        cosines = strengths[:, None] * cosines
    weights = jax.nn.softmax(cosines, axis=-1)
    return weights, weights @ memory


def used(usage: Array, reads: Array, writes: Array, decay: float) -> Array:
    """The usage `[M]` after a step with weights `[R, M]`."""
    usage = decay * usage + jnp.sum(reads + writes, axis=0)
    # It only puts rows in an order, which has no derivative: nothing of it has to be kept
    # for the backward pass.
    return jax.lax.stop_gradient(usage)


def _unit(rows: Array) -> Array:
    """Rows of length 1; rows of zeros stay, and have a finite derivative."""
    squares = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    return rows * jax.lax.rsqrt(squares + LEAST_SQUARE)
