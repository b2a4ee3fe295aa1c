"""Other distributions install a package of the same name; say so, do not mix files."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

OTHERS = ("metalearn", "parallel-metalearn")


def refuse_mixed_installation(package: Path, others: tuple[str, ...] = OTHERS) -> None:
    """Raises where another distribution owns files in this package's folder.

    Args:
      package: Folder of this package.
      others: Names of distributions that install the same import name.

    Raises:
      ImportError: says which, and how to mend it.
    """
    for name in others:
        try:
            other = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Path(other.locate_file("metalearn")).resolve() == package.resolve():
            raise ImportError(
                f"the distribution {name!r} is installed into the same folder "
                f"({package}) as 'metalearn-jax': both call their package metalearn, and "
                f"their files are mixed. Mend it with: pip uninstall {name} && "
                "pip install --force-reinstall --no-deps metalearn-jax"
            )
