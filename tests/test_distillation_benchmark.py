"""The benchmark of students: a whole comparison of two steps, and its table."""

from __future__ import annotations

import json

import pytest
from few_quiz import write_own_examples

from benchmarks import distillation


def test_students_are_compared_on_the_same_test_batches(tmp_path):
    folder = write_own_examples(tmp_path / "own")
    settings = ("app.dataset=own", "app.batch=8", "app.quiz_batch=4", "app.eval_batch=5")
    settings += ("steps=2", "log_every=2", "validate_every=2", "checkpoint_every=2")
    settings += ("learner.pretrain_steps=0",)
    path = tmp_path / "found.json"
    distillation.Students(
        recipes=("distil-plain", "distil-alone"),
        seeds=2,
        set=settings,
        data_dir=str(folder),
        json=str(path),
    ).run_benchmark()
    found = json.loads(path.read_text(encoding="utf-8"))
    first, second = found["rows"].values()
    means = [row["metrics"]["query/accuracy"]["mean"] for row in (first, second)]
    assert second["difference"]["mean"] == pytest.approx(means[1] - means[0], abs=1e-6)
    # Whoever learns by labels alone has no teacher.
    assert len(first["teachers"]) == 2 and not second["teachers"]
    lines = distillation.table_rows(found)
    assert lines[-1].startswith("| distil-alone | ") and "σ" in lines[-1]
