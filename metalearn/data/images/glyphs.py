"""The embedded data set: characters of the world's scripts, drawn by typefaces.

The set needs no download. It resembles Omniglot: a class is a character, a drawer is a
typeface, and the scripts of meta-test are never seen in meta-training. Every class has
`IMAGES_PER_CLASS` images by different faces. If fewer faces draw the character, the same
faces draw it once more with another jitter. The jitter is modest: small rotation, slant,
stretch, shift, and stroke weight.

Images are 28x28 with ink = 255; the glyph is centred and fits a box of 20 pixels
before jitter. Everything is seeded: the same versions of Pillow, FreeType and the
font packages give the same bytes. These versions are part of the cache key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from metalearn.core.digest import SEAL
from metalearn.core.optional import require
from metalearn.data.builders import PartSource, RecordSource
from metalearn.data.images import glyph_table
from metalearn.data.images.archives import fingerprint
from metalearn.data.images.glyph_classes import MIN_FACES, SCRIPTS, GlyphClass
from metalearn.data.images.glyph_faces import (
    Face,
    cut_to_ink,
    drawing_versions,
    open_faces,
)

IMAGE_SIZE = 28
IMAGES_PER_CLASS = 20
BOX = 20
# Jitter: standard deviations, cut at two of them.
ROTATION_DEGREES = 4.0
SLANT = 0.07
STRETCH = 0.06
SHIFT_PIXELS = 0.8
_OVERSAMPLING = 4
# Part of the cache key: raise it when the same fonts would give other records.
_FORMAT = 5


def glyphs_config() -> str:
    """Name of the cache entry; cheap, unlike drawing."""
    versions, classes = drawing_versions(), glyph_table.read()[SEAL]
    key = fingerprint([*versions.items(), ("classes", classes), ("format", _FORMAT)])
    return f"{IMAGE_SIZE}px-{key}"


def glyphs_source() -> RecordSource:
    """Opens the faces, reads the stored classes or finds them, and describes the set."""
    faces = open_faces()
    classes = glyph_table.classes_of(faces)
    parts = {}
    for part in SCRIPTS:
        members = [found for found in classes if found.part == part]
        parts[part] = PartSource(
            class_names=tuple(found.name for found in members),
            class_groups=tuple(found.script for found in members),
            images=lambda index, members=members: draw_class(members[index], faces),
            rotations=part == "train",
        )
    return RecordSource(
        name="glyphs",
        config=glyphs_config(),
        description="Characters drawn by typefaces, 28x28 greyscale, ink = 255.",
        image_shape=(IMAGE_SIZE, IMAGE_SIZE, 1),
        parts=parts,
        info=_info(classes),
    )


def draw_class(glyph: GlyphClass, faces: Sequence[Face]) -> Iterator[np.ndarray]:
    """Yields the `IMAGES_PER_CLASS` images of one class, uint8 `[28, 28, 1]`."""
    for drawing in range(IMAGES_PER_CLASS):
        face = faces[glyph.faces[drawing % len(glyph.faces)]]
        # Seeded by character and drawing, so a class does not depend on the other classes.
        rng = np.random.default_rng([glyph.code_point, drawing])
        yield draw(face.render(glyph.code_point), rng)[..., None]


def draw(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws one glyph with jitter.

    Args:
      ink: uint8 `[h, w]`, the glyph cut to its ink.
      rng: Source of the jitter.

    Returns:
      uint8 `[28, 28]`, anti-aliased.
    """
    normal = np.minimum(np.maximum(rng.standard_normal(6), -2), 2)
    weight = rng.integers(-1, 2)
    Image = require("PIL.Image", "to draw characters")
    glyph = _change_weight(ink, weight)
    side = IMAGE_SIZE * _OVERSAMPLING
    canvas = Image.fromarray(glyph).transform(
        (side, side),
        Image.Transform.AFFINE,
        _inverse_map(normal, (glyph.shape[1], glyph.shape[0])),
        Image.Resampling.BILINEAR,
    )
    # Drawn larger and averaged, because Pillow's transform does not anti-alias.
    return np.asarray(canvas.reduce(_OVERSAMPLING))


def _inverse_map(normal, size):
    """Numbers of Pillow's affine transform: the place that each pixel comes from."""
    angle, slant, stretch_x, stretch_y, shift_x, shift_y = normal
    angle = np.deg2rad(ROTATION_DEGREES * angle)
    scale = BOX * _OVERSAMPLING / max(size)
    sine, cosine = np.sin(angle), np.cos(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    slope = np.array([[1.0, SLANT * slant], [0.0, 1.0]])
    x, y = scale * np.exp(STRETCH * np.array([stretch_x, stretch_y]))
    back = np.linalg.inv(turn @ slope @ np.array([[x, 0.0], [0.0, y]]))
    shift = SHIFT_PIXELS * _OVERSAMPLING * np.array([shift_x, shift_y])
    middle = IMAGE_SIZE * _OVERSAMPLING / 2
    origin = np.array(size) / 2 - back @ (middle + shift)
    return (*back[0], origin[0], *back[1], origin[1])


def _change_weight(ink, weight):
    """Thins (-1) or thickens (1) the strokes by about a fortieth of the glyph."""
    if weight == 0:
        return ink
    # An empty border, into which strokes grow and from which they are worn.
    wide = np.pad(ink, 1 if weight == -1 else 2)
    among = np.minimum if weight == -1 else np.maximum
    # The extreme of each square of 3x3 pixels, by rows and then by columns.
    rows = among(among(wide[:-2], wide[1:-1]), wide[2:])
    changed = among(among(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    # Hairlines would vanish: they stay as they are.
    if weight == -1 and not changed.sum() > 0.7 * ink.sum():
        return ink
    return cut_to_ink(changed)


def _info(classes):
    scripts = {part: Counter() for part in SCRIPTS}
    for found in classes:
        scripts[found.part][found.script] += 1
    numbers = ", ".join(
        f"{part} {counts.total()} characters ({', '.join(counts)})"
        for part, counts in scripts.items()
    )
    return {
        "source": "drawn by the typefaces inside matplotlib and pymupdf-fonts",
        "licence": "fonts: DejaVu, STIX, BaKoMa, SIL OFL 1.1, Ubuntu Font Licence",
        "split": "by script",
        "protocol": (
            f"Scripts disjoint: {numbers}. Rotations are further classes in training "
            f"only. Every class has {IMAGES_PER_CLASS} images by at least {MIN_FACES} "
            "faces. Print, not handwriting: numbers are not comparable with Omniglot's."
        ),
        "characters_per_script": {p: dict(c) for p, c in scripts.items()},
        "faces_per_class": {found.name: len(found.faces) for found in classes},
        "merged": {
            found.name: [f"U+{c:04X}" for c in found.merged]
            for found in classes
            if found.merged
        },
        "versions": drawing_versions(),
        "preprocessing": "28x28, ink 255 on 0, centred, 20 pixel box, jittered",
    }
