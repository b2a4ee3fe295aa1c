"""Checks for learners and inner optimisers that you write yourself.

    from metalearn.testing import check_learner

    def test_my_learner():
        check_learner(my_learner(), tasks, relabelling=True)

Every check raises an `AssertionError` that says what was found and where to look.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalearn.core import checks, kinds, types
from metalearn.core.keys import check_key, of_seed
from metalearn.core.learner import Estimate, MetaLearner, is_transductive
from metalearn.core.model import Variables
from metalearn.core.task import (
    Examples,
    Task,
    Tasks,
    TaskStream,
    as_tasks,
    concatenate,
    next_batch,
    sample_batch,
    take,
)
from metalearn.core.types import Array, Key, PyTree
from metalearn.core.updates import is_transformation

PADDING = 2  # rows added to every set
GARBAGE = 100.0  # value of the added rows; finite, as the contract asks of masked rows


def check_learner(
    learner: MetaLearner,
    tasks: Task | Tasks,
    *,
    key: Key | None = None,
    order_invariant: bool = True,
    relabelling: bool = False,
    transductive: bool = False,
    padding_invariant: bool = True,
    with_chunk: Callable[[int], MetaLearner] | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Tests a learner against the contract of `MetaLearner` and the declared properties.

    The checks cover argument names, shapes, structures and dtypes. The learner has to work
    under `jit`, `vmap` and `scan`, compile once, give finite gradients, and give equal
    results for equal keys. The properties are those of the arguments below.

    Args:
      learner: Learner to check. Five programs are compiled, so keep the network tiny.
      tasks: A batch of at least two tasks, all rows valid, `[T, N, ...]`, or what draws
        them: a sampler, a function `key -> Task`, or a stream.
      key: Key of initialisation and adaptation; a fixed one when `None`.
      order_invariant: Whether the order of the support examples does not matter.
      relabelling: Whether renaming the classes of the support set renames the outputs. True
        for metric learners, False if each output has weights of its own.
      transductive: Whether the prediction of a query depends on the other queries.
      padding_invariant: Whether masked rows change neither the outputs nor the
        meta-gradient. False only for learners whose random draws depend on the number of
        rows.
      with_chunk: Function `task_chunk -> learner`; the estimates have to agree.
      tolerance: Largest difference, relative to the largest number compared.

    Raises:
      AssertionError: a check fails.
      TypeError: not a learner, a key or tasks.

    Example:
      >>> check_learner(my_learner(), ml.tasks.sinusoid(num_support=5, num_query=5))
    """
    kinds.learner(learner)
    key = of_seed(0) if key is None else key
    check_key(key)
    tasks = tasks if isinstance(tasks, Task) else _three(tasks, key)
    if jnp.ndim(tasks.support.mask) != 2:
        raise TypeError(
            f"tasks has a support mask of shape {jnp.shape(tasks.support.mask)}; expected "
            "a batch of tasks, [T, N]. Give a sampler, or ml.stack_tasks([task, another])."
        )
    first = jax.tree.map(lambda leaf: leaf[0], tasks)
    check_signatures(learner)
    variables = jax.jit(learner.init)(key, first)
    check_init(variables)

    episode = _Counted(lambda v, s, x, k: _episode(learner, v, s, x, k))
    plain = episode(variables, first.support, first.query.x, key)
    check_predictions(plain["outputs"], first.query)
    check_repeats(plain, episode(variables, first.support, first.query.x, key), "predict")
    check_queries(plain, transductive, tolerance)

    estimate = _Counted(lambda v, t, k: learner.estimate(v, t, key=k))
    found = estimate(variables, tasks, key)
    check_estimate(found, variables, tasks)
    check_repeats(found, estimate(variables, tasks, key), "estimate")
    # With the state of the last step, as in training: other dtypes would compile again.
    estimate(Variables(params=variables.params, state=found.state), tasks, key)
    check_compiled_once({"adapt or predict": episode, "estimate": estimate})

    variants = _variants(learner, variables, first, key)
    if padding_invariant:
        check_padded_outputs(plain["outputs"], variants["plain"], tolerance)
    if order_invariant:
        check_order(variants["plain"], variants["reversed"], tolerance)
    if relabelling:
        check_relabelling(variants["plain"], variants["relabelled"], tolerance)
    scanned = _scanned(learner, variables, tasks, key)
    if padding_invariant:
        check_padded_estimate(found.grads, scanned, tolerance)
    if with_chunk is not None:
        runs = {c: jax.jit(with_chunk(c).estimate) for c in (1, 2)}
        others = {c: run(variables, tasks, key=key) for c, run in runs.items()}
        check_chunks(found, others, tolerance)


def _three(tasks: Tasks, key: Key) -> Task:
    """A batch of three tasks."""
    tasks = as_tasks(tasks)
    if isinstance(tasks, TaskStream):
        batch = next_batch(iter(tasks.batches(3, 0)), 0, 3)
        return jax.tree.map(jnp.asarray, batch)
    draw = jax.jit(lambda data, keys: sample_batch(tasks, data, keys))
    return draw(tasks.data, jax.random.split(key, 3))


def assert_differentiable(inner_opt: optax.GradientTransformation) -> None:
    """Asserts that second-order meta-gradients through an optimiser are finite.

    Raises:
      AssertionError: the update has no finite derivative where a gradient is zero, or
        cannot be asked.
      TypeError: no optax transformation.
    """
    if not is_transformation(inner_opt):
        raise TypeError(
            f"inner_opt is a {type(inner_opt).__name__}; expected an optax transformation."
        )
    found = checks.is_differentiable(inner_opt)
    assert found is not None, (
        "the update does not take gradients of a matrix and a vector alone, so nothing is "
        "known of its derivative. Check it on the parameters that it is made for."
    )
    assert found is not False, (
        "the update has no finite derivative where a gradient is zero, so meta-gradients "
        "through it become NaN. Square roots need a positive number under them: "
        "optax.adam(rate, eps_root=1e-8), for example."
    )


def check_signatures(learner: MetaLearner) -> None:
    """Checks that the functions have the arguments of `metalearn.core.types`."""
    protocols = (types.InitFn, types.AdaptFn, types.PredictFn, types.EstimateFn)
    for name, protocol in zip(("init", "adapt", "predict", "estimate"), protocols):
        expected = list(inspect.signature(protocol.__call__).parameters.values())[1:]
        found = inspect.signature(getattr(learner, name)).parameters
        for argument in expected:
            assert argument.name in found, (
                f"{name} takes {list(found)}; expected {[a.name for a in expected]}, as "
                f"in metalearn.core.types.{protocol.__name__}."
            )
            assert argument.default is not None or found[argument.name].default is None, (
                f"{name} requires {argument.name!r}; it needs the default None, so that "
                "deterministic learners can be called without a key."
            )


def check_init(variables: Any) -> None:
    """Checks that `init` returns `Variables` of strongly typed arrays."""
    assert isinstance(variables, Variables), (
        f"init returned a {type(variables).__name__}; expected ml.Variables."
    )
    assert jax.tree.leaves(variables.params), "init returned no parameters to learn."
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        assert not getattr(leaf, "weak_type", False), (
            f"{jax.tree_util.keystr(path)} is weakly typed, so the second step compiles "
            "again. Give jnp.asarray the dtype of a Python number."
        )


def check_predictions(outputs: PyTree, query: Examples) -> None:
    """Checks that `predict` gives finite outputs `[Q, ...]`."""
    num = query.mask.shape[0]
    for leaf in jax.tree.leaves(outputs):
        assert leaf.shape[:1] == (num,), (
            f"predict gave shape {leaf.shape} for {num} queries; expected [{num}, ...]."
        )
    chex.assert_tree_all_finite(
        outputs, custom_message="predict gave numbers that are not finite."
    )


def check_estimate(found: Any, variables: Variables, tasks: Task) -> None:
    """Checks that `estimate` returns a finite `Estimate` of the shapes of the variables."""
    assert isinstance(found, Estimate), (
        f"estimate returned a {type(found).__name__}; expected ml.Estimate."
    )
    pairs = {"grads": variables.params, "state": variables.state}
    for name, like in pairs.items():
        message = f"estimate.{name} differs from what init gave."
        got = getattr(found, name)
        chex.assert_trees_all_equal_structs(got, like, custom_message=message)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, like, custom_message=message)
    num = tasks.support.mask.shape[0]
    for name, values in found.metrics.items():
        assert values.shape == (num,), (
            f"metric {name!r} has shape {values.shape}; expected [{num}], one a task."
        )
    chex.assert_tree_all_finite(
        found.grads, custom_message="the meta-gradient is not finite."
    )
    assert any(np.any(g) for g in jax.tree.leaves(found.grads)), (
        "the meta-gradient is zero everywhere. A stop_gradient on parameters instead of "
        "on inner gradients does this."
    )


def check_repeats(first: PyTree, second: PyTree, name: str) -> None:
    """Checks that equal keys give bit-identical results."""
    message = (
        f"{name} gave different results for the same key; draw randomness from the given "
        "key only."
    )
    chex.assert_trees_all_equal(first, second, custom_message=message)


def check_compiled_once(functions: dict[str, _Counted]) -> None:
    """Checks that calls of the same shapes traced each function once."""
    for name, function in functions.items():
        assert function.traces == 1, (
            f"{name} was compiled {function.traces} times for equal shapes: a dtype or "
            "structure of what it returns differs from what it was given."
        )


def check_queries(plain: dict[str, PyTree], transductive: bool, tolerance: float) -> None:
    """Checks that `predict(all)[i] == predict(one i)`, unless declared transductive."""
    last = _rows(plain["outputs"], slice(-1, None))
    gap, measured = _gap(last, plain["alone"]), bool(plain["measured"])
    assert transductive or (gap <= tolerance and not measured), (
        f"the prediction of one query changes by {gap:.2g} with the others: the learner "
        "is transductive. Predict queries independently, or declare it."
    )
    assert not transductive or (gap > tolerance and measured), (
        "declared transductive, but queries do not influence one another."
    )


def check_padded_outputs(plain: PyTree, padded: PyTree, tolerance: float) -> None:
    """Checks that masked rows of both sets change no prediction, also under `vmap`."""
    message = "with masked rows: use support.mask and predict's mask in means and counts"
    _agree(plain, padded, tolerance, f"predictions change by {{}} {message}.")


def check_padded_estimate(plain: PyTree, padded: PyTree, tolerance: float) -> None:
    """Checks that masked rows change no meta-gradient, also under `scan`."""
    message = "with masked rows: use jnp.where on the inputs of sqrt, log and / as well"
    _agree(plain, padded, tolerance, f"the meta-gradient changes by {{}} {message}.")


def check_order(plain: PyTree, other: PyTree, tolerance: float) -> None:
    """Checks that the order of the support examples changes no prediction."""
    message = "when the support set is reversed; if intended, order_invariant=False"
    _agree(plain, other, tolerance, f"predictions change by {{}} {message}.")


def check_relabelling(plain: np.ndarray, other: np.ndarray, tolerance: float) -> None:
    """Checks that renaming support classes `k -> k + 1` moves the outputs alike."""
    moved = np.roll(plain, 1, axis=-1)
    _agree(moved, other, tolerance, "outputs change by {} beyond a renaming of classes.")


def check_chunks(found: Estimate, others: dict[int, Estimate], tolerance: float) -> None:
    """Checks that `task_chunk` does not change the estimate."""
    for chunk, other in others.items():
        message = f"with task_chunk={chunk}: split the key over tasks before chunks"
        _agree(found, other, tolerance, f"the estimate changes by {{}} {message}.")


class _Counted:
    """A compiled function that counts how often it is traced."""

    def __init__(self, fn: Callable):
        self.traces = 0

        def traced(*args):
            self.traces += 1
            return fn(*args)

        self._run = jax.jit(traced)

    def __call__(self, *args):
        return self._run(*args)


def _episode(learner, variables, support, x, key) -> dict[str, PyTree]:
    adapted = learner.adapt(variables, support, key=key)
    alone = jax.tree.map(lambda leaf: leaf[-1:], x)
    outputs = learner.predict(adapted, x, key=key)

    def predict(adapted, given, *, key):  # traces that of all queries no second time
        return outputs if given is x else learner.predict(adapted, given, key=key)

    return {
        "outputs": outputs,
        "alone": learner.predict(adapted, alone, key=key),
        "measured": is_transductive(learner._replace(predict=predict), adapted, x, key=key),
    }


def _variants(learner, variables, task, key) -> dict[str, PyTree]:
    """Predictions of the padded query set, for several forms of the padded support set.

    The support set has its own order, the reverse order, or other class names. The forms
    are handled by one `vmap`.
    """
    support, query = _padded(task.support), _padded(task.query)
    num = task.query.mask.shape[0]
    renamed = support.y
    if jnp.issubdtype(jnp.result_type(renamed), jnp.integer):
        # A cyclic renaming leaves no class with its old name.
        renamed = (renamed + 1) % (jnp.max(renamed) + 1)
    sets = {
        "plain": support,
        "reversed": take(support, slice(None, None, -1)),
        "relabelled": Examples(x=support.x, y=renamed, mask=support.mask),
    }
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sets.values())

    def outputs(support: Examples) -> PyTree:
        adapted = learner.adapt(variables, support, key=key)
        found = learner.predict(adapted, query.x, key=key, mask=query.mask)
        return jax.tree.map(lambda leaf: leaf[:num], found)

    found = jax.jit(jax.vmap(outputs))(stacked)
    return {k: _rows(found, i) for i, k in enumerate(sets)}


def _scanned(learner, variables, tasks, key) -> PyTree:
    """The meta-gradient of the padded tasks, in the first of two steps of a scan."""
    support, query = jax.vmap(_padded)(tasks.support), jax.vmap(_padded)(tasks.query)
    padded = Task(support=support, query=query, info=tasks.info)

    def step(state: PyTree, key: Key):
        now = Variables(params=variables.params, state=state)
        found = learner.estimate(now, padded, key=key)
        return found.state, found.grads

    # Two steps, because a scan refuses a state whose shapes or dtypes change.
    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[1])
    return _rows(run(variables.state, jnp.stack([key, key])), 0)


def _padded(examples: Examples) -> Examples:
    def rows(leaf: Array) -> Array:
        value = GARBAGE if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
        return jnp.full((PADDING, *leaf.shape[1:]), value, leaf.dtype)

    return concatenate(examples, jax.tree.map(rows, examples))


def _plain(leaf: Array) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _rows(found: PyTree, rows: int | slice) -> PyTree:
    """Rows of results, on the host: jax would compile a slice of each shape."""
    return jax.tree.map(lambda leaf: _plain(leaf)[rows], found)


def _agree(first: PyTree, second: PyTree, tolerance: float, message: str) -> None:
    gap = _gap(first, second)
    assert gap <= tolerance, message.format(f"{gap:.2g}")


def _gap(first: PyTree, second: PyTree) -> float:
    """Largest difference, relative to the largest number; infinite for NaN."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        a, b = _plain(a).astype(np.float64), _plain(b).astype(np.float64)
        # Near zero a relative difference would be rounding error over rounding error.
        scale = max(np.abs(a).max(initial=0), 1e-3)
        # The `initial` lets empty arrays agree.
        gap = np.abs(a - b).max(initial=0) / scale
        worst = max(worst, gap if np.isfinite(gap) else np.inf)
    return worst
