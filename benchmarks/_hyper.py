"""Recipes of learned hyper-parameters: each is a function to copy.

All share one inner problem, a linear model that is solved to its optimum, and one loop,
`descended`, which moves hyper-parameters down the loss of validation examples by
`ml.hypergradient.implicit`. `searched` tries given hyper-parameters instead, by the same
solver.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalearn as ml
from metalearn import hypergradient
from metalearn.core.types import Array, PyTree


class Problem(NamedTuple):
    """Two levels.

    Attributes:
      inner: Function `(weights, hparams) -> scalar`, which training minimises.
      outer: Function `(weights, hparams) -> scalar` of validation examples.
      solver: Function `(start, hparams) -> weights` at the minimum of `inner`.
      start: Weights that a solver may begin from.
    """

    inner: Callable[[Array, PyTree], Array]
    outer: Callable[[Array, PyTree], Array]
    solver: Callable[[Array, PyTree], Array]
    start: Array


class Found(NamedTuple):
    """What a search found.

    Attributes:
      hparams: Hyper-parameters of the smallest outer loss.
      weights: Weights that were solved with them.
      values: Outer loss after each solve, `[K]`.
      residual: Largest norm of the inner gradient after a solve.
    """

    hparams: PyTree
    weights: Array
    values: list[float]
    residual: float


def descended(
    problem: Problem,
    hparams: PyTree,
    *,
    solves: int,
    rate: float,
    choose: Callable[[Array], float] | None = None,
) -> Found:
    """Moves hyper-parameters down the outer loss: one solve and one linear system a step.

    Args:
      problem: The problem.
      hparams: Hyper-parameters to begin with, such as logarithms of strengths.
      solves: Number of inner problems to solve.
      rate: Rate of Adam.
      choose: Function of weights by whose smallest value a solution is chosen, such as the
        share of validation errors; by the outer loss if None.
    """
    linear = hypergradient.Linear("cg", max_steps=300, tolerance=1e-3)
    optimality = jax.grad(problem.inner)
    solve = hypergradient.implicit(optimality, problem.solver, linear=linear)
    opt = optax.adam(rate, b1=0.8, b2=0.95)

    def outer(hparams: PyTree, start: Array) -> tuple[Array, Any]:
        found = solve(start, hparams)
        return problem.outer(found.value, hparams), found

    @jax.jit
    def step(hparams: PyTree, start: Array, state: Any) -> tuple:
        slope = jax.value_and_grad(outer, has_aux=True)
        (value, found), grads = slope(hparams, start)
        updates, state = opt.update(grads, state)
        return value, found, optax.apply_updates(hparams, updates), state

    weights, state, seen = problem.start, opt.init(hparams), []
    for _ in range(solves):
        value, found, moved, state = step(hparams, weights, state)
        # A linear system that was not solved gives NaN, which no later step would mend.
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved)):
            raise FloatingPointError(
                "a hypergradient is not finite, as it is where the linear system was not "
                "solved. Raise max_steps of Linear, or the strength of the regulariser."
            )
        weights = found.value
        seen.append((float(value), hparams, weights, float(found.residual)))
        hparams = moved
    return _best(seen, choose)


def searched(
    problem: Problem,
    candidates: Iterable[PyTree],
    *,
    warm: bool = True,
    choose: Callable[[Array], float] | None = None,
) -> Found:
    """Solves the inner problem of each candidate.

    Args:
      problem: The problem.
      candidates: Hyper-parameters.
      warm: Whether each begins at the solution of the one before, which suits neighbours
        on a grid; from far away the solver may not arrive.
      choose: As in `descended`.
    """

    @jax.jit
    def step(hparams: PyTree, start: Array) -> tuple:
        weights = problem.solver(start, hparams)
        slope = jax.grad(problem.inner)(weights, hparams)
        return problem.outer(weights, hparams), weights, jnp.linalg.norm(slope)

    weights, seen = problem.start, []
    for hparams in candidates:
        value, found, residual = step(hparams, weights)
        seen.append((float(value), hparams, found, float(residual)))
        weights = found if warm else weights
    return _best(seen, choose)


def _best(seen: list[tuple], choose: Callable[[Array], float] | None) -> Found:
    values = [value for value, *_ in seen]
    scores = values if choose is None else [choose(weights) for _, _, weights, _ in seen]
    _, hparams, weights, _ = seen[int(np.nanargmin(scores))]
    return Found(hparams, weights, values, max(residual for *_, residual in seen))


def minimised(
    loss: Callable[[Array], Array],
    start: Array,
    *,
    tolerance: float = 1e-5,
    most: int = 25,
) -> Array:
    """The minimum of a smooth convex loss, by Newton's method with conjugate gradients.

    Args:
      loss: Function of one array.
      start: Point to begin from.
      tolerance: Norm of the gradient that ends it.
      most: Largest number of steps.
    """
    slope = jax.grad(loss)

    def step(carry: tuple) -> tuple:
        point, value, length, number, _ = carry
        grad, product = jax.linearize(slope, point)
        # The nearer the minimum, the more exact the direction has to be.
        rough = jnp.minimum(0.1, jnp.sqrt(jnp.linalg.norm(grad)))
        direction, _ = jax.scipy.sparse.linalg.cg(product, grad, tol=rough, maxiter=50)
        trial = point - length * direction
        reached = loss(trial)
        # Too long a step is taken back, and the next one is half as long.
        better = reached <= value
        point, value = jnp.where(better, trial, point), jnp.where(better, reached, value)
        length = jnp.where(better, jnp.minimum(2 * length, 1), length / 2)
        return point, value, length, number + 1, jnp.linalg.norm(slope(point))

    def unfinished(carry: tuple) -> Array:
        return (carry[4] > tolerance) & (carry[3] < most)

    one = jnp.ones((), start.dtype)
    begun = (start, loss(start), one, 0, jnp.linalg.norm(slope(start)))
    return jax.lax.while_loop(unfinished, step, begun)[0]


def with_one(x: Array) -> Array:
    """Rows with a further column of ones, for the bias."""
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)


def decay(weights: Array, log_strength: Array) -> Array:
    """`1/2 sum_d s_d |W_d|^2` without the bias; one strength, or one of each input."""
    strength = jnp.exp(log_strength) * jnp.ones(weights.shape[0] - 1, weights.dtype)
    return 0.5 * jnp.sum(strength[:, None] * jnp.square(weights[:-1]))


def cross_entropies(weights: Array, x: Array, y: Array) -> Array:
    """Losses of examples by a linear classifier, `[N]`."""
    return optax.softmax_cross_entropy_with_integer_labels(x @ weights, y)


def ridge(train: ml.Examples, held: ml.Examples, num_classes: int) -> Problem:
    """Ridge regression of one-hot classes; the hyper-parameters are log strengths.

    Args:
      train: Training examples, vectors `[N, D]`.
      held: Validation examples.
      num_classes: Number C of classes.
    """
    x, targets = (
        with_one(train.x),
        jax.nn.one_hot(train.y, num_classes, dtype=train.x.dtype),
    )
    held_x, wanted = with_one(held.x), jax.nn.one_hot(held.y, num_classes, dtype=x.dtype)

    def inner(weights: Array, log_strength: Array) -> Array:
        fit = 0.5 * jnp.mean(jnp.sum(jnp.square(x @ weights - targets), -1))
        return fit + decay(weights, log_strength)

    def solver(start: Array, log_strength: Array) -> Array:
        del start  # a linear system, solved at once
        strength = jnp.exp(log_strength) * jnp.ones(x.shape[1] - 1, x.dtype)
        gram = x.T @ x / len(x) + jnp.diag(jnp.append(strength, 0))
        return jax.scipy.linalg.solve(gram, x.T @ targets / len(x), assume_a="pos")

    def outer(weights: Array, log_strength: Array) -> Array:
        del log_strength
        return 0.5 * jnp.mean(jnp.sum(jnp.square(held_x @ weights - wanted), -1))

    start = jnp.zeros((x.shape[1], num_classes), x.dtype)
    return Problem(inner, outer, solver, start)


def logistic(train: ml.Examples, held: ml.Examples, num_classes: int) -> Problem:
    """Softmax regression; the hyper-parameters are log strengths, as of `ridge`."""
    x, held_x = with_one(train.x), with_one(held.x)

    def inner(weights: Array, log_strength: Array) -> Array:
        fit = jnp.mean(cross_entropies(weights, x, train.y))
        return fit + decay(weights, log_strength)

    def solver(start: Array, log_strength: Array) -> Array:
        return minimised(lambda weights: inner(weights, log_strength), start)

    def outer(weights: Array, log_strength: Array) -> Array:
        del log_strength
        return jnp.mean(cross_entropies(weights, held_x, held.y))

    start = jnp.zeros((x.shape[1], num_classes), x.dtype)
    return Problem(inner, outer, solver, start)


def cleaning(
    train: ml.Examples, held: ml.Examples, num_classes: int, *, log_strength: float
) -> Problem:
    """Data hyper-cleaning: a weight `sigmoid(score)` of each training example.

    L. Franceschi et al. Forward and Reverse Gradient-Based Hyperparameter Optimization.
    ICML 2017. The hyper-parameters are the scores `[N]`.

    Args:
      train: Training examples, vectors `[N, D]`, whose labels may be wrong.
      held: Validation examples, whose labels are right.
      num_classes: Number of classes.
      log_strength: Logarithm of the strength of the regulariser.
    """
    plain = logistic(train, held, num_classes)
    x, log_strength = with_one(train.x), jnp.asarray(log_strength, train.x.dtype)

    def inner(weights: Array, scores: Array) -> Array:
        each = jax.nn.sigmoid(scores) * cross_entropies(weights, x, train.y)
        return jnp.mean(each) + decay(weights, log_strength)

    def solver(start: Array, scores: Array) -> Array:
        return minimised(lambda weights: inner(weights, scores), start)

    return plain._replace(inner=inner, solver=solver)


def augmentation(
    train: ml.Examples, held: ml.Examples, num_classes: int, *, copies: int, seed: int
) -> Problem:
    """Learned sizes of random maps of images, and the strength of a regulariser.

    Each training image has copies that are turned, moved and resized. The draws are fixed,
    and the hyper-parameters are their sizes: logarithms of "angle" (radians), "shift"
    (pixels), "zoom" (share), and "strength".

    Args:
      train: Training images `[N, H, W]`.
      held: Validation images.
      num_classes: Number of classes.
      copies: Number of copies of each training image.
      seed: Seed of the draws.
    """
    num = copies * len(train.x)
    draws = jax.random.uniform(jax.random.key(seed), (4, num), minval=-1.0)
    draws = draws.astype(train.x.dtype)
    images, y = jnp.tile(train.x, (copies, 1, 1)), jnp.tile(train.y, copies)
    flat = lambda images: with_one(images.reshape(len(images), -1))
    held_x = flat(held.x)

    def inputs(hparams: dict[str, Array]) -> Array:
        size = jax.tree.map(jnp.exp, hparams)
        angle, zoom = size["angle"] * draws[0], 1 + size["zoom"] * draws[3]
        return flat(jax.vmap(mapped)(images, angle, size["shift"] * draws[1:3].T, zoom))

    def fit(weights: Array, x: Array, strength: Array) -> Array:
        return jnp.mean(cross_entropies(weights, x, y)) + decay(weights, strength)

    def inner(weights: Array, hparams: dict[str, Array]) -> Array:
        return fit(weights, inputs(hparams), hparams["strength"])

    def solver(start: Array, hparams: dict[str, Array]) -> Array:
        x = inputs(hparams)  # once, and not in every step
        loss = functools.partial(fit, x=x, strength=hparams["strength"])
        return minimised(loss, start, tolerance=1e-4)

    def outer(weights: Array, hparams: dict[str, Array]) -> Array:
        del hparams
        return jnp.mean(cross_entropies(weights, held_x, held.y))

    start = jnp.zeros((held_x.shape[1], num_classes), train.x.dtype)
    return Problem(inner, outer, solver, start)


def mapped(image: Array, angle: Array, shift: Array, zoom: Array) -> Array:
    """An image `[H, W]`, turned, moved and resized about its middle; outside is 0."""
    height, width = image.shape
    middle = jnp.asarray([(height - 1) / 2, (width - 1) / 2], image.dtype)
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    places = jnp.stack([rows, columns]).astype(image.dtype) - middle[:, None, None]
    c, s = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])]) / zoom
    source = jnp.tensordot(turn, places, 1) + (middle - shift)[:, None, None]
    return jax.scipy.ndimage.map_coordinates(image, list(source), order=1)
