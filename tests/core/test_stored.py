"""Digests, files that are written whole or not at all, and locks of folders."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from metalearn.core import digest, files, lock

# -- Digests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.float32([[1, -0.0], [np.nan, np.inf]]),
        np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
        np.arange(6, dtype=ml_dtypes.float8_e4m3fn),
        np.float64(3),
        np.zeros((0, 4), np.int8),
        np.array([True, False]),
        np.arange(12).reshape(3, 4).T,
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_the_digest_of_an_array_is_that_of_its_kind_and_bytes(array):
    name = f"{array.dtype}{array.shape}".encode()
    expected = hashlib.sha256(name + np.asarray(array).tobytes()).hexdigest()
    assert digest.of_array(array) == expected
    if array.dtype not in (np.float64, np.int64):  # jax has these in single precision
        assert digest.of_array(jnp.asarray(array)) == expected


def test_arrays_that_differ_have_other_digests():
    one = np.float32([1, 2, 3, 4])
    others = [one[::-1], one.reshape(2, 2), one.view(np.int32), one.astype(float), one[:3]]
    found = {digest.of_array(array) for array in (one, *others, -0.0 * one, 0.0 * one)}
    assert len(found) == 8


def test_a_seal_sees_every_change_but_that_of_free_entries():
    value = {"b": [1, 2.5, None], "a": {"10": 1, "9": "ü"}, "where": "here"}
    sealed = digest.sealed(value, free=("where",))
    again = json.loads(json.dumps(dict(reversed(sealed.items())), indent=3))
    digest.check_seal({**again, "where": "there"}, where="x", remedy="", free=("where",))
    for change in ({"b": [1, 2.5]}, {"a": {}}, {"c": 0}, {"digest": "0"}, {"where": 1}):
        with pytest.raises(digest.Damaged, match=r"x.json is not as it was .*Restore it\."):
            digest.check_seal({**sealed, **change}, where="x.json", remedy="Restore it.")
    for nothing in (value, [], None, "text"):
        with pytest.raises(digest.Damaged, match="has no digest"):
            digest.check_seal(nothing, where="x.json", remedy="Restore it.")


def test_numbers_as_keys_are_what_json_makes_of_them():
    assert digest.of_json({2: "a", 10: "b"}) == digest.of_json({"10": "b", "2": "a"})


# -- Files --------------------------------------------------------------------------------

CAUSES = {
    errno.ENOSPC: "the disk is full. .*Free space",
    errno.EDQUOT: "quota .*Free space",
    errno.EROFS: "read-only. .*Make it writable",
    errno.EACCES: "permission is denied. .*Make it writable",
    errno.EFBIG: "largest size",
}


@pytest.mark.parametrize("number", CAUSES, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "error",
    [
        lambda number, path: OSError(number, os.strerror(number)),
        lambda number, path: OSError(number, os.strerror(number), str(path) + ".part"),
        lambda number, path: RuntimeError(f"UNAVAILABLE: writing [OS error {number}: x]"),
        lambda number, path: ValueError(f"failed: [Errno {number}] x"),
        lambda number, path: ValueError(f"OUT_OF_RANGE: x [os_error_code='{number}']"),
    ],
    ids=["plain", "named", "native", "text", "tensorstore"],
)
def test_errors_of_the_disk_say_where_why_and_what_to_do(tmp_path, number, error):
    path = tmp_path / "file"
    with (
        pytest.raises(files.CannotWrite, match=CAUSES[number]) as caught,
        files.writing(path, kept="The rest is whole."),
    ):
        try:
            raise error(number, path)
        except Exception as cause:
            raise KeyError("what a library makes of it") from cause
    assert str(path) in str(caught.value) and "The rest is whole." in str(caught.value)
    assert isinstance(caught.value, OSError) and caught.value.errno == number


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shapes differ"),
        FileNotFoundError(errno.ENOENT, "none", "x"),
        PermissionError(errno.EACCES, "denied", "/elsewhere/that/was/read"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, files.writing(tmp_path / "a" / "file"):
        raise error
    assert caught.value is error


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file.json"
    files.write_text(path, "old")
    full = pytest.raises(files.CannotWrite, match="disk is full")
    with full, files.replacing(path) as part:
        part.write_text("half of the n")
        raise OSError(errno.ENOSPC, "full")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file.json"]
    files.write_text(path, "new")
    assert path.read_text() == "new" and os.listdir(path.parent) == ["file.json"]


def test_a_file_is_replaced_where_a_link_leads_and_nothing_else_is(tmp_path):
    (tmp_path / "link").symlink_to("file")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(files.CannotWrite, match=f"{name} cannot be written"):
            files.write_text(tmp_path / name, "new")
    assert len(os.listdir(tmp_path)) == 4


def test_two_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with files.replacing(path) as first, files.replacing(path) as second:
        first.write_text("of the first")
        second.write_text("of the second")
    assert path.read_text() == "of the first" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": \xff}', b"[" * 100_000, b"\x00", b"\xff\xfe{}", b'{"a": 1}}'],
    ids=["empty", "cut", "bytes", "deep", "nul", "other", "more"],
)
def test_what_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        files.read_json(path)


@pytest.mark.parametrize("name", ["", None, 5, "s3://bucket/run"], ids=repr)
def test_what_is_no_path_on_this_machine_is_refused(name):
    with pytest.raises((TypeError, ValueError), match=f"--out is {name!r}"):
        files.check_name(name, "--out")


@pytest.mark.parametrize("name", [os.fsdecode(b"run\xff"), "run\0", "\ud800"], ids=ascii)
def test_paths_that_are_no_text_are_refused(name):
    with pytest.raises(ValueError, match=r"--out is 'run|--out is .*UTF-8") as caught:
        files.check_name(name, "--out")
    str(caught.value).encode()  # can be printed


# -- Locks --------------------------------------------------------------------------------

OTHER = """
import sys
from pathlib import Path
from metalearn.core import lock
lock.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another process that holds the lock of a folder; the folder and the process."""
    folder = tmp_path_factory.mktemp("lock") / "run"
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield folder, process
        process.kill()


def test_a_lock_ends_with_its_process_and_not_before(other):
    folder, process = other
    words = rf"{folder} is in use by process {process.pid} on \S+ since 20.*kill"
    for attempt in (lock.take, lock.refuse_if_in_use):
        with pytest.raises(lock.FolderInUse, match=words):
            attempt(folder)
    assert lock.holder(folder).pid == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / lock.HOLDER).exists()  # of the dead process
    assert lock.holder(folder) is None
    with lock.held(folder):
        assert json.loads((folder / lock.HOLDER).read_text())["pid"] == os.getpid()


def test_a_process_may_hold_a_lock_twice(tmp_path):
    with lock.held(tmp_path):
        with lock.held(tmp_path / "x" / ".."):
            pass
        assert lock.holder(tmp_path) is None  # no other process
        assert (tmp_path / lock.HOLDER).exists()
    assert not (tmp_path / lock.HOLDER).exists()


def test_a_folder_that_was_made_for_its_lock_goes_with_it(tmp_path):
    with lock.held(tmp_path / "runs" / "empty"):
        pass
    assert not list(tmp_path.iterdir())
    with lock.held(tmp_path / "full"):
        (tmp_path / "full" / "file").touch()
    assert (tmp_path / "full" / "file").exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(folder):
        raise NotImplementedError("no flock")

    monkeypatch.setattr(lock, "_lock_of", none)
    with pytest.warns(UserWarning, match="cannot be locked"), lock.held(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(files.CannotWrite, match=r"file/run cannot be written"):
        lock.take(tmp_path / "file" / "run")
