"""The classes of the embedded glyphs: their characters and their parts.

A class is a shape, not a code point: Latin A, Greek Alpha and Cyrillic A look the
same, and so do o and O once scale is jittered. Likeness is measured. Two characters are
compared in the faces that have both: both are normalised to one box and slightly
blurred, and the correlation of pixels is averaged over the faces. Characters are
visited in a fixed order. A character that looks like a member of an earlier class joins
that class and is never drawn, so no class has two shapes and no shape is in two parts.
Meta-training has rotations by quarter turns as further classes. A comparison with a
character of meta-training is therefore made in all four directions: < and > are one
class, and no training class looks like a turned shape of another part. The measure is
not perfect: pairs just below the threshold remain, such as Greek upsilon and the small
capital U of phonetics.

Letters with diacritics and ligatures are characters too, visited after all others.
Where a common letter makes up most of two shapes, correlation cannot tell the marks
apart. So two marked letters whose letters are one class, in one case, are compared by
what differs: drawn on one baseline the letter cancels, and the energy of the difference
is counted in pixels of the final size. No letter has more than `MAX_MARKED` marked
variants of one case, the most common first, so that they do not crowd out the rest.

Left out are combining and modifier marks, the scripts' own punctuation, superscripts
and subscripts, characters that are defined as equal to another one, mere bars and
blobs, and characters that fewer than `MIN_FACES` different faces draw, where two faces
with nearly equal bitmaps count once. Hence no Arabic, Hebrew or Lao: only eight to
eleven of the faces draw them.

Parts are by script. Meta-test: Greek, Armenian, Georgian. Meta-validation: Cyrillic.
Meta-training: Latin with its phonetic extensions, and symbols. The order of visits
(ASCII, test scripts, validation, the rest) makes a shape that is shared by a test
script and, say, a phonetic letter or a symbol a test class only.

All sums are over small integers in floating point, hence exact, so that the classes
do not depend on the machine's linear algebra.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from metalearn.core.optional import require
from metalearn.data.images.glyph_faces import Face

MIN_FACES = 12
# Correlations from which two characters are one class: first if both are for
# meta-training, then otherwise. The second is lower, because meta-validation and meta-test
# must not ask for what cannot be told apart, nor for what was seen in training. The third
# is the correlation from which two faces are one drawer.
SAME_SHAPE_IN_TRAINING = 0.95
SAME_SHAPE = 0.90
SAME_FACE = 0.995
# Two marked letters with one base are one class if they differ by fewer pixels than this:
# first if both are for meta-training, then otherwise.
SAME_MARK_IN_TRAINING = 1.0
SAME_MARK = 1.5
MAX_MARKED = 24
# Added between a capital and its small letter, which often differ in stroke and
# proportion alone.
CASE_BONUS = 0.1
MIN_SHARED_FACES = 3
# Characters are compared in the first faces, which hold one or two of every family.
COMPARED_FACES = 24
# A glyph with more ink in its bounding box is a bar, dot or block.
MAX_FILL = 0.8
SCRIPTS = {
    "train": ("Latin", "Symbols"),
    "validation": ("Cyrillic",),
    "test": ("Greek", "Armenian", "Georgian"),
}
_SCRIPT_OF_FIRST_WORD = {
    **{name.upper(): name for scripts in SCRIPTS.values() for name in scripts},
    "COPTIC": "Greek",
}
_LETTERS = ("Lu", "Ll", "Lt", "Lo", "Nd")
_SYMBOLS = ("Sm", "Sc", "So", "Po", "Ps", "Pe", "Pd", "Pi", "Pf", "No", "Nl")
# Compatibility decompositions of characters that have a shape of their own: ligatures
# and letter variants, double-struck and script letters, fractions, circled characters.
_OWN_SHAPE = ("<compat>", "<font>", "<fraction>", "<circle>")
_VISIT = (*SCRIPTS["test"], *SCRIPTS["validation"], *SCRIPTS["train"])
_BOX = 20
_SIDE = 28
_MARKS_SIDE = 40  # holds a letter with marks at a fourth of the size of its face
_UNIT = 2047  # correlations are computed on integers; the square of this is exact


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlyphClass:
    """One class.

    Attributes:
      code_point: The character that is drawn.
      script: Script of the character; "Symbols" for everything that is no letter.
      faces: Indices of the faces that draw it differently, in order of preference.
      merged: The characters that look like it.
    """

    code_point: int
    script: str
    faces: tuple[int, ...]
    merged: tuple[int, ...]

    @property
    def name(self) -> str:
        """The character's Unicode name."""
        return unicodedata.name(chr(self.code_point))

    @property
    def part(self) -> str:
        """The part of the data set that its script belongs to."""
        return _part_of(self.code_point)


def script_of(code_point: int) -> str:
    """The script of a character, from its Unicode name."""
    first = unicodedata.name(chr(code_point), "").split(" ")[0]
    return _SCRIPT_OF_FIRST_WORD.get(first, "Symbols")


def base_of(code_point: int) -> int:
    """The letter under a character's diacritics; the character itself if none."""
    while True:
        parts = unicodedata.decomposition(chr(code_point)).split()
        if len(parts) < 2 or parts[0].startswith("<"):
            return code_point
        code_point = int(parts[0], 16)


def is_candidate(code_point: int) -> bool:
    """Whether a character may be a class: no mere marks, no repeated characters."""
    character = chr(code_point)
    category = unicodedata.category(character)
    if category not in _LETTERS and script_of(code_point) != "Symbols":
        return False
    if category not in _LETTERS + _SYMBOLS or character == "\N{REPLACEMENT CHARACTER}":
        return False
    # One part alone: another code point of the same character.
    parts = unicodedata.decomposition(character).split()
    return len(parts) != 1 and (
        not parts or not parts[0].startswith("<") or parts[0] in _OWN_SHAPE
    )


def find_classes(faces: Sequence[Face]) -> list[GlyphClass]:
    """Chooses the classes.

    Args:
      faces: The faces, in order of preference.

    Returns:
      The classes, sorted by part, script and code point.
    """
    code_points, descriptors = _describe(faces)
    drawers = [_different_faces(d) for d in descriptors]
    kept = [i for i, found in enumerate(drawers) if len(found) >= MIN_FACES]
    kept.sort(key=lambda i: _order(code_points[i], len(drawers[i])))
    visited = [code_points[i] for i in kept]
    followers = _merge(visited, _excess(visited, [descriptors[i] for i in kept]), faces)
    classes = [
        GlyphClass(
            code_point=code_points[kept[i]],
            script=script_of(code_points[kept[i]]),
            faces=drawers[kept[i]],
            merged=tuple(sorted(followers[i])),
        )
        for i in followers
    ]
    parts = list(SCRIPTS)
    classes.sort(key=lambda c: (parts.index(c.part), c.script, c.code_point))
    return classes


def _merge(code_points, excess, faces):
    """Merges what looks alike, in the order given.

    Args:
      code_points: The characters, those without diacritics first.
      excess: Similarity beyond the threshold, `[N, N]`; changed in place for pairs of
        letters with diacritics.
      faces: The faces.

    Returns:
      {index of a class's character: code points that joined it}.
    """
    marks = _Marks(faces[:COMPARED_FACES])
    index = {code_point: i for i, code_point in enumerate(code_points)}
    leader: dict[int, int] = {}
    followers: dict[int, list[int]] = {}
    # Characters that have the same letter in the same case, with and without marks.
    families: dict[tuple[int, bool], list[int]] = {}
    marked: Counter[tuple[int, bool]] = Counter()
    for i, code_point in enumerate(code_points):
        base = base_of(code_point)
        upper = chr(base).isupper()
        # A base that is no class, being drawn by too few faces, stands for itself.
        family = (leader.get(index.get(base, -1), -base), upper)
        if base != code_point:
            for j in families.get(family, ()):
                excess[i, j] = marks.similarity(code_point, code_points[j])
        earlier = np.fromiter(leader, int, len(leader))
        nearest = earlier[excess[i, earlier].argmax()] if leader else i
        if leader and excess[i, nearest] >= 0:
            leader[i] = leader[nearest]
            followers[leader[i]].append(code_point)
        elif base != code_point and marked[family] >= MAX_MARKED:
            continue
        else:
            leader[i] = i
            followers[i] = []
            marked[family] += base != code_point
        if base == code_point:
            family = (leader[i], upper)
        families.setdefault(family, []).append(i)
    return followers


class _Marks:
    """Compares letters that differ in their diacritics only."""

    def __init__(self, faces):
        self._faces = faces
        self._drawn = {}

    def similarity(self, one: int, other: int) -> float:
        """Pixels by which two characters are closer than different classes are."""
        (x, size_x), (y, size_y) = self._draw(one), self._draw(other)
        shared = (size_x > 0) & (size_y > 0)
        if shared.sum() < MIN_SHARED_FACES:
            return -np.inf
        energy = ((x - y) ** 2).sum(axis=1)[shared] / (16 * 255) ** 2
        # From a fourth of the font size to the size in the data set.
        scale = 4 * _BOX / np.maximum(size_x, size_y)[shared]
        training = _part_of(one) == _part_of(other) == "train"
        limit = SAME_MARK_IN_TRAINING if training else SAME_MARK
        return limit - (energy * scale**2).mean()

    def _draw(self, code_point):
        """Blurred drawings int64 `[faces, pixels]`, and sizes; 0 where there is none."""
        if code_point not in self._drawn:
            images = np.zeros((len(self._faces), _MARKS_SIDE, _MARKS_SIDE), np.int64)
            sizes = np.zeros(len(self._faces))
            for index, face in enumerate(self._faces):
                ink = face.render(code_point) if code_point in face.code_points else None
                if ink is not None:
                    sizes[index] = max(ink.shape)
                    images[index] = face.render_on_baseline(
                        code_point, side=4 * _MARKS_SIDE, factor=4
                    )
            for axis in (1, 2):
                images = np.roll(images, 1, axis) + 2 * images + np.roll(images, -1, axis)
            self._drawn[code_point] = images.reshape(len(images), -1), sizes
        return self._drawn[code_point]


def _describe(faces):
    """Candidates, and for each one {face index: descriptor} of faces that draw it."""
    counts = Counter(code_point for face in faces for code_point in face.code_points)
    code_points = sorted(
        c for c, count in counts.items() if count >= MIN_FACES and is_candidate(c)
    )
    descriptors: list[dict[int, np.ndarray]] = [{} for _ in code_points]
    for index, face in enumerate(faces):
        drawn, boxed = [], []
        for i, code_point in enumerate(code_points):
            if code_point in face.code_points:
                pixels = face.render(code_point)
                if pixels is not None and pixels.mean() < MAX_FILL * 255:
                    drawn.append(i)
                    boxed.append(_box(pixels))
        if drawn:
            for i, x in zip(drawn, _normalise(np.stack(boxed)), strict=True):
                descriptors[i][index] = x
    return code_points, descriptors


def _box(pixels):
    """The glyph in a box of fixed size, uint8 `[28, 28]`."""
    height, width = pixels.shape
    scale = _BOX / max(height, width)
    # Even sides, so that the glyph is centred to the pixel and stays so when turned.
    size = max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))
    Image = require("PIL.Image", "to draw characters")
    canvas = Image.new("L", (_SIDE, _SIDE))
    corner = (_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2
    canvas.paste(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), corner)
    return np.asarray(canvas)


def _normalise(images):
    """int16 `[N, 28 * 28]`: images blurred, without their mean, of length _UNIT."""
    x = images.astype(np.int64)
    for axis in (1, 2):
        x = np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)
    x = x.reshape(len(x), -1)
    x = x * x.shape[1] - x.sum(axis=1, keepdims=True)
    length = np.sqrt((x // 16 * (x // 16)).sum(axis=1, keepdims=True)) * 16
    return np.rint(x * (_UNIT / np.maximum(length, 1.0))).astype(np.int16)


def _different_faces(descriptors):
    """Faces whose drawing differs from those of all faces before them."""
    chosen: list[int] = []
    rows = np.zeros((len(descriptors), _SIDE * _SIDE), np.float32)
    # Rounded to integers, descriptors are only nearly of length _UNIT.
    energies = np.zeros(len(descriptors))
    for index in sorted(descriptors):
        x = descriptors[index].astype(np.float32)
        energy, number = float(x @ x), len(chosen)
        alike = rows[:number] @ x >= SAME_FACE * np.sqrt(energies[:number] * energy)
        if not alike.any():
            rows[number], energies[number] = x, energy
            chosen.append(index)
    return tuple(chosen)


def _excess(code_points, descriptors):
    """Similarity `[N, N]` minus the threshold from which a pair is one class."""
    alike = _similarity(code_points, descriptors)
    training = np.array([_part_of(code_point) == "train" for code_point in code_points])
    both = training[:, None] & training
    return alike - np.where(both, SAME_SHAPE_IN_TRAINING, SAME_SHAPE)


def _similarity(code_points, descriptors):
    """Mean correlation `[N, N]` over the compared faces that a pair shares.

    The highest over four quarter turns where one of the pair is for meta-training; 0
    where fewer than `MIN_SHARED_FACES` are shared.
    """
    number = len(descriptors)
    total = np.zeros((4, number, number), np.float32)
    shared = np.zeros((number, number), np.int32)
    for index in range(COMPARED_FACES):
        having = [i for i, found in enumerate(descriptors) if index in found]
        if not having:
            continue
        cells = np.ix_(having, having)
        x = np.stack([descriptors[i][index] for i in having]).astype(np.float32)
        shared[cells] += 1
        for quarter, sums in enumerate(total):
            other = np.rot90(x.reshape(-1, _SIDE, _SIDE), quarter, axes=(1, 2))
            # In units of 256 the sum over all faces is exact too.
            sums[cells] += np.floor(x @ other.reshape(x.shape).T / 256)
    turned = np.array([_part_of(code_point) == "train" for code_point in code_points])
    chosen = np.where(turned[:, None] | turned, total.max(axis=0), total[0])
    mean = chosen * 256 / (np.maximum(shared, 1) * float(_UNIT) ** 2)
    mean = np.where(shared >= MIN_SHARED_FACES, mean, 0.0)
    place = {chr(code_point): i for i, code_point in enumerate(code_points)}
    for capital, i in place.items():
        small = capital.lower()
        if small != capital and small in place:
            mean[i, place[small]] += CASE_BONUS
            mean[place[small], i] += CASE_BONUS
    return mean


def _part_of(code_point):
    script = script_of(code_point)
    return next(part for part, names in SCRIPTS.items() if script in names)


def _order(code_point, number_of_faces):
    """Sort key of visits: plain characters first, then the most common."""
    script = -1 if code_point < 128 else _VISIT.index(script_of(code_point))
    return base_of(code_point) != code_point, script, -number_of_faces, code_point
