"""Runs of the command line that its tests share."""

import contextlib
import io
import json
import os

import jax
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from metalearn import runs
from metalearn.cli import main as cli

SIZE, PER_CLASS = 28, 4
PARTS = {"train": 5, "val": 4, "test": 4}


def _png(rng, channels=1, size=SIZE):
    pixels = rng.integers(0, 2, (size, size, channels)) * 255
    stream = io.BytesIO()
    array = pixels[..., 0] if channels == 1 else pixels
    Image.fromarray(array.astype(np.uint8)).save(stream, "png")
    return stream.getvalue()


def _images(root, seed=0):
    """A folder of classes with a splits.json."""
    rng = np.random.default_rng(seed)
    splits = {part: [f"{part}_{i}" for i in range(n)] for part, n in PARTS.items()}
    for name in (name for names in splits.values() for name in names):
        (root / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            (root / name / f"{i}.png").write_bytes(_png(rng))
    (root / "splits.json").write_text(json.dumps(splits))
    return root


@pytest.fixture(scope="session")
def glyphs_cache(tmp_path_factory):
    """A cache of all workers, in which the glyphs are drawn once; or that of the caller."""
    cache = os.environ.get("METALEARN_CACHE")
    return cache or str(_of_all_workers(tmp_path_factory) / "glyphs")


def _of_all_workers(tmp_path_factory):
    root = tmp_path_factory.getbasetemp()
    return root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder for all runs; records go to a cache inside it."""
    root = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(root / "records"))
        yield root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder of images for all workers, which `trained` names in its settings."""
    folder = _of_all_workers(tmp_path_factory) / "images"
    with FileLock(f"{folder}.lock"):
        return folder if (folder / "splits.json").exists() else _images(folder)


@pytest.fixture(scope="session")
def tiny(base, image_folder):
    """A recipe on images and options that make it a run of seconds.

    Compiling is most of it, and most of that is batch norm and second derivatives: left
    out.
    """
    options = {
        "app.dataset": f"folder:{image_folder}",
        "app.channels": 1,
        "app.ways": 3,
        "app.queries": 2,
        "app.eval-queries": 2,
        "app.width": 4,
        "app.norm": "none",
        "app.downsample": "stride",
        "learner.differentiation": "first_order",
        "steps": 20,
        "tasks-per-step": 2,
        "validate-every": 10,
        "validation-tasks": 5,
        "test-tasks": 5,
        "checkpoint-every": 5,
        "log-every": 5,
    }
    return ["glyphs-maml", *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture(scope="session")
def sine():
    """The same without images, and with second derivatives."""
    options = {
        "learner.num-steps": 1,
        "steps": 20,
        "tasks-per-step": 2,
        "app.eval-queries": 5,
        "validate-every": 10,
        "validation-tasks": 5,
        "test-tasks": 5,
        "checkpoint-every": 5,
        "log-every": 5,
    }
    return ["sinusoid-maml", *(f"--{name}={value}" for name, value in options.items())]


def programs():
    """Variables by which another process shares the compiled programs of this one.

    The limit of the size goes with the folder: a process without it writes programs that
    the others cannot read.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(jax.config.jax_compilation_cache_max_size),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


def run(*words):
    """Exit code, standard output and standard error of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def ok(*words):
    code, out, err = run(*words)
    assert code == 0, err
    return out


def refused(*words):
    code, _, err = run(*words)
    assert code == 2
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """A finished run, by one worker for all; not to be changed.

    What the command printed is in `trained.out` beside it.
    """
    return _trained_once(tmp_path_factory, "trained", tiny)


@pytest.fixture(scope="session")
def trained_sine(base, sine, tmp_path_factory):
    """A finished run on sine waves, by one worker for all; not to be changed."""
    return _trained_once(tmp_path_factory, "trained_sine", sine)


def _trained_once(tmp_path_factory, name, words):
    folder = _of_all_workers(tmp_path_factory) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "results.json").exists():
            folder.with_suffix(".out").write_text(ok("train", *words, "--out", folder))
    return folder


def final_arrays(folder):
    """All arrays of the latest checkpoint."""
    opened = runs.load(folder)
    state = opened.recipe.state_like(opened.record)
    checkpoints = opened.checkpoints()
    step = checkpoints.latest()
    tree, _ = checkpoints.restore(step, like={"state": state, "best": state.variables})
    checkpoints.close()
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same_run(one, other):
    (step, arrays), (other_step, other_arrays) = final_arrays(one), final_arrays(other)
    assert step == other_step
    for mine, theirs in zip(arrays, other_arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
