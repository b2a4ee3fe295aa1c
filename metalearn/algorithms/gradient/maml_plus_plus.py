"""MAML++: six changes that make MAML train reliably, each with its own switch.

A. Antoniou, H. Edwards, A. Storkey. How to Train Your MAML. ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import AdaptedTask, Hooks, bilevel, last_step
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree
from metalearn.inner.norm import NormPolicy, batch_statistics

LEAST = 0.03  # share of 1/K that the weight of an early step keeps while annealing

_NOTHING = r"(?!)"  # matches no path


@takes_options()
def maml_plus_plus(
    model: Model,
    loss_fn: LossFn,
    *,
    num_steps: int = 5,
    initial_rate: float = 0.1,
    msl_steps: int = 5000,
    learned_rates: bool = True,
    norm_weights: str | None = None,
    first_order_until: int = 0,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML with the changes of MAML++ (section 4 of the paper).

    | part | switched off by |
    |---|---|
    | multi-step loss: the query loss after every step counts (MSL) | `msl_steps=0` |
    | learned rates of layers and steps (LSLR) | `learned_rates=False` |
    | statistics of batch norm for every step (BNRS) | any `norm` but "per_step" |
    | weights and biases of batch norm for every step (BNWB) | `norm_weights=None` |
    | first order in the beginning (DA) | `first_order_until=0` |
    | cosine decay of the outer rate (CA) | another `learning_rate` |

    The first two are on; without them it is
    `ml.maml(model, loss_fn, optax.sgd(initial_rate))`. The last belongs to the outer
    optimiser:

        rate = optax.cosine_decay_schedule(1e-3, num_outer_steps, alpha=0.01)
        optax.chain(optax.clip(10.0), optax.adam(rate))  # the clipping: Mini-ImageNet

    Multi-step loss: `sum_k w_k L(phi_k; query)`, see `step_weights`; once it has annealed
    the other query losses are not computed any more. Rates: `phi_{k+1, l} = phi_{k, l} -
    alpha_{k, l} grad_l L(phi_k; support)`, one rate for every array of parameters and step.

    Differs from the paper and its released code:

    - MSL and DA count outer steps, there epochs of 500 steps; the weights change with every
      step. Paper: `msl_steps` of 10 epochs (Omniglot, the default) or 15, DA of 50.
    - The released code starts rates at 0.1 whatever its configuration names (a key that is
      never read), does no DA, and its cosine ends where it starts. The first is the default
      here, DA is off as there, the cosine is yours.
    - A layer's weight and bias have a rate each, as in the code, where the paper has one a
      layer; there are K of them, in the code K + 1 of which the last is never used.
    - BNRS is off. With "per_step" evaluation uses the averages, as the paper says; the code
      always uses those of the batch, which is `norm="batch"` and transductive. Training
      normalises by batches in both, so rates and biases learn steps that batch statistics
      hold in check: with averages in their place the steps were seen to diverge.
    - BNWB is off: which parameters it concerns must be named. Named ones take no gradient
      step inside, as in the code. Without it scale and offset of norm layers adapt inside,
      where the code always holds them. There are K + 1 sets, that of the model for the
      first pass and one for the passes after each step; the code has K, the first of which
      serves the first pass and those after the first step.
    - The paper's accuracies are of an ensemble of five checkpoints; nothing here does that.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      num_steps: K, inner steps, at least 1; also at evaluation, since rates belong to
        steps.
      initial_rate: Rate of every array and step at the start.
      msl_steps: Outer steps over which the multi-step loss anneals; 0 for the last loss.
      learned_rates: Whether the rates are learned.
      norm_weights: Regular expression found in the paths of the weights and biases of
        batch norm, e.g. "BatchNorm", to have them for every step; `None` for one set.
      first_order_until: Outer steps without second derivatives; paper: 50 epochs.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner`. What is learned for steps stands beside the model, params being
      `{"model": ..., "inner": {"rates": ..., "norm": ...}}` with leaves `[K]` and
      `[K, ...]`, the latter for the forward passes after the steps 1..K. The state is
      `{"model": ..., "step": int32}`.

    Raises:
      ValueError: an option is out of range; in `init`: `norm_weights` is found in no path;
        in `adapt`: the variables hold rates for another number of steps.

    Example:
      >>> learner = ml.maml_plus_plus(model, ml.losses.cross_entropy, msl_steps=1000)
    """
    checks.whole_number("num_steps", num_steps, least=1)
    checks.whole_number("msl_steps", msl_steps, least=0)
    checks.number("initial_rate", initial_rate)
    is_norm = trees.path_filter(norm_weights or _NOTHING)
    inner_opt, initial = optax.sgd(initial_rate), None
    if learned_rates or norm_weights is not None:
        rate = initial_rate if learned_rates else None
        inner_opt = _by_step(initial_rate, num_steps, is_norm)
        initial = _of_steps(rate, norm_weights, is_norm, num_steps)
    norm, several = options.get("norm", "support"), msl_steps > 0 and num_steps > 1
    hooks = Hooks(
        outer=_multi_step(model, norm, msl_steps, num_steps) if several else last_step,
        trajectory=several,
        first_order_until=first_order_until,
        inner_hparams=initial,
        settings=dict(
            initial_rate=initial_rate,
            msl_steps=msl_steps,
            learned_rates=learned_rates,
            norm_weights=norm_weights,
            first_order_until=first_order_until,
        ),
    )
    return bilevel(
        "maml_plus_plus",
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=hooks,
        **options,
    )


def step_weights(step: Array | int, msl_steps: int, num_steps: int) -> Array:
    """Weights of the query losses after the inner steps 1..K, which add up to 1.

    With `t = step / msl_steps` below 1: `max((1 - t) / K, 0.03 / K)` for all but the last,
    which has the rest, `min((1 + t (K - 1)) / K, 1 - 0.03 (K - 1) / K)`. From then on the
    last has all (section 4, "Multi-Step Loss Optimization"; the numbers are of the released
    code). Outer steps stand where the paper counts epochs.

    Args:
      step: Outer steps done, scalar; may be traced.
      msl_steps: Outer steps of the annealing; 0 for the last loss only.
      num_steps: K.

    Returns:
      Float `[K]`.

    Example:
      >>> step_weights(0, 100, 4)
      Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    last = jnp.arange(num_steps) == num_steps - 1
    alone = last.astype(float)
    if msl_steps == 0:
        return alone
    t = jnp.asarray(step).astype(float) / msl_steps
    early = jnp.maximum(1 - t, LEAST) / num_steps
    final = jnp.minimum(1 + t * (num_steps - 1), num_steps - LEAST * (num_steps - 1))
    annealed = jnp.where(last, final / num_steps, early)
    return jnp.where(t < 1, annealed, alone)


def _multi_step(model: Model, norm: NormPolicy, msl_steps: int, num_steps: int) -> Callable:
    """The outer objective of `bilevel` for `sum_k w_k L(phi_k; query)`."""

    def outer(done: AdaptedTask, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
        loss, report, state = last_step(done, loss_fn)
        weights = step_weights(done.step, msl_steps, num_steps).astype(loss.dtype)
        support, query = done.task.support, done.task.query

        def after(step: Array) -> Array:
            adapted, key = done.at(step), jax.random.fold_in(done.key, step)
            if norm == "support" and jax.tree.leaves(adapted.state):
                # What `at` holds are the statistics after all steps.
                settled = batch_statistics(
                    model, adapted.params, adapted.state, support, key=key
                )
                adapted = adapted.replace(state=settled)
            outputs, _ = done.predict(adapted, query.x, key=key, mask=query.mask)
            return loss_fn(outputs, query)

        def early() -> Array:
            losses = jax.vmap(after)(jnp.arange(1, num_steps, dtype=jnp.int32))
            return jnp.sum(weights[:-1] * losses)

        rest = jax.lax.cond(done.step < msl_steps, early, lambda: jnp.zeros_like(loss))
        total = weights[-1] * loss + rest
        return total, {**report, "query/multi_step_loss": total}, state

    return outer


def _of_steps(
    rate: float | None, norm_weights: str | None, is_norm: PathFilter, num_steps: int
) -> Callable[[Key, PyTree], dict[str, PyTree]]:
    """`(key, params) -> what is learned for each step`: rates, and weights of norms.

    Args:
      rate: Every rate at the start; `None` to learn no rate.
      norm_weights: The expression of the user; `None` to learn no norm.
      is_norm: Which parameters it names.
      num_steps: K.
    """

    def initial(key: Key, params: PyTree) -> dict[str, PyTree]:
        del key
        of_norm, others = trees.split(params, is_norm)
        found = {}
        if rate is not None:
            found["rates"] = jax.tree.map(
                lambda p: jnp.full((num_steps,), rate, p.dtype), others
            )
        if norm_weights is not None:
            if not jax.tree.leaves(of_norm):
                raise ValueError(
                    f"norm_weights={norm_weights!r} occurs in no parameter path that may "
                    "change inside. The paths are: " + ", ".join(trees.leaf_paths(params))
                )
            found["norm"] = jax.tree.map(lambda p: jnp.stack([p] * num_steps), of_norm)
        return found

    return initial


def _by_step(initial_rate: float, num_steps: int, is_norm: PathFilter) -> Callable:
    """`hparams -> transformation` that counts steps to find what is learned for each."""

    def make(hparams: dict[str, PyTree]) -> optax.GradientTransformation:
        for leaf in jax.tree.leaves(hparams):
            if leaf.shape[0] != num_steps:
                raise ValueError(
                    f"the variables hold rates or norm weights for {leaf.shape[0]} inner "
                    f"steps, but num_steps={num_steps}. Adapt with as many steps as in "
                    "training, or choose learned_rates=False and norm_weights=None."
                )

        def update(grads: PyTree, count: Array, params: PyTree):
            of_norm, _ = trees.split(params, is_norm)
            grads = trees.split(grads, is_norm)[1]
            if "rates" in hparams:
                moves = jax.tree.map(lambda r, g: -r[count] * g, hparams["rates"], grads)
            else:
                moves = jax.tree.map(lambda g: -initial_rate * g, grads)
            if "norm" in hparams:
                next_norm = jax.tree.map(lambda n: n[count], hparams["norm"])
                of_norm = jax.tree.map(jnp.subtract, next_norm, of_norm)
            return trees.merge(of_norm, moves), count + 1

        return optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), update)

    return make
