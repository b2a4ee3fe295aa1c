"""Runs wrong versions of the learners against their tests.

`python -m tests.mutations [--learner NAME ...] [--jobs N]`, from the root of the checkout.
First the named tests have to pass on an unchanged copy of the package. Then every mutation
is made in a copy of its own, and its test runs there alone. A mutation is killed where the
test fails. Any other end (a copy that cannot be imported, a test that is not found or takes
too long) says nothing of the test and is reported as broken.

Exit status: 0, all killed; 1, some survived or are broken; 2, a test fails on the unchanged
copy, or an unknown learner was asked for.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mutations import Mutation, every

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600  # of one process
VERDICTS = {0: "SURVIVED", 1: "killed"}  # by the exit status of pytest


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("--learner", action="append", help="only those of this learner")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    asked = parser.parse_args(arguments)
    mutations = every()
    unknown = set(asked.learner or ()) - {m.learner for m in mutations}
    if unknown:
        print(f"no mutation of {', '.join(sorted(unknown))}")
        return 2
    if asked.learner:
        mutations = [m for m in mutations if m.learner in asked.learner]
    status, output = run_tests(dict.fromkeys(m.test for m in mutations))
    if status:
        print(output, "\nThe tests have to pass where nothing is changed.", sep="")
        return 2
    with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
        verdicts = []
        for mutation, (verdict, why) in zip(mutations, pool.map(judge, mutations)):
            verdicts.append(verdict)
            line = f"{verdict}: {mutation.learner}, {described(mutation)}"
            print(f"{line} [{why}]", flush=True)
    print("\nlearner | mutation | test")
    for mutation in mutations:
        print(f"{mutation.learner} | {described(mutation)} | {mutation.test}")
    killed = verdicts.count("killed")
    print(f"\n{killed} of {len(mutations)} killed")
    return 0 if killed == len(mutations) else 1


def judge(mutation: Mutation) -> tuple[str, str]:
    """The verdict on one mutation, and what the test said last."""
    try:
        status, output = run_tests([mutation.test], mutation)
    except subprocess.TimeoutExpired:
        return "broken", f"took more than {SECONDS} s"
    verdict = VERDICTS.get(status, "broken")
    said = re.findall(r"^E  +(.+)", output, re.M) or output.strip().splitlines()[-1:]
    return verdict, " ".join(said[:1]) if verdict != "SURVIVED" else "passed"


def run_tests(tests: Iterable[str], mutation: Mutation | None = None) -> tuple[int, str]:
    """Exit status and output of tests on a copy of the package, changed or not."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "metalearn")
        shutil.copytree(ROOT / "metalearn", copy)
        if mutation is not None:
            apply(mutation, copy)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
        command += [str(ROOT / "tests" / test) for test in tests]
        # Python looks in the folder where it starts first, so that the copy is imported.
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    return done.returncode, done.stdout + done.stderr


def apply(mutation: Mutation, package: Path) -> None:
    """Changes one file of a package.

    Raises:
      ValueError: the text to replace does not occur exactly once.
    """
    file = package / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.old!r} occurs {text.count(mutation.old)} times in {mutation.file}; "
            "expected once."
        )
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    # Where size and second agree Python would take the old bytecode for that of the file.
    for stale in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
        stale.unlink()


def described(mutation: Mutation) -> str:
    """The file, and the words that change."""
    old, new = (re.findall(r"\w+|\s+|.", text) for text in (mutation.old, mutation.new))
    same = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    parts = [op for op in same if op[0] != "equal"]
    first, last = parts[0], parts[-1]
    # With a few words on both sides, for a lone sign says little.
    before, after = max(first[1] - 6, 0), 6
    texts = (
        "".join(old[before : last[2] + after]),
        "".join(new[max(first[3] - 6, 0) : last[4] + after]),
    )
    gone, come = (re.sub(r"\s+", " ", text).strip() for text in texts)
    return f"{mutation.file}: {gone or '-'} -> {come or '-'}"
