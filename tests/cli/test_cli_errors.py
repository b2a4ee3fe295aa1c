"""Bad command lines, damaged run folders and failures: one message, one exit status."""

import json
import shutil

import pytest
from commands import refused, run
from image_folders import BASE, folder

from metalearn.cli import completion
from metalearn.data import records

# Orbax leaves its event loop and threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

HUGE = 10**12
SINE = ("train", "sinusoid-maml", "--out", "never")


# -- Bad command lines -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*SINE, "--devices", 1_000_000), "at most 256 for a process"),
        ((*SINE, "--devices", 200), "25 tasks for 200 devices"),
        ((*SINE, "--devices", 0), "devices is 0"),
        ((*SINE, "--devices", -3), "devices is -3"),
        ((*SINE, "--processes", 0), "process 0 of 0"),
        ((*SINE, "--processes", 1_000_000), "1 to 4096 processes"),
        ((*SINE, "--processes", 2), "need the address"),
        ((*SINE, "--processes", 2, "--process", 2), "process 2 of 2"),
        ((*SINE, "--processes", 2, "--coordinator", "localhost"), "HOST:PORT"),
        ((*SINE, "--processes", 2, "--coordinator", "localhost:99999"), "HOST:PORT"),
        ((*SINE, "--processes", 2, "--coordinator", ":80"), "HOST:PORT"),
        ((*SINE, "--coordinator", "localhost:80"), "one process needs none"),
        ((*SINE, "--steps", HUGE), "steps is 1000000000000; expected at most"),
        ((*SINE, "--steps", "9" * 5000), "--steps"),
        ((*SINE, "--test-tasks", HUGE), "test_tasks is"),
        ((*SINE, "--learner.num-steps", HUGE), "learner.num_steps is"),
        ((*SINE, "--app.widths", 8, HUGE), "app.widths is"),
        ((*SINE, "--app.shots", HUGE), "app.shots is"),
        ((*SINE, "--seed", HUGE), "below 2**32"),
        ((*SINE, "--tasks-per-step", 10**9), "of memory"),
        ((*SINE, "--app.shots", 2 * 10**9), "of memory"),
        ((*SINE, "--app.widths", 10**6, 10**6), "of memory"),
        ((*SINE, "--outer.rate", "nan"), "finite"),
        ((*SINE, "--outer.rate", "-1"), "0 or more"),
        ((*SINE, "--seeds", "a"), "such as 0-4 or 0,2,5"),
        ((*SINE, "--seeds", "4-0"), "such as 0-4"),
        ((*SINE, "--seeds", ""), "such as 0-4"),
        ((*SINE, "--seeds", "0-2,1"), "different ones"),
        ((*SINE, "--seeds", "0-100000"), "at most 1,000"),
        ((*SINE, "--seeds", "99999999999"), "such as 0-4"),
        ((*SINE, "--seeds", "0-1", "--seed", 3), "together with --seed"),
        ((*SINE, "--learner", "json:loads"), "learner"),
        ((*SINE, "--learner", ""), "unknown learner"),
        (("train", "glyphs-maml", "--app.image-size", HUGE), "app.image_size is"),
        (("train", "--app.dataset", "tfds:../../etc", "--out", "never"), "tfds"),
        (("train", "--app.dataset", "tfds:/etc/passwd", "--out", "never"), "tfds"),
        (("train", "--app.dataset", "tfds:", "--out", "never"), "tfds"),
        (("train", "--app.dataset", "tfds:a\0b", "--out", "never"), "tfds"),
        (("train", "--app.dataset", "tfds:**", "--out", "never"), "tfds"),
        (("train", "--app.dataset", "folder:nowhere", "--out", "never"), "does not exist"),
        (("train", "--out", ""), "--out"),
        (("train", "--out", "a\0b", "sinusoid-maml"), "expected the path of a folder"),
        (("train", "--out", "a\udcff", "sinusoid-maml"), "expected the path of a folder"),
        (("train", "--out", "x" * 5000, "sinusoid-maml"), "name too long"),
        (("evaluate",), "run"),
        (("evaluate", ""), "holds no run"),
        (("evaluate", "nowhere", "--seed", HUGE), "below 2**32"),
        (("compare",), "RUN"),
        (("compare", "nowhere"), "two run folders"),
        (("compare", "nowhere", "nowhere"), "holds no run"),
        (("predict", "nowhere"), "needs --support"),
        (("predict", "nowhere", "--support", "a"), "needs --images"),
        (("predict", "nowhere", "--support", "a", "--images", "b"), "holds no run"),
        (
            ("predict", "r", "--support", "a", "--images", "b", "--out", "c.txt"),
            "ends with one of",
        ),
        (
            ("predict", "r", "--support", "a", "--images", "b", "--out", "no/c.png"),
            "does not exist",
        ),
        (("predict", "r", "--support", "a", "--images", "b", "--invert", "x"), "invert"),
        (("data", "prepare", "tfds:mnist"), "TFDS prepares its own sets"),
        (("data", "prepare", "glyphs", "--image-size", 9), "takes neither"),
        (("--print-completion",), "bash, zsh, fish"),
        (("--print-completion", "tcsh"), "bash, zsh, fish"),
        (("--json",), "unknown command"),
    ],
)
def test_bad_command_lines(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    err = refused(*words)
    assert "unexpected" not in err
    assert message.lower() in " ".join(err.replace("│", " ").split()).lower()
    assert not (tmp_path / "never").exists()


# -- Damaged run folders -----------------------------------------------------------------


def _config(change):
    def damage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return damage


def _write(name, contents):
    return lambda folder: (folder / name).write_bytes(contents)


def _checkpoint_files(folder, part):
    step = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    found = (folder / "checkpoints" / str(step)).rglob("*")
    return [path for path in found if path.is_file() and part in str(path)]


def _each_file(part, change):
    def damage(folder):
        files = _checkpoint_files(folder, part)
        assert files
        for path in files:
            path.write_bytes(change(path.read_bytes()))

    return damage


def _remove(part):
    def damage(folder):
        for path in _checkpoint_files(folder, part):
            path.unlink()

    return damage


DEEP = b"[" * 200_000
DAMAGE = {
    "config empty": _write("config.json", b""),
    "config null": _write("config.json", b"null"),
    "config list": _write("config.json", b"[1, 2]"),
    "config word": _write("config.json", b'"format"'),
    "config deep": _write("config.json", DEEP),
    "config deep inside": _write("config.json", b'{"format": ' + DEEP),
    "config bytes": _write("config.json", b"\xff\xfe\x00{"),
    "config half": _write("config.json", b'{"format": 2, "recipe": "sinu'),
    "format a list": _config(lambda c: c.update(format=[2])),
    "no data": _config(lambda c: c.pop("data")),
    "data a list": _config(lambda c: c.update(data=[1])),
    "seed a word": _config(lambda c: c.update(seed="0")),
    "seed too large": _config(lambda c: c.update(seed=2**70)),
    "recipe a number": _config(lambda c: c.update(recipe=3)),
    "settings a list": _config(lambda c: c.update(settings=[])),
    "shots a word": _config(lambda c: c["settings"]["app"].update(shots="x")),
    "shots negative": _config(lambda c: c["settings"]["app"].update(shots=-1)),
    "widths nested": _config(lambda c: c["settings"]["app"].update(widths=[[40], 40])),
    "steps a list": _config(lambda c: c["settings"].update(steps=[20])),
    "steps huge": _config(lambda c: c["settings"].update(steps=10**30)),
    "rate NaN": _config(lambda c: c["settings"]["outer"].update(rate=float("nan"))),
    "outer a word": _config(lambda c: c["settings"].update(outer="adam")),
    "kind unknown": _config(lambda c: c["settings"]["app"].update(kind="x")),
    "kind of images": _config(lambda c: c["settings"]["app"].update(kind="images")),
    "learner unknown": _config(lambda c: c["settings"]["learner"].update(name="x")),
    "learner of nobody": _config(lambda c: c["settings"]["learner"].update(name="no.x:f")),
    "optimiser a number": _config(lambda c: c["settings"]["learner"].update(inner_opt=1)),
    "optimiser unknown": _config(
        lambda c: c["settings"]["learner"]["inner_opt"].update(name="lion")
    ),
    "width changed": _config(lambda c: c["settings"]["app"].update(widths=[40, 41])),
    "arrays removed": _remove("arrays"),
    "record removed": _remove("record.json"),
    "record empty": _each_file("record.json", lambda data: b""),
    "record a list": _each_file("record.json", lambda data: b"[]"),
    "record without keys": _each_file("record.json", lambda data: b"{}"),
    "record deep": _each_file("record.json", lambda data: DEEP),
    "record half": _each_file("record.json", lambda data: data[: len(data) // 2]),
    "metadata empty": _each_file("METADATA", lambda data: b""),
    "metadata a list": _each_file("METADATA", lambda data: b"[]"),
    "metadata flipped": _each_file("METADATA", lambda data: b"\x80" + data[1:]),
    "metadata deep": _each_file("METADATA", lambda data: DEEP),
    "everything empty": _each_file("", lambda data: b""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_runs_are_named(trained_sine, tmp_path, kind):
    folder = tmp_path / "run"
    shutil.copytree(trained_sine, folder)
    DAMAGE[kind](folder)
    for words in (("evaluate", folder), ("train", "--resume", "--out", folder)):
        code, _, err = run(*words)
        # Some files are not needed by all commands; nothing may fail in another way.
        assert code in (0, 2), err
        assert "Traceback" not in err and "unexpected" not in err, err
        if code:
            assert str(folder) in err
    if kind.startswith(("config", "format", "no data", "seed", "recipe", "settings")):
        assert code == 2


JUNK = {
    "a list": b"[]",
    "deep": DEEP,
    "empty": b"",
    "no keys": b"{}",
    "bytes": b"\xff\x00",
    "half a set": b'{"fileFormat": "array_record"}',
    "wrong kinds": b'{"fileFormat": "array_record", "splits": 3, "name": []}',
}


@pytest.mark.parametrize("kind", JUNK)
def test_damaged_data_sets_are_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for path, name in (
        (tmp_path / "tfds" / "mnist" / "3.0.1", "dataset_info.json"),
        (tmp_path / "cache" / "omniglot" / "a" / records.VERSION, "metadata.json"),
    ):
        path.mkdir(parents=True)
        (path / name).write_bytes(JUNK[kind])
    for words, named in (
        (("train", "--app.dataset", "tfds:mnist", "--out", "never"), "mnist"),
        (("train", "omniglot-maml", "--out", "never"), "omniglot"),
        (("data", "list"), str(tmp_path / "cache")),
    ):
        code, out, err = run(*words)
        assert code == 2, (words, out, err)
        assert "Traceback" not in err and "unexpected" not in err, err
        assert named in err
    assert not (tmp_path / "never").exists()


def test_json_stands_alone(trained_sine, monkeypatch):
    """Whatever a library prints, the standard output is JSON."""
    from metalearn import runs

    judge = runs.judge

    def talking(*args, **options):
        print("a library talks")
        return judge(*args, **options)

    monkeypatch.setattr(runs, "judge", talking)
    code, out, err = run("evaluate", trained_sine, "--json")
    assert code == 0
    assert json.loads(out)["num_tasks"] == 5
    assert "a library talks" in err


def test_json_has_no_nan(capsys):
    from metalearn.cli.console import print_json

    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, "x", None)})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [None, 1.5], "c": [1, "x", None]}


@pytest.mark.parametrize(
    "limit",
    ["--max-pixels=99", "--max-bytes=1799", "--max-file-bytes=50", "--max-files=5"],
)
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_limits_of_images_are_options_of_the_commands(
    tmp_path, monkeypatch, command, limit
):
    """Every message of a limit names an option, and the command has it."""
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    root, never = folder(tmp_path / "a", BASE), tmp_path / "never"
    words = {
        "prepare": ("data", "prepare", root, "--split", "test"),
        "train": ("train", "--app.dataset", f"folder:{root}", "--app.split", "random"),
    }[command]
    more = ("--out", never) if command == "train" else ()
    name = limit[2:].partition("=")[0].replace("-", "_")
    assert name in refused(*words, *more, limit)
    assert not never.exists()


def test_every_command_that_reads_images_has_their_limits():
    for command in ("train", "evaluate", "compare", "predict", "data"):
        options = completion.commands()[command][1]
        assert {f"--{name}" for name in LIMITS} <= options.keys(), command


LIMITS = ("max-pixels", "max-bytes", "max-file-bytes", "max-files")
