"""Image sets by name: loading, preparing and listing.

A name is a built-in set ("glyphs", "omniglot"), or "folder:PATH" or a path for images of
your own, or "tfds:NAME" for a TFDS data set that is prepared on this machine. Nothing here
uses the network, with one exception: Omniglot is downloaded if TensorFlow is installed and
the archives are missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from metalearn.core import files
from metalearn.core.cache import cache_root
from metalearn.data import builders, records
from metalearn.data.images.folder import folder_source
from metalearn.data.images.glyphs import glyphs_config, glyphs_source
from metalearn.data.images.image_sets import PARTS, ImageDataset
from metalearn.data.images.omniglot import how_to_get, omniglot_source
from metalearn.data.images.tfds_sets import OMNIGLOT, download_omniglot, load_tfds

_CHOSEN = "chosen.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CatalogueRow:
    """One line of `metalearn data list`.

    Attributes:
      name: Name that `load` takes.
      description: Description in one line.
      prepared: Whether records are in the cache.
      classes: Number of classes over all parts, or None if not prepared.
      images: Number of images over all parts, or None if not prepared.
      needs: Requirements for preparing the set.
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
    # Name of the cache entry, for data made from installed packages alone.
    embedded_config: Callable[[], str] | None = None


_BUILT_IN = {
    "glyphs": _BuiltIn(
        "characters of five scripts and symbols, drawn by some 50 typefaces, 28x28",
        "nothing: built from the installed fonts in seconds",
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
    """Loads an image set; prepares the records first if necessary.

    Args:
      name: A built-in set, "folder:PATH", a path to a folder or zip, or "tfds:NAME".
      data_dir: Folder of the original archives. Other archives make another cache entry,
        because the cache is keyed by their contents. Default: the records that `prepare`
        prepared last, or the only prepared records.
      parts: Parts that must exist, such as `("test",)`; other parts are None. Default:
        every part that the source holds.
      **options: Options of the set. Folders take `split`, `splits`, `image_size`,
        `channels`, `seed`, and the limits `max_pixels`, `max_bytes`, `max_file_bytes` and
        `max_files`.

    Returns:
      The data set. Its `info["protocol"]` says which classes are in which part and what was
      left out, and `info["preprocessing"]` what was done to the images.

    Raises:
      FileNotFoundError: The source is missing.
      ValueError: The name is unknown or the source damaged.
      TypeError: An option that the set does not have.
    """
    name, parts = _text(name), _several(parts)
    if name.startswith("tfds:"):
        _check_options(name, load_tfds, options)
        dataset = load_tfds(name.removeprefix("tfds:"), data_dir=data_dir, **options)
    else:
        directory = _find_or_prepare(name, data_dir, options)
        dataset = records.load_records(directory)
    return dataset if parts is None else _only(dataset, parts)


def open_records(
    name: str | Path,
    part: str = "train",
    *,
    data_dir: str | Path | None = None,
    **options,
) -> records.RecordImages:
    """Images of one part for `stream`, each decoded only when it is read.

    Args:
      name: A built-in set, "folder:PATH", or a path to a folder or zip.
      part: "train", "validation" or "test".
      data_dir: Folder of the original archives, as in `load`.
      **options: As in `load`.

    Returns:
      The images, with random access, and their `labels`.

    Raises:
      As `load`.

    Example:
      >>> images = ml.data.open_records("folder:cifar_fs", image_size=84)
      >>> tasks = ml.data.stream(images, images.labels, num_ways=5, num_support=1)
    """
    name = _text(name)
    if name.startswith("tfds:"):
        raise ValueError(
            f"{name!r} was given to open_records; sets of TFDS are read whole. Use "
            f"ml.data.load({name!r}), or write the images into a folder of class/image.png."
        )
    directory = _find_or_prepare(name, data_dir, options)
    return records.RecordImages(directory, part)


def prepare(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    force: bool = False,
    **options,
) -> None:
    """Builds the records of a set, with a progress bar on a terminal.

    Args:
      name: A built-in set, "folder:PATH" or a path.
      data_dir: Folder of the original archives, if the set needs archives. A later `load`
        without `data_dir` finds the records that were prepared last.
      force: Whether to build again even if the records exist.
      **options: Options of the set, as in `load`.

    Raises:
      FileNotFoundError: The source is missing.
      ValueError: The name is unknown or the source damaged.
    """
    name = _text(name)
    if name.startswith("tfds:"):
        raise ValueError(
            f"{name!r} was given to prepare; TFDS prepares its own sets, which needs "
            "TensorFlow (extra tf). Loading it shows the command."
        )
    directory = _prepare(name, data_dir, options, force=force)
    chosen = directory.parent.parent / _CHOSEN
    # In one move, because another process may read the choice at any time.
    files.write_text(chosen, json.dumps({"config": directory.parent.name}))


def available() -> list[CatalogueRow]:
    """The built-in sets and whether each one is prepared, for `metalearn data list`."""
    rows = []
    for name, entry in _BUILT_IN.items():
        found = records.prepared_dirs(name)
        if entry.embedded_config:  # older entries may have other fonts
            config = entry.embedded_config()
            found = [directory for directory in found if directory.parent.name == config]
        classes = images = None
        if found:
            parts = records.read_metadata(_pick(found, name))["parts"].values()
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
    if name != "omniglot" or data_dir is not None:
        return _prepare(name, data_dir, options)
    if "validation_alphabets" in options:
        raise ValueError(
            "validation_alphabets was given without data_dir; the archives are needed "
            "to split anew. Give data_dir as well."
        )
    # The defaults of `omniglot_source`: records of another split are another data set.
    wanted = {"split": "lake", "seed": 0, **options}
    found = []
    for directory in records.prepared_dirs(name):
        info = records.read_metadata(directory)["info"]
        if all(info.get(option) == value for option, value in wanted.items()):
            found.append(directory)
    if found:
        return _pick(found, name, strict=True)
    return _prepare(name, _downloaded_omniglot(wanted), options)


def _downloaded_omniglot(wanted):
    """Folder with downloaded archives; downloads only if TensorFlow is installed.

    What a failed download has fetched whole is kept for the next try.
    """
    root = cache_root()
    message = (
        f"Data set 'omniglot' is not prepared with {wanted} in {root} and no data_dir "
        f"was given. {how_to_get()}, or give data_dir=DIR when loading."
    )
    folder = root / "archives" / "omniglot"
    if all((folder / archive).is_file() for archive in OMNIGLOT):
        return folder
    if importlib.util.find_spec("tensorflow") is None:
        raise FileNotFoundError(message)
    folder.parent.mkdir(parents=True, exist_ok=True)
    failure = None
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=folder.parent) as name:
        scratch = Path(name)
        for archive in OMNIGLOT:
            if (folder / archive).is_file():
                (scratch / archive).symlink_to(folder / archive)
        try:
            download_omniglot(scratch)
        except Exception as error:  # whatever TFDS or the network may raise
            failure = error
        for file in sorted(scratch.glob("images_*.zip")):
            if not file.is_symlink():
                folder.mkdir(exist_ok=True)
                file.replace(folder / file.name)
    if failure is not None:
        raise FileNotFoundError(
            f"{message} (TFDS could not download it: {failure})"
        ) from failure
    return folder


def _pick(found, name, *, strict=False):
    """The prepared folder that `prepare` chose last, or the only prepared folder."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        text = (cache_root() / name / _CHOSEN).read_text()
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
    entry = _BUILT_IN.get(name)
    if entry is None:
        path = _image_path(name)
        if data_dir is not None:
            raise TypeError(
                f"data_dir={str(data_dir)!r} was given with the path {str(path)!r}; "
                "expected the path alone. Leave data_dir out."
            )
        _check_options(name, folder_source, options)
        with contextlib.ExitStack() as stack:
            source = folder_source(path, stack=stack, **options)
            return builders.prepare_records(source, force=force)
    if entry.embedded_config:
        if data_dir is not None or options:
            given = [*options] + ["data_dir"] * (data_dir is not None)
            raise TypeError(
                f"{name!r} was given {given}; it is embedded and takes neither data_dir "
                "nor options. Leave them out."
            )
        directory = records.record_dir(name, entry.embedded_config())
        if directory.is_dir() and not force:
            return directory
        return builders.prepare_records(entry.source(), force=force)
    if data_dir is None:
        raise FileNotFoundError(
            f"Data set {name!r} needs its original archives; no data_dir was given. "
            f"{how_to_get()}"
        )
    _check_options(name, entry.source, options)
    with contextlib.ExitStack() as stack:
        source = entry.source(data_dir, stack=stack, **options)
        return builders.prepare_records(source, force=force)


def _check_options(name, source, options):
    known = [
        parameter.name
        for parameter in inspect.signature(source).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.name not in ("stack", "data_dir")
    ]
    for option in options:
        if option not in known:
            raise TypeError(
                f"{name!r} has no option {option!r}; expected {', '.join(known)}."
            )


def _text(name):
    """The name as text."""
    text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(
            f"the name of a data set is {name!r}; expected text or a path, such as "
            "'glyphs', 'folder:PATH' or 'tfds:NAME'."
        )
    # An empty path is the current folder, which nobody means.
    if not text.strip() or text in ("folder:", "tfds:") or "\0" in text:
        raise _unknown(text)
    return text


def _several(parts):
    if parts is None:
        return None
    if isinstance(parts, str):
        return (parts,)
    if not isinstance(parts, Sequence) or not all(isinstance(p, str) for p in parts):
        raise TypeError(
            f"parts is {parts!r}; expected a list of some of {', '.join(PARTS)}."
        )
    return parts


def _image_path(name):
    """The path that a name means: folder:PATH, an existing path or a likely path."""
    if name.startswith("folder:"):
        return Path(name.removeprefix("folder:")).expanduser()
    path = Path(name).expanduser()
    if path.exists() or len(path.parts) > 1 or path.suffix == ".zip":
        return path
    raise _unknown(name)


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
