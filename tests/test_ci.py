"""Which Python the continuous integration takes for its tests of the newest jax."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "newest-python"
TOOLS = ("bash", "sort", "tr", "cut")


class Machine:
    """A machine with the interpreters of a test, and no other."""

    def __init__(self, root):
        self.root = root
        for tool in TOOLS:
            (root / "tools").mkdir(exist_ok=True)
            (root / "tools" / tool).symlink_to(shutil.which(tool))

    def has(self, path, script=f'exec {sys.executable} "$@"'):
        """An interpreter that does what a shell script says; by default it works."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return str(file)

    def newest(self):
        path = f"{self.root / 'shims'}:{self.root / 'tools'}"
        names = {**os.environ, "PATH": path, "PYENV_ROOT": str(self.root)}
        return subprocess.run([SCRIPT], capture_output=True, text=True, env=names)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_shim_that_runs_nothing_does_not_hide_what_works(machine):
    machine.has("shims/python3.13", "echo not activated >&2; exit 127")
    older = machine.has("versions/3.13.2/bin/python")
    newer = machine.has("versions/3.13.10/bin/python")
    assert machine.newest().stdout.strip() == newer
    machine.has("versions/3.13.10/bin/python", "exit 1")
    assert machine.newest().stdout.strip() == older


def test_the_newest_on_either_place_is_taken(machine):
    machine.has("versions/3.12.9/bin/python")
    on_path = machine.has("shims/python3.13")
    assert machine.newest().stdout.strip() == on_path
    newer = machine.has("versions/3.14.0/bin/python")
    assert machine.newest().stdout.strip() == newer


def test_builds_of_another_kind_are_left_alone(machine):
    machine.has("versions/3.14.0t/bin/python")
    assert machine.newest().returncode == 1


def test_failures_are_told_in_one_line(machine):
    python = machine.has("versions/3.12.0/bin/python", "echo no; echo ensurepip; exit 1")
    run = machine.newest()
    assert run.returncode == 1
    assert run.stdout == f"no python3.14; no python3.13; {python}: no ensurepip \n"
