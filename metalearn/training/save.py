"""One file for learned variables: no template to read it, no code in it, no bit unseen.

The file is a safetensors file, which other frameworks read: eight bytes with the length
of a JSON header, the header, and the arrays one after the other. The header also holds the
containers of the variables, the description of the learner, and a digest of everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from metalearn.core import files, kinds, mesh
from metalearn.core.learner import MetaLearner, describe
from metalearn.core.model import Variables
from metalearn.training.containers import Unreadable, containers_of, rebuilt

FORMAT = 1
# Names of dtypes in safetensors.
_DTYPES = {
    **{"bool": "BOOL", "bfloat16": "BF16", "complex64": "C64"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
_NAMES = {name: dtype for dtype, name in _DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors
_NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
# How files begin that are brought here by mistake.
_OTHERS = (
    (b"\x80", "a pickle, which is never read, since reading one can run any code"),
    (b"PK\x03\x04", "a zip archive, such as an .npz or a checkpoint of torch"),
    (b"\x93NUMPY", "a .npy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"{", "a text file, such as JSON"),
)


def save(path: str | Path, variables: Variables, learner: MetaLearner) -> None:
    """Writes learned variables to one file, which `ml.load` reads without a template.

    The file appears under its name when it is complete; until then a file that was there
    stays as it is. It is a safetensors file, so other programs can read the arrays.

    Args:
      path: Path of the file, such as "maml.safetensors". Its folder is made if missing.
      variables: Variables of the learner, such as `FitResult.variables`: arrays and keys
        in dictionaries, lists, tuples, named tuples and `FrozenDict`.
      learner: Learner of the variables; its description (`ml.describe`) is stored.

    Raises:
      TypeError: an argument is something else, or the variables hold a container or a
        leaf that a file cannot say; names it.
      CannotWrite: the file cannot be written; an older one is as it was.

    Example:
      >>> ml.save("maml.safetensors", result.variables, learner)
      >>> variables = ml.load("maml.safetensors", learner)
    """
    path = _path_of(path)
    kinds.variables(variables)
    kinds.learner(learner)
    tree, arrays = containers_of(variables)
    told = {
        "format": FORMAT,
        "version": _version(),
        "learner": describe(learner),
        "tree": tree,
    }
    if mesh.leads():
        whole = _packed(arrays, told)
        with files.replacing(path, kept=f"{len(whole):,} bytes are needed.") as part:
            part.write_bytes(whole)


def load(path: str | Path, learner: MetaLearner | None = None) -> Variables:
    """Reads a file of `ml.save`.

    Args:
      path: Path of the file.
      learner: Learner that the variables are for. Its description has to be that of the
        learner they were saved with; without a learner nothing is compared.

    Returns:
      The variables, with the same containers, dtypes and bits.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged or no file of `ml.save`, is of another learner, or
        holds 64-bit numbers that jax is set to cut.

    Example:
      >>> variables = ml.load("maml.safetensors", learner)
      >>> adapted = learner.adapt(variables, task.support)
    """
    path = _path_of(path)
    if learner is not None:
        kinds.learner(learner)
    if not path.is_file():
        kind = "is no file" if path.exists() else "does not exist"
        kind = "is a folder" if path.is_dir() else kind
        raise FileNotFoundError(
            f"{path} {kind}; expected a file that ml.save wrote. Checkpoints of a run "
            "folder are read by ml.Checkpoints."
        )
    header, told, arrays = _unpacked(path, _read(path))
    if learner is not None:
        _check_same_learner(path, told["learner"], describe(learner))
    try:
        variables = rebuilt(told["tree"], lambda name: _array(header, arrays, name))
    except (Unreadable, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(variables, Variables):
        raise ValueError(f"{path} holds a {type(variables).__name__}, not Variables.")
    return variables


def _packed(arrays: dict[str, np.ndarray], told: dict[str, Any]) -> bytes:
    """The bytes of a file."""
    header: dict[str, Any] = {}
    # The text is JSON in JSON, since metadata of safetensors are strings.
    text = json.dumps(told, separators=(",", ":"))  # a rate may be infinite
    header["__metadata__"] = {"metalearn": text, "sha256": _NO_DIGEST}
    end, parts = 0, []
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise TypeError(
                f"{name} has dtype {array.dtype.name}, which a file of ml.save cannot "
                f"hold; expected one of {', '.join(_DTYPES)}. Convert it."
            )
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        parts.append(array.tobytes())
        begin, end = end, end + len(parts[-1])
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    written = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    whole = b"".join([len(written).to_bytes(8, "little"), written, *parts])
    digest = hashlib.sha256(whole).hexdigest()
    placeholder = f'"sha256":"{_NO_DIGEST}"'.encode()
    # The last one: a text before it is escaped, so no other looks the same.
    return whole.replace(placeholder, f'"sha256":"{digest}"'.encode(), 1)


def _read(path: Path) -> bytes:
    """Contents of a file; only the start of one that cannot be of `save`."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        # A file of many gigabytes by mistake is not read to the end to be refused.
        length = int.from_bytes(start, "little")
        whole = 2 <= length <= min(size - 8, _MOST_HEADER_BYTES)
        return start + (stream.read() if whole else stream.read(2**20))


def _unpacked(path: Path, whole: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, what `save` told, and bytes of all arrays, after the digest was compared."""
    for start, kind in _OTHERS:
        if whole.startswith(start) and int.from_bytes(whole[:8], "little") > len(whole):
            raise ValueError(f"{path} is {kind}; expected a file that ml.save wrote.")
    length = int.from_bytes(whole[:8], "little")
    if len(whole) < 10 or not 2 <= length <= min(len(whole) - 8, _MOST_HEADER_BYTES):
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no file of ml.save, or it is cut off "
            "or damaged. Save it again."
        )
    found = _DIGEST.search(whole, 8, 8 + length)
    if found is None:
        raise ValueError(
            f"{path} holds no digest of ml.save: it was written by another program, or it "
            "is damaged. Save it again with ml.save."
        )
    blank = whole[: found.start(1)] + _NO_DIGEST.encode() + whole[found.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != found.group(1):
        raise ValueError(
            f"{path} is damaged: its contents differ from its digest. Fetch or save it "
            "again."
        )
    try:
        header = json.loads(whole[8 : 8 + length])
        told = json.loads(header.pop("__metadata__")["metalearn"])
        if told["format"] != FORMAT:
            raise Unreadable(
                f"it has format {told['format']!r}, of metalearn {told['version']}; this "
                f"version reads {FORMAT}. Install that version."
            )
        if not isinstance(told["learner"], dict) or "tree" not in told:
            raise Unreadable("its header lacks the learner or the tree.")
    except (Unreadable, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read: it is nested too deeply.") from error
    return header, told, whole[8 + length :]


def _array(header: dict[str, Any], data: bytes, name: str) -> np.ndarray:
    told = header[name]
    dtype = jnp.dtype(_NAMES[told["dtype"]])
    begin, end = told["data_offsets"]
    size = int(np.prod(told["shape"], dtype=np.int64))
    if not 0 <= begin <= end <= len(data) or end - begin != size * dtype.itemsize:
        raise Unreadable(f"{name} of shape {told['shape']} has {end - begin} bytes")
    array = np.frombuffer(data, dtype.newbyteorder("<"), size, begin)
    return array.astype(dtype).reshape(told["shape"])


def _version() -> str:
    try:
        return metadata.version("metalearn-jax")
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def _path_of(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise TypeError(
            f"path is {path!r:.60}; expected the path of a file first, such as "
            '"maml.safetensors".'
        )
    files.check_name(path, "path")
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is a device or a pipe; expected the path of a file.")
    if not path.name:
        raise ValueError(f"path is {str(path)!r}; expected the path of a file.")
    return path


def _check_same_learner(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    # What a file says has been through JSON.
    given = json.loads(json.dumps(given))
    lines = [
        f"{name}: saved {saved.get(name, 'nothing')!r}, "
        f"given {given.get(name, 'nothing')!r}"
        for name in dict.fromkeys([*saved, *given])
        if name not in saved or name not in given or saved[name] != given[name]
    ]
    if lines:
        raise ValueError(
            f"{path} is of another learner:\n  "
            + "\n  ".join(lines)
            + "\nMake the learner "
            "as it was, or leave it out, ml.load(path), if the difference is meant."
        )
