"""A recurrent network as the learner: its state is what it has learned of a task.

S. Hochreiter, A. S. Younger, P. R. Conwell. Learning to Learn Using Gradient Descent.
ICANN 2001; with images and classes, as the LSTM baseline of A. Santoro et al.
Meta-Learning with Memory-Augmented Neural Networks. ICML 2016.

Differences:
- The items are embeddings of an encoder that is trained along; the papers read the inputs.
- The loss is a mean over the items and queries of a task (`streamed`), not a sum.
- The cell is a present-day LSTM with a forget gate (or a GRU); that of 2001 had none.

With `norm="batch"`, and in training with any encoder that has batch norm, an embedding
depends on the whole batch: an answer then knows the images, though not the labels, of items
that come later in the stream. Under `norm="running"` the batch of training has the queries
too.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack, get_args

import jax

from metalearn.algorithms.embedding import EMBEDDING, EmbeddingOptions, embedded
from metalearn.algorithms.memory import cells
from metalearn.algorithms.memory.stream import Reader, streamed
from metalearn.algorithms.options import takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.types import Array, Key, PyTree
from metalearn.models.dense import dense, linear

CellName = Literal["lstm", "gru"]
CELLS: dict[CellName, cells.Cell] = {"lstm": cells.lstm, "gru": cells.gru}


@takes_options(of=EMBEDDING)
def rnn(
    encoder: Model,
    *,
    num_ways: int,
    cell: CellName = "lstm",
    hidden: int = 128,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Reads the support set by a recurrent network, whose state then classifies.

    `h_t = cell(h_{t-1}, [f(x_t), y_{t-1}])`, `logits_t = h_t W + b`. The label of an item
    arrives with the next item, so an answer never knows its own label. Meta-training makes
    the steps of the cell a learning algorithm; nothing else changes within a task.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, number of logits and of labels that can be read: fixed in training. A
        test task may have fewer classes.
      cell: Kind of cell, "lstm" or "gru".
      hidden: Number of units of the cell.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Reading`. With a key, `adapt` reads the
      support set in a random order; without, in the given one.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.rnn(ml.from_linen(ml.models.Conv4()), num_ways=5, cell="gru")
    """
    checks.one_of("cell", cell, get_args(CellName))
    checks.whole_number("hidden", hidden, least=1)
    reader = _reader(CELLS[cell], hidden)
    settings = {"cell": cell, "hidden": hidden}
    return embedded(
        "rnn",
        encoder,
        streamed(reader, num_ways),
        num_ways=num_ways,
        settings=settings,
        **options,
    )


def _reader(cell: cells.Cell, hidden: int) -> Reader:
    def init(key: Key, like: Any, num_ways: int) -> PyTree:
        k_x, k_cell, k_out = jax.random.split(key, 3)
        return {
            "x": cells.of_gates(k_x, cell.gates, like.shape[-1], hidden),
            "cell": cell.init(k_cell, num_ways, hidden),
            "out": dense(k_out, hidden, num_ways),
        }

    def step(params: PyTree, carry: PyTree, z: Array, label: Array):
        carry, h = cell.step({**params["cell"], "bias": z}, carry, label)
        return carry, linear(params["out"], h)

    start = lambda params: cell.start(params["cell"])
    return Reader(init=init, start=start, step=step, view=cells.of_embeddings)
