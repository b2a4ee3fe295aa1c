"""The classes that a folder or zip of images holds, and what it holds beside them.

A class is a folder of images. Folders may be nested (`domain/class/image.jpg`); then the
class is the whole path, and the group of the class is the first folder. Where the first
folders are parts (`train/class/image.jpg`, `val/...`, `test/...`), the class is the path
below. What gives no class is counted, because a class that is silently missing changes
every result.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path, PurePosixPath

from metalearn.data.images.archives import IMAGE_SUFFIXES, ImageTree
from metalearn.data.images.image_sets import PARTS
from metalearn.data.images.limits import Limits
from metalearn.data.images.splits import normal, part_of

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".7z", ".rar")
# Files that stand beside images; a folder with others only may be a class.
_NOTES = (
    *("", ".txt", ".json", ".csv", ".tsv", ".md", ".xml", ".yaml", ".yml", ".html"),
    *(".htm", ".pdf", ".rst", ".log", ".py", ".ini", ".db", ".toml", ".sh"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The classes of one folder or zip.

    Attributes:
      files: Paths of the images of each class, in the tree.
      groups: Group of each class.
      parts: Class names by part where the first folders are parts, else None.
      shared: Names of classes that stand in several of these parts.
      folders: Part of each of these first folders, in words.
      left_out: What gives no image, in words.
      absent: Folders that give no class, and why.
      lost: Folders of `absent` that look like classes.
    """

    files: dict[str, list[str]]
    groups: dict[str, str]
    parts: dict[str, list[str]] | None
    shared: list[str]
    folders: str
    left_out: str
    absent: dict[str, str]
    lost: list[str]


def open_images(path: str | Path, limits: Limits) -> ImageTree:
    """The tree of a folder or zip, or of the only zip in a folder without images.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: the tree is refused, see `ImageTree`, or holds no image.
    """
    tree = ImageTree(path, limits)
    if tree.image_paths():
        return tree
    with tree:
        packed = sorted(p for p in tree.paths if p.lower().endswith(ARCHIVES))
        if tree.root.is_dir() and len(packed) == 1 and packed[0].lower().endswith(".zip"):
            return ImageTree(tree.root / packed[0], limits)
        remedy = ""
        if packed:
            remedy = (
                f" It holds the archives {packed[:5]}: give the path of one zip, or unpack "
                "others (tar -xf) and give the folder."
            )
        kinds = f" ({_kinds(tree.paths)})" if tree.paths else ""
        raise ValueError(
            f"{tree.root} holds no image among {len(tree.paths)} files{kinds}; expected "
            f"class/image with one of {', '.join(IMAGE_SUFFIXES)}.{remedy}"
        )


def layout_of(tree: ImageTree, *, by_parts: bool) -> Layout:
    """Finds the classes of a tree that holds images.

    Args:
      tree: The tree.
      by_parts: Whether first folders that are named as parts are taken as parts. They
        belong to the names of the classes otherwise.

    Raises:
      ValueError: an image is in no class folder, or two names cannot be told apart.
    """
    paths = [PurePosixPath(path) for path in tree.image_paths()]
    depth = _wrappers(paths)
    for path in paths:
        if len(path.parts) < depth + 2:
            raise ValueError(
                f"{str(path)!r} in {tree.root} is in no class folder; expected "
                "class/image.png. Move it into the folder of its class."
            )
    tops, below = _part_folders(tree, paths, depth) if by_parts else ({}, depth)
    files: dict[str, list[str]] = {}
    written: dict[str, set[str]] = {}
    places: dict[str, set[str]] = {}
    for path in paths:
        stored = "/".join(path.parts[below:-1])
        # One form of accents, so that a set has the same names on every system.
        name = normal(stored)
        files.setdefault(name, []).append(str(path))
        written.setdefault(name, set()).add(stored)
        if tops:
            places.setdefault(name, set()).add(tops[path.parts[below - 1]])
    for name, forms in written.items():
        if len(forms) > 1:
            raise ValueError(
                f"{tree.root} has {len(forms)} folders whose names look like {name!r} and "
                "differ in the Unicode form of their accents only; expected one. Join "
                "the folders."
            )
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(
                f"The name of the folder {name!r} in {tree.root} is not UTF-8; expected "
                "a name that every system can read. Rename the folder."
            )
    absent, lost = _absent(tree, paths)
    by_part = {
        part: sorted(name for name, found in places.items() if part in found)
        for part in PARTS
    }
    named = ", ".join(f"{folder!r} as {part}" for folder, part in sorted(tops.items()))
    return Layout(
        files=files,
        groups={name: name.split("/")[0] if "/" in name else "all" for name in files},
        parts={part: names for part, names in by_part.items() if names} if tops else None,
        shared=sorted(name for name, found in places.items() if len(found) > 1),
        folders=named,
        left_out=_left_out(tree, absent),
        absent=absent,
        lost=lost,
    )


def _wrappers(paths):
    """Number of leading folders that hold everything, as a zip often has one."""
    depth = 0
    while (
        min(len(path.parts) for path in paths) > depth + 2
        and len({path.parts[depth] for path in paths}) == 1
    ):
        depth += 1
    return depth


def _part_folders(tree, paths, depth):
    """Part of each first folder if all are named as parts, and the depth of the classes."""
    if depth and (part := part_of(paths[0].parts[depth - 1])):
        return {paths[0].parts[depth - 1]: part}, depth
    tops = {path.parts[depth]: part_of(path.parts[depth]) for path in paths}
    flat = [path for path in paths if len(path.parts) == depth + 2]
    if None in tops.values() or len(flat) == len(paths):
        return {}, depth
    if flat:
        raise ValueError(
            f"{str(flat[0])!r} in {tree.root} is directly in the folder of a part, and "
            "other images are in class folders; expected part/class/image.png. Move it "
            "into the folder of its class."
        )
    twice = [part for part, count in Counter(tops.values()).items() if count > 1]
    if twice:
        same = sorted(top for top, part in tops.items() if part == twice[0])
        raise ValueError(
            f"{tree.root} has the folders {same}, which all mean the {twice[0]} classes; "
            "expected one folder a part. Join them, or list the classes in a splits.json."
        )
    return tops, depth + 1


def _absent(tree, paths):
    """Folders without an image in or below them: why, and which look like classes."""
    full = {str(folder) for path in paths for folder in path.parents}
    held: dict[str, list[str]] = {}
    for path in tree.paths:
        folder = str(PurePosixPath(path).parent)
        if folder not in full:
            held.setdefault(folder, []).append(path)
    absent = {folder: "is an empty folder" for folder in tree.empty}
    lost = []
    for folder, inside in sorted(held.items()):
        absent[folder] = f"holds no image that can be read ({_kinds(inside)})"
        if any(_suffix(path) not in _NOTES for path in inside):
            lost.append(folder)
    # By the last name as well, because that is what a list of classes says.
    return {PurePosixPath(f).name: why for f, why in absent.items()} | absent, lost


def _left_out(tree, absent):
    others = [p for p in tree.paths if not p.lower().endswith(IMAGE_SUFFIXES)]
    others = [p for p in others if PurePosixPath(p).name != "splits.json"]
    words = []
    if others:
        words.append(f"{len(others)} files that are no images ({_kinds(others)})")
    if tree.hidden:
        words.append(f"{tree.hidden} hidden files or folders")
    if tree.special:
        words.append(f"{tree.special} pipes or devices")
    if tree.empty:
        words.append(f"{len(tree.empty)} empty folders ({', '.join(tree.empty[:5])})")
    return f"left out: {', '.join(words) or 'nothing'}"


def _kinds(paths):
    counts = Counter(_suffix(path) or "without suffix" for path in paths)
    return ", ".join(f"{suffix} {count}" for suffix, count in counts.most_common(5))


def _suffix(path):
    return PurePosixPath(path).suffix.lower()
