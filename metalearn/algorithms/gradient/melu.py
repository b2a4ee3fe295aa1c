"""MeLU: what is known of a user and an item is embedded for all, each user decides alone.

H. Lee, J. Im, S. Jang, H. Cho, S. Chung. MeLU: Meta-Learned User Preference Estimator for
Cold-Start Recommendation. KDD 2019. Differences:

- The outer gradient is of second order, as the paper has it. The released code copies
  adapted weights through a dictionary of states, which cuts their derivative.
- Evidence is the norm of one gradient, of all layers that adapt, at the weights that were
  learned. The released code adds up the norms of all tensors, embeddings too, and takes the
  mean over the inner steps.
- The protocol of the paper, items up to 1997 and users with 13 to 100 ratings, is one of
  many: see `metalearn.apps.recommendation` for the one here.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.bilevel import Hooks, bilevel
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, kinds, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, InnerOpt, Key, LossFn, PyTree


@takes_options(but=("adapt_filter",))
def melu(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    num_steps: int = 1,
    shared: str = "embed",
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML in which embeddings are shared, and the layers above them adapt to a user.

    `theta_2' = theta_2 - alpha grad_{theta_2} L(theta_1, theta_2; support)` of the decision
    layers theta_2; the embeddings theta_1 and theta_2 are learned outside, on
    `L(theta_1, theta_2'; query)`.

    Args:
      model: The network, such as `ml.models.FieldMLP`.
      loss_fn: Loss of one task, `ml.losses.mse` in the paper.
      inner_opt: As in `maml`. The paper's rate of 5e-6 hardly moves anything.
      num_steps: K, inner steps; the paper uses 1.
      shared: Regular expression found in the paths of parameters that do not adapt.
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
        _parts(variables.params, shared)
        return variables

    return bilevel(
        "melu",
        model._replace(init=init),
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(settings={"shared": shared}),
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
    """Evidence that each rated item of a user gives to the layers that adapt, `[N]`.

    The norm of the gradient of the unit loss `l / |l|` of each example, whose denominator
    is a constant. It does not depend on the scale of the loss. For a squared
    error it is `2 |gradient of the output| / |error|`, and so without bound near an exact
    prediction; the mean over users has a long tail. The candidates to ask a new user about
    are items with a large mean over users who rated them, and with many such users: see
    `metalearn.apps.recommendation.candidates`.

    Args:
      model: The network.
      variables: Variables of the network: `params["model"]` and `state["model"]` of the
        learner.
      examples: Ratings of one user; masked rows give 0.
      loss_fn: Loss of one task.
      shared: Regular expression found in the paths of parameters that do not adapt.

    Returns:
      Norms `[N]`; 0 for an example whose loss is 0, of which nothing is learned.

    Raises:
      ValueError: `shared` occurs in no path, or in all.
    """
    kinds.variables(variables)
    kept, adapts = _parts(variables.params, shared)

    def of_row(row: Examples) -> Array:
        def loss(adapts: PyTree) -> Array:
            params = trees.merge(kept, adapts)
            outputs, _ = model.apply(Variables(params=params, state=variables.state), row.x)
            return loss_fn(outputs, row)

        value, gradient = jax.value_and_grad(loss)(adapts)
        # Divided before it is squared, so that neither a small nor a large loss leaves the
        # range of its dtype. A NaN is not 0 and stays.
        exact = value == 0
        size = jnp.where(exact, 1, value)
        unit = jax.tree.map(lambda leaf: leaf / size, gradient)
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(unit))
        return jnp.where(exact, 0, jnp.sqrt(squares))

    rows = jax.tree.map(lambda leaf: leaf[:, None], (examples.x, examples.y))
    ones = jnp.ones((examples.mask.shape[0], 1), bool)
    single = Examples(x=rows[0], y=rows[1], mask=ones)
    return jnp.where(examples.mask, jax.vmap(of_row)(single), 0)


def _parts(params: PyTree, shared: str) -> tuple[PyTree, PyTree]:
    """Parameters that are shared, and those that adapt; both are some."""
    found = trees.split(params, trees.path_filter(shared))
    is_some = [bool(jax.tree.leaves(part)) for part in found]
    if not all(is_some):
        where = "every parameter path" if is_some[0] else "no parameter path"
        so = "nothing" if is_some[0] else "everything"
        raise ValueError(
            f"shared={shared!r} occurs in {where}, so {so} would adapt. The paths are: "
            + ", ".join(trees.leaf_paths(params))
        )
    return found
