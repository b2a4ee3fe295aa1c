"""Packages that only some features need: imported when used, named when missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

# Import name: name at the registry, extra of metalearn-jax that brings the package.
PACKAGES = {
    "PIL": ("pillow", "images"),
    "tensorflow_datasets": ("tensorflow-datasets", "images"),
    "array_record": ("array_record", "images"),
    "pymupdf_fonts": ("pymupdf-fonts", "images"),
    "fontTools": ("fonttools", "plots"),
    "matplotlib": ("matplotlib", "plots"),
    "orbax": ("orbax-checkpoint", "checkpoints"),
    "filelock": ("filelock", "cli"),
    "tyro": ("tyro", "cli"),
    "tqdm": ("tqdm", "cli"),
    "grain": ("grain", "stream"),
    "wordllama": ("wordllama", "text"),
}


class MissingPackage(ImportError):
    """A package that this feature needs is not installed."""


def require(module: str, purpose: str) -> Any:
    """Imports a module of a package that not every installation has.

    Args:
      module: Name of the module, such as `"PIL.Image"`.
      purpose: What needs the package, to complete "is needed to ...".

    Returns:
      The module.

    Raises:
      MissingPackage: the package is not installed; names the package and the extra.

    Example:
      >>> require("json", "to read a file").__name__
      'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A package that is there but broken says best itself what it lacks.
        lacking = (error.name or "").partition(".")[0]
        if lacking not in PACKAGES:
            raise
        raise MissingPackage(message(lacking, purpose), name=lacking) from error


def message(package: str, purpose: str) -> str:
    """What to say where a package of `PACKAGES` is missing."""
    distribution, extra = PACKAGES[package]
    return (
        f"the package {distribution} is not installed; it is needed {purpose}. Install it "
        f"by `pip install {distribution}`, or everything of its kind by "
        f"`pip install 'metalearn-jax[{extra}]'`."
    )


def available(package: str) -> bool:
    """Whether a package is installed; nothing is imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def check(purpose: str, *packages: str) -> None:
    """Raises a `MissingPackage` unless all packages are installed; imports none."""
    for package in packages:
        if not available(package):
            raise MissingPackage(message(package, purpose), name=package)
