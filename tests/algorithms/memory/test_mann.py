"""MANN: writes by hand, and whole streams against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms.memory import mann
from metalearn.algorithms.memory.mann import read, used, write

pytestmark = pytest.mark.usefixtures("x64")
HIDDEN, ROWS, WIDTH, READS, DECAY = 4, 5, 3, 2, 0.7
SIZES = {"hidden": HIDDEN, "rows": ROWS, "width": WIDTH, "reads": READS, "decay": DECAY}


def learner_of(**options):
    encoder = ml.from_apply_fn(
        lambda key, x: {"w": jnp.eye(4)}, lambda p, x: jnp.tanh(x @ p["w"])
    )
    return mann(encoder, num_ways=WAYS, **{**SIZES, **options})


def drawn(like, seed=0, scale=0.5):
    """Numbers of the shapes of a tree, so that no bias is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape), like)


def params_of(learner):
    task = one(wide_blobs())
    return drawn(jax.eval_shape(lambda: learner.init(jax.random.key(0), task)).params)


def test_two_steps_by_hand():
    """Three rows and one head; what was read at the first step is prescribed."""
    row = lambda *numbers: jnp.array([numbers], float)
    usage, memory = jnp.array([0.3, 0.1, 0.2]), jnp.full((3, 2), 0.5)
    memory, written = write(memory, usage, row(0, 0, 0), row(1, 0), jnp.array([0.0]))
    close(memory, np.array([[0.5, 0.5], [1, 0], [0.5, 0.5]]))
    close(written, np.array([[0, 1, 0]]))
    usage = used(usage, row(0, 1, 0), written, 0.95)
    close(usage, np.array([0.285, 2.095, 0.19]))
    memory, written = write(memory, usage, row(0, 1, 0), row(0, 2), jnp.array([0.25]))
    close(memory, np.array([[0.5, 0.5], [1, 0.5], [0, 1.5]]))
    close(written, np.array([[0, 0.25, 0.75]]))


@pytest.mark.parametrize("heads", [1, 3])
def test_new_items_go_to_rows_of_their_own_until_all_are_taken(heads):
    """At first no row has been used, so all are equal; then the oldest rows go first."""
    rows, steps = 12, 12 // heads
    memory, usage = jnp.full((rows, 2), 1e-6), jnp.zeros(rows)
    reads, closed = jnp.full((heads, rows), 1 / rows), jnp.zeros(heads)

    @jax.jit
    def step(memory, usage):
        memory, written = write(memory, usage, reads, jnp.ones((heads, 2)), closed)
        return memory, used(usage, reads, written, 0.95), written

    places = []
    for _ in range(2 * steps):
        memory, usage, written = step(memory, usage)
        close(written.sum(-1), np.ones(heads))
        places += np.asarray(written).argmax(-1).tolist()
    assert places == [*range(rows), *range(rows)]


def test_several_heads_write_in_the_order_of_usage_and_one_row_is_erased():
    memory, usage = jnp.full((4, 2), 0.5), jnp.array([0.4, 0.1, 0.3, 0.2])
    reads = jnp.array([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    keys, gates = jnp.array([[1.0, 0], [0, 2]]), jnp.array([0.25, 0.5])
    found, written = write(memory, usage, reads, keys, gates)
    close(written, np.array([[0.25, 0.75, 0, 0], [0, 0, 0.5, 0.5]]))
    close(found, np.array([[0.75, 0.5], [0.75, 0], [0.5, 1.5], [0.5, 1.5]]))


def test_a_key_reads_by_its_angle_and_an_erased_row_has_a_derivative():
    memory = jnp.array([[3.0, 0], [0, 1e-3], [0, 0], [-5, 0], [1e-6, 1e-6]])
    keys = jnp.array([[2.0, 0], [0, 0]])

    @jax.jit
    def run(memory, keys):
        slopes = jax.grad(lambda *args: read(*args)[1].sum(), (0, 1))(memory, keys)
        return *read(memory, keys), slopes

    weights, values, slopes = run(memory, keys)
    shares = np.exp([1, 0, 0, -1, np.sqrt(0.5 * 2 / 3)])  # 2 of 3 by the guard
    close(weights[0], shares / shares.sum(), rtol=1e-6)
    close(weights[1], np.full(5, 0.2))
    close(values, np.asarray(weights) @ np.asarray(memory))
    assert all(np.isfinite(slope).all() for slope in slopes)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def stream(params, x, y):
    """Answers of the learner to a stream, and its state, by a loop in NumPy."""
    layer = lambda name, rows: rows @ params[name]["w"] + params[name]["b"]
    h, c, label = np.zeros(HIDDEN), np.zeros(HIDDEN), np.zeros(WAYS)
    memory, usage = np.full((ROWS, WIDTH), 1e-6), np.zeros(ROWS)
    reads, values = np.zeros((READS, ROWS)), np.zeros((READS, WIDTH))
    answers = []
    for row, told in zip(x, y):
        known, cell = np.concatenate([label, values.ravel()]), params["cell"]
        z = row @ params["x"] + known @ cell["input"] + cell["bias"] + h @ cell["recurrent"]
        i, f, g, o = np.split(z, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        keys = np.tanh(layer("keys", h)).reshape(READS, WIDTH)
        gates = sigmoid(layer("gates", h))
        least = np.argsort(usage, kind="stable")[:READS]
        writes = np.zeros((READS, ROWS))
        memory[least[0]] = 0
        for n in range(READS):
            writes[n] = gates[n] * reads[n]
            writes[n, least[n]] += 1 - gates[n]
            memory = memory + np.outer(writes[n], keys[n])
        norms = np.sqrt((memory**2).sum(-1) + 1e-12)
        scores = keys @ memory.T / norms / np.sqrt((keys**2).sum(-1) + 1e-12)[:, None]
        scores *= 1 + np.log1p(np.exp(layer("strengths", h)))[:, None]
        reads = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        values = reads @ memory
        usage = DECAY * usage + (reads + writes).sum(0)
        answers.append(layer("out", np.concatenate([h, values.ravel()])))
        label = np.eye(WAYS)[told]
    return np.array(answers), memory


def whole(params, task):
    """The stream, the memory after it, the queries and the loss of all, in NumPy."""
    embed = lambda x: np.tanh(np.asarray(x) @ params["encoder"]["w"])
    items, labels = embed(task.support.x), np.asarray(task.support.y)
    answers, memory = stream(params["head"], items, labels)
    queries = [
        stream(params["head"], np.vstack([items, row]), [*labels, 0])[0][-1]
        for row in embed(task.query.x)
    ]
    rows, asked = np.vstack([answers, queries]), np.concatenate([labels, task.query.y])
    costs = np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(asked)), asked]
    return answers, memory, np.array(queries), costs.mean()


def test_a_stream_and_its_derivative_are_those_of_a_loop():
    """Six items and a query write fourteen times to five rows.

    The derivative of the whole loss, in all params, is that of finite differences.
    """
    learner, task = learner_of(strength=True), one(wide_blobs())
    params = params_of(learner)
    way = drawn(params, seed=1, scale=1.0)

    def run(params):
        variables = ml.Variables(params=params, state={})
        adapted = learner.adapt(variables, task.support)
        reading, queries = adapted.fitted, learner.predict(adapted, task.query.x)
        rows = jax.nn.log_softmax(jnp.concatenate([reading.logits, queries]))
        asked = jnp.concatenate([task.support.y, task.query.y])
        loss = -jnp.mean(jnp.take_along_axis(rows, asked[:, None], 1))
        return loss, (reading.logits, reading.carry.memory, queries)

    (loss, found), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    close((*found, loss), whole(params, task))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    slope = sum(np.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (grads, way))))
    moved = lambda step: jax.tree.map(lambda p, d: p + step * d, params, way)
    ahead, behind = (whole(moved(step), task)[-1] for step in (1e-5, -1e-5))
    close(slope, (ahead - behind) / 2e-5, rtol=1e-6)


def test_without_strengths_all_heads_are_as_blunt_as_the_paper_has_them():
    made = jax.eval_shape(learner_of().init, jax.random.key(0), one(wide_blobs()))
    assert "strengths" not in made.params["head"]
    # At strengths of 1, which softplus reaches in the limit, both are the same.
    learner, task = learner_of(strength=True), one(wide_blobs())
    params = params_of(learner)
    blunt = {name: leaf for name, leaf in params["head"].items() if name != "strengths"}
    params["head"]["strengths"] = {
        "w": np.zeros((HIDDEN, READS)),
        "b": np.full(READS, -60.0),
    }
    answers = []
    for which, head in ((learner, params["head"]), (learner_of(), blunt)):
        variables = ml.Variables(params={**params, "head": head}, state={})
        answers.append(jax.jit(which.adapt)(variables, task.support).fitted.logits)
    close(*answers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"hidden": 1.5}, "hidden is 1.5"),
        ({"width": 0}, "width is 0"),
        ({"reads": 6}, r"reads is 6 and rows is 5.*reads=5"),
        ({"reads": 0}, "reads is 0"),
        ({"decay": 1.01}, r"decay is 1\.01.*0 to 1"),
        ({"decay": -0.1}, r"decay is -0\.1"),
    ],
)
def test_what_is_out_of_range_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        learner_of(**options)
