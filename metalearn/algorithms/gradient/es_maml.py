"""ES-MAML: a meta-gradient from values alone, by evolution strategies.

X. Song, W. Gao, Y. Yang, K. Choromanski, A. Pacchiano, Y. Tang. ES-MAML: Simple
Hessian-Free Meta Learning. ICLR 2020.

What is computed. With `U(theta)` the adapted parameters and `J` the objective on the
queries, the outer objective is smoothed by a Gaussian, `E J(U(theta + sigma e))`. Its
gradient is estimated from n antithetic pairs for each task. Neither `U` nor `J` need be
differentiable. The error falls as `1 / sqrt(n)` and grows with the root of the number of
parameters: use small networks.

Adaptations, all on the support set:

- "gradient": `num_steps` of `inner_opt` on `loss_fn`.
- "es": the same with the gradient of `objective_fn` estimated like the outer one, from
  `num_queries` pairs of width `query_sigma` a step.
- "hill_climbing": in each of `num_steps` rounds `num_queries` Gaussian moves of width
  `query_sigma` are tried, and the best is made if `objective_fn` becomes smaller by it.

What differs from the paper and the released code. As in the paper every task has
perturbations of its own. Both ends of a pair adapt to the same task with the same random
draws. That leaves the estimate unbiased and takes noise out of the difference; in the
released code each end draws its own tasks. The paper maximises rewards: here an objective
is minimised, so return their negative.

The released code divides values by their standard deviation (`normalise=True`). It has 150
pairs, both widths 0.1 and 20 queries, single ones and not pairs in "es". Its hill climbing
takes 20 rounds of one move (`num_steps=20, num_queries=1`). It has determinantal and
regression estimators and a first-order variant, which are not here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.gradient.evolution import as_scalar, smoothed_gradient
from metalearn.algorithms.gradient.search import search
from metalearn.core import checks, kinds, metrics
from metalearn.core.estimators import mean_estimator
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree, TaskChunk
from metalearn.inner import Adapted, Descent, Unrolled, descent, normaliser
from metalearn.inner.norm import Normaliser, NormPolicy

Adaptation = Literal["gradient", "es", "hill_climbing"]
ADAPTATIONS: tuple[str, ...] = get_args(Adaptation)


def es_maml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation | None = None,
    *,
    objective_fn: LossFn | None = None,
    adaptation: Adaptation = "gradient",
    num_steps: int = 1,
    num_perturbations: int = 20,
    sigma: float = 0.1,
    num_queries: int = 20,
    query_sigma: float = 0.1,
    normalise: bool = False,
    adapt_filter: PathFilter | str | None = None,
    norm: NormPolicy = "support",
    mask_absent_classes: bool = False,
    perturbation_chunk: int | None = None,
    task_chunk: TaskChunk = "auto",
    name: str = "es_maml",
) -> MetaLearner:
    """Learns an initialisation by evaluating perturbed ones; nothing is differentiated.

    The objective `J` on the queries, of adapted parameters `U(theta)`, is smoothed. Its
    gradient is estimated from n antithetic pairs for each task:

        1 / (2 n sigma) sum_i [J(U(theta + sigma e_i)) - J(U(theta - sigma e_i))] e_i

    Args:
      model: The network.
      loss_fn: Loss of one task; that of "gradient", and reported.
      inner_opt: An optax transformation, e.g. `optax.sgd(0.05)`; `None` for
        "hill_climbing".
      objective_fn: `(outputs, examples) -> scalar`, any function, e.g. an error rate; that
        of the queries and of searching adaptations. `loss_fn` when `None`.
      adaptation: Rule on the support set: "gradient", steps on `loss_fn`; "es", such by an
        estimated gradient of `objective_fn`; "hill_climbing", the best of random moves.
      num_steps: Inner steps, or rounds; 0 for none.
      num_perturbations: n, pairs a task and outer step.
      sigma: Positive width of the smoothing.
      num_queries: Pairs ("es") or moves ("hill_climbing") of one inner step.
      query_sigma: Positive width of the pairs or moves.
      normalise: Whether the estimate is divided by the standard deviation of all values of
        the batch, so the outer rate does not depend on their scale.
      adapt_filter: Parameters that adapt: a regular expression that occurs in their paths,
        or `(path, leaf) -> bool`; all when `None`. The outer perturbations are of all.
      norm: Batch-norm policy, see `metalearn.inner.norm`.
      mask_absent_classes: Whether to mask absent classes, where the number of ways varies.
      perturbation_chunk: Pairs evaluated at once, a divisor of n; all when `None`.
      task_chunk: Tasks handled at once, or "auto".
      name: Name of the learner in `describe`.

    Returns:
      A `MetaLearner` with the parameters of the model and `Adapted` objects. `adapt` needs
      a key for its random draws unless "gradient". A task's metrics, `query/objective`
      included, are those at theta; `smoothed/objective` is the mean over perturbed values.

    Raises:
      ValueError: an option is out of range; `norm="per_step"` with a searching adaptation;
        `adapt` without a key that it needs; `objective_fn` gives no scalar.

    Example:
      >>> error = lambda outputs, examples: 1 - ml.metrics.accuracy(outputs, examples)
      >>> learner = ml.es_maml(model, ml.losses.cross_entropy, objective_fn=error,
      ...                      adaptation="hill_climbing", num_steps=20, num_queries=1)
    """
    checks.whole_number("num_steps", num_steps, least=0)
    checks.whole_number("num_queries", num_queries, least=1)
    checks.number("sigma", sigma, positive=True)
    checks.number("query_sigma", query_sigma, positive=True)
    inner_opt = _checked_optimiser(inner_opt, adaptation, norm)
    chunk = _checked_pairs(perturbation_chunk, num_perturbations)
    criterion = loss_fn if objective_fn is None else objective_fn
    options = dict(
        num_steps=num_steps,
        adapt_filter=adapt_filter,
        norm=norm,
        mask_absent_classes=mask_absent_classes,
    )
    frame = descent(model, loss_fn, inner_opt, differentiation="first_order", **options)
    if adaptation == "gradient":
        adapt_to = functools.partial(_by_gradient, frame)
    else:
        options |= dict(num_queries=num_queries, sigma=float(query_sigma))
        adapt_to = search(model, criterion, inner_opt, adaptation=adaptation, **options)

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        return frame.init(key, task)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support)
        return adapt_to(variables, support, key=key)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return frame.predict(adapted, x, key=key, mask=mask)[0]

    policy = normaliser(model, norm, num_steps)
    play = _player(adapt_to, frame, policy, criterion, loss_fn)
    gradient = _smoothed_query_loss(
        play, num_perturbations, chunk, float(sigma), with_values=normalise
    )
    config = config_of(
        name,
        adaptation=adaptation,
        num_steps=num_steps,
        num_perturbations=num_perturbations,
        sigma=float(sigma),
        num_queries=num_queries,
        query_sigma=float(query_sigma),
        normalise=normalise,
        norm=norm,
    )
    estimate = mean_estimator(
        gradient, task_chunk=task_chunk, divisor=_spread if normalise else None
    )
    made = MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))
    return made._replace(masks_absent=mask_absent_classes)


def _by_gradient(
    frame: Descent,
    variables: Variables,
    support: Examples,
    *,
    key: Key | None,
    train: bool = False,
) -> tuple[Adapted, Unrolled]:
    return frame.adapt(variables, None, support, key=key, train=train)


def _player(
    adapt_to: Callable[..., tuple[Adapted, Unrolled | None]],
    frame: Descent,
    policy: Normaliser,
    criterion: LossFn,
    loss_fn: LossFn,
) -> Callable[[Variables, Task, Key], tuple[Array, tuple]]:
    """`(variables, task, key) -> (objective after adaptation, (state, report))`."""

    def play(variables: Variables, task: Task, key: Key) -> tuple[Array, tuple]:
        k_adapt, k_query = jax.random.split(key)
        adapted, path = adapt_to(variables, task.support, key=k_adapt, train=True)
        query = task.query
        outputs, query_state = frame.predict(
            adapted, query.x, key=k_query, train=True, mask=query.mask
        )
        value = as_scalar(criterion(outputs, query))
        report = metrics.of_task(loss_fn, outputs, query)
        report = {f"query/{name}": number for name, number in report.items()}
        report["query/objective"] = value
        if path is not None and path.losses.size:
            report["support/loss"] = path.losses[0]
        passes = None if path is None else path.aux
        return value, (policy.collect(variables.state, passes, query_state), report)

    return play


def _smoothed_query_loss(
    play: Callable[[Variables, Task, Key], tuple[Array, tuple]],
    num: int,
    chunk: int,
    sigma: float,
    *,
    with_values: bool,
) -> Callable[..., tuple[PyTree, tuple]]:
    """The meta-gradient of one task; for `_spread` with the values that it is made of."""

    def gradient(variables: Variables, task: Task, *, key: Key) -> tuple[PyTree, tuple]:
        k_here, k_pairs = jax.random.split(key)

        def value(params: PyTree, key: Key) -> Array:
            around = Variables(params=params, state=variables.state)
            return play(around, task, key)[0]

        keys = jax.random.split(k_pairs, num)
        grads, values = smoothed_gradient(value, variables.params, keys, sigma, chunk)
        state, report = play(variables, task, k_here)[1]
        report["smoothed/objective"] = values.mean()
        return grads, (state, report, values) if with_values else (state, report)

    return gradient


def _spread(values: Array) -> Array:
    """Standard deviation of the values of all tasks, `[T, n, 2] -> ()`."""
    spread = jnp.std(values)
    # Where all values are equal the estimate is zero anyway.
    return jnp.where(spread > 0, spread, 1)


def _checked_optimiser(
    inner_opt: optax.GradientTransformation | None, adaptation: str, norm: str
) -> optax.GradientTransformation:
    """The inner optimiser, one that does nothing for "hill_climbing".

    Raises:
      TypeError: there is none, but the adaptation needs it.
      ValueError: the adaptation is unknown, needs none, or does not go with `norm`.
    """
    checks.one_of("adaptation", adaptation, ADAPTATIONS)
    if adaptation == "hill_climbing":
        if inner_opt is not None:
            raise ValueError(
                "adaptation='hill_climbing' uses no inner optimiser; leave inner_opt out "
                "and set query_sigma, the width of its moves."
            )
        inner_opt = optax.sgd(1.0)  # which nothing asks
    checks.inner_optimiser(inner_opt, None, second_order=False)
    if adaptation != "gradient" and norm == "per_step":
        raise ValueError(
            f"norm='per_step' needs one pass a step, but adaptation={adaptation!r} makes "
            "many. Use 'support', 'batch' or 'running'."
        )
    return inner_opt


def _checked_pairs(chunk: int | None, num_perturbations: int) -> int:
    """Pairs evaluated at once.

    Raises:
      ValueError: their number is none, or `chunk` does not divide it.
    """
    checks.whole_number("num_perturbations", num_perturbations, least=1)
    chunk = num_perturbations if chunk is None else chunk
    checks.whole_number("perturbation_chunk", chunk, least=1)
    if num_perturbations % chunk:
        raise ValueError(
            f"perturbation_chunk is {chunk}, which does not divide num_perturbations, "
            f"{num_perturbations}."
        )
    return chunk
