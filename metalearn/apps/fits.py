"""Which learners fit an application whose learners take any model and any loss."""

from __future__ import annotations

import jax

from metalearn.algorithms.record import parameters
from metalearn.apps.base import Application, DataRecord
from metalearn.apps.learners import Learner
from metalearn.core.keys import of_seed


def check_learner(
    app: Application,
    learner: Learner,
    record: DataRecord,
    what: str,
    *,
    policy: str | None = "networks with batch norm",
    networks: tuple[str, ...] = ("model",),
) -> None:
    """Refuses learners that do not take the network or its inputs, before data are read.

    Args:
      app: The application.
      learner: The learner.
      record: Description of the smallest data.
      what: What the learner has to fit, such as "a network of ratings".
      policy: What a batch-norm policy would need, where the network has no batch norm.
      networks: Parameters of constructors for which the application has a network.

    Raises:
      ValueError: the learner classifies, needs layers of its own or other inputs.
    """
    taken = parameters(learner.record.build)
    served = not taken.keys().isdisjoint(networks) and "loss_fn" in taken
    if not served or learner.record.networks:
        raise ValueError(
            f"{learner.name} does not fit {what}; expected a learner of any model and any "
            "loss, such as maml or fine_tune."
        )
    if policy is not None:
        learner.refuse_policy(policy)
    example = jax.eval_shape(lambda: app.example(record))
    try:
        made = learner.build(app.offers(learner, record, evaluating=False))
        jax.eval_shape(made.init, of_seed(0), example)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{learner.name} does not fit {what}: {error}") from error
