"""Rows of a card: stored one by one, gone on with, and ended in time."""

import dataclasses
import io
import itertools
import json
import signal
import time
import types

import pytest

from benchmarks import (
    _card_rows,
    _card_table,
    _card_worker,
    _harness,
    accelerator,
    workloads,
)

# A worker without what takes seconds to import. One of the next test is a true one.
WORKER = """
import json, sys
row = json.loads(sys.stdin.readline())
if row["spec"]["side"] == "eight":
    print("ROW " + json.dumps({"error": "TypeError: eight"}), flush=True)
else:
    print("no end of a line\\nROW " + json.dumps({"ready_s": 0.1}), flush=True)
    sys.stdin.readline()
    print("ROW " + json.dumps({"copy_gb_per_s": row["seconds"]}), flush=True)
"""


def test_rows_of_a_card_are_stored_one_by_one_and_gone_on_with(
    tmp_path, monkeypatch, capfd
):
    """What works is kept, what fails says why and is tried again."""
    monkeypatch.setattr(accelerator, "WORKER", ("-c", WORKER))
    good = _card_rows.Row("good", 0, "ceilings", {"side": 8, "copied": 64})
    bad = _card_rows.Row("bad", 0, "ceilings", {"side": "eight", "copied": 64})
    later = dataclasses.replace(good, name="later", batch=1)
    card = accelerator.Accelerator(json=str(tmp_path), seconds=0.01, at_once=2)
    monkeypatch.setattr(_card_rows, "all_rows", lambda tiny: [good, bad])
    card.run_benchmark()
    stored = json.loads((tmp_path / "accelerator.json").read_text())["rows"]
    assert stored["good"]["copy_gb_per_s"] == 0.01 and stored["good"]["ready_s"] == 0.1
    assert stored["good"]["environment"]["device"]["platform"] == "cpu"
    assert stored["bad"]["error"] == "TypeError: eight"

    monkeypatch.setattr(_card_rows, "all_rows", lambda tiny: [good, bad, later])
    with monkeypatch.context() as patch:
        clock = types.SimpleNamespace(monotonic=itertools.count(0, 600).__next__)
        patch.setattr(accelerator, "time", clock)
        card.run_benchmark()  # no time: nothing begins, nothing is lost
    assert json.loads((tmp_path / "accelerator.json").read_text())["rows"] == stored
    capfd.readouterr()
    card.run_benchmark()
    said = capfd.readouterr().out
    assert "good: " not in said and "bad: " in said and "later: " in said
    with pytest.raises(SystemExit, match=r"holds rows of cpu; .* in tiny form. Give anoth"):
        dataclasses.replace(card, tiny=True).run_benchmark()
    project = (_harness.RESULTS / "accelerator.json").read_text()
    (tmp_path / "accelerator.json").write_text(project)
    with pytest.raises(SystemExit, match=r"holds rows of NVIDIA H100"):
        card.run_benchmark()


def test_a_row_of_a_card_in_its_own_process(tmp_path, monkeypatch):
    spec = {"side": 8, "copied": 64}
    row = _card_rows.Row("ceilings", 0, "ceilings", spec)
    monkeypatch.setattr(_card_rows, "all_rows", lambda tiny: [row])
    accelerator.Accelerator(json=str(tmp_path), seconds=0.01).run_benchmark()
    stored = json.loads((tmp_path / "accelerator.json").read_text())
    assert "copy_gb_per_s" in stored["rows"]["ceilings"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert _card_table.table_rows(stored)[-1].startswith("Products of square matrices")


def test_rows_of_a_card_are_the_workloads_with_their_peers():
    for tiny in (False, True):
        rows = _card_rows.all_rows(tiny=tiny)
        named = {row.name.partition(" ")[0] for row in rows if row.job == "step"}
        assert named == set(workloads.WORKLOADS)
        assert named == {r.name.partition(" ")[0] for r in rows if r.job == "torch_step"}
        assert {row.job for row in rows} == set(_card_worker.JOBS)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"tiny": false, "environment": 3}', "\x00"]
)
def test_what_is_no_result_of_a_card_is_left_alone(tmp_path, content):
    path = tmp_path / "accelerator.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match="is no result of this command"):
        accelerator.Accelerator(json=str(tmp_path)).run_benchmark()
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"at_once": 0}, "at_once is 0; expected 1"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"containing": "xyz"}, "no row's name contains 'xyz'"),
    ],
)
def test_mistakes_of_who_measures_a_card_are_told(tmp_path, options, words):
    with pytest.raises(SystemExit, match=words):
        accelerator.Accelerator(json=str(tmp_path), **options).run_benchmark()


def test_a_worker_that_hangs_is_ended(tmp_path, monkeypatch):
    """Whatever it holds open: here a child has its output."""
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    monkeypatch.setattr(accelerator, "WORKER", ("-c", code))
    hanging = _card_rows.Row("hanging", 0, "ceilings", {}, limit=1.0)
    monkeypatch.setattr(_card_rows, "all_rows", lambda tiny: [hanging])
    began = time.monotonic()
    accelerator.Accelerator(json=str(tmp_path)).run_benchmark()
    assert time.monotonic() - began < 20
    stored = json.loads((tmp_path / "accelerator.json").read_text())["rows"]
    assert stored["hanging"]["error"] == "not done in its time"


def test_a_worker_whose_caller_has_ended_measures_nothing(capfd, monkeypatch):
    spec = {"job": "ceilings", "spec": {"side": 8, "copied": 8}, "seconds": 0.01}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(spec) + "\n"))
    _card_worker.main()
    assert capfd.readouterr().out.count(_card_worker.MARK) == 1  # that it is ready
