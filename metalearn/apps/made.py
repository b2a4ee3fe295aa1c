"""Applications whose tasks are made on the device: there is nothing to read."""

from __future__ import annotations


def refuse_folder(data_dir: str | None, made: str) -> None:
    """Raises a `ValueError` if a folder of data was given.

    Args:
      data_dir: Folder that was given, if any.
      made: Words for how the tasks come about, such as "functions are made on the fly".
    """
    if data_dir is not None:
        raise ValueError(f"data_dir={str(data_dir)!r} was given, but {made}. Leave it out.")
