"""The recurrent learner: cells against flax, answers and gradients against loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms.memory import rnn
from metalearn.algorithms.memory.cells import gru

pytestmark = pytest.mark.usefixtures("x64")
HIDDEN = 4


def encoder():
    return ml.from_apply_fn(
        lambda key, x: {"w": jnp.eye(4)}, lambda p, x: jnp.tanh(x @ p["w"])
    )


def drawn(like, seed=0, scale=0.5):
    """Numbers of the shapes of a tree, so that no bias is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape), like)


def start_of(learner):
    task = one(wide_blobs())
    return jax.eval_shape(lambda: learner.init(jax.random.key(0), task)).params


def test_the_gru_is_that_of_flax():
    """Two items, and the derivatives of the last output in both."""
    params = drawn(jax.eval_shape(lambda: gru.init(jax.random.key(0), 3, HIDDEN)))
    parts = lambda name: zip("rzn", np.split(params[name], 3, -1))
    given = {f"i{g}": {"kernel": w} for g, w in parts("input")}
    given |= {f"h{g}": {"kernel": w} for g, w in parts("recurrent")}
    for gate, bias in parts("bias"):
        given[f"i{gate}"]["bias"] = bias
    given["hn"]["bias"] = params["state_bias"]
    theirs = nn.GRUCell(HIDDEN)

    def ours(x):
        carry = gru.start(params)
        for row in x:
            carry, out = gru.step(params, carry, row)
        return jnp.sum(out * jnp.arange(HIDDEN)), out

    def flax(x):
        carry = theirs.initialize_carry(jax.random.key(0), (3,))
        for row in x:
            carry, out = theirs.apply({"params": given}, carry, row)
        return jnp.sum(out * jnp.arange(HIDDEN)), out

    x = np.random.default_rng(1).normal(size=(2, 3))
    both = lambda x: [jax.value_and_grad(f, has_aux=True)(x) for f in (ours, flax)]
    found, wanted = jax.jit(both)(x)
    close(found, wanted)


def test_the_gru_starts_orthogonal():
    params = jax.jit(lambda key: gru.init(key, 3, HIDDEN))(jax.random.key(0))
    blocks = np.split(params["recurrent"], 3, -1)
    for block in blocks:
        close(block.T @ block, np.eye(HIDDEN), rtol=1e-5)
    assert np.abs(blocks[0] - blocks[1]).max() > 0.1
    # Drawn for each gate by itself, which has 3 inputs and 4 outputs.
    assert 0.7 < np.abs(params["input"]).max() / np.sqrt(6 / (3 + HIDDEN)) <= 1
    assert not np.any(params["bias"]) and not np.any(params["state_bias"])


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm_cell(cell, state, z, label):
    """The cell in NumPy; z is what the embedding gives the gates, without the bias."""
    h, c = state
    gates = z + label @ cell["input"] + h @ cell["recurrent"] + cell["bias"]
    i, f, g, o = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


def gru_cell(cell, state, z, label):
    of_input = np.split(z + label @ cell["input"] + cell["bias"], 3)
    of_state = np.split(state @ cell["recurrent"], 3)
    r, u = (sigmoid(a + b) for a, b in zip(of_input[:2], of_state[:2]))
    n = np.tanh(of_input[2] + r * (of_state[2] + cell["state_bias"]))
    h = (1 - u) * n + u * state
    return h, h


CELLS = {"lstm": (lstm_cell, (np.zeros(HIDDEN),) * 2), "gru": (gru_cell, np.zeros(HIDDEN))}


@pytest.mark.parametrize("name", CELLS)
def test_the_learner_is_a_loop_of_its_cell(name):
    learner = rnn(encoder(), num_ways=WAYS, cell=name, hidden=HIDDEN)
    params, task = drawn(start_of(learner)), one(wide_blobs())
    variables = ml.Variables(params=params, state={})

    def episode(support, x):
        adapted = learner.adapt(variables, support)
        return adapted.fitted.logits, learner.predict(adapted, x)

    found = jax.jit(episode)(task.support, task.query.x)
    head, labels = params["head"], np.asarray(task.support.y)
    embed = lambda x: np.tanh(np.asarray(x) @ params["encoder"]["w"])

    cell, state = CELLS[name]

    def step(state, x, label):
        state, h = cell(head["cell"], state, x @ head["x"], label)
        return state, h @ head["out"]["w"] + head["out"]["b"]

    label, stream = np.zeros(WAYS), []
    for x, y in zip(embed(task.support.x), labels):
        state, answer = step(state, x, label)
        stream, label = [*stream, answer], np.eye(WAYS)[y]
    query = [step(state, x, label)[1] for x in embed(task.query.x)]
    close(found, (np.array(stream), np.array(query)))


def test_the_whole_loss_has_the_derivative_of_finite_differences():
    """Over the items of the stream and the queries, in all params."""
    learner = rnn(encoder(), num_ways=WAYS, hidden=HIDDEN, task_chunk=9)
    params = drawn(start_of(learner))
    way = drawn(params, seed=1, scale=1.0)

    @jax.jit
    def run(params, key):
        variables = ml.Variables(params=params, state={})
        found = learner.estimate(variables, wide_blobs(), key=key)
        parts = found.metrics["support/loss"], found.metrics["query/loss"]
        return jnp.mean(jnp.stack(parts)), found.grads  # six rows each

    def at(step, seed=0):
        moved = jax.tree.map(lambda p, d: p + step * d, params, way)
        return run(moved, jax.random.key(seed))

    loss, grads = at(0.0)
    slope = sum(np.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (grads, way))))
    close(slope, (at(1e-5)[0] - at(-1e-5)[0]) / 2e-5, rtol=1e-7)
    assert abs(at(0.0, seed=1)[0] - loss) > 1e-6  # another order of reading


def test_the_cell_is_what_is_asked_for():
    for cell, gates in (("lstm", 4), ("gru", 3)):
        learner = rnn(encoder(), num_ways=WAYS, cell=cell, hidden=HIDDEN)
        assert start_of(learner)["head"]["cell"]["recurrent"].shape == (
            HIDDEN,
            gates * HIDDEN,
        )
        said = ml.describe(learner)
        assert (said["cell"], said["hidden"], said["num_ways"]) == (cell, HIDDEN, WAYS)
    for wrong in ({"cell": "rnn"}, {"hidden": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            rnn(encoder(), num_ways=WAYS, **wrong)
