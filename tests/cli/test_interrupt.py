"""Signals end a command at once, with one message, whatever it is at."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from metalearn.cli import interrupt

BUSY = """
import gc, signal, sys, threading
from metalearn.cli import interrupt

if sys.argv[2:] != ["ignored"]:  # as it may be where these tests run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

class Callback:
    def __call__(self, *args):
        for _ in range(1000):
            pass

interrupt.arm()
if sys.argv[1] == "early":
    interrupt.GRACE_S = 0.2
else:
    interrupt.at_once(lambda: "first")
    interrupt.at_once(lambda: "go on with \\udcff --resume")
print("ready", flush=True)
if sys.argv[1] == "native":  # as XLA does while it compiles
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
elif sys.argv[1] == "callback":  # an exception here is dropped
    gc.callbacks.append(Callback())
    while True:
        gc.collect(0)
else:  # and here by a library
    while True:
        try:
            for _ in range(1000):
                pass
        except BaseException:
            pass
"""

SIGNALS = [
    (number, busy)
    for number in (signal.SIGINT, signal.SIGTERM)
    for busy in ("native", "callback", "caught")
]


def code():
    return BUSY.replace("from metalearn.cli import interrupt", LOAD)


@contextlib.contextmanager
def started(*command):
    """A process that has said that it is ready; it does not outlive the test."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "busy"), [*SIGNALS, (signal.SIGINT, "early")])
def test_a_signal_is_never_lost(busy, number):
    with started(sys.executable, "-c", code(), busy) as process:
        time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == {"SIGINT": 130, "SIGTERM": 143}[number.name]
    words = "Interrupted." if busy == "early" else "go on with \\udcff --resume"
    assert err == f"\n{words}\n"


def test_a_command_that_was_started_to_ignore_a_signal_ignores_it():
    """As a shell starts what a script runs in the background."""
    python = [sys.executable, "-c", code(), "caught", "ignored"]
    with started("sh", "-c", 'trap "" INT; exec "$@"', "sh", *python) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 143


# The file alone: the package takes seconds to import.
LOAD = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("interrupt", {interrupt.__file__!r})
interrupt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interrupt)
"""


def test_a_process_that_only_calls_commands_keeps_its_handlers():
    before = signal.getsignal(signal.SIGINT)
    interrupt.at_once(lambda: "no")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("seconds", [pytest.param(0.3, marks=pytest.mark.slow), 1.5])
def test_training_that_is_interrupted_while_it_compiles_says_how_to_go_on(
    tmp_path, sine, seconds
):
    """Nothing is compiled before, so that the signal comes while something is."""
    folder = tmp_path / "run"
    # A program that takes long, for nobody waits for it.
    long = ["--learner.num-steps=5", "--learner.differentiation=reverse"]
    environ = {**os.environ, "METALEARN_CACHE": str(tmp_path / "cache")}
    environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "metalearn", "train", *sine, *long, "--out", str(folder)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not (folder / "metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().startswith("Interrupted, ") and err.count("\n  metalearn train") == 1
    assert f"--out {folder} --resume" in err and "Traceback" not in err
    assert json.loads((folder / "config.json").read_text())["recipe"] == "sinusoid-maml"
