"""The rows of `accelerator`, the most telling first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      name: Name under which it is stored.
      batch: Rows of a batch are made ready side by side, and timed one after the other when
        none compiles any more.
      job: Function of `_card_worker` that measures it.
      spec: Arguments of that function.
      limit: Seconds until it has to be ready, and again until it has to be done.
    """

    name: str
    batch: int
    job: str
    spec: dict[str, Any]
    limit: float = 150.0


def all_rows(*, tiny: bool) -> list[Row]:
    """Every row.

    Args:
      tiny: Small sizes, which show on a CPU that every row runs.
    """
    rows = [*_ceilings(tiny), *_steps(tiny), *_correct(tiny), *_convolutions(tiny)]
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise ValueError(f"two rows have one name: {sorted(names)}.")
    return sorted(rows, key=lambda row: row.batch)


def _ceilings(tiny: bool) -> Iterator[Row]:
    sizes = {"side": 256, "copied": 2**16} if tiny else {"side": 8192, "copied": 2**30}
    yield Row("ceilings", 0, "ceilings", sizes)


# Batch, workload, tasks of a step; then by contender: what of the model is lowered ("True",
# "pooling" or "False") or PyTorch's way, precision, and options.
_REMAT, _MIXED = ({"differentiation": way} for way in ("remat", "mixed"))
_ONE = {"task_chunk": 1}
_HEADS = ("matching", "r2d2", "snail")  # beside protonet
_STEPS = [
    (0, "mini", 16, ["True tf32", ("True tf32", _REMAT), ("True bfloat16", _MIXED)]),
    (1, "mini", 16, ["torch vmap", "torch loop"]),
    (2, "resnet12", 4, [("pooling tf32", _ONE), ("pooling bfloat16", _ONE)]),
    (2, "resnet12", 2, ["True tf32", "True bfloat16"]),
    (3, "resnet12", 4, ["torch vmap", "torch loop"]),
    (4, "omniglot5", 8, ["True tf32", "True float32"]),
    (4, "omniglot", 32, ["True tf32", "True float32"]),
    (4, "sine", 25, ["True float32"]),
    (4, "protonet", 32, ["True tf32", "pooling tf32"]),
    (5, "omniglot5", 8, ["torch vmap", "torch loop"]),
    (5, "omniglot", 32, ["torch vmap", "torch loop"]),
    (5, "sine", 25, ["torch vmap", "torch loop"]),
    (5, "protonet", 32, ["torch prototypes"]),
    *[(6, head, 32, ["True tf32", "torch prototypes"]) for head in _HEADS],
    (7, "mini", 16, ["False tf32", ("pooling tf32", _ONE), "pooling tf32"]),
    (8, "mini", 16, ["True bfloat16", ("True tf32", _MIXED)]),
    (8, "mini", 4, ["True tf32", ("True bfloat16", _MIXED)]),
    (8, "mini", 1, ["True tf32"]),
]
_TINY = {"side": 16, "query": 5, "inner_steps": 2}
_FORMS = {"True": True, "pooling": "pooling", "False": False}


def _steps(tiny: bool) -> Iterator[Row]:
    for batch, workload, tasks, contenders in _STEPS:
        spec: dict[str, Any] = {"workload": workload, "tasks": 2 if tiny else tasks}
        if tiny and workload != "sine":
            spec["sizes"] = _TINY
        for contender in contenders:
            words, options = contender if isinstance(contender, tuple) else (contender, {})
            first, second = words.split()
            if first == "torch":
                made = {"peer": second, "precision": "tf32"}
                name, job = f"{workload} T{tasks} {words} tf32", "torch_step"
            else:
                made = {"lower": _FORMS[first], "precision": second, "options": options}
                said = " ".join(f"{k}={v}" for k, v in options.items())
                name, job = f"{workload} T{tasks} lower={words} {said}".strip(), "step"
            yield Row(name, batch, job, spec | made)


def _correct(tiny: bool) -> Iterator[Row]:
    spec: dict[str, Any] = {"workload": "omniglot5", "tasks": 2}
    if tiny:
        spec["sizes"] = _TINY
    for form, precision, way in (
        ("True", "float32", "reverse"),
        ("True", "tf32", "reverse"),
        ("True", "bfloat16", "reverse"),
        ("pooling", "float32", "reverse"),
        ("True", "float32", "remat"),
        ("True", "float32", "nested"),
        ("True", "float32", "mixed"),
    ):
        options = {"differentiation": way}
        made = {"lower": _FORMS[form], "precision": precision, "options": options}
        yield Row(f"correct lower={form} {precision} {way}", 6, "correct", spec | made)


def _convolutions(tiny: bool) -> Iterator[Row]:
    shapes = [[16, 75, 42, 64, 64], [16, 75, 21, 64, 64], [16, 5, 42, 64, 64]]
    shapes = [[2, 3, 8, 8, 8]] if tiny else shapes
    for precision in ("tf32", "bfloat16"):
        spec = {"shapes": shapes, "precision": precision}
        yield Row(f"convolutions {precision}", 9, "convolutions", spec)
