"""Executes the notebooks: `python notebooks/build.py [NAME ...]` from the root.

The sources are the `.py` files in percent format; the `.ipynb` files beside them are made from
them here, with their pictures. `METALEARN_FAST=1` uses fewer steps, `--check` writes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(source: Path):
    """The executed notebook of a source file."""
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    client = NotebookClient(
        notebook, timeout=3600, resources={"metadata": {"path": str(HERE)}}
    )
    return client.execute()


def main(argv: list[str]) -> None:
    names = [a for a in argv if not a.startswith("--")]
    for source in sorted(HERE.glob("[0-9]*.py")):
        if names and not any(name in source.stem for name in names):
            continue
        notebook = execute(source)
        if "--check" not in argv:
            jupytext.write(notebook, source.with_suffix(".ipynb"))
        print(f"executed {source.name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
