"""Stored bytes of checkpoints: changed ones are noticed, in every file and every way."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flips import cut, flipped, largest_file

import metalearn as ml
from metalearn.core import files, lock
from metalearn.training import sinks

# Orbax leaves its event loop and threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def tree(seed=0):
    """Several dtypes, a scalar, an empty array and a key."""
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=4), jnp.bfloat16),
        "count": jnp.asarray(seed, jnp.int32),
        "none": jnp.zeros((0, 2)),
        "key": jax.random.key(seed),
    }


EXTRA = {"history": [{"step": 1, "loss": 0.25}], "name": "ü", "nan": None}


def bits(tree):
    leaves = [jax.random.key_data(x) if x.dtype == tree["key"].dtype else x
              for x in jax.tree.leaves(tree)]  # fmt: skip
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def saved(folder, steps=(1, 2), **options):
    checkpoints = ml.Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, tree(step), EXTRA)
    checkpoints.close()
    return ml.Checkpoints(folder, **options)


def outcome(checkpoints, step=2):
    """What the user of a changed checkpoint gets: a message, or exactly what was saved."""
    try:
        found, extra = checkpoints.restore(step, like=tree())
    except (ValueError, FileNotFoundError) as error:
        assert str(checkpoints.folder) in str(error), error
        return "noticed"
    assert bits(found) == bits(tree(step)) and extra == EXTRA
    return "harmless"


def content(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_flipped_bits_are_noticed(tmp_path):
    checkpoints = saved(tmp_path / "run")
    stored = content(tmp_path / "run" / "2")
    assert {"record.json", "_METADATA", "manifest.ocdbt"} <= {path.name for path in stored}
    for file in flipped(stored, seed=0):
        assert outcome(checkpoints) == "noticed", file
    assert outcome(checkpoints) == "harmless"  # all is as it was


def test_flipped_bits_of_the_arrays_are_all_noticed(tmp_path):
    """Where the numbers themselves are: the largest file, of arrays that do not shrink."""
    big = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "key": jax.random.key(1)}
    checkpoints = ml.Checkpoints(tmp_path / "run")
    checkpoints.save(1, big)
    checkpoints.close()
    largest = max(content(tmp_path / "run"), key=lambda path: path.stat().st_size)
    assert largest.stat().st_size > 14_000
    words = rf"{largest} is not as it was written: .* Delete .*run/1 to start afresh"
    for _ in flipped([largest], seed=1):
        with pytest.raises(ValueError, match=words):
            checkpoints.restore(1, like=big)


def test_a_changed_array_is_named(tmp_path, monkeypatch):
    """By a storage layer that notices nothing, as where no layer has a checksum."""
    checkpoints = saved(tmp_path / "run")
    read = ml.Checkpoints._read_arrays

    def one_bit(self, *args):
        *others, last = read(self, *args)
        array = np.array(last)
        array.view(np.int32)[2, 1] ^= 1
        return [*others, jnp.asarray(array)]

    monkeypatch.setattr(ml.Checkpoints, "_read_arrays", one_bit)
    words = r"run/2/arrays is not as it was written: w differ .*go on from 1\."
    with pytest.raises(ValueError, match=words):
        checkpoints.restore(2, like=tree())


def test_cut_files_are_noticed(tmp_path):
    checkpoints = saved(tmp_path / "run")
    whole = {p: p.stat().st_size for p in content(tmp_path / "run" / "2")}
    for file, what in cut(whole):
        same = what != "gone" and file.stat().st_size == whole[file]  # was empty before
        assert outcome(checkpoints) == ("harmless" if same else "noticed"), (file, what)
    assert outcome(checkpoints) == "harmless"


@pytest.mark.parametrize("part", ["arrays", "record.json"])
def test_parts_of_another_checkpoint_are_noticed(tmp_path, part):
    checkpoints = saved(tmp_path / "run")
    if part == "arrays":
        shutil.rmtree(tmp_path / "run" / "2" / part)
        shutil.copytree(tmp_path / "run" / "1" / part, tmp_path / "run" / "2" / part)
    else:
        shutil.copy(tmp_path / "run" / "1" / part, tmp_path / "run" / "2" / part)
    with pytest.raises(ValueError, match=r"run/2"):
        checkpoints.restore(2, like=tree())
    assert outcome(checkpoints, 1) == "harmless"


def test_a_checkpoint_under_another_number_or_of_another_run_is_refused(tmp_path):
    checkpoints = saved(tmp_path / "run", run="one")
    (tmp_path / "run" / "2").rename(tmp_path / "run" / "3")
    with pytest.raises(
        ml.CheckpointMismatch, match=r"run/3 is a checkpoint of step 2, expected 3"
    ):
        checkpoints.restore(3, like=tree())
    other = ml.Checkpoints(tmp_path / "run", run="other")
    with pytest.raises(ml.CheckpointMismatch, match="of run one, expected other"):
        other.restore(1, like=tree())
    assert outcome(ml.Checkpoints(tmp_path / "run"), 1) == "harmless"  # asks for none


def test_checkpoints_without_digests_are_refused(tmp_path):
    """As earlier versions wrote them."""
    (tmp_path / "run" / "4" / "arrays").mkdir(parents=True)
    (tmp_path / "run" / "4" / "extra").mkdir()
    with pytest.raises(ValueError, match=r"4/record.json is missing: .* earlier version"):
        ml.Checkpoints(tmp_path / "run").restore(4, like=tree())


@pytest.mark.parametrize("like", [{}, {"none": jnp.zeros((0, 3), jnp.int8)}], ids=str)
def test_trees_without_numbers_are_stored(tmp_path, like):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    checkpoints.save(0, like, {"note": 1})
    checkpoints.close()
    found, extra = checkpoints.restore(0, like=like)
    assert jax.tree.structure(found) == jax.tree.structure(like) and extra == {"note": 1}
    assert [x.shape for x in jax.tree.leaves(found)] == [
        x.shape for x in jax.tree.leaves(like)
    ]


# -- Numbers and places -------------------------------------------------------------------


@pytest.mark.parametrize("step", [-1, "5", None, True, 1.5, float("nan"), [1]], ids=repr)
def test_only_numbers_are_steps(tmp_path, step):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    with pytest.raises(ValueError, match=r"step is .*; expected an integer of 0 or more"):
        checkpoints.save(step, tree())
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoints.restore(step, like=tree())
    assert not (tmp_path / "run").exists()


ALONE = {
    "text": ({"a": "x"}, None, "a is a str; checkpoints hold arrays"),
    "number": ({"a": 1.0}, None, "a is a float.*numpy.asarray"),
    "objects": ({"a": np.array([None])}, None, "a is an array of objects"),
    "set": ({"a": np.ones(1)}, {"b": {1}}, "extra cannot be .*set is not JSON"),
    "number of NumPy": ({"a": np.ones(1)}, {"b": np.float32(1)}, "float32.*tolist"),
    "list": ({"a": np.ones(1)}, [1], "extra .*it is a list"),
}


@pytest.mark.parametrize("kind", ALONE)
def test_what_a_checkpoint_cannot_hold_is_refused_before_a_file_is_made(tmp_path, kind):
    tree, extra, words = ALONE[kind]
    checkpoints = ml.Checkpoints(tmp_path / "run")
    with pytest.raises(TypeError, match=words):
        checkpoints.save(1, tree, extra)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, -1, "2", None, True, 2.5], ids=repr)
def test_only_counts_are_kept(tmp_path, keep):
    with pytest.raises(ValueError, match=r"keep is .*; expected an integer of 1 or more"):
        ml.Checkpoints(tmp_path / "run", keep=keep)


def test_no_checkpoint_is_overwritten_or_deleted_by_an_earlier_step(tmp_path):
    checkpoints = saved(tmp_path / "run", steps=(3, 5, 7))
    assert checkpoints.steps() == [5, 7] and checkpoints.latest() == 7
    for step in (7, 6, 0):
        with pytest.raises(ValueError, match=rf"step is {step}, but .* 7 already"):
            checkpoints.save(step, tree())
    checkpoints.save(np.int64(9), tree(9), EXTRA)
    assert outcome(checkpoints, 9) == outcome(checkpoints, 7) == "harmless"
    checkpoints.close()


def test_a_place_that_is_no_text_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="not text in UTF-8"):
        ml.Checkpoints(tmp_path / os.fsdecode(b"run\xff"))


# -- A full disk --------------------------------------------------------------------------


# Threads of orbax end later than the write that has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path):
    checkpoints = saved(tmp_path / "run", steps=(1,))
    big = {**tree(2), "w": jax.random.normal(jax.random.key(0), (200, 200))}
    words = r"run/2 cannot be written: .*Checkpoints up to 1 are whole; go on from there"
    with pytest.raises(files.CannotWrite, match=words), largest_file(40_000):
        checkpoints.save(2, big)
    checkpoints.close()
    assert checkpoints.steps() == [1] and outcome(checkpoints, 1) == "harmless"
    checkpoints = ml.Checkpoints(tmp_path / "run")
    checkpoints.save(2, tree(2), EXTRA)  # space was freed
    checkpoints.close()
    assert outcome(checkpoints) == "harmless"
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"1", "2", lock.LOCK}  # nothing of the failed one


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_every_error_of_the_disk_has_a_path_and_a_remedy(tmp_path, monkeypatch, number):
    checkpoints = ml.Checkpoints(tmp_path / "run")

    def fail(*args, **kwargs):
        raise RuntimeError("native") from OSError(number, os.strerror(number))

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(files.CannotWrite, match=r"run/1 cannot .* No checkpoint was there"):
        checkpoints.save(1, tree())
    checkpoints.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_a_sink_is_said():
    write = sinks.json_lines("/dev/full")
    with pytest.raises(files.CannotWrite, match=r"/dev/full cannot .*: the disk is full"):
        write({"step": 1})


def test_a_sink_that_cannot_write_is_refused_when_it_is_made(tmp_path):
    with pytest.raises(files.CannotWrite, match="the path is a folder"):
        sinks.json_lines(tmp_path)


# -- Two processes ------------------------------------------------------------------------

WRITER = """
import sys
import jax.numpy as jnp
import metalearn as ml
checkpoints = ml.Checkpoints(sys.argv[1])
checkpoints.save(1, {"w": jnp.arange(3.0)})
print("saved", flush=True)
sys.stdin.read()
"""


def test_one_process_writes_and_others_may_read(tmp_path):
    folder, arrays = tmp_path / "run", {"w": jnp.arange(3.0)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "saved\n"
            checkpoints = ml.Checkpoints(folder)
            with pytest.raises(lock.FolderInUse, match=f"process {process.pid} on"):
                checkpoints.save(2, arrays)
            found, _ = checkpoints.restore(1, like=arrays)
            np.testing.assert_array_equal(found["w"], [0, 1, 2])
            for file in content(folder / "1" / "arrays"):
                file.write_bytes(b"")
            with pytest.raises(ValueError, match=r"In use by process .*try again") as error:
                checkpoints.restore(1, like=arrays)
            assert "Delete" not in str(error.value)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    checkpoints.save(2, arrays)
    checkpoints.close()
    assert checkpoints.latest() == 2
