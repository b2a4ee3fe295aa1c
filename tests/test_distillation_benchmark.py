"""The benchmark of students: what is judged, and the table of a comparison."""

from __future__ import annotations

import copy
import json

import jax
import numpy as np
from few_quiz import write_own_examples

from benchmarks import distillation
from benchmarks.against import difference


def test_a_student_is_judged_beside_its_teacher(tmp_path, monkeypatch):
    # What training makes is not asked here, and takes long to compile.
    def start(recipe, trainer, tasks, seed):
        assert recipe.steps == 2
        task = tasks.sample(tasks.data, jax.random.key(seed))
        return trainer.init(jax.random.key(seed), task).variables

    monkeypatch.setattr(distillation, "trained", start)
    folder = write_own_examples(tmp_path / "own")
    settings = ("app.dataset=own", "app.batch=8", "app.quiz_batch=4", "app.eval_batch=5")
    settings += ("steps=2", "log_every=2", "validate_every=2", "checkpoint_every=2")
    settings += ("learner.pretrain_steps=0",)
    path = tmp_path / "found.json"
    distillation.Students(
        recipes=("distil-plain",),
        seeds=2,
        set=settings,
        data_dir=str(folder),
        json=str(path),
    ).run_benchmark()
    found = json.loads(path.read_text(encoding="utf-8"))
    (row,) = found["rows"].values()
    assert len(row["teachers"]) == len(row["metrics"]["query/accuracy"]["seeds"]) == 2
    assert "difference" not in row and found["origin"]["code"]
    # Whoever learns by labels alone has no teacher.
    other = copy.deepcopy(row) | {"teachers": []}
    other["difference"] = difference(np.ones((2, 2)), np.zeros((2, 2)))
    found["rows"]["distil-alone"] = other
    line = distillation.table_rows(found)[-1]
    assert (
        line.startswith("| distil-alone | ")
        and "+100.00 ± 0.00 (+100.0, +100.0) |  |" in line
    )
