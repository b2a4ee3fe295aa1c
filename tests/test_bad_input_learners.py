"""What newer learners are given by mistake, and what must not be swallowed: a table.

Each row was accepted once, or failed in the words of another library. Nothing is compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constructors import make
from tiny import INPUTS, WAYS, blob_batch, one, plain

import metalearn as ml
from metalearn.algorithms.episodic import store
from metalearn.algorithms.frozen.centroids import neighbour_head
from metalearn.apps import learners
from metalearn.core import checks
from metalearn.inner.solve import solve

KEY = jax.random.key(0)
TASK = one(blob_batch())
SUPPORT = TASK.support


def encoder(outputs=lambda x: x):
    return ml.from_apply_fn(
        lambda key, x: {"w": jnp.eye(INPUTS)}, lambda params, x: outputs(x @ params["w"])
    )


def prototypes(outputs=lambda x: x):
    return ml.protonet(encoder(outputs), num_ways=WAYS)


def adapted(learner, support=SUPPORT, of=None, x=TASK.query.x):
    """Shapes of what is predicted, with the variables of a learner."""
    variables = jax.eval_shape((of or learner).init, KEY, TASK)
    predict = lambda v: learner.predict(learner.adapt(v, support), x)
    return jax.eval_shape(predict, variables)


def classified(**info):
    learner = ml.nearest_centroid(encoder(), num_classes=5, num_ways=WAYS)
    task = ml.Task(support=SUPPORT, query=TASK.query, info=info)
    variables = jax.eval_shape(learner.init, KEY, task)
    tasks = ml.stack_tasks([task, task])
    return jax.eval_shape(lambda v: learner.estimate(v, tasks, key=KEY).grads, variables)


def kept(targets):
    """EMO adapts to targets of another kind than those its memory was made for."""
    learner = ml.emo(plain(), ml.losses.cross_entropy, capacity=2, recall=1)
    support = ml.Examples(x=SUPPORT.x, y=targets, mask=SUPPORT.mask)
    return adapted(learner, support)


RNN = ml.rnn(encoder(), num_ways=WAYS, hidden=2)
MEMORY = store.empty(3, jnp.zeros(2), jnp.zeros(1))
UNIT = jnp.array([1.0, 0.0])

MISTAKES = {
    # Arguments.
    "array for a word": (
        lambda: make("rnn", cell=np.ones(2)),
        ValueError,
        r"cell is array.*expected one of lstm, gru",
    ),
    "array for a chunk": (
        lambda: make("rnn", task_chunk=np.ones(2)),
        ValueError,
        "task_chunk is array.*expected 'auto'",
    ),
    "infinite in float32": (
        lambda: make("protonet", scale=1e300),
        ValueError,
        r"scale is 1e\+300; expected a finite number above 0. It is inf in float32",
    ),
    "zero in float32": (
        lambda: make("infinite_mixture_prototypes", sigma=1e-300),
        ValueError,
        "sigma is 1e-300; .* above 0. It is 0 in float32",
    ),
    "out of range": (
        lambda: make("protonet", scale=-0.1),
        ValueError,
        r"scale is -0.1; expected a finite number above 0\.$",
    ),
    "hundreds of digits": (
        lambda: checks.number("scale", 10**400),
        ValueError,
        "scale is an integer of 401 digits; expected a finite number",
    ),
    "count beyond int32": (
        lambda: make("mann", hidden=2**40),
        ValueError,
        "hidden is 1099511627776; expected an integer of 2147483647 or less",
    ),
    "name of a number": (
        lambda: make("emo", name=3),
        TypeError,
        "name is 3; expected text",
    ),
    "settings of a recipe": (
        lambda: learners.MANN(reads=500).check_builds(),
        ValueError,
        "reads is 500 and rows is 128",
    ),
    # Encoders.
    "embeddings of integers": (
        lambda: adapted(prototypes(lambda x: x.astype(int))),
        TypeError,
        "embeddings of int32; expected real numbers",
    ),
    "one embedding of all": (
        lambda: adapted(prototypes(lambda x: x.mean(0, keepdims=True))),
        ValueError,
        r"shape \(1, 4\) for 6 inputs; expected \[N, D\] with N = 6",
    ),
    "embeddings of nothing": (
        lambda: adapted(prototypes(lambda x: x[:, :0])),
        ValueError,
        r"shape \(6, 0\) for 6 inputs; .* no empty axis",
    ),
    "input without an axis": (
        lambda: adapted(
            prototypes(lambda x: x[None] if x.ndim == 1 else x), x=SUPPORT.x[0]
        ),
        ValueError,
        r"shape \(1, 4\) for 4 inputs; .* x\[None\]",
    ),
    # Tasks.
    "support without a row": (
        lambda: adapted(prototypes(), jax.tree.map(lambda leaf: leaf[:0], SUPPORT)),
        ValueError,
        "the support set has no row; expected one or more",
    ),
    "classes of floats": (
        lambda: classified(class_ids=jnp.arange(3.0)),
        ValueError,
        r"class_ids'\] is float32\[3\]; expected integers \[W\]",
    ),
    "one class": (
        lambda: classified(class_ids=jnp.array(1)),
        ValueError,
        r"class_ids'\] is int32\[\]; expected integers",
    ),
    "targets of another kind": (
        lambda: kept(jnp.arange(6.0)),
        ValueError,
        r"the key of this task has the shape \(9,\), those of the memory \(4,\)",
    ),
    # Variables of another learner.
    "other parts": (
        lambda: adapted(
            RNN, of=ml.nearest_centroid(encoder(), num_classes=5, num_ways=WAYS)
        ),
        ValueError,
        r"another learner: .* \['classifier', 'encoder'\]; expected \['encoder', 'head'\]",
    ),
    "other parts of a memory": (
        lambda: adapted(make("emo", model=plain()), of=RNN),
        ValueError,
        r"another learner: .*expected \['model'\]",
    ),
    "another head": (
        lambda: adapted(RNN, of=ml.dkt(encoder(), num_ways=WAYS)),
        ValueError,
        "another learner: their params have no part 'cell'",
    ),
    # Memories.
    "numbers for a key": (
        lambda: store.empty(3, [1.0], 1.0),
        TypeError,
        "key_like holds a list",
    ),
    "key of a number": (
        lambda: store.write(MEMORY, jnp.zeros(()), jnp.zeros(1)),
        ValueError,
        r"the key has the shape \(\); expected \(2,\)",
    ),
    "value of a number": (
        lambda: store.write(MEMORY, UNIT, jnp.zeros(())),
        ValueError,
        r"the value has the shape \(\); expected \(1,\)",
    ),
    "queries": (
        lambda: store.nearest(MEMORY, UNIT[None]),
        ValueError,
        r"the query has the shape \(1, 2\); expected \(2,\)",
    ),
    "word for replace": (
        lambda: store.write(MEMORY, UNIT, jnp.zeros(1), replace="no"),
        TypeError,
        "replace is 'no'",
    ),
}


@pytest.mark.parametrize("call, error, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_infinite_system_has_no_solution():
    """Its factors hold zeros, and the solution was 0."""
    matrices = jnp.stack([jnp.eye(2), jnp.full((2, 2), jnp.inf)])
    found = jax.jit(solve)(matrices, jnp.ones((2, 2, 1)))
    assert (found[0] == 1).all() and np.isnan(found[1]).all()


def test_distances_that_overflow_are_no_votes():
    """A comparison with what is not a number is false, and the neighbour was left out."""
    head = neighbour_head(WAYS, k=1, distance="euclidean")

    @jax.jit
    def scores(x):
        support = ml.Examples(x=x, y=SUPPORT.y, mask=SUPPORT.mask)
        return head.score({}, head.fit({}, support), x)

    assert np.isfinite(scores(SUPPORT.x)).all()
    assert np.isnan(scores(SUPPORT.x * 1e20)).all()


def test_clusters_that_overflow_are_not_left_out():
    learner = ml.infinite_mixture_prototypes(encoder(), num_ways=WAYS)

    @jax.jit
    def logits(x):
        support = ml.Examples(x=x, y=SUPPORT.y, mask=SUPPORT.mask)
        return learner.predict(
            learner.adapt(learner.init(KEY, TASK), support), TASK.query.x
        )

    assert np.isnan(logits(SUPPORT.x * 1e20)).any()
