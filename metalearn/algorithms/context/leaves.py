"""Changes of the leaf clusters of variables of `ml.hsml`, between trainings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.algorithms.context.clusters import k_means, tree_init, width_of_lead
from metalearn.core import checks, kinds
from metalearn.core.keys import check_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.task import Task
from metalearn.core.types import Key


def place_leaves(
    learner: MetaLearner, variables: Variables, tasks: Task, key: Key, *, lead: float = 4.0
) -> Variables:
    """Leaf clusters where the tasks are: at the k-means of their embeddings.

    Leaves start at random, where no task may ever come near. Placed leaves have a width of
    their own in place of `sigma`, a parameter that no gradient moves. All others stay. The
    outer optimiser is to be started anew.

    Args:
      learner: Learner of `hsml`.
      variables: Its variables, of `learner.init` or trained.
      tasks: Training tasks with a leading axis `[T]`, some hundreds.
      key: Key of the first centres.
      lead: By how many nats the nearest leaf leads the second at the median task.

    Raises:
      ValueError: there are fewer than two leaves, fewer tasks than leaves, or tasks whose
        embeddings are all the same.

    Example:
      >>> state = trainer.init(key, task)
      >>> tasks = ml.sample_batch(sampler, sampler.data, jax.random.split(key, 500))
      >>> placed = ml.place_leaves(learner, state.variables, tasks, key)
      >>> opt_state = outer_opt.init(placed.params)
      >>> state = dataclasses.replace(state, variables=placed, opt_state=opt_state)
      >>> result = ml.fit(trainer, sampler, state=state, num_steps=20_000, key=key)
    """
    kinds.learner(learner)
    kinds.variables(variables)
    check_key(key)
    checks.number("lead", lead, positive=True)
    structure = variables.params.get("structure", {})
    if not structure.get("tree"):
        raise ValueError("variables have no tree of clusters to place; expected hsml's.")
    leaves, *upper = structure["tree"]
    num = len(leaves["centres"])
    given = jax.tree.leaves(tasks.support.mask)[0].shape
    if num < 2 or len(given) != 2 or given[0] < num:
        raise ValueError(
            f"{num} leaves were to be placed by support masks of shape {given}; expected "
            "two leaves or more and a batch of more tasks than leaves, such as "
            "ml.sample_batch(sampler, sampler.data, jax.random.split(key, 500))."
        )
    embed = lambda support: learner.adapt(variables, support).info.embedding
    points = np.asarray(jax.jit(jax.vmap(embed))(tasks.support), np.float64)
    centres = k_means(points, num, seed=int(jax.random.bits(key)))
    width = 0.0 if centres is None else width_of_lead(points, centres, lead)
    if not width > 0:
        raise ValueError(
            f"embeddings of {given[0]} tasks do not fall into {num} clusters; expected "
            "tasks that differ. Give tasks of every kind."
        )
    old = leaves["centres"]
    placed = {
        "centres": jnp.asarray(centres, old.dtype),
        "width": jnp.asarray(width, old.dtype),
    }
    structure = {**structure, "tree": [{**leaves, **placed}, *upper]}
    return Variables(
        params={**variables.params, "structure": structure}, state=variables.state
    )


def add_leaf(variables: Variables, key: Key) -> Variables:
    """One more leaf cluster, with a random centre; all other parameters stay.

    The learner goes on with it as it is; its outer optimiser is to be started anew
    (section 4.4, continual adaptation).

    Args:
      variables: Variables of `hsml`.
      key: Key for the centre and the map of the new cluster.

    Raises:
      ValueError: there is no tree, as in variables of `mumomaml`.
    """
    structure = variables.params["structure"]
    if not structure["tree"]:
        raise ValueError("variables have no tree of clusters to grow; they are mumomaml's.")
    leaves, *upper = structure["tree"]
    placed = {name: leaf for name, leaf in leaves.items() if name == "width"}
    leaves = {name: leaf for name, leaf in leaves.items() if name != "width"}
    (fresh,) = tree_init(key, (1,), leaves["b"].shape[-1], "gaussian")
    leaves = jax.tree.map(
        lambda old, new: jnp.concatenate([old, new.astype(old.dtype)]), leaves, fresh
    )
    params = {
        **variables.params,
        "structure": {**structure, "tree": [leaves | placed, *upper]},
    }
    return Variables(params=params, state=variables.state)
