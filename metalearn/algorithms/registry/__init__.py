"""The table of learners: one record each, in a file a family, and nowhere else.

Read by `metalearn list`, the README's table, recipes and the conformance suite. Accuracies
of "mini" are on mini-ImageNet, 5-way, 1-shot. [P]: read in the paper or in its released
code; [S]: quoted by a second source.
"""

from __future__ import annotations

import difflib
import importlib

from metalearn.algorithms.record import Card, Record, parameters
from metalearn.algorithms.registry import (
    baselines,
    bayesian,
    closed_form,
    context,
    episodic,
    frozen,
    gradient,
    joint,
    memory,
    metric,
    reward,
)

RECORDS: tuple[Record, ...] = (
    *gradient.RECORDS,
    *context.RECORDS,
    *bayesian.RECORDS,
    *memory.RECORDS,
    *episodic.RECORDS,
    *metric.RECORDS,
    *closed_form.RECORDS,
    *frozen.RECORDS,
    *joint.RECORDS,
    *reward.RECORDS,
    *baselines.RECORDS,
)
# Drivers of whole trainings, which take any learner.
DRIVERS: tuple[Card, ...] = (
    Card(
        name="follow_the_meta_leader",
        title="Online MAML",
        paper="Finn et al., ICML 2019",
        good_for="tasks that arrive one after another: meta-learning on a buffer of them",
        result="online",
    ),
)
LEARNERS: dict[str, Record] = {record.name: record for record in RECORDS}


def find(name: str) -> Record:
    """The record of a learner, or of a constructor of yours.

    Args:
      name: Name of a record, or "package.module:function".

    Raises:
      ValueError: there is none of that name, or nothing to import; suggests the nearest.
    """
    if name in LEARNERS:
        return LEARNERS[name]
    module, colon, function = str(name).partition(":")
    if not colon or not module or not function:
        near = difflib.get_close_matches(str(name), LEARNERS, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"unknown learner {name!r}.{hint} See them all with metalearn list, or give a "
            "constructor of yours as package.module:function."
        )
    try:
        build = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise ValueError(
            f"learner {name!r} cannot be imported ({type(error).__name__}: {error}); "
            "expected package.module:function, where Python finds the package: install it, "
            "or set PYTHONPATH."
        ) from error
    if not callable(build):
        raise ValueError(
            f"learner {name!r} is a {type(build).__name__}; expected a function that makes "
            "a MetaLearner."
        )
    # What makes a head of its own asks for an encoder or a number of classes. Whether a
    # constructor of the user's predicts before it adapts is not known.
    fixed = not {"encoder", "num_classes"} & parameters(build).keys()
    return Record(build=build, name=name, title=function, start=False, fixed_head=fixed)
