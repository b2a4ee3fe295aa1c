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
    drawings = range(IMAGES_PER_CLASS)
    drawers = [faces[glyph.faces[i % len(glyph.faces)]] for i in drawings]
    # Seeded by character and drawing, so a class does not depend on the other classes.
    rngs = [np.random.default_rng([glyph.code_point, i]) for i in drawings]
    inks = [face.render(glyph.code_point) for face in drawers]
    yield from (image[..., None] for image in draw(inks, rngs))


def draw(
    inks: Sequence[np.ndarray], rngs: Sequence[np.random.Generator]
) -> Iterator[np.ndarray]:
    """Draws glyphs with jitter.

    Args:
      inks: Glyphs cut to their ink, uint8 `[h, w]`.
      rngs: Source of the jitter of each glyph.

    Yields:
      The images, uint8 `[28, 28]`, anti-aliased.
    """
    normals = np.stack([rng.standard_normal(6) for rng in rngs]).clip(-2, 2)
    glyphs = [_change_weight(ink, rng.integers(-1, 2)) for ink, rng in zip(inks, rngs)]
    sizes = np.array([glyph.shape[::-1] for glyph in glyphs])
    Image = require("PIL.Image", "to draw characters")
    side = IMAGE_SIZE * _OVERSAMPLING
    # A map at a time would take as long as the drawing.
    for glyph, numbers in zip(glyphs, _inverse_maps(normals, sizes).tolist()):
        canvas = Image.fromarray(glyph).transform(
            (side, side), Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR
        )
        # Drawn larger and averaged, because Pillow's transform does not anti-alias.
        yield np.asarray(canvas.reduce(_OVERSAMPLING))


def _inverse_maps(normals, sizes):
    """Numbers of Pillow's affine transform `[N, 6]`: where each pixel comes from.

    Args:
      normals: Jitter of angle, slant, width, height and the two shifts, `[N, 6]`.
      sizes: Width and height of each glyph, `[N, 2]`.
    """
    angles = np.deg2rad(ROTATION_DEGREES * normals[:, 0])
    scales = BOX * _OVERSAMPLING / sizes.max(axis=1)
    sines, cosines = np.sin(angles), np.cos(angles)
    turns = np.array([[cosines, -sines], [sines, cosines]]).transpose(2, 0, 1)
    slopes = np.tile(np.eye(2), (len(sizes), 1, 1))
    slopes[:, 0, 1] = SLANT * normals[:, 1]
    stretches = np.zeros_like(slopes)
    stretches[:, [0, 1], [0, 1]] = scales[:, None] * np.exp(STRETCH * normals[:, 2:4])
    back = np.linalg.inv(np.ascontiguousarray(turns) @ slopes @ stretches)
    places = IMAGE_SIZE * _OVERSAMPLING / 2 + SHIFT_PIXELS * _OVERSAMPLING * normals[:, 4:]
    origins = sizes[..., None] / 2 - back @ places[..., None]
    return np.concatenate([back, origins], axis=2).reshape(-1, 6)


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
