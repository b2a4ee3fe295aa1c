"""Timing and results that every benchmark shares.

Compile time is apart, every measured call waits for its result, and alternatives are
measured in turn inside one run, because absolute figures of a shared machine drift by
tens of per cent while ratios hold.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from metalearn.runs import environment

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Contender:
    """One implementation of a workload.

    Attributes:
      setup: Builds everything, compiles and warms up; returns a function that runs one
        outer step and waits for it.
      steps: Outer steps that one call of that function runs instead.
    """

    setup: Callable[[], Callable[[], None]]
    steps: int = 1


def jax_call(fn: Callable[..., Any], *args: Any) -> Contender:
    """A compiled jax function of fixed arguments."""

    def setup():
        import jax

        run = jax.jit(fn)
        call = lambda: jax.block_until_ready(run(*args))
        call()
        return call

    return Contender(setup)


def interleaved(
    contenders: Mapping[str, Contender], *, rounds: int, seconds: float, threads: int = 1
) -> dict[str, dict[str, Any]]:
    """Measures all contenders in turn, `rounds` times.

    Args:
      contenders: By name.
      rounds: Turns of each.
      seconds: Length of one turn at least (and two steps at least).
      threads: Contenders that are set up at once. With more than one, the compilers work
        side by side, and `setup_s` says what a user waits on such a machine only.

    Returns:
      By name: `setup_s`, `step_s` (one mean step time per round) and its median. What
      is not installed or does not fit the memory is left out and said so.
    """
    rows, steps = {}, {}

    def set_up(name: str) -> None:
        began = time.perf_counter()
        try:
            steps[name] = contenders[name].setup()
        except Exception as error:
            _left_out(name, error)
            return
        rows[name] = {"setup_s": round(time.perf_counter() - began, 2), "step_s": []}
        print(f"{name}: ready after {rows[name]['setup_s']} s", flush=True)

    if threads == 1:  # in this thread, whose contexts hold
        for name in contenders:
            set_up(name)
    else:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            list(pool.map(set_up, contenders))
    rows = {name: rows[name] for name in contenders if name in rows}
    for number in range(rounds):
        for name in list(rows):
            try:
                each = _timed(steps[name], seconds) / contenders[name].steps
            except Exception as error:
                _left_out(name, error)
                del rows[name]
                continue
            rows[name]["step_s"].append(each)
        shown = {name: f"{1e3 * row['step_s'][-1]:.1f} ms" for name, row in rows.items()}
        print(f"round {number + 1}/{rounds}: {shown}", flush=True)
    for row in rows.values():
        row["step_s_median"] = statistics.median(row["step_s"])
    return rows


def _timed(step: Callable[[], None], seconds: float) -> float:
    """Mean seconds of a call, after one that does not count."""
    step()
    began, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - began < seconds:
        step()
        count += 1
    return (time.perf_counter() - began) / count


def _left_out(name: str, error: Exception) -> None:
    """Says that a contender is not installed or does not fit; raises any other error."""
    words = str(error).strip()
    # Memory has ended, in the words of jax and of PyTorch.
    no_room = "RESOURCE_EXHAUSTED" in words or "out of memory" in words.lower()
    if not (no_room or isinstance(error, ImportError)):
        raise error
    line = words.partition("\n")[0] or type(error).__name__
    print(f"{name}: left out, {line}", flush=True)


def ratios(rows: Mapping[str, Mapping[str, Any]], ours: str) -> dict[str, Any]:
    """How many times faster `ours` is than each other, pair by pair of the same round."""
    found = {}
    for name, row in rows.items():
        if name == ours:
            continue
        pairs = [b / a for a, b in zip(rows[ours]["step_s"], row["step_s"], strict=True)]
        found[name] = {
            "median": round(statistics.median(pairs), 3),
            "min": round(min(pairs), 3),
            "max": round(max(pairs), 3),
        }
    return found


def where() -> dict[str, Any]:
    """Versions, device and commit, for every stored result.

    Of a copy that is no repository `METALEARN_COMMIT` says the commit.
    """
    commit = ""
    with contextlib.suppress(OSError):  # a bare machine has no git
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        ).stdout.strip()
    commit = commit or os.environ.get("METALEARN_COMMIT", "")
    versions = environment.versions()
    for name in ("torch", "torchopt", "higher"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "versions": versions,
        "device": {**environment.device(), "cpu": cpu()},
        "commit": commit,
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "date": datetime.date.today().isoformat(),
    }


def cpu() -> str:
    """Name, family and model of the processor, which decide how sums are rounded."""
    path, facts = Path("/proc/cpuinfo"), {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    family, model = facts.get("cpu family", "?"), facts.get("model", "?")
    return f"{facts['model name']}, family {family}, model {model}"


def store(name: str, result: Mapping[str, Any], path: str | Path | None = None) -> Path:
    """Writes a result with its environment as JSON, under the name that its file has."""
    path = Path(path) if path else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.name.removesuffix(".json")
    content = {"benchmark": own, **result, "environment": where()}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return path
