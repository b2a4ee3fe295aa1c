"""The plots of `benchmarks/README.md`, from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(stored: list[dict[str, Any]], folder: Path) -> list[str]:
    """Draws what is stored; returns the markdown lines that show it."""
    import matplotlib

    matplotlib.use("Agg")
    lines = []
    peers = [row for row in stored if row["benchmark"].startswith("peers-")]
    if peers:
        _peers(peers, folder / "peers.png")
        lines += ["![Tasks a second of metalearn and its peers](results/peers.png)", ""]
    for row in stored:
        if row.get("kind") == "memory":
            _memory(row, folder / "memory.png")
            lines += ["![Temporary memory by inner steps](results/memory.png)", ""]
    return lines


def _peers(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    columns = min(4, len(rows))  # more are too small to read on a page
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(3.4 * columns, 2.6 * lines),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        rates = {name: values["tasks_per_s"] for name, values in row["rows"].items()}
        names = sorted(rates, key=rates.get)
        colours = ["tab:blue" if "metalearn" in name else "0.7" for name in names]
        axis.barh(names, [rates[name] for name in names], color=colours)
        axis.set_title(row["benchmark"].removeprefix("peers-"))
        axis.set_xlabel("tasks a second")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _memory(row: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for name, found in row["temporary_bytes"].items():
        steps = sorted(map(int, found))
        axis.plot(steps, [found[str(s)] / 2**20 for s in steps], marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="inner steps", ylabel="temporary MiB")
    axis.set_xticks(steps, map(str, steps))
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
