"""The library where only jax, flax, optax, numpy and chex are installed."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import metalearn as ml
from metalearn.core import optional

FIVE = ("jax", "flax", "optax", "numpy", "chex")
# flax asks for these, and `import flax` does without.
NOT_NEEDED = ("orbax-checkpoint", "orbax-export", "tensorstore")
PYPROJECT = Path(ml.__file__).parents[1] / "pyproject.toml"

SCRIPT = """
import json, sys

blocked = set(json.loads(sys.argv[1]))

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())

import jax, numpy as np, optax
import metalearn as ml
from pathlib import Path

key = jax.random.key(0)
folder = Path(sys.argv[2])

def trained(model, loss, tasks):
    learner = ml.maml(model, loss, optax.sgd(0.1), num_steps=1)
    trainer = ml.meta_trainer(learner, optax.adam(1e-3))
    result = ml.fit(trainer, tasks, num_steps=3, tasks_per_step=2, key=key, log_every=1)
    assert len(result.history) == 3
    ml.save(folder / "file", result.variables, learner)
    return learner, ml.load(folder / "file", learner), tasks

trained(ml.from_linen(ml.models.MLP(widths=(4,))), ml.losses.mse, ml.tasks.sinusoid())
images = np.random.default_rng(0).random((12, 4, 4, 1), np.float32)
tasks = ml.data.few_shot(images, np.arange(12) // 4, num_ways=2, num_query=2)
dense = ml.from_apply_fn(
    lambda key, x: 0.1 * jax.random.normal(key, (16, 2)),
    lambda w, x: x.reshape(len(x), 16) @ w,
)
last = trained(dense, ml.losses.cross_entropy, tasks)

print(ml.evaluate(*last, num_tasks=2, key=key))

(folder / "images" / "one").mkdir(parents=True)
(folder / "images" / "one" / "a.png").write_bytes(b"no matter")

def environment():
    from metalearn.runs import environment
    environment.share_compilations(folder / "compiled")

def picture():
    from metalearn.apps import plots
    plots.learning_curve(folder / "curve.png", [{"step": 1, "query/loss": 1.0}] * 2, "")

def command():
    from metalearn.cli import main
    raise SystemExit(main.main(["list"]))

stream = ml.data.stream(images, np.arange(12) // 4, num_ways=2, num_query=2)
features = {
    "PIL": lambda: ml.data.load("folder:" + str(folder / "images"), split="train"),
    "PIL ": lambda: ml.data.load("glyphs"),
    "tensorflow_datasets": lambda: ml.data.load("tfds:mnist"),
    "orbax": lambda: ml.Checkpoints(folder / "checkpoints"),
    "tqdm": lambda: ml.evaluate(*last, num_tasks=2, key=key, progress=True),
    "grain": lambda: next(stream.batches(2, 0)),
    "filelock": environment,
    "matplotlib": picture,
    "tyro": command,
}
told = {}
for name, feature in features.items():
    try:
        feature()
    except ImportError as error:
        told[name] = str(error)
    except SystemExit as stop:
        told[name] = f"exit {stop.code}"
print(json.dumps(told))
"""


def top_levels(distributions):
    found = importlib.metadata.packages_distributions()
    return {
        name
        for name, owners in found.items()
        if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} <= distributions
    }


def needed():
    """Distributions that the five bring along."""
    todo, found = list(FIVE), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found or name in NOT_NEEDED:
            continue
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        wanted = [line for line in wanted if "extra ==" not in line]
        todo += [re.match(r"[\w.-]+", line).group() for line in wanted]
    return found


def test_training_needs_five_packages_and_features_name_theirs(tmp_path):
    everything = {
        re.sub(r"[-_.]+", "-", found.name).lower()
        for found in importlib.metadata.distributions()
        if found.name
    }
    blocked = top_levels(everything - needed() - {"metalearn-jax"})
    assert {*optional.PACKAGES} & blocked >= {"PIL", "orbax", "filelock", "tqdm", "tyro"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(sorted(blocked)), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=PYPROJECT.parent,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told.pop("tyro") == "exit 1"
    told["tyro"] = run.stderr
    for package, text in told.items():
        distribution, extra = optional.PACKAGES[package.strip()]
        assert f"package {distribution} is not installed" in text, (package, text)
        assert f"pip install 'metalearn-jax[{extra}]'" in text
    assert len(told) == 9


def project():
    return tomllib.loads(PYPROJECT.read_text())["project"]


def test_extras_bring_what_messages_say():
    extras = project()["optional-dependencies"]
    for distribution, extra in optional.PACKAGES.values():
        names = [re.match(r"[\w-]+", line).group() for line in extras[extra]]
        assert distribution in names, f"extra {extra} lacks {distribution}"


def test_a_plain_installation_has_everything_that_the_readme_uses():
    found = project()
    extras = found["optional-dependencies"]
    named = [extras[e] for e in ("images", "plots", "checkpoints", "cli")]
    rest = {line for line in found["dependencies"] if not line.startswith(FIVE)}
    assert {line for lines in named for line in lines} - {"fonttools"} == rest


def test_a_package_that_is_broken_says_so_itself(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("import lacking_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="lacking_package"):
        optional.require("broken_package", "to test")


def test_completion_shows_what_is_meant():
    assert {name for name in dir(ml) if not name.startswith("__")} == set(ml.__all__)
    for module in (ml.data, ml.inner, ml.models, ml.tasks):
        assert set(module.__all__) <= set(dir(module))
