"""MeLU: what is known of a user and an item is embedded for all, each user decides alone.

H. Lee, J. Im, S. Jang, H. Cho, S. Chung. MeLU: Meta-Learned User Preference Estimator for
Cold-Start Recommendation. KDD 2019. Differences:

- The outer gradient is of second order, as algorithm 1 has it. The released code copies
  adapted weights through a dictionary of states, which cuts their derivative.
- The unit loss of evidence candidates follows equation 5; its gradient is of the layers
  that adapt, where the released code takes that of all parameters.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.bilevel import Hooks, bilevel
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, InnerHparams, InnerOpt, Key, LossFn, PyTree


@takes_options(but=("adapt_filter",))
def melu(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    num_steps: int = 1,
    shared: str = "embed",
    inner_hparams: InnerHparams | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML in which embeddings are shared, and the layers above them adapt to a user.

    `theta_2' = theta_2 - alpha grad_{theta_2} L(theta_1, theta_2; support)` of the decision
    layers theta_2; the embeddings theta_1 and theta_2 are learned outside, on
    `L(theta_1, theta_2'; query)` (algorithm 1).

    Args:
      model: The network, such as `ml.models.FieldMLP`.
      loss_fn: Loss of one task, `ml.losses.mse` in the paper.
      inner_opt: As in `maml`. The paper's rate of 5e-6 hardly moves anything.
      num_steps: K, inner steps; the paper uses 1.
      shared: Regular expression found in the paths of parameters that do not adapt.
      inner_hparams: As in `maml`.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner`, as `maml` gives it.

    Raises:
      ValueError: an option is out of range; in `init`: `shared` occurs in no path, or in
        all.

    Example:
      >>> network = ml.models.FieldMLP(fields=((7, 1), (19, 6)))
      >>> learner = ml.melu(ml.from_linen(network), ml.losses.mse, optax.sgd(0.01))
    """
    checks.model(model)
    is_shared = trees.path_filter(shared)

    def init(key: Key, x: PyTree) -> Variables:
        variables = model.init(key, x)
        found = [bool(jax.tree.leaves(p)) for p in trees.split(variables.params, is_shared)]
        if not all(found):
            where = "every parameter path" if found[0] else "no parameter path"
            so = "nothing" if found[0] else "everything"
            raise ValueError(
                f"shared={shared!r} occurs in {where}, so {so} would adapt. The paths "
                "are: " + ", ".join(trees.leaf_paths(variables.params))
            )
        return variables

    return bilevel(
        "melu",
        model._replace(init=init),
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(inner_hparams=inner_hparams, settings={"shared": shared}),
        adapt_filter=lambda path, leaf: not is_shared(path, leaf),
        **options,
    )


def evidence(
    model: Model,
    variables: Variables,
    examples: Examples,
    *,
    loss_fn: LossFn,
    shared: str = "embed",
) -> Array:
    """How much each rated item of a user would move the layers that adapt, `[N]`.

    The norm of the gradient of the unit loss `l / |l|` of each example, whose denominator
    is a constant (equation 5). It does not depend on the scale of the loss. The candidates
    to ask a new user about are items with a large mean of it over users who rated them, and
    with many such users: see `metalearn.apps.recommendation.candidates`.

    Args:
      model: The network.
      variables: Variables of the network: `params["model"]` and `state["model"]` of the
        learner.
      examples: Ratings of one user; masked rows give 0.
      loss_fn: Loss of one task.
      shared: Regular expression found in the paths of parameters that do not adapt.

    Returns:
      Norms `[N]`. An example whose loss is 0 moves nothing and has 0.
    """
    is_shared = trees.path_filter(shared)
    kept, adapts = trees.split(variables.params, is_shared)

    def of_row(row: Examples) -> Array:
        def loss(adapts: PyTree) -> Array:
            params = trees.merge(kept, adapts)
            outputs, _ = model.apply(Variables(params=params, state=variables.state), row.x)
            return loss_fn(outputs, row)

        value, gradient = jax.value_and_grad(loss)(adapts)
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))
        # The derivative of a loss at its minimum is 0, and so is the movement.
        some = (value != 0) & (squares > 0)
        norm = jnp.sqrt(jnp.where(some, squares, 1)) / jnp.abs(jnp.where(some, value, 1))
        return jnp.where(some, norm, 0)

    rows = jax.tree.map(lambda leaf: leaf[:, None], (examples.x, examples.y))
    ones = jnp.ones((examples.mask.shape[0], 1), bool)
    single = Examples(x=rows[0], y=rows[1], mask=ones)
    return jnp.where(examples.mask, jax.vmap(of_row)(single), 0)
