"""The classes of the embedded glyphs, stored beside the code that finds them.

Finding the classes compares some 2,000 characters in 49 faces, which takes some fifty
seconds of computing and has one result as long as the fonts are the same. So the result is
a file of the package. The file holds the digests of the fonts and the settings of
`glyph_classes`; where either differs, as with another release of matplotlib's fonts, the
classes are found anew and a message says so.

After a change of `glyph_classes` or of the list of faces, write the file anew:

    python -c "from metalearn.data.images import glyph_table; glyph_table.renew()"
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.core import digest, files
from metalearn.data.images import glyph_classes
from metalearn.data.images.glyph_classes import GlyphClass, find_classes, script_of
from metalearn.data.images.glyph_faces import (
    FONT_SIZE,
    Face,
    drawing_versions,
    open_faces,
)

PATH = Path(__file__).with_name("glyph_classes.json")
# Part of the key: raise it when equal fonts and settings would give other classes.
VERSION = 1
_LOG = logging.getLogger(__name__)


def classes_of(faces: Sequence[Face], path: Path = PATH) -> list[GlyphClass]:
    """The classes that `find_classes` finds, from the file where it fits these faces.

    Args:
      faces: The faces, in order of preference.
      path: The file.

    Raises:
      Damaged: The file has changed since it was written.
    """
    table = read(path)
    if differences := _differences(table["key"], key_of(faces)):
        _LOG.warning(
            "The stored classes of the glyphs were found with other fonts or settings "
            "(%s). They are found anew, which takes a minute or two.",
            ", ".join(differences),
        )
        return find_classes(faces)
    return stored_classes(path)


def stored_classes(path: Path = PATH) -> list[GlyphClass]:
    """The classes of the file, whatever fonts there are."""
    return [_class_of(row) for row in read(path)["classes"]]


def key_of(faces: Sequence[Face]) -> dict[str, Any]:
    """What decides the classes: the fonts in their order, settings and version."""
    found = {
        "version": VERSION,
        "settings": {k: v for k, v in vars(glyph_classes).items() if k.isupper()},
        "size": FONT_SIZE,
        "fonts": {face.name: face.digest for face in faces},
        "order": [face.name for face in faces],
    }
    return json.loads(json.dumps(found))  # as it is after it was stored


def read(path: Path = PATH) -> dict[str, Any]:
    """Contents of the file: "key", "classes" and the "versions" that found them.

    Raises:
      Damaged: The file has changed since it was written.
    """
    table = files.read_json(path)
    digest.check_seal(table, where=path, remedy="Install metalearn-jax anew.")
    return table


def renew(path: Path = PATH) -> None:
    """Finds the classes with the installed fonts and stores them."""
    faces = open_faces()
    write(faces, find_classes(faces), drawing_versions(), path)


def write(
    faces: Sequence[Face],
    classes: Sequence[GlyphClass],
    versions: dict[str, str],
    path: Path = PATH,
) -> None:
    """Stores classes and what they were found with.

    Args:
      faces: The faces, in order of preference.
      classes: The classes that `find_classes` found with these faces.
      versions: Versions of the packages that drew the characters; a record only, because
        another release of Pillow does not change what is a class.
      path: The file.
    """
    # One line a class, so that a change of the classes can be read.
    rows = [
        " ".join([f"{c.code_point:04X}", _mask(c.faces), *(f"{m:04X}" for m in c.merged)])
        for c in classes
    ]
    table = {"key": key_of(faces), "versions": versions, "classes": rows}
    files.write_text(path, json.dumps(digest.sealed(table), indent=0) + "\n")


def _class_of(row: str) -> GlyphClass:
    code_point, faces, *merged = (int(word, 16) for word in row.split())
    return GlyphClass(
        code_point=code_point,
        script=script_of(code_point),
        faces=tuple(i for i in range(faces.bit_length()) if faces >> i & 1),
        merged=tuple(merged),
    )


def _mask(faces):
    """Hexadecimal number whose bit i says that face i draws the character."""
    return f"{sum(1 << i for i in faces):x}"


def _differences(stored, found):
    """Names of what differs between two keys."""
    differ = []
    for group in ("fonts", "settings"):
        one, other = stored[group], found[group]
        differ += [name for name in one | other if one.get(name) != other.get(name)]
    return differ + [k for k in ("version", "size", "order") if stored[k] != found[k]]
