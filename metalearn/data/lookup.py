"""Names of known sets, and the folders that hold their files."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path

from metalearn.data import arguments


def check_name(what: str, name: object, names: Collection[str]) -> None:
    """Refuses an unknown name, and tells the nearest known one.

    Args:
      what: What the name is of, such as "graph".
      name: Name that was given.
      names: Known names.

    Raises:
      ValueError: the name is not among them.
    """
    if not isinstance(name, str) or name not in names:
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown {what} {name!r}; expected one of {', '.join(names)}.{hint}"
        )


def place_of(
    what: str,
    data_dir: str | Path | None,
    files: Sequence[str],
    *,
    within: Sequence[str],
    folders: Sequence[str] = (),
    told: str | None = None,
) -> Path:
    """The folder that holds all files of a set: `data_dir`, or a folder within it.

    Args:
      what: What the files are of, such as "the graph 'cora'".
      data_dir: Folder that the user gave, or None.
      files: Names of the files.
      within: Names of folders within `data_dir` where the files may be. They are looked
        through first, in this order, and `data_dir` last.
      folders: Names of folders that would do instead of the files.
      told: What the files are, for messages; their names if None.

    Raises:
      TypeError: `data_dir` is no path.
      FileNotFoundError: no folder was given, or none of them holds all.
    """
    told = ", ".join(files) if told is None else told
    remedy = f"Give --data-dir DIR, where DIR or DIR/{within[0]} holds them."
    if data_dir is None:
        raise FileNotFoundError(
            f"files of {what} are missing ({told}): no data_dir was given. {remedy}"
        )
    arguments.path("data_dir", data_dir)
    places = [*(Path(data_dir) / name for name in within), Path(data_dir)]
    for place in places:
        if all((place / name).is_file() for name in files):
            return place
        if folders and all((place / name).is_dir() for name in folders):
            return place
    raise FileNotFoundError(
        f"files of {what} are missing ({told}): they are not together in "
        f"{' or '.join(map(str, places))}. {remedy}"
    )
