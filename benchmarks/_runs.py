"""Runs that are compared: trained by one code on one machine, judged on equal tasks.

Another machine rounds in another way, and a training seed then moves a small network by
points. Another commit may learn otherwise. So beside every run that a benchmark trains
stands where it was trained, `RUN.origin.json`, and runs of two origins are not compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import optax

import metalearn as ml
from benchmarks import _harness
from metalearn import apps, runs
from metalearn.apps import learners
from metalearn.cli import main as cli
from metalearn.runs import environment
from metalearn.runs import folder as run_folder

Part = Literal["validation", "test"]
Origin = dict[str, Any]

# Settings stand in the record of a run, so that a new recipe is no new code.
RECIPES = ("recipes.py", "embedders.py", "sequences.py", "small.py", "published.py")


KEYS = {"test": 0, "validation": 1}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Runs of one recipe that differ by their seed alone.

    Attributes:
      recipe: Name of the recipe.
      seeds: Number of training seeds, from 0.
      overrides: Settings in place of those of the recipe, such as "steps=100".
    """

    recipe: str
    seeds: int
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of the recipe and what is overridden."""
        return " ".join([self.recipe, *self.overrides])

    def options(self) -> list[str]:
        """The overrides as options of `metalearn train`.

        Raises:
          ValueError: an override is no FIELD=VALUE.
        """
        found = []
        for pair in self.overrides:
            field, equals, value = pair.partition("=")
            if not equals:
                raise ValueError(
                    f"{pair!r} is no setting; expected FIELD=VALUE, as steps=100."
                )
            if field == "inner_rate":
                field = _place_of_rate(apps.find(self.recipe).recipe)
            found += _option(field.replace("_", "-"), value)
        return found

    def folder(self, seed: int, runs_dir: str | Path) -> Path:
        """The folder of one run."""
        suffix = "".join(f"-{pair}" for pair in self.overrides).replace("/", "_")
        return Path(runs_dir) / f"{self.recipe}{suffix}-seed{seed}"


def _option(field: str, value: str) -> list[str]:
    """A field as an option, with several values if they are apart by spaces.

    One that is true or false has two names and no value.
    """
    if value not in ("True", "False"):
        return [f"--{field}", *value.split()]
    folder, dot, name = field.rpartition(".")
    return [f"--{folder}{dot}{'' if value == 'True' else 'no-'}{name}"]


def here() -> Origin:
    """Machine, code and commit of this process."""
    package = Path(ml.__file__).parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.name not in RECIPES:
            code.update(path.relative_to(package).as_posix().encode())
            code.update(path.read_bytes())
    found = _harness.where()
    versions = {name: found["versions"].get(name) for name in ("python", "jax", "jaxlib")}
    return {
        "machine": {**found["device"], **versions},
        "code": code.hexdigest()[:12],
        "commit": found["commit"],
    }


def origin_path(folder: Path) -> Path:
    """File beside a run folder; inside, training would take it for another's file."""
    return folder.with_name(f"{folder.name}.origin.json")


def origin_of(folder: Path) -> Origin:
    """Where a run was trained.

    Raises:
      ValueError: no benchmark trained the run, so that its code is unknown.
    """
    path = origin_path(folder)
    if not path.is_file():
        raise ValueError(
            f"{folder} holds a run, but {path.name} is not beside it: its code and machine "
            "are unknown, so it is compared with nothing. Give --runs another folder; the "
            "run is then trained by this benchmark."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def recorded_origin(folder: Path) -> Origin:
    """Where a run was trained, as far as is known; of other runs their `config.json` says.

    Their code and commit are then "unknown".
    """
    if origin_path(folder).is_file():
        return origin_of(folder)
    config = run_folder.stored_config(folder) or {}
    versions = config.get("versions", {})
    kept = {name: versions.get(name) for name in ("python", "jax", "jaxlib")}
    machine = {**config.get("device", {}), **kept}
    return {"machine": machine, "code": "unknown", "commit": "unknown"}


def check_origins(origins: Mapping[str, Origin]) -> None:
    """Refuses runs of several machines or codes.

    Args:
      origins: Where each run was trained, by a name of the run.

    Raises:
      ValueError: two origins differ; the message names both runs and every difference.
    """
    (first, mine), *others = origins.items()
    for name, theirs in others:
        if lines := _apart(mine, theirs):
            raise ValueError(
                f"{first} and {name} were trained on different machines or by different "
                "code, whose difference would count as that of the learners:\n  "
                + "\n  ".join(lines)
                + "\nTrain both anew on one machine, into another folder of --runs."
            )


def check_finished(folders: Sequence[Path]) -> list[Origin]:
    """Refuses finished runs of several machines or codes, as far as these are known.

    Raises:
      ValueError: see `check_origins`.
    """
    origins = {str(folder): recorded_origin(folder) for folder in folders}
    check_origins(origins)
    return list(origins.values())


def _apart(mine: Origin, theirs: Origin) -> list[str]:
    """Lines of what differs. Commits that leave the code as it is are no difference."""
    pairs = {
        name: (mine["machine"][name], theirs["machine"][name])
        for name in sorted(mine["machine"].keys() & theirs["machine"].keys())
    }
    if "unknown" not in (mine["code"], theirs["code"]):
        pairs["code"] = (mine["code"], theirs["code"])
        if mine["code"] != theirs["code"]:
            pairs["commit"] = (mine["commit"], theirs["commit"])
    return [
        f"{name}: {one} and {other}" for name, (one, other) in pairs.items() if one != other
    ]


def planned(plans: Sequence[Plan], runs_dir: str | Path) -> Origin:
    """The one origin of all runs of a comparison, those that are still to be trained too.

    Raises:
      ValueError: see `check_origins`, before anything is trained.
    """
    now, origins = here(), {}
    for plan in plans:
        for seed in range(plan.seeds):
            folder = plan.folder(seed, runs_dir)
            begun = (folder / "config.json").is_file()
            origins[str(folder)] = origin_of(folder) if begun else now
    check_origins(origins)
    commits = sorted({origin["commit"] for origin in origins.values()})
    return {**next(iter(origins.values())), "commit": ", ".join(commits)}


def trained(plan: Plan, seed: int, runs_dir: str | Path, data_dir: str | None) -> Path:
    """The folder of a finished run of a plan; see `train_in`."""
    folder = plan.folder(seed, runs_dir)
    train_in(folder, plan, seed, data_dir)
    return folder


def train_in(folder: Path, plan: Plan, seed: int, data_dir: str | None) -> None:
    """Trains, or goes on with training, unless the run in the folder is finished.

    Raises:
      ValueError: the run was begun by other code or on another machine, or an override is
        no FIELD=VALUE.
      SystemExit: training failed.
    """
    if (folder / "results.json").is_file():
        return
    argv = ["train", plan.recipe, "--out", str(folder), "--seed", str(seed)]
    argv += plan.options()
    argv += ["--data-dir", data_dir] if data_dir else []
    if (folder / "config.json").is_file():
        check_origins({f"the beginning of {folder}": origin_of(folder), "the rest": here()})
        argv += ["--resume"]
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(here(), indent=1) + "\n"
        origin_path(folder).write_text(text, encoding="utf-8")
    if code := cli.main(argv):
        raise SystemExit(code)


def _place_of_rate(recipe: apps.Recipe) -> str:
    """Where the settings of a recipe hold the rate of the inner loop."""
    for name in ("inner_opt", "initial_rate", "rate"):
        if hasattr(recipe.learner, name):
            return f"learner.{name}.rate" if name == "inner_opt" else f"learner.{name}"
    raise ValueError(f"{recipe.learner.name} has no inner rate; leave inner_rate out.")


def judged(
    folder: Path,
    data_dir: str | None,
    *,
    part: Part = "test",
    on: str | None = None,
    tasks: int | None = None,
    shots: int | None = None,
) -> ml.Evaluation:
    """The best variables of a run on tasks that depend on no seed of training.

    Args:
      folder: Run folder.
      data_dir: Folder of the original archives.
      part: Classes to judge on.
      on: Name of another data set of the same image shape; that of training if None.
      tasks: Number of tasks; the test tasks of the recipe if None.
      shots: Support examples of a class; those of the recipe if None.

    Raises:
      ValueError: images of the other set have another shape.
    """
    run = run_folder.load(folder)
    recipe = run.recipe
    if on is not None:
        if not hasattr(recipe.app, "dataset"):
            raise ValueError(
                f"{run.name} is of kind {recipe.app.kind}, which reads no data set; leave "
                f"--on {on} out."
            )
        # What divides the classes of one set does not divide those of another.
        app = dataclasses.replace(recipe.app, dataset=on, split=None)
        recipe = dataclasses.replace(recipe, app=app)
    if shots is not None:
        app = dataclasses.replace(recipe.app, eval_shots=shots)
        recipe = dataclasses.replace(recipe, app=app)
    data = recipe.app.load(data_dir, (part,))
    runs.check_images(run, recipe.app.describe(data))
    for shared in runs.trained_on(run, data) if on is not None else ():
        print(f"{folder.name} was trained on {shared}", flush=True)
    variables, _ = runs.best(run)
    environment.enable_compilation_cache()  # for runs that another process trained
    asked = tasks or recipe.test_tasks
    judged_on, num = runs.judged_tasks(recipe, data, part, asked)
    return ml.evaluate(
        recipe.build_judged(run.record),
        variables,
        judged_on,
        num_tasks=num,
        # Functions have no classes to hold back, so that only the key tells tasks apart.
        key=jax.random.key(KEYS[part]),
        metrics=recipe.app.measures,
    )


def told(evaluation: ml.Evaluation) -> tuple[str, str, int]:
    """Name, fingerprint and number of the tasks of an evaluation."""
    return evaluation.tasks, evaluation.fingerprint, evaluation.num_tasks


def check_tasks(judgements: Mapping[str, tuple[str, str, int]]) -> str:
    """Refuses judgements on different tasks; returns the fingerprint that all share.

    Args:
      judgements: What `told` says, by a name of the run.

    Raises:
      ValueError: two differ; the message names both.
    """
    (first, mine), *others = judgements.items()
    for name, theirs in others:
        if mine[1:] != theirs[1:]:
            raise ValueError(
                f"{first} and {name} were judged on different tasks: {mine[2]} of "
                f"{mine[0]!r}, digest {mine[1]}, and {theirs[2]} of {theirs[0]!r}, digest "
                f"{theirs[1]}. Compare recipes of the same data, ways, shots, queries and "
                "number of test tasks."
            )
    return mine[1]


def learned_rates(folder: Path) -> dict[str, float]:
    """Scalar rates that training has moved, at its last step.

    Returns:
      `inner`, where the inner rate is one outer parameter, and `outer`, where the outer
      optimiser keeps the rate it has learned; nothing for other learners.
    """
    run = run_folder.load(folder)
    own = learners.own_outer(run.recipe.learner.record)
    if own is None or not isinstance(run.recipe.outer, own):
        return {}
    like = run.recipe.state_like(run.record)
    checkpoints = run.checkpoints()
    step = checkpoints.latest()
    tree, _ = checkpoints.restore(step, like={"state": like, "best": like.variables})
    state, found = tree["state"], {}
    params = state.variables.params
    inner = params.get("inner") if isinstance(params, dict) else None
    if getattr(inner, "shape", None) == ():
        found["inner"] = float(inner)
    rates = optax.tree.get_all_with_path(state.opt_state, "rate")
    if len(rates) == 1:
        found["outer"] = float(rates[0][1])
    return found
