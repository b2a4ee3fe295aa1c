"""The boundary between errors and the user: one message and one exit status for each."""

import errno
import io
import json
import re
import sys

import jax
import pytest

import metalearn as ml
from metalearn.cli import errors
from metalearn.core.errors import is_said, reading


def _raising(error):
    def command(argv):
        raise error

    return command


def _third_party(argv):
    return json.loads("{")


def _by_the_interpreter(argv):
    return {}["image_shape"]


def _endless(argv):
    return _endless(argv)


OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (_raising(ml.NonFiniteGradient("step 3 is not finite")), 1, "step 3"),
        (_raising(FloatingPointError("a NaN")), 1, "a NaN"),
        (_raising(MemoryError()), 1, "--tasks-per-step"),
        (_raising(OUT_OF_MEMORY), 1, "--tasks-per-step"),
        (_raising(KeyboardInterrupt()), 130, "Interrupted"),
        (_raising(BrokenPipeError()), 1, ""),
        (_raising(SystemExit("said by a learner of yours")), 2, "said by a learner"),
        (_raising(SystemExit(3)), 3, ""),
        (_raising(SystemExit()), 0, ""),
        (_raising(ImportError("No module", name="grain")), 1, "metalearn-jax[stream]"),
        (_raising(ModuleNotFoundError("No module", name="tyro.conf")), 1, "install tyro"),
        (
            _raising(OSError(errno.ENOSPC, "No space", "/runs/a")),
            1,
            "disk is full (/runs/a)",
        ),
        (_raising(FileNotFoundError(2, "No such file", "a.json")), 2, "a.json"),
        (_raising(PermissionError(13, "Denied", "a.json")), 2, "(a.json)"),
        (_raising(IsADirectoryError(21, "Is a directory", "a")), 2, "Give a file"),
        (_raising(NotADirectoryError(20, "Not a directory", "a")), 2, "Give a folder"),
        (_raising(OSError("who knows")), 2, "who knows"),
        (lambda argv: ml.task_mesh(0), 2, "expected 1 to"),
        (lambda argv: ml.Checkpoints("x", keep=0), 2, "keep is 0"),
    ],
)
def test_an_expected_failure_is_one_message(command, status, message, capsys):
    assert errors.guarded(command, []) == status
    out, err = capsys.readouterr()
    assert message in err
    assert not out
    assert "Traceback" not in err and "unexpected" not in err


UNEXPECTED = [
    (_by_the_interpreter, "KeyError: 'image_shape'"),
    (_third_party, "JSONDecodeError"),
    (_endless, "RecursionError"),
    (_raising(RuntimeError("of a library")), "RuntimeError: of a library"),
    (_raising(ImportError("cannot import name f", name="my_package")), "name f"),
    (_raising(ValueError("several\nlines")), "ValueError: several"),
]


@pytest.mark.parametrize(("command", "message"), UNEXPECTED)
def test_an_unexpected_failure_says_so(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path))
    assert errors.guarded(command, ["train", "a b"]) == 1
    _, err = capsys.readouterr()
    assert message in err and "Traceback (most recent" not in err
    said = " ".join(err.split())
    assert "unexpected error" in said and "report" in said
    assert "metalearn train 'a b'" in said
    for name, version in (("jax", jax.__version__), ("python", sys.version.split()[0])):
        assert f"{name} {version}" in said
    path = re.search(r"is in (\S+\.txt);", said)[1]
    with open(path) as file:
        report = file.read()
    assert "Traceback (most recent call last)" in report
    assert "metalearn train 'a b'" in report


@pytest.mark.parametrize("way", ["--traceback", "--debug", "environment"])
def test_the_traceback_is_shown_if_asked_for(way, capsys, monkeypatch):
    monkeypatch.delenv("METALEARN_TRACEBACK", raising=False)
    words = [] if way == "environment" else [way]
    if way == "environment":
        monkeypatch.setenv("METALEARN_TRACEBACK", "1")
    seen = []
    assert errors.guarded(lambda argv: seen.append(argv) or {}[0], ["list", *words]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert seen == [["list"]]
    assert errors.guarded(lambda argv: ml.task_mesh(0), words) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.rstrip().splitlines()[-1].startswith("metalearn: error: devices is 0")


def test_a_temporary_folder_that_is_full_hides_no_traceback(capsys, monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space")

    monkeypatch.setattr(errors.tempfile, "mkstemp", full)
    assert errors.guarded(_by_the_interpreter, []) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_narrow_terminal_ends_no_command(monkeypatch):
    """91 ± 1 % is printed after minutes of training, and ASCII has no such sign."""
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert errors.guarded(lambda argv: print("91 ± 1 % of \udcff.png") or 0, []) == 0
    narrow.flush()
    assert narrow.buffer.getvalue() == rb"91 \xb1 1 % of \udcff.png" + b"\n"


@pytest.mark.parametrize("devices", [0, -1, 1_000_000, True, 2.0, "2"])
def test_a_mesh_of_no_number_of_devices_has_no_hint_that_hangs(devices):
    with pytest.raises(ValueError, match="expected 1 to 8") as caught:
        ml.task_mesh(devices)
    assert "jax_num_cpu_devices" not in str(caught.value)


def test_only_what_this_package_raises_is_said():
    for fault, said in (
        (lambda: ml.task_mesh(0), True),
        (lambda: ml.Examples.of([1.0], [1.0, 2.0]), True),
        (lambda: json.loads("{"), False),
        (lambda: ml.task_mesh("a", "b"), False),
        (lambda: ml.metrics.mean_ci95("a"), False),  # NumPy fails inside this package
    ):
        with pytest.raises(Exception) as caught:
            fault()
        assert is_said(caught.value) is said
    assert not is_said(ValueError("never raised"))


def test_reading_names_what_was_read():
    for error in (KeyError("a"), RecursionError(), TypeError("b"), IndexError("c\nd")):
        with pytest.raises(ValueError) as caught, reading("the file a", "Mend it."):
            raise error
        text = str(caught.value)
        assert text.startswith("the file a cannot be read") and text.endswith("Mend it.")
        assert caught.value.__cause__ is error
    for error in (FileNotFoundError("a"), MemoryError(), ImportError("a"), OUT_OF_MEMORY):
        with pytest.raises(type(error)), reading("the file a", "Mend it."):
            raise error
    with pytest.raises(ValueError, match="devices is 0"), reading("the file a", "Mend it."):
        ml.task_mesh(0)
