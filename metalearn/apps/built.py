"""What is built for equal settings and data once in a process.

A command builds its learner to refuse bad settings, to read a checkpoint, to validate, to
test and to draw. Of one learner all of them share what was traced and compiled.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from metalearn.core.learner import MetaLearner

Value = TypeVar("Value")

# Learners hold their compiled programs, tens of megabytes each. A command has one to train,
# one to judge and one without inner steps.
MOST_BUILT = 4


def built_once(method: Callable[..., Value]) -> Callable[..., Value]:
    """A function of settings and data, whose latest results are kept.

    Args:
      method: Function `(settings, record, **options)` without side effects: `settings` is
        made of frozen dataclasses, `record` a description of data in plain JSON.

    Returns:
      The function. It gives the same object again for equal arguments, and calls `method`
      for those that cannot be compared.
    """
    kept: OrderedDict[tuple, Value] = OrderedDict()
    lock = threading.RLock()

    @functools.wraps(method)
    def found(settings: Any, record: Any, **options: Any) -> Value:
        # To a dictionary 3, 3.0 and True are one key; their texts differ.
        given = (settings, repr(settings), tuple(sorted(options.items())))
        try:
            key = (*given, json.dumps(record, sort_keys=True), jax.config.jax_enable_x64)
            hash(key)
        except (TypeError, ValueError):
            return method(settings, record, **options)
        with lock:
            if key not in kept:
                kept[key] = method(settings, record, **options)
            kept.move_to_end(key)
            while len(kept) > MOST_BUILT:
                kept.popitem(last=False)
            return kept[key]

    return found


# Of these settings alone, so that other numbers of steps or tasks are the same learner.
@built_once
def built_learner(
    settings: tuple[Any, Any],
    record: Any,
    *,
    evaluating: bool,
    steps: int | None = None,
) -> MetaLearner:
    """The learner of an application.

    Args:
      settings: Settings of the learner, and the application.
      record: Description of the data.
      evaluating: Whether the learner is to be judged.
      steps: Inner steps in place of those of the settings.
    """
    learner, app = settings
    changes = {} if steps is None else learner.steps(steps)
    return learner.build(app.offers(learner, record, evaluating=evaluating), **changes)
