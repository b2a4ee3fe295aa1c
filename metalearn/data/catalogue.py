"""Finding image sets by name: load, prepare, and what is available.

A name is one of the built-in sets ("glyphs", "omniglot"), "folder:PATH" or a path to
one's own images, or "tfds:NAME" for a TFDS data set that is prepared on this machine.
Nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from metalearn.data import builders
from metalearn.data.glyphs import glyphs_config, glyphs_source
from metalearn.data.image_sets import PARTS, ImageDataset
from metalearn.data.omniglot import how_to_get, omniglot_source

_CHOSEN = "chosen.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CatalogueRow:
    """One line of `metalearn data list`.

    Attributes:
      name: What `load` takes.
      description: One line.
      prepared: Whether records are in the cache.
      classes: Classes over all parts, or None if not prepared.
      images: Images over all parts, or None if not prepared.
      needs: What has to be there before it can be prepared.
    """

    name: str
    description: str
    prepared: bool
    classes: int | None
    images: int | None
    needs: str


@dataclasses.dataclass(frozen=True)
class _BuiltIn:
    description: str
    needs: str
    source: Callable[..., builders.RecordSource]
    # Set for data made from installed packages alone: names the cache entry.
    embedded_config: Callable[[], str] | None = None


_BUILT_IN = {
    "glyphs": _BuiltIn(
        "characters of eight scripts and symbols, drawn by some 50 typefaces, 28x28",
        "nothing: built from the installed fonts in about half a minute",
        glyphs_source,
        glyphs_config,
    ),
    "omniglot": _BuiltIn(
        "handwritten characters of up to 50 alphabets, 20 drawers each, 28x28",
        "the original archives: --data-dir DIR",
        omniglot_source,
    ),
}


def load(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    parts: Sequence[str] | None = None,
    **options,
) -> ImageDataset:
    """Loads an image set, preparing its records first if that is needed.

    Args:
      name: A built-in set, "folder:PATH", a path to a folder or zip, or "tfds:NAME".
      data_dir: Where the original archives are. The cache is keyed by their contents,
        so another folder is another cache entry. Default: the records prepared last
        with `prepare`, or the only ones there are.
      parts: The parts that must be there, such as `("test",)`; the others are left
        None. Default: every part that the source holds.
      **options: Options of the set, such as `split` or `image_size`.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: The source is missing.
      ValueError: The name is unknown or the source damaged.
      TypeError: An option that the set does not have.
    """
    name = os.fspath(name)
    if name in _BUILT_IN:
        dataset = builders.load_records(_find_or_prepare(name, data_dir, options))
    else:
        raise _unknown(name)
    return dataset if parts is None else _only(dataset, parts)


def prepare(
    name: str, *, data_dir: str | Path | None = None, force: bool = False, **options
) -> None:
    """Builds the records of a set, with a progress bar on a terminal.

    Args:
      name: A built-in set.
      data_dir: Where the original archives are, if the set needs any. Afterwards
        `load` without `data_dir` finds what was prepared last.
      force: Build again even if the records exist.
      **options: Options of the set, as in `load`.

    Raises:
      FileNotFoundError: The source is missing.
      ValueError: The name is unknown or the source damaged.
    """
    if name not in _BUILT_IN:
        raise _unknown(name)
    directory = _prepare(name, data_dir, options, force=force)
    chosen = directory.parent.parent / _CHOSEN
    scratch = chosen.with_name(f".{_CHOSEN}-{os.getpid()}")
    scratch.write_text(json.dumps({"config": directory.parent.name}))
    scratch.replace(chosen)


def available() -> list[CatalogueRow]:
    """The built-in sets and whether each one is prepared, for `metalearn data list`."""
    rows = []
    for name, entry in _BUILT_IN.items():
        found = builders.prepared_dirs(name)
        if entry.embedded_config:  # older entries may have other fonts
            config = entry.embedded_config()
            found = [directory for directory in found if directory.parent.name == config]
        classes = images = None
        if found:
            parts = builders.read_metadata(_pick(found, name))["parts"].values()
            classes = sum(len(part["class_names"]) for part in parts)
            images = sum(sum(part["counts"]) for part in parts)
        rows.append(
            CatalogueRow(
                name=name,
                description=entry.description,
                prepared=bool(found),
                classes=classes,
                images=images,
                needs=entry.needs,
            )
        )
    return rows


def _find_or_prepare(name, data_dir, options):
    entry = _BUILT_IN[name]
    if entry.embedded_config or data_dir is not None:
        return _prepare(name, data_dir, options)
    wanted = {"split": "lake", "seed": 0, **options}
    if "validation_alphabets" in options:
        raise ValueError(
            "validation_alphabets was given without data_dir; the archives are needed "
            "to split anew. Give data_dir as well."
        )
    found = []
    for directory in builders.prepared_dirs(name):
        info = builders.read_metadata(directory)["info"]
        if all(info.get(option) == value for option, value in wanted.items()):
            found.append(directory)
    if not found:
        raise FileNotFoundError(
            f"Data set {name!r} is not prepared with {wanted} in "
            f"{builders.cache_root()} and no data_dir was given. {how_to_get()}"
        )
    return _pick(found, name, strict=True)


def _pick(found, name, *, strict=False):
    """The prepared folder that `prepare` chose last, or the only one."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        text = (builders.cache_root() / name / _CHOSEN).read_text()
        config = json.loads(text)["config"]
        for directory in found:
            if directory.parent.name == config:
                return directory
    if strict and len(found) > 1:
        raise ValueError(
            f"{len(found)} prepared versions of {name!r} fit: "
            f"{[directory.parent.name for directory in found]}. Give data_dir, or "
            f"choose one with: metalearn data prepare {name} --data-dir DIR"
        )
    return found[0]


def _prepare(name, data_dir, options, *, force=False):
    entry = _BUILT_IN[name]
    if entry.embedded_config:
        if data_dir is not None or options:
            given = [*options] + ["data_dir"] * (data_dir is not None)
            raise TypeError(
                f"{name!r} was given {given}; it is embedded and takes neither data_dir "
                "nor options. Leave them out."
            )
        directory = builders.record_dir(name, entry.embedded_config())
        if directory.is_dir() and not force:
            return directory
        return builders.prepare_records(entry.source(), force=force)
    if data_dir is None:
        raise FileNotFoundError(
            f"Data set {name!r} needs its original archives; no data_dir was given. "
            f"{how_to_get()}"
        )
    with contextlib.ExitStack() as stack:
        source = entry.source(data_dir, stack=stack, **options)
        return builders.prepare_records(source, force=force)


def _only(dataset, parts):
    for part in parts:
        dataset.part(part)
    return dataclasses.replace(
        dataset, **{part: None for part in PARTS if part not in parts}
    )


def _unknown(name):
    known = [*_BUILT_IN, "folder:PATH", "tfds:NAME"]
    near = difflib.get_close_matches(name, _BUILT_IN, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(
        f"Unknown data set {name!r}; expected one of {', '.join(known)}, or the path "
        f"of a folder or zip of images.{hint}"
    )
