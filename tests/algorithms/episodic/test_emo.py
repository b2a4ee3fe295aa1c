"""EMO against MAML, and against a memory of NumPy on the quadratic bench, in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import (
    RATE,
    TASKS,
    THETA,
    bench,
    close,
    differs,
    network,
    quadratic_loss,
    quadratic_maml,
    quadratic_model,
    wide_blobs,
)
from tiny import one, plain

import metalearn as ml
from metalearn.algorithms.episodic import aggregate as parts
from metalearn.algorithms.episodic import emo
from metalearn.algorithms.episodic.recall import How, task_key

pytestmark = pytest.mark.usefixtures("x64")
STEPS, CAPACITY, RECALL = 2, 6, 3
PARTS = ("mean", "current_plus_mean", "transformer")


def learner_of(steps=STEPS, **options):
    sizes = {"inner_rate": RATE, "capacity": CAPACITY, "recall": RECALL}
    options = {**sizes, "remember": "all", **options}
    return emo(quadratic_model(), quadratic_loss, num_steps=steps, task_chunk=3, **options)


@functools.cache
def batches():
    """Three batches of tasks, `(a, c, b, e)` each, and the same as tasks."""
    (a, c, b, e), tasks = bench()
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3):
        shift, turn = rng.normal(size=(2, *c.shape))
        arrays = (a, c + shift, b, e + turn)
        cut = lambda part, y: ml.Examples(x=part.x, y=y[:, None], mask=part.mask)
        support, query = cut(tasks.support, arrays[1]), cut(tasks.query, arrays[3])
        found.append((arrays, ml.Task(support=support, query=query)))
    return jax.tree.map(np.asarray, found)


def started(learner):
    """Variables of a learner at theta, with an empty memory."""
    variables = jax.jit(learner.init)(jax.random.key(0), one(batches()[0][1]))
    changed = {**variables.params, "model": jnp.asarray(THETA)}
    return ml.Variables(params=changed, state=variables.state)


def compiled(learner):
    return jax.jit(lambda v, t: learner.estimate(v, t, key=jax.random.key(0)))


def estimates(run, variables, number=3):
    """`(variables, estimate)` of each batch, one after the other, at the same params."""
    found = []
    for _, tasks in batches()[:number]:
        found.append((variables, run(variables, tasks)))
        variables = ml.Variables(params=variables.params, state=found[-1][1].state)
    return [*found, (variables, None)]


def test_if_nothing_is_recalled_it_is_maml():
    """An empty memory is the first batch of the test below."""
    tasks, learner = batches()[0][1], learner_of(recall=0)
    state = {"model": {}, "step": jnp.zeros((), jnp.int32)}
    start = ml.Variables(params={"model": jnp.asarray(THETA)}, state=state)
    expected = compiled(quadratic_maml(STEPS))(start, tasks)
    found = compiled(learner)(started(learner), tasks)
    close(found.grads, expected.grads, rtol=1e-12)
    close(found.metrics, dict(expected.metrics), rtol=1e-12)
    # What is never recalled is written all the same.
    assert found.state["step"] == 1 and found.state["memory"].filled.sum() == TASKS


def test_with_learned_rates_it_is_meta_sgd():
    tasks, learner = batches()[0][1], learner_of(learn_rates=True)
    other = ml.meta_sgd(
        quadratic_model(), quadratic_loss, num_steps=STEPS, initial_rate=RATE
    )
    variables = started(learner)
    state = {"model": {}, "step": jnp.zeros((), jnp.int32)}
    start = ml.Variables(params=variables.params, state=state)
    assert variables.params["inner"].tolist() == [RATE] * len(THETA)
    expected = compiled(other)(start, tasks)
    close(compiled(learner)(variables, tasks).grads, expected.grads, rtol=1e-12)


class Memory:
    """Keys and gradients of tasks in lists."""

    def __init__(self, how, eviction):
        self.slots, self.how, self.eviction, self.time = [], how, eviction, 0

    def recalled(self, key):
        """Slots of the nearest keys, and their cosines."""
        unit = lambda v: v / np.linalg.norm(v)
        cosines = np.array([unit(slot["key"]) @ unit(key) for slot in self.slots])
        order = np.argsort(-cosines)[:RECALL]
        return order, cosines[order]

    def combined(self, grad, step, order):
        past = [self.slots[i]["grads"][step] for i in order]
        if not past:
            return grad, 1.0
        if self.how == "mean":
            return (grad + sum(past)) / (1 + len(past)), 1 / (1 + len(past))
        return grad + np.mean(past, axis=0), 1.0

    def used(self, order):
        for i in order:
            self.slots[i]["used"] = self.time
        self.time += bool(len(order))

    def write(self, key, grads):
        slot = {"key": key, "grads": grads, "used": self.time, "written": self.time}
        if len(self.slots) < CAPACITY:
            self.slots.append(slot)
        else:
            by = "written" if self.eviction == "fifo" else "used"
            oldest = min(range(CAPACITY), key=lambda i: self.slots[i][by])
            self.slots[oldest] = slot
        self.time += 1


def adapted_by(memory, a, c, theta=THETA, steps=STEPS):
    """The end of the inner loop, its derivative by theta, and the entry of the task."""
    key = np.concatenate([a.ravel(), c, np.outer(a.ravel(), c).ravel()])
    order, cosines = memory.recalled(key)
    grads, slope = [], np.eye(len(theta))
    for step in range(steps):
        grad = a @ (theta - c)
        way, share = memory.combined(grad, min(step, STEPS - 1), order)
        theta, slope = theta - RATE * way, (np.eye(len(theta)) - RATE * share * a) @ slope
        grads.append(grad)
    return theta, slope, (key, grads), (order, cosines)


@pytest.mark.parametrize(
    ("how", "eviction"), (("mean", "lru"), ("current_plus_mean", "fifo"))
)
def test_three_batches_are_recalled_and_remembered_as_by_lists(how, eviction):
    learner = learner_of(aggregate=how, eviction=eviction)
    memory, run = Memory(how, eviction), compiled(learner)
    found = estimates(run, started(learner))
    for (arrays, _), (_, estimate) in zip(batches(), found[:3], strict=True):
        grads, entries, reads = [], [], []
        for a, c, b, e in zip(*arrays):
            theta, slope, entry, read = adapted_by(memory, a, c)
            grads.append(slope.T @ b @ (theta - e))
            entries.append(entry)
            reads.append(read)
        close(estimate.grads["model"], np.mean(grads, axis=0))
        counts = np.array([len(order) for order, _ in reads])
        close(estimate.metrics["memory/found"], counts)
        means = [cosines.mean() if len(cosines) else 0 for _, cosines in reads]
        close(estimate.metrics["memory/similarity"], np.array(means))
        if eviction == "lru":
            for order, _ in reads:
                memory.used(order)
        for entry in entries:
            memory.write(*entry)
        kept, num = estimate.state["memory"], len(memory.slots)
        assert int(kept.filled.sum()) == num
        close(kept.keys[:num], np.stack([slot["key"] for slot in memory.slots]))
        close(kept.values[:num], np.stack([slot["grads"] for slot in memory.slots]))
    # A learner with another number of steps adapts with the same variables, and only reads.
    (a, c, *_), tasks = batches()[0]
    for steps in (0, 3):
        adapt = jax.jit(learner_of(steps, aggregate=how).adapt)
        theta = adapted_by(memory, a[1], c[1], steps=steps)[0]
        close(adapt(found[3][0], one(tasks, 1).support).params, theta)
    # A task without a support example has used nothing, and is not written.
    there = np.array([True, False, True, True])
    support = dataclasses.replace(tasks.support, mask=there[:, None])
    kept = run(found[3][0], dataclasses.replace(tasks, support=support)).state["memory"]
    entries = [adapted_by(memory, a[i], c[i]) for i in np.flatnonzero(there)]
    for *_, (order, _) in entries:
        if eviction == "lru":
            memory.used(order)
    for *_, entry, _ in entries:
        memory.write(*entry)
    close(kept.keys, np.stack([slot["key"] for slot in memory.slots]))
    assert kept.used.tolist() == [slot["used"] for slot in memory.slots]


def test_the_transformer_and_the_rates_learn_by_finite_differences():
    rng = np.random.default_rng(0)
    learner = learner_of(aggregate="transformer", learn_rates=True, width=3)
    drawn = lambda p: p + 0.5 * rng.normal(size=p.shape)
    run, variables, tasks = compiled(learner), started(learner), batches()[1][1]
    variables.params["aggregate"] = jax.tree.map(drawn, variables.params["aggregate"])
    variables.params["inner"] = RATE + 0.02 * rng.normal(size=THETA.shape)
    variables, found = estimates(run, variables, 2)[1]
    for part in ("model", "inner", "aggregate"):
        way = jax.tree.map(lambda p: rng.normal(size=p.shape), variables.params[part])
        slope = 0.0
        for sign in (1, -1):
            moved = jax.tree.map(
                lambda p, w, sign=sign: p + sign * 1e-5 * w, variables.params[part], way
            )
            at = ml.Variables(
                params={**variables.params, part: moved}, state=variables.state
            )
            slope += sign * run(at, tasks).metrics["query/loss"].mean() / 2e-5
        along = jax.tree.map(lambda g, w: np.sum(g * w), found.grads[part], way)
        close(sum(jax.tree.leaves(along)), slope, rtol=1e-6)
        assert abs(slope) > 1e-5


def test_weights_of_the_transformer_as_numpy_computes_them():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: rng.normal(size=p.shape),
        jax.eval_shape(
            lambda k: parts.transformer_init(k, 3, jnp.float64), jax.random.key(0)
        ),
    )
    grads = {"a": rng.normal(size=(2, 2)), "b": rng.normal(size=3)}
    past = {"a": rng.normal(size=(3, 2, 2)), "b": rng.normal(size=(3, 3))}
    found, similarity = np.array([True, True, False]), np.array([0.7, -0.2, 0.0])
    recalled = parts.Recalled(past, similarity, found)
    weights = jax.jit(parts.transformer_weights)(params, grads, recalled)
    softmax = lambda s: np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    for row, name in zip(weights, "ab"):
        g, lengths = grads[name].ravel(), np.linalg.norm(grads[name])
        tokens = [[1, 1, 1, 0]]
        for v, cosine in zip(past[name][:2].reshape(2, -1), similarity):
            size = np.linalg.norm(v)
            tokens.append([0, cosine, v @ g / size / lengths, np.log(size / lengths)])
        x = np.tanh(np.array(tokens) @ params["embed"] + params["embed_bias"])
        scores = (x @ params["query"]) @ (x @ params["key"]).T / np.sqrt(3)
        x = x + softmax(scores) @ x @ params["value"]
        x = x + np.maximum(x @ params["up"] + params["up_bias"], 0) @ params["down"]
        close(row[:3], softmax(x @ params["logit"]), rtol=1e-8)
        assert row[3] == 0
    mixed = jax.jit(functools.partial(parts.aggregate, "transformer"))(
        params, grads, recalled
    )
    close(mixed["b"], weights[1, 0] * grads["b"] + weights[1, 1:] @ past["b"])


def test_equal_gradients_leave_the_mean_and_are_added_to_the_current_one():
    grads = {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(2)}
    past = jax.tree.map(lambda g: np.stack([g, g, 7 + g]), grads)
    recalled = parts.Recalled(past, np.ones(3), np.array([True, True, False]))
    nothing = recalled._replace(found=np.zeros(3, bool))

    def run(key):
        fresh = parts.transformer_init(key, 3, jnp.float64)
        drawn = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), fresh)
        return {
            how: [parts.aggregate(how, drawn, grads, r) for r in (recalled, nothing)]
            for how in PARTS
        }

    for how, (mixed, alone) in jax.jit(run)(jax.random.key(0)).items():
        twice = 2 if how == "current_plus_mean" else 1
        close(mixed, jax.tree.map(lambda g, t=twice: t * g, grads), rtol=1e-12)
        jax.tree.map(np.testing.assert_array_equal, alone, grads)


def test_gradients_of_the_head_are_not_mixed_unless_asked(tmp_path):
    """Where labels are permuted, the head steps along its own gradient alone."""
    task, params = one(wide_blobs()), network()
    for remember in ("body", "all"):
        learner = emo(
            plain(), ml.losses.cross_entropy, inner_rate=0.1, recall=2, remember=remember
        )
        like = jax.eval_shape(learner.init, jax.random.key(0), task).state
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        full = {**empty, "memory": jax.tree.map(jnp.ones_like, empty["memory"])}

        def adapted(state, learner=learner):
            variables = ml.Variables(params={"model": params}, state=state)
            return learner.adapt(variables, task.support).params

        both = jax.tree.map(lambda *x: jnp.stack(x), empty, full)
        own, mixed = (one(jax.jit(jax.vmap(adapted))(both), i) for i in (0, 1))
        assert differs(mixed["body"], own["body"])
        assert differs(mixed["head"], own["head"]) == (remember == "all")
        values = empty["memory"].values
        assert (values["head"]["w"] is None) == (remember == "body")
        variables = ml.Variables(params={"model": params}, state=full)
        ml.save(tmp_path / remember, variables, learner)
        back = ml.load(tmp_path / remember, learner)
        jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_the_key_is_a_mean_of_valid_rows_or_what_is_given():
    how = How(1, 0.1, 1, 1, "mean", "fifo", None, None)
    x, y = np.array([[1.0, 2.0], [3.0, 5.0], [np.nan, 9.0]]), np.array([[2.0], [4], [9]])
    mask, variables = np.array([True, True, False]), ml.Variables(params={}, state={})
    of = lambda y: ml.Examples(x=x, y=y, mask=mask)
    close(task_key(how, variables, of(y)), np.array([2, 3.5, 3, 7, 12]))
    close(task_key(how, variables, of(np.array([0, 1, 1]))), np.array([2, 3.5]))
    own = how._replace(embed=lambda variables, support: variables.params * jnp.ones(2))
    slope = jax.grad(lambda p: task_key(own, ml.Variables(params=p, state={}), of(y)).sum())
    assert slope(3.0) == 0  # the choice of a task is no way for gradients


def test_arguments_out_of_range_are_named():
    for options, words in (
        ({"inner_rate": -1.0}, "inner_rate is -1"),
        ({"inner_rate": "fast"}, "inner_rate is 'fast'; expected a finite number"),
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": 2}, "recall is 3; expected at most 2"),
        ({"recall": -1}, "recall is -1"),
        ({"width": 0}, "width is 0"),
        ({"aggregate": "sum"}, "aggregate is 'sum'"),
        ({"eviction": "x"}, "eviction is 'x'"),
        ({"remember": "x"}, "remember is 'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            learner_of(**options)
    with pytest.raises(TypeError, match="embed is a int"):
        learner_of(embed=3)
    only = emo(plain(), ml.losses.cross_entropy, adapt_filter="head")
    with pytest.raises(ValueError, match="no gradient would be remembered"):
        only.init(jax.random.key(0), one(wide_blobs()))


def test_a_head_that_no_parameter_is_of_is_refused():
    """Its gradients would be remembered with those of the body."""
    start = lambda **options: jax.eval_shape(
        emo(plain(), ml.losses.cross_entropy, **options).init,
        jax.random.key(0),
        one(wide_blobs()),
    )
    with pytest.raises(ValueError, match=r"head is 'top'.* The paths are: body/b, body/w"):
        start(head="top")
    start(head="top", remember="all")
    said = ml.describe(learner_of(remember="body", head="top", width=3))
    assert (said["remember"], said["head"], said["width"]) == ("body", "top", 3)
