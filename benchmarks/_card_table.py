"""The table of `accelerator`."""

from __future__ import annotations

from typing import Any


def table_rows(result: dict[str, Any]) -> list[str]:
    """Markdown lines: steps by workload, the gradients, the rates of the card."""
    rows = {name: row for name, row in result["rows"].items() if "error" not in row}
    steps = {name: row for name, row in rows.items() if "tasks_per_s" in row}
    device = result["environment"]["device"]
    at_once = max((row["made_ready_at_once"] for row in rows.values()), default=1)
    lines = [
        f"One {device['kind']}; steps in turn, not interleaved. `T`: tasks of a step; "
        "memory: the most that a process held; ready: tracing and compiling, or the first "
        f"steps of PyTorch, on {device['cores']} cores, up to {at_once} processes at once:",
        "",
        "| row | tasks/s | step (ms) | memory (GB) | ready (s) |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(steps, key=_order):
        row = steps[name]
        ready = row.get("trace_and_compile_s", row.get("first_steps_s", ""))
        cells = [f"{row['tasks_per_s']:,.1f}", f"{1e3 * row['step_s']:.2f}"]
        cells += [str(row["peak_gb"]), str(ready)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    gradients = {n: row for n, row in rows.items() if "relative_error" in row}
    if gradients:
        lines += ["", "Meta-gradient of `omniglot5` beside float64 on the host:", ""]
        lines += ["| row | relative error |", "|---|---|"]
        lines += [f"| {n} | {row['relative_error']:.1e} |" for n, row in gradients.items()]
    if "ceilings" in rows:
        card = rows["ceilings"]
        lines += [
            "",
            "Products of square matrices: "
            + ", ".join(
                f"{card[f'{name}_tflops']:,.0f} TFLOP/s in {name}"
                for name in ("bfloat16", "tf32", "float32")
            )
            + f"; a copy {card['copy_gb_per_s']:,} GB/s.",
        ]
    return lines


def _order(name: str) -> tuple[str, bool, str]:
    """By workload, PyTorch last."""
    workload, _, rest = name.partition(" ")
    return workload, "torch" in rest, rest
