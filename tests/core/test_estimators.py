"""Estimators: the one place that maps over tasks, and that traces an objective once."""

import ast
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import blob_batch, blobs, one, plain

import metalearn as ml
from metalearn.core import cost
from metalearn.core.estimators import mean_estimator, remembering

CE = ml.losses.cross_entropy
KEY = jax.random.key(0)


class Counted:
    """A function that counts how often its Python runs."""

    def __init__(self, fn):
        self.fn, self.runs = fn, 0
        functools.update_wrapper(self, fn)

    def __call__(self, *args, **kwargs):
        self.runs += 1
        return self.fn(*args, **kwargs)


def objective(variables, task, *, key):
    noise = jax.random.normal(key, ())
    loss = jnp.mean((task.query.x @ variables.params["w"] - noise) ** 2)
    state = {"mean": variables.state["mean"] + jnp.mean(task.support.x)}
    return loss, (state, {"query/loss": loss, "noise": noise})


def gradient(variables, task, *, key):
    """By hand what `gradient_estimator` takes of the objective."""
    grads, (state, report) = jax.grad(
        lambda p: objective(ml.Variables(params=p, state=variables.state), task, key=key),
        has_aux=True,
    )(variables.params)
    return grads, (state, report)


MAKERS = {
    "objective": lambda fn, **o: ml.gradient_estimator(fn, **o),
    "gradient": lambda fn, **o: mean_estimator(fn, **o),
}
FUNCTIONS = {"objective": objective, "gradient": gradient}
VARIABLES = ml.Variables(params={"w": jnp.ones(4)}, state={"mean": jnp.zeros(())})


def estimate_of(kind, fn=None, **options):
    fn = FUNCTIONS[kind] if fn is None else fn
    estimate = MAKERS[kind](fn, **options)
    return lambda tasks, variables=VARIABLES: estimate(variables, tasks, key=KEY)


def close(found, expected, rtol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), found, expected
    )


# -- One task, many tasks ---------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, "auto"])
def test_means_are_those_of_a_loop_over_the_tasks(kind, chunk):
    tasks = blob_batch(7)
    found = jax.jit(estimate_of(kind, task_chunk=chunk))(tasks)
    each = [
        gradient(VARIABLES, one(tasks, i), key=k)
        for i, k in enumerate(jax.random.split(KEY, 7))
    ]
    grads, aux = zip(*each, strict=True)
    close(found.grads["w"], sum(g["w"] for g in grads) / 7)
    close(found.state["mean"], sum(s["mean"] for s, _ in aux) / 7)
    for name, values in found.metrics.items():
        close(values, jnp.stack([report[name] for _, report in aux]))


def test_mean_of_gradients_is_divided_by_what_all_tasks_say():
    def with_values(variables, task, *, key):
        grads, (state, report) = gradient(variables, task, key=key)
        return grads, (state, report, jnp.stack([report["noise"], report["query/loss"]]))

    tasks = blob_batch(5)
    plain_mean = jax.jit(estimate_of("gradient"))(tasks)
    values = jnp.stack([plain_mean.metrics["noise"], plain_mean.metrics["query/loss"]], 1)
    for chunk in (1, 2, 5):
        estimate = estimate_of("gradient", with_values, divisor=jnp.std, task_chunk=chunk)
        found = jax.jit(estimate)(tasks)
        close(found.grads["w"], plain_mean.grads["w"] / jnp.std(values))
        close(found.state, plain_mean.state)
        assert found.metrics.keys() == {"query/loss", "noise"}


def test_estimators_refuse_a_bad_chunk_when_they_are_made():
    for kind in MAKERS:
        for chunk in (0, -1, True, "all"):
            with pytest.raises(ValueError, match="task_chunk is"):
                estimate_of(kind, task_chunk=chunk)


# -- Traced once ------------------------------------------------------------------------

ALONE, TOGETHER = 0, 1 << 40  # bytes, so that "auto" takes one task at once, or all


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("chunk", "room", "num", "least"),
    [
        (1, ALONE, 4, 1),
        (4, ALONE, 4, 1),
        ("auto", ALONE, 4, 1),  # that of the count is that of the scan
        ("auto", TOGETHER, 4, 2),  # a batch of one for the count, and all
        (2, ALONE, 5, 2),  # chunks, and what is left over
    ],
)
def test_python_of_an_objective_runs_once_for_each_shape(
    monkeypatch, kind, chunk, room, num, least
):
    monkeypatch.setattr(cost, "CPU_BYTES_AT_ONCE", room)
    counted, tasks = Counted(FUNCTIONS[kind]), blob_batch(num)
    estimate = estimate_of(kind, counted, task_chunk=chunk)
    found = jax.jit(estimate)(tasks)
    assert counted.runs == least
    # Another program of the same shapes, as that which `fit` compiles.
    other = jax.jit(lambda tasks: jax.lax.cond(True, estimate, estimate, tasks))(tasks)
    jax.eval_shape(estimate, tasks)
    assert counted.runs == least
    close(other, found)


def test_python_of_an_objective_runs_once_for_each_shape_on_devices():
    """One task at a time on two devices, two for each, and the one that is left over."""
    counted, tasks = Counted(objective), blob_batch(5)
    estimate = estimate_of("objective", counted)
    expected = jax.jit(estimate)(tasks)
    counted.runs = 0
    with jax.set_mesh(ml.task_mesh(2)):
        for _ in range(2):
            found = jax.jit(lambda tasks: estimate(tasks))(tasks)
            assert counted.runs <= 3
    close(found, expected)


@pytest.mark.parametrize("chunk", [1, 4])
def test_what_is_traced_once_leaves_no_mark_in_a_program(chunk):
    estimate = estimate_of("objective", task_chunk=chunk)
    jaxpr = jax.make_jaxpr(estimate)(blob_batch(4)).jaxpr

    def calls(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("jit", "pjit"):
                yield eqn.params["name"]
            for inner in cost.subjaxprs(eqn):
                yield from calls(inner)

    assert "chunk_fn" not in set(calls(jaxpr))


def test_python_runs_each_time_where_nothing_is_compiled():
    """As library functions do: what they read is read anew, and a debugger can stop."""
    counted, tasks = Counted(objective), blob_batch(3)
    estimate = estimate_of("objective", counted, task_chunk=3)
    found = [estimate(tasks) for _ in range(2)]
    assert counted.runs == 2
    close(found[0], jax.jit(estimate)(tasks))


@pytest.mark.parametrize("chunk", [1, 3])
def test_objectives_may_hold_what_is_traced_outside(chunk):
    """A learner made within a program; its trace goes with it."""
    tasks = blob_batch(3)

    def loss(rate):
        def scaled(variables, task, *, key):
            value, aux = objective(variables, task, key=key)
            return rate * value, aux

        found = estimate_of("objective", scaled, task_chunk=chunk)(tasks)
        again = jax.lax.map(
            lambda scale: jnp.sum(
                estimate_of("objective", scaled, task_chunk=chunk)(
                    tasks, jax.tree.map(lambda x: scale * x, VARIABLES)
                ).grads["w"]
            ),
            jnp.ones(2),
        )
        return jnp.sum(found.grads["w"]) + jnp.sum(again)

    total = jnp.sum(estimate_of("objective")(tasks).grads["w"])
    for rate in (1.0, 2.0):
        close(jax.jit(loss)(rate), 3 * rate * total)
        close(jax.jit(jax.grad(loss))(rate), 3 * total)
        close(jax.grad(loss)(rate), 3 * total)


@pytest.mark.parametrize("num_steps", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_python_of_a_loss_in_training_and_evaluation(num_steps):
    """An objective calls it on the support and on the query set, adaptation on the first.

    Training traces one objective to count bytes and one for its programs. Beside them a
    task is checked, and evaluation, which the learner's own loss judges, looks at a task
    and adapts once for its values and for the flag of transduction.
    """
    loss = Counted(CE)
    learner = ml.maml(plain(), loss, optax.sgd(0.1), num_steps=num_steps)
    trainer = ml.meta_trainer(learner, optax.sgd(1e-3))
    state = jax.eval_shape(trainer.init, KEY, blobs(KEY))
    jax.jit(trainer.step).lower(state, blob_batch(4), key=KEY)
    assert loss.runs <= 4
    shared = dict(tasks_per_step=4, key=KEY, progress=False)
    result = ml.fit(trainer, blobs, num_steps=2, **shared)
    assert loss.runs <= 5
    ml.fit(trainer, blobs, num_steps=3, **shared)
    assert loss.runs <= 5
    ml.evaluate(learner, result.variables, blobs, num_tasks=8, key=KEY)
    assert loss.runs <= 9


def test_what_is_remembered_is_kept_to_the_last_digit():
    third = jnp.float32(1) / 3

    def objective(variables, task, *, key):
        seen = variables.state["kept"]  # the tasks find it
        return variables.params * seen, ({"step": variables.state["step"] + 1}, {})

    plain = ml.gradient_estimator(objective, task_chunk=2)
    learn = remembering(plain, lambda variables: {"kept": third})
    state = {"step": jnp.zeros((), jnp.int32), "kept": jnp.float32(0)}
    variables = ml.Variables(params=jnp.float32(2), state=state)
    found = learn(variables, blob_batch(), key=KEY)
    assert found.state["kept"] == third and found.state["step"] == 1
    assert found.grads == pytest.approx(1 / 3)


# -- Structure --------------------------------------------------------------------------

ALGORITHMS = sorted((Path(ml.__file__).parent / "algorithms").rglob("*.py"))
# Two builders, and what a learner with a state of its own does with states.
BUILDERS = {"gradient_estimator", "mean_estimator", "gathered", "mean_state"}
BUILDERS |= {"remembering"}


def maps_over_tasks(text):
    """What in the source of an algorithm shows that it handles the axis of tasks.

    It may build `estimate` by the two builders, or hand a batch to the `estimate` of
    another learner. It may map over particles, perturbations, steps, examples.
    """
    tree, found = ast.parse(text), []
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}

    def arguments(fn):
        fn = functions.get(getattr(fn, "id", None), fn)
        if not isinstance(fn, (ast.FunctionDef, ast.Lambda)):
            return set()
        return {a.arg for a in [*fn.args.args, *fn.args.kwonlyargs]}

    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module == "metalearn.core.estimators":
                found += names - BUILDERS
            if node.module == "metalearn.core":
                found += names & {"estimators", "mesh"}
        if isinstance(node, ast.FunctionDef) and node.name != "estimate":
            found += arguments(node) & {"tasks"}
        if isinstance(node, ast.Call):
            called = node.func.func if isinstance(node.func, ast.Call) else node.func
            maps = ast.unparse(called).endswith(("vmap", "lax.map", "lax.scan"))
            read = [n.id for a in node.args for n in ast.walk(a) if isinstance(n, ast.Name)]
            if maps and ("tasks" in read or {"task"} & arguments(node.args[0])):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", ALGORITHMS, ids=lambda f: f.stem)
def test_algorithms_speak_of_one_task(file):
    assert maps_over_tasks(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "from metalearn.core.estimators import map_tasks",
        "from metalearn.core import estimators",
        "losses = jax.vmap(one)(tasks, keys)",
        "def of(task, key): ...\nlosses = jax.vmap(of)(batch, keys)",
        "losses = jax.vmap(lambda task: 0.0)(batch)",
        "each = jax.vmap(f, in_axes=(None, 0))\neach(variables, tasks.query)"
        "\ndef summed(variables, tasks, keys): ...",
        "jax.lax.map(one, (tasks, keys))",
    ],
)
def test_an_algorithm_that_maps_over_tasks_is_seen(text):
    assert maps_over_tasks(text)


def test_maps_over_other_things_are_not_tasks():
    assert not maps_over_tasks("jax.vmap(lambda k: draw(k, task.query))(keys)")
