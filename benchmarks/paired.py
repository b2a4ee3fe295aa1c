"""Two finished runs on the same meta-test tasks: the difference and its interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks import _harness, _runs
from metalearn import runs
from metalearn.runs import folder as run_folder
from metalearn.training.evaluation import paired_difference


@dataclasses.dataclass(frozen=True)
class Paired:
    """Compares two runs task by task; runs of two machines or codes are refused.

    Attributes:
      first: Run folder.
      second: Run folder, of the same data set, ways and shots.
      data_dir: Folder of the original archives, where the data set needs them.
      tasks: Meta-test tasks.
      seed: Seed of the test tasks.
      json: Where to write; `benchmarks/results/paired-FIRST-SECOND.json` by default.
    """

    first: str
    second: str
    data_dir: str | None = None
    tasks: int = 600
    seed: int = 0
    json: str | None = None

    def run_benchmark(self) -> None:
        folders = (Path(self.first), Path(self.second))
        origins = _runs.check_finished(folders)
        evaluations, loaded = [], []
        for folder in folders:
            run = run_folder.load(folder)
            recipe = dataclasses.replace(run.recipe, test_tasks=self.tasks)
            data = recipe.app.load(self.data_dir, ("test",))
            variables, _ = runs.best(run)
            evaluation = runs.judge(run, variables, data, recipe=recipe, seed=self.seed)
            print(f"{run.name}: {evaluation}")
            evaluations.append(evaluation)
            loaded.append(run)
        told = {
            str(folder): _runs.told(found)
            for folder, found in zip(folders, evaluations, strict=True)
        }
        fingerprint = _runs.check_tasks(told)
        mean, half = paired_difference(*evaluations)
        names = [run.name for run in loaded]
        print(f"{names[0]} - {names[1]}: {100 * mean:+.2f} ± {100 * half:.2f} points")
        _harness.store(
            f"paired-{names[0]}-{names[1]}",
            {
                "kind": "paired",
                "first": names[0],
                "second": names[1],
                "training_seeds": [run.seed for run in loaded],
                "settings": [run.recipe.settings() for run in loaded],
                "test_seed": self.seed,
                "num_tasks": self.tasks,
                "fingerprint": fingerprint,
                "origins": origins,
                "first_result": evaluations[0].summary(),
                "second_result": evaluations[1].summary(),
                "difference_points": {"mean": 100 * mean, "ci95": 100 * half},
            },
            self.json,
        )
