"""The order of areas from easy to hard: how well a network of one area alone does there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalearn.core.keys import of_seed
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task, TaskSampler
from metalearn.core.types import Array, Key, LossFn, PyTree


def easy_to_hard(
    model: Model,
    loss_fn: LossFn,
    tasks: TaskSampler,
    *,
    steps: int = 100,
    rate: float = 3e-3,
    judged: int = 10,
    seed: int = 0,
) -> tuple[list[int], list[float]]:
    """Areas in the order of the losses that networks of their own have.

    One network an area, all from the same start, is trained on the support sets of the
    area's users by Adam, and judged by its loss on their queries.

    Args:
      model: The network.
      loss_fn: Loss of a task.
      tasks: Sampler of `metalearn.data.places.place_tasks` with users to draw.
      steps: Steps of training.
      rate: Rate of Adam.
      judged: Tasks that a network is judged on.
      seed: Seed of the start and of all draws.

    Returns:
      Numbers of the areas, the easiest first, and the loss of each area by its number.
    """
    sample = tasks.sample
    areas = jnp.arange(sample.num_areas)
    optimiser = optax.adam(rate)

    def drawn(data: PyTree, area: Array, key: Key) -> Task:
        k_users, k_rows = jax.random.split(key)
        wishes = jax.random.uniform(k_users, (sample.most_users,))
        plan = {"areas": jax.nn.one_hot(area, sample.num_areas), "users": wishes}
        return sample.planned(data, plan, k_rows)

    def loss(params: PyTree, state: PyTree, task: Task, part: str) -> Array:
        examples = getattr(task, part)
        found, _ = model.apply(
            Variables(params=params, state=state), examples.x, mask=examples.mask
        )
        return loss_fn(found, examples)

    @jax.jit
    def hardness(data: PyTree, key: Key) -> Array:
        k_init, k_steps, k_judged = jax.random.split(key, 3)
        first = drawn(data, areas[0], k_init)
        start = model.init(k_init, first.support.x)

        def of_area(area: Array, key: Key) -> Array:
            def step(carry, key: Key):
                params, opt_state = carry
                task = drawn(data, area, key)
                grads = jax.grad(loss)(params, start.state, task, "support")
                updates, opt_state = optimiser.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), None

            carry = (start.params, optimiser.init(start.params))
            (params, _), _ = jax.lax.scan(step, carry, jax.random.split(key, steps))
            values = jax.vmap(
                lambda key: loss(params, start.state, drawn(data, area, key), "query")
            )(jax.random.split(k_judged, judged))
            return values.mean()

        return jax.vmap(of_area)(areas, jax.random.split(k_steps, sample.num_areas))

    found = np.asarray(hardness(tasks.data, of_seed(seed)))
    return np.argsort(found, kind="stable").tolist(), found.tolist()
