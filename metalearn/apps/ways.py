"""Ways of training and of test, and the learners that they fit."""

from __future__ import annotations

from typing import Any

from metalearn.apps.learners import Learner


def check_ways(app: Any, learner: Learner) -> None:
    """Refuses numbers of classes that a learner does not take.

    Args:
      app: Application with `ways`, of training tasks, and `test_ways`.
      learner: Settings of the learner.

    Raises:
      ValueError: tasks have one class alone, or test tasks have more classes than a fixed
        head has logits, or fewer where the learner cannot leave logits out.
    """
    # `test_ways` is `ways` where `eval_ways` says nothing, and refused as that before.
    for setting, ways in (("app.ways", app.ways), ("app.eval_ways", app.test_ways)):
        if ways < 2:
            raise ValueError(f"{setting} is {ways}; expected 2 or more.")
    if learner.record.fixed_head and app.test_ways > app.ways:
        raise ValueError(
            f"{app.test_ways}-way tasks need {app.test_ways} logits, but the head of "
            f"{learner.name} is trained with {app.ways}. Train with --app.ways "
            f"{app.test_ways}, or choose a learner that fits any number of ways, such as a "
            "metric one."
        )
    if app.test_ways < app.ways and not learner.record.fits_fewer_ways:
        raise ValueError(
            f"{app.test_ways}-way tasks have fewer classes than {learner.name} has logits "
            f"({app.ways}), and it cannot leave classes out: it would predict absent ones. "
            f"Train with --app.ways {app.test_ways}, or let its constructor take "
            "mask_absent_classes."
        )


def head_offers(app: Any, learner: Learner, *, evaluating: bool) -> dict[str, Any]:
    """`num_ways` and `mask_absent_classes` for the constructor of a learner.

    Args:
      app: As in `check_ways`.
      learner: Settings of the learner.
      evaluating: Whether for validation and test.
    """
    fixed = learner.record.fixed_head
    return {
        # A head with fixed outputs keeps its training ways; fewer test ways are masked.
        "num_ways": app.ways if fixed or not evaluating else app.test_ways,
        "mask_absent_classes": fixed and evaluating and app.test_ways < app.ways,
    }
