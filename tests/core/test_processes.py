"""Two processes of four devices train what one of eight does; if one dies, both stop."""

import json
import os
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest
from commands import ok, programs
from jax.flatten_util import ravel_pytree

from metalearn import runs

OPTIONS = [
    "sinusoid-maml",
    *("--steps=20", "--tasks-per-step=8", "--validate-every=10", "--checkpoint-every=10"),
    *("--log-every=10", "--validation-tasks=8", "--test-tasks=8", "--app.eval-queries=5"),
    *("--learner.num-steps=1", "--app.widths", "8"),
]


def port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(*words):
    flags = os.environ["XLA_FLAGS"].split()
    environ = os.environ | {
        "XLA_FLAGS": " ".join(flag for flag in flags if "device_count" not in flag),
        **programs(),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "metalearn", "train", *map(str, words)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(folder, *words, devices):
    shared = (f"--devices={devices}", "--processes=2", f"--coordinator=localhost:{port()}")
    return [
        start(*OPTIONS, *words, "--out", folder, *shared, f"--process={p}") for p in (0, 1)
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    ok("train", *OPTIONS, "--out", folder)  # in this process, which has eight devices
    return folder


def test_two_processes_train_what_one_trains(alone, tmp_path):
    folder = tmp_path / "two"
    both = start_two(folder, devices=4)
    outputs = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "Meta-test" in outputs[0][0]
    assert "Meta-test" not in outputs[1][0]  # one voice
    (found, notes), (expected, others) = (runs.best(runs.load(f)) for f in (folder, alone))
    for name in ("step", "best_step"):
        assert notes[name] == others[name] == 20
    mine, theirs = ravel_pytree(found)[0], ravel_pytree(expected)[0]
    assert jnp.linalg.norm(mine - theirs) <= 1e-5 * jnp.linalg.norm(theirs)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4
    found, expected = (
        json.loads((f / "results.json").read_text())["query/loss"]["mean"]
        for f in (folder, alone)
    )
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_when_one_process_dies_the_other_stops_and_the_run_goes_on(tmp_path):
    folder = tmp_path / "killed"
    both = start_two(folder, "--steps=1000000", devices=2)
    saved = folder / "checkpoints"
    deadline = time.monotonic() + 120
    while not (saved.is_dir() and any(p.name.isdigit() for p in saved.iterdir())):
        assert time.monotonic() < deadline and all(p.poll() is None for p in both)
        time.sleep(0.2)
    both[1].kill()
    _, err = both[0].communicate(timeout=60)
    assert both[0].returncode != 0
    assert "process" in err and ("stopped" in err or "another task died" in err)
    both[1].communicate()
    with start(*OPTIONS, "--steps=1000000", "--out", folder, "--resume") as again:
        lines = iter(again.stdout.readline, "")
        going = next((line for line in lines if line.startswith("Going on")), "")
        more = next((line for line in lines if line.startswith("step")), "")
        again.kill()
        again.communicate()
    assert int(going.split()[4].replace(",", "")) >= 10
    assert more  # and trains
