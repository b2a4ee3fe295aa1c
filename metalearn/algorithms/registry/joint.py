"""Records of learners of one persistent model."""

from __future__ import annotations

from metalearn.algorithms.record import Record

RECORDS: tuple[Record, ...] = ()
