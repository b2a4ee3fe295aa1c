"""What the command says while it works: completion, curves, bars, sinks."""

import importlib.util
import logging
import re
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
from commands import ok, refused

from metalearn import apps
from metalearn.apps import memory, plots
from metalearn.cli import completion
from metalearn.cli.console import library_messages
from metalearn.core import cost
from metalearn.training import sinks

# -- Completion --------------------------------------------------------------------------


def completed(tmp_path, *words):
    """What bash completes of these words, the last of which is being written."""
    path = tmp_path / "metalearn.bash"
    path.write_text(ok("--print-completion", "bash"))
    quoted = " ".join(f"'{word}'" for word in words)
    text = (
        f"source {path}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _metalearn; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("metalearn", ""), {"train", "compare", "predict", "data", "--version"}),
        (("metalearn", "tr"), {"train"}),
        (("metalearn", "train", "glyphs-m"), {"glyphs-maml", "glyphs-meta-sgd"}),
        (("metalearn", "train", "x", "--app.eval-w"), {"--app.eval-ways"}),
        (("metalearn", "train", "x", "--learner", "prot"), {"protonet"}),
        (("metalearn", "train", "x", "--learner.agg"), {"--learner.aggregator"}),
        (
            ("metalearn", "train", "x", "--learner.inner-opt.ra"),
            {"--learner.inner-opt.rate"},
        ),
        (("metalearn", "train", "x", "--outer.name", ""), {"adam", "sgd"}),
        (("metalearn", "train", "x", "--outer.schedule", "l"), {"linear"}),
        (("metalearn", "train", "x", "--see"), {"--seed", "--seeds"}),
        (("metalearn", "evaluate", "runs/a", "--norm"), {"--norm-policy"}),
        (("metalearn", "predict", "runs/a", "--s"), {"--support"}),
        (("metalearn", "predict", "runs/a", "--invert", "a"), {"auto"}),
        (("metalearn", "data", "p"), {"prepare"}),
        (("metalearn", "--print-completion", "f"), {"fish"}),
        (("metalearn", "nonsense", "--x"), set()),
    ],
)
def test_bash_completes(tmp_path, words, expected):
    found = set(completed(tmp_path, *words))
    assert found >= expected
    if words[-1]:
        assert all(word.startswith(words[-1]) for word in found)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_the_same_words(shell):
    text = ok("--print-completion", shell)
    for command, (words, options) in completion.commands().items():
        assert re.search(rf"\b{command}\b", text)
        for word in (*words, *options):
            assert word.removeprefix("--") in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-c", text], check=True)


def test_every_completed_option_of_train_exists():
    """By the parser: no recipe has all options, but each is known to the help of some."""
    shown = ok("train", "glyphs-maml", "--help") + ok("train", "sinusoid-maml", "--help")
    own = [w for w in completion.commands()["train"][1] if not w.startswith("--learner")]
    known = [word for word in own if word in shown]
    assert len(known) > 40
    assert {"--steps", "--app.ways", "--app.functions", "--outer.clip"} <= set(known)
    refused("--print-completion", "powershell")


# -- Learning curves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([3.0, 1.0, 0.2], True),
        ([2.0, 0.2], True),
        ([1.6, 1.2, 0.3], False),
        ([1.0, 0.0], False),
        ([3.0, -0.1], False),
        ([1e3, 1e-3], True),
        ([1.0, float("nan"), 0.01], True),
        ([1.0, None, 0.5], False),
    ],
)
def test_losses_over_decades_are_drawn_logarithmically(tmp_path, monkeypatch, values, log):
    figures = []
    make = plots.figure_of
    monkeypatch.setattr(
        plots, "figure_of", lambda *a: figures.append(make(*a)) or figures[0]
    )
    rows = [{"step": 10 * i, "query/loss": value} for i, value in enumerate(values)]
    rows.append({"step": 30, "validation/loss": 1.0, "validation/accuracy": 0.5})
    plots.learning_curve(tmp_path / "c.png", rows, "t")
    loss, accuracy = figures[0].axes
    assert loss.get_yscale() == ("log" if log else "linear")
    assert accuracy.get_yscale() == "linear"
    if log:  # ticks that can be read, in plain numbers
        low, high = loss.get_ylim()
        ticks = [label.get_text() for label in loss.get_yticklabels()]
        assert sum(low <= tick <= high for tick in loss.get_yticks()) >= 2
        assert all(re.fullmatch(r"[0-9.e+-]+", tick) for tick in ticks if tick)


def test_a_curve_without_a_number_is_empty(tmp_path):
    plots.learning_curve(tmp_path / "c.png", [{"step": 1, "query/loss": None}], "t")
    assert (tmp_path / "c.png").stat().st_size > 0


# -- Bars and sinks ----------------------------------------------------------------------


def test_a_notebook_without_widgets_has_a_bar_without_a_warning(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    there = importlib.util.find_spec
    without = lambda name: None if name == "ipywidgets" else there(name)
    monkeypatch.setattr(sinks.importlib.util, "find_spec", without)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with sinks.Progress(3, label="meta-train") as bar:
            bar.update(1)
            bar.update(2, {"loss": 0.5})
    shown = capsys.readouterr().err
    assert "compiling" in shown and "3/3" in shown and "loss=0.5" in shown


def test_messages_of_the_library_are_lines_of_the_command(capsys, caplog):
    logger = logging.getLogger("metalearn.training.loop")
    before = logging.getLogger("metalearn").level
    with library_messages():
        logger.info("Compiling the first step ...")
    logger.info("not said")
    assert capsys.readouterr().out == "Compiling the first step ...\n"
    assert not caplog.records  # the root logger, which other libraries print, has none
    assert logging.getLogger("metalearn").level == before


def test_the_documented_sinks_take_rows():
    """The lines of the docstring, with services that only write down."""
    seen = []
    writer = types.SimpleNamespace(add_scalar=lambda *row: seen.append(row))
    service = types.SimpleNamespace(
        init=lambda **options: None, log=lambda row, step: seen.append((row, step))
    )
    names = {
        "tensorboardX": types.SimpleNamespace(SummaryWriter=lambda folder: writer),
        "wandb": service,
    }
    lines = [line.strip() for line in sinks.__doc__.splitlines() if line.startswith("    ")]
    for line in lines:
        if not line.startswith("ml.fit"):
            exec(line, names)
    row = {"step": 5, "query/loss": 0.25}
    names["tensorboard"](row)
    names["weights_and_biases"](row)
    assert seen == [("step", 5, 5), ("query/loss", 0.25, 5), (row, 5)]


# -- Memory ------------------------------------------------------------------------------


def test_bytes_in_words():
    for number, words in ((0, "0 bytes"), (999, "999 bytes"), (2_400_000_000, "2.4 GB")):
        assert cost.in_bytes(number) == words
    assert cost.in_bytes(3.1e12) == "3.1 TB"
    assert cost.in_bytes(5e15) == "5,000 TB"


def test_what_fits_is_not_refused():
    memory.check_fits("an array", np.zeros(3), "Take less.")
    huge = types.SimpleNamespace(shape=(2**40, 2**40), dtype=np.dtype(np.float32))
    with pytest.raises(ValueError, match=r"an array would take .* TB.*Take less\."):
        memory.check_fits("an array", huge, "Take less.")
    assert cost.available() > 2**28


def test_every_recipe_fits():
    for entry in apps.RECIPES.values():
        assert entry.recipe.steps < 2**31
