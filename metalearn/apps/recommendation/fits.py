"""Which learners fit the networks of this field."""

from __future__ import annotations

import jax

from metalearn.algorithms.record import parameters
from metalearn.apps.base import Application, DataRecord
from metalearn.apps.learners import Learner
from metalearn.core.keys import of_seed


def check_learner(
    app: Application, learner: Learner, record: DataRecord, network: str
) -> None:
    """Refuses learners that do not take the network or its inputs, before data are read.

    Args:
      app: The application.
      learner: The learner.
      record: Description of the smallest data.
      network: What the network predicts, such as "ratings".

    Raises:
      ValueError: the learner classifies, needs layers of its own or other inputs.
    """
    taken = parameters(learner.record.build)
    if "model" not in taken or "loss_fn" not in taken or learner.record.networks:
        raise ValueError(
            f"{learner.name} does not fit a network of {network}; expected a learner of "
            "any model and any loss, such as melu, maml or fine_tune."
        )
    learner.refuse_policy("networks with batch norm")
    example = jax.eval_shape(lambda: app.example(record))
    try:
        made = learner.build(app.offers(learner, record, evaluating=False))
        jax.eval_shape(made.init, of_seed(0), example)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{learner.name} does not fit a network of {network}: {error}"
        ) from error
