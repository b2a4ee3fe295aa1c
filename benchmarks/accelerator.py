"""What an accelerator does with every workload: one command on a bare machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import _card_rows, _harness
from benchmarks._card_rows import Row
from benchmarks._card_worker import GO, MARK

WORKER = ("-m", "benchmarks._card_worker")


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Measures rows in the order of their value, and goes on where it stopped.

    Each row has a process of its own, which is ended when its time is over. What failed is
    stored with its reason, and tried again by the next call.

    Attributes:
      minutes: Time after which no further row is begun.
      json: Folder of `accelerator.json`, which is read first and stored after each row.
      tiny: Small sizes, to see on any machine that the rows run.
      at_once: Rows that are made ready at once. Too many share the memory of a card.
      seconds: Length of a timing.
      containing: Part of the names of the rows to measure; all if empty.
    """

    minutes: float = 9.0
    json: str = str(_harness.RESULTS)
    tiny: bool = False
    at_once: int = 4
    seconds: float = 1.5
    containing: str = ""

    def run_benchmark(self) -> None:
        for name, least in (("at_once", 1), ("minutes", 0.01), ("seconds", 1e-3)):
            if not getattr(self, name) >= least:
                raise SystemExit(
                    f"{name} is {getattr(self, name)}; expected {least} or more."
                )
        end = time.monotonic() + 60 * self.minutes
        path = Path(self.json) / "accelerator.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(
                f"{self.json} cannot be a folder of results: {error}"
            ) from None
        found = self._stored(path)
        done = {name for name, row in found.items() if "error" not in row}
        rows = _card_rows.all_rows(tiny=self.tiny)
        rows = [row for row in rows if self.containing in row.name]
        if not rows:
            raise SystemExit(f"no row's name contains {self.containing!r}.")
        rows = [row for row in rows if row.name not in done]
        print(f"{len(rows)} rows to measure; {path} has {len(done)}.")
        # What ends this process ends the workers, which hold the card.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            self._measure_and_store(rows, found, path, end)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _measure_and_store(
        self, rows: list[Row], found: dict[str, Any], path: Path, end: float
    ) -> None:
        for batch in sorted({row.batch for row in rows}):
            chosen = [row for row in rows if row.batch == batch]
            for name, said in self._measured(chosen, end):
                # Each with its own environment: the next call may have another machine.
                about = {
                    "made_ready_at_once": self.at_once,
                    "environment": _harness.where(),
                }
                found[name] = said | about
                shown = {k: v for k, v in said.items() if k != "kernels"}
                print(f"{name}: {shown}", flush=True)
                result = {"kind": "accelerator", "tiny": self.tiny, "rows": found}
                _harness.store("accelerator", result, path)

    def _stored(self, path: Path) -> dict[str, Any]:
        """Rows of an earlier call on such a device."""
        if not path.is_file():
            return {}
        here = (self.tiny, _harness.where()["device"]["kind"])
        try:
            stored = json.loads(path.read_text())
            there = (stored["tiny"], stored["environment"]["device"]["kind"])
            rows = {name: dict(row) for name, row in stored["rows"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(
                f"{path} is no result of this command ({type(error).__name__}: {error}). "
                "Move it away, or give another folder by --json."
            ) from None
        if here != there:
            raise SystemExit(
                f"{path} holds rows of {there[1]}{' in tiny form' * there[0]}; these "
                f"would be of {here[1]}{' in tiny form' * here[0]}. Give another folder "
                "by --json."
            )
        return rows

    def _measured(self, rows: list[Row], end: float) -> Iterator[tuple[str, dict]]:
        """Names and results of rows, made ready side by side and timed in turn."""
        waiting, working, ready = list(rows), [], []
        with contextlib.ExitStack() as stack:
            while working or (waiting and time.monotonic() < end):
                while waiting and len(working) < self.at_once and time.monotonic() < end:
                    working.append(_Worker(waiting.pop(0), self.seconds, end))
                    stack.callback(working[-1].end)
                for worker in list(working):
                    if (said := worker.said(0.05)) is None:
                        continue
                    working.remove(worker)
                    if "ready_s" in said:
                        ready.append((worker, said))
                    else:
                        yield worker.row.name, said
            if waiting:
                print(f"out of time: {len(waiting)} rows of this batch were not begun")
            for worker, said in ready:
                worker.go(end)
                while (result := worker.said(0.5)) is None:
                    pass
                worker.end()  # its memory is for the next
                yield worker.row.name, said | result


class _Worker:
    """The process of one row.

    Attributes:
      row: The row.
    """

    def __init__(self, row: Row, seconds: float, end: float):
        self.row = row
        self._deadline = min(end, time.monotonic() + row.limit)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, *WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # so that its children end with it
            # Rows share the memory of the card.
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        spec = {"job": row.job, "spec": row.spec, "seconds": seconds}
        self._write(json.dumps(spec))

    def go(self, end: float) -> None:
        """Lets it measure. What is ready is worth some seconds after the end."""
        self._deadline = min(end + 10, time.monotonic() + self.row.limit)
        self._write(GO)

    def said(self, seconds: float) -> dict[str, Any] | None:
        """What it says next; `None` if it says nothing within the seconds."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            if time.monotonic() < self._deadline:
                return None
            self.end()
            return {"error": "not done in its time"}
        if line is not None:
            return json.loads(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)  # its output has ended, and so will it
        status = self._process.poll()
        self._errors.seek(0)
        words = self._errors.read()[-500:].decode(errors="replace")
        self.end()
        return {"error": f"ended with status {status}: {words}"}

    def end(self) -> None:
        """Ends the process, whatever it does; for the second time it is nothing."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=5)
        with contextlib.suppress(OSError):  # what it never read
            self._process.stdin.close()
        self._errors.close()

    def _read(self) -> None:
        with self._process.stdout as lines:
            for line in lines:
                if line.startswith(MARK):
                    self._lines.put(line.removeprefix(MARK))
        self._lines.put(None)

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it has ended, and `said` tells
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
