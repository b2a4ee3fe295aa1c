"""Trains a recipe, or takes a finished run, and stores its result."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path

from benchmarks import _harness, _runs
from metalearn import apps, runs
from metalearn.cli import main as cli
from metalearn.runs import folder as run_folder

# Settings that say when something is shown or kept, not what is learned.
UNTOLD = {"log_every", "checkpoint_every"}


@dataclasses.dataclass(frozen=True)
class RunRecipe:
    """Runs `metalearn train RECIPE` and keeps the numbers.

    Attributes:
      recipe: Its name; see `metalearn list`.
      data_dir: Folder of the original archives, where the data set needs them.
      seed: Seed of training.
      run: Run folder; a finished run there is taken as it is, an unfinished one resumed.
      evaluation: Options of `metalearn evaluate` for a second judgement of the run, such
        as `--evaluation ways=20 queries=5`; kept in a file of its own.
      json: Where to write; `benchmarks/results/RECIPE-seedN.json` by default.
    """

    recipe: str
    data_dir: str | None = None
    seed: int = 0
    run: str | None = None
    evaluation: tuple[str, ...] = ()
    json: str | None = None

    def run_benchmark(self) -> None:
        folder = Path(self.run or f"runs/{self.recipe}-seed{self.seed}")
        _runs.train_in(folder, _runs.Plan(self.recipe, 1), self.seed, self.data_dir)
        self._check_is_it(folder)
        found = {**summary(folder), "origin": _runs.recorded_origin(folder)}
        name = "-".join([self.recipe, *self.evaluation, f"seed{self.seed}"])
        if self.evaluation:
            argv = ["evaluate", str(folder), "--json"]
            argv += [f"--{option}" for option in self.evaluation]
            argv += ["--data-dir", self.data_dir] if self.data_dir else []
            with contextlib.redirect_stdout(io.StringIO()) as out:
                if code := cli.main(argv):
                    raise SystemExit(code)
            found["result"] = json.loads(out.getvalue())
            found["evaluation"] = self.evaluation
        _harness.store(name, {"kind": "recipe", **found}, self.json)

    def _check_is_it(self, folder: Path) -> None:
        """Refuses a finished run of another recipe, another seed or other settings."""
        run, recipe = run_folder.load(folder), apps.find(self.recipe).recipe
        asked = run_folder.identity(self.recipe, recipe, self.seed)
        given = run_folder.identity(run.name, run.recipe, run.seed)
        told = [{n: v for n, v in of.items() if n not in UNTOLD} for of in (given, asked)]
        if lines := run_folder.differences(*told):
            raise SystemExit(
                f"{folder} holds another run than {self.recipe} with seed {self.seed}:\n  "
                + "\n  ".join(lines)
                + "\nGive the recipe and the seed of the run, or another folder."
            )


def summary(folder: Path) -> dict:
    """What a stored result says of a run: result, settings and course of training."""
    run = run_folder.load(folder)
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    trained = [row for row in rows if "seconds" in row]
    rates = sorted(row["tasks_per_s"] for row in trained)
    result = runs.read_results(folder)
    return {
        "recipe": run.name,
        "settings": run.recipe.settings(),
        "training_seed": run.seed,
        "training_seconds": trained[-1]["seconds"],
        "tasks_per_s_median": rates[len(rates) // 2],
        "validation": [row for row in rows if "seconds" not in row],
        "result": result,
    }
