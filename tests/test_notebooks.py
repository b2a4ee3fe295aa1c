"""The notebooks run from top to bottom, and what is saved is what the sources say."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import jax
import pytest
from commands import programs

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("[0-9]*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_saved_notebook_has_the_cells_of_its_source_and_pictures(source):
    jupytext = pytest.importorskip("jupytext")
    saved = jupytext.read(source.with_suffix(".ipynb"))
    wanted = jupytext.read(source)
    assert [c.source for c in saved.cells] == [c.source for c in wanted.cells]
    outputs = [o for c in saved.cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not any(o.get("output_type") == "error" for o in outputs)


# The third takes two minutes, for HSML on images alone; its cells are also those of
# `tests/algorithms/context`.
HEAVY = "03_heterogeneous_tasks"


@pytest.mark.notebook
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem == HEAVY))
        for p in SOURCES
    ],
)
def test_notebook_runs(source, monkeypatch, glyphs_cache):
    pytest.importorskip("nbclient")
    monkeypatch.setenv("METALEARN_FAST", "1")
    monkeypatch.setenv("METALEARN_CACHE", glyphs_cache)
    # Programs that differ in nothing, as those of MAML and fine-tuning, are compiled once.
    for name, value in programs().items():
        monkeypatch.setenv(name, value)
    if source == SOURCES[0]:
        spec = importlib.util.spec_from_file_location("build", NOTEBOOKS / "build.py")
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        build.execute(source)
    else:
        monkeypatch.chdir(NOTEBOOKS)
        run_here(source)


def run_here(source):
    """The cells in this process: another one needs seconds to start and to import."""
    jupytext = pytest.importorskip("jupytext")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    cells = [c for c in jupytext.read(source).cells if c.cell_type == "code"]
    assert cells
    names = {"__name__": "__main__"}
    with (
        warnings.catch_warnings(action="default"),
        jax.numpy_rank_promotion("allow"),
        pyplot.rc_context(),
    ):
        for number, cell in enumerate(cells):
            exec(compile(cell.source, f"{source.name}, code cell {number}", "exec"), names)
            pyplot.close("all")
