"""The embedded glyphs: drawn here once, then looked at as a whole."""

import hashlib
import unicodedata
from collections import Counter

import filelock
import numpy as np
import pytest

from metalearn import data
from metalearn.core import digest
from metalearn.data.images import glyph_classes, glyph_table, glyphs
from metalearn.data.images.glyph_faces import FACES, Face, open_faces

# SHA-256 of each part's images, by the versions that drew them.
VERSIONS = {
    "pillow": "13.0.0",
    "matplotlib": "3.11.2",
    "pymupdf-fonts": "1.0.5",
    "freetype": "2.14.3",
}
DIGESTS = {
    "train": "12a4f06e0b13337935715340103e7fa3f5a072e7c81589d9977f11f7b1ded9ff",
    "validation": "5552616b94e7b70da6118a6635fd683047b3488cdf15013fb3d8ed8ff32f4832",
    "test": "17749c5f21f0fb3bdcf513429c5c29ce6ce7f1de1f30eb9c42e1fdb73b7a761a",
}
NUM_CLASSES = {"train": 653, "validation": 107, "test": 253}


@pytest.fixture(scope="module")
def dataset(glyphs_cache):
    """Prepared once, whatever the number of workers and whether or not a cache is named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", glyphs_cache)
        with filelock.FileLock(f"{glyphs_cache}.lock"):
            found = data.load("glyphs")
        yield found


@pytest.fixture(scope="module")
def faces():
    return open_faces()


def test_sizes(dataset):
    total = sum(part.num_classes for part in dataset.parts.values())
    assert total >= 1000
    assert dataset.test.num_classes >= 150
    assert dataset.validation.num_classes >= 80
    for part in dataset.parts.values():
        assert (part.counts == glyphs.IMAGES_PER_CLASS).all()
        assert part.image_shape == (28, 28, 1)
    assert dataset.train.rotations
    assert not dataset.validation.rotations
    assert not dataset.test.rotations


def test_bytes(dataset):
    """Strictly the recorded bytes, or alike if other versions draw."""
    if glyphs.drawing_versions() == VERSIONS:
        for name, part in dataset.parts.items():
            digest = hashlib.sha256(part.images.tobytes()).hexdigest()
            assert digest == DIGESTS[name], name
    for name, part in dataset.parts.items():
        assert abs(part.num_classes / NUM_CLASSES[name] - 1) < 0.1
        assert 35 < part.images.mean() < 50


def test_every_image_is_a_centred_glyph(dataset):
    for part in dataset.parts.values():
        ink = part.images[..., 0] > 64
        assert (ink.sum((1, 2)) > 15).all()
        assert (ink.sum((1, 2)) < 450).all()
        assert (part.images.max((1, 2, 3)) > 160).all()
        rows, columns = ink.any(2), ink.any(1)
        height, width = rows.sum(1), columns.sum(1)
        assert (np.maximum(height, width) >= 14).mean() > 0.99  # all but some colons
        assert (part.images[:, [0, -1]] > 0).mean() < 0.01


def test_scripts_and_shapes_are_in_one_part(dataset):
    scripts = [set(part.group_names) for part in dataset.parts.values()]
    assert scripts == [set(names) for names in glyph_classes.SCRIPTS.values()]
    names = [name for part in dataset.parts.values() for name in part.class_names]
    assert len(set(names)) == len(names)
    merged = [code for codes in dataset.info["merged"].values() for code in codes]
    assert len(set(merged)) == len(merged)
    drawn = {f"U+{ord(unicodedata.lookup(name)):04X}" for name in names}
    assert not drawn & set(merged)


@pytest.mark.parametrize("characters", ["AΑА", "OoοОо", "CcсС", "Ssѕ", "XxхΧ", "<>"])
def test_characters_that_look_alike_are_one_class(dataset, characters):
    codes = {f"U+{ord(c):04X}" for c in characters}
    drawn = [c for c in characters if unicodedata.name(c) in dataset.train.class_names]
    assert len(drawn) == 1
    assert codes - {f"U+{ord(drawn[0]):04X}"} <= set(
        dataset.info["merged"][unicodedata.name(drawn[0])]
    )


def test_diacritics_that_can_be_told_apart_are_classes(dataset):
    """Circumflex and ogonek can; breve and caron cannot at this size."""
    names = {name for part in dataset.parts.values() for name in part.class_names}
    assert {unicodedata.name(c) for c in "áâąñňšśЁЌΈἘ"} <= names
    for alike in ("ǓŬ", "ĂǍ", "ḳķ"):
        assert len(names & {unicodedata.name(c) for c in alike}) <= 1


def test_diacritics_do_not_crowd_out_letters(dataset):
    bases = Counter()
    for part in dataset.parts.values():
        for name in part.class_names:
            character = unicodedata.lookup(name)
            base = chr(glyph_classes.base_of(ord(character)))
            bases[base] += base != character
    assert max(bases.values()) <= glyph_classes.MAX_MARKED


def test_no_two_images_of_a_class_are_equal(dataset):
    for part in dataset.parts.values():
        for images in np.split(part.images, part.num_classes):
            assert len({image.tobytes() for image in images}) == len(images)


def test_faces(dataset):
    """All of at least 1,000 classes have at least 12 faces that differ."""
    faces = dataset.info["faces_per_class"]
    names = {name for part in dataset.parts.values() for name in part.class_names}
    assert set(faces) == names
    assert len(faces) >= 1000
    assert min(faces.values()) >= 12


def test_faces_differ_before_jitter(dataset, faces):
    """Counted anew where faces are few: 12 draw the character differently."""
    few = [name for name, n in dataset.info["faces_per_class"].items() if n < 20]
    assert len(few) > 100
    for name in few:
        code_point = ord(unicodedata.lookup(name))
        inks = (f.render(code_point) for f in faces if code_point in f.code_points)
        bitmaps = {
            next(glyphs.draw([ink], [np.random.default_rng(0)])).tobytes()
            for ink in inks
            if ink is not None
        }
        assert len(bitmaps) >= 12, name


def test_pixels_alone_do_not_solve_it(dataset):
    """One-shot nearest neighbour: well above chance, and well below 90 %."""
    test, rng = dataset.test, np.random.default_rng(0)
    pixels = test.images.reshape(test.num_classes, 20, -1).astype(np.float32)
    pixels /= np.linalg.norm(pixels, axis=-1, keepdims=True)
    right = []
    for _ in range(300):
        tasks = pixels[rng.choice(test.num_classes, 5, replace=False)]
        tasks = tasks[:, rng.permutation(20)[:16]]
        nearest = np.einsum("cqd,kd->cqk", tasks[:, 1:], tasks[:, 0]).argmax(-1)
        right.append((nearest == np.arange(5)[:, None]).mean())
    assert 0.5 < np.mean(right) < 0.8


def test_listing_and_second_load(dataset):
    row = {row.name: row for row in data.available()}["glyphs"]
    assert row.prepared
    assert row.classes == sum(p.num_classes for p in dataset.parts.values())
    assert row.images == 20 * row.classes
    again = data.load("glyphs", parts=("test",))
    np.testing.assert_array_equal(again.test.images, dataset.test.images)
    assert again.train is None


def test_candidates():
    yes = "Aбéᾴﬁ½ℍ\N{GREEK SMALL LETTER XI}7∑"
    no = "ª²\N{COMBINING ACUTE ACCENT}\N{OHM SIGN}\N{GREEK QUESTION MARK}\ufffd"
    assert all(glyph_classes.is_candidate(ord(c)) for c in yes)
    assert not any(glyph_classes.is_candidate(ord(c)) for c in no)
    assert glyph_classes.script_of(ord("ж")) == "Cyrillic"
    assert glyph_classes.script_of(ord("+")) == "Symbols"
    assert glyph_classes.script_of(ord("ᾴ")) == "Greek"
    assert chr(glyph_classes.base_of(ord("ᾴ"))) == "α"
    assert chr(glyph_classes.base_of(ord("½"))) == "½"


# -- The stored classes ------------------------------------------------------------------

FEW = "AaΑαБбVvΛɅ/∧:;"  # in three parts, with shapes that are shared, and few blots


def few_faces(number=None):
    """Faces that have few characters, so that their classes are found in a second."""
    found = [Face(name, size=80) for name in FACES[:number]]
    for face in found:
        face.code_points = frozenset(map(ord, FEW)) & face.code_points
    return found


@pytest.mark.slow
def test_stored_classes_are_those_that_are_found(faces):
    """All of them if the same versions draw; nearly all if others do."""
    found, table = glyph_classes.find_classes(faces), glyph_table.read()
    stored = glyph_table.stored_classes()
    if glyphs.drawing_versions() == table["versions"]:
        assert stored == found
    assert len(set(stored) & set(found)) > 0.9 * len(found)


def test_installed_fonts_are_those_of_the_stored_classes(faces, caplog, monkeypatch):
    """Or else the classes are found anew, and that is said."""
    anew = []
    monkeypatch.setattr(glyph_table, "find_classes", lambda given: anew.append(given) or [])
    found = glyph_table.classes_of(faces)
    if glyph_table.read()["key"] == glyph_table.key_of(faces):
        assert not anew and not caplog.records
        assert [c.part for c in found] == [
            part for part, number in NUM_CLASSES.items() for _ in range(number)
        ]
        assert all(c.faces == tuple(sorted(c.faces)) for c in found)
        assert max(i for c in found for i in c.faces) < len(faces)
    else:
        assert anew == [faces] and "found anew" in caplog.text
    same = {"pillow", "freetype"} & set(glyph_table.read()["versions"])
    assert same == {"pillow", "freetype"}


def test_classes_are_stored_and_found_again(tmp_path, caplog):
    """A cut-down search, written, read, and made again wherever anything differs."""
    few, path = few_faces(), tmp_path / "classes.json"
    found = glyph_classes.find_classes(few)
    assert len({c.part for c in found}) == 3 and any(c.merged for c in found)
    glyph_table.write(few, found, {"pillow": "1"}, path)
    assert glyph_table.classes_of(few, path) == found
    assert not caplog.records
    for change in ("font", "fewer", "order"):
        caplog.clear()
        other = few_faces(-1 if change == "fewer" else None)
        if change == "font":
            other[3].digest = "0" * 64
        if change == "order":
            other = [*other[:5], other[6], other[5], *other[7:]]
        assert glyph_table.classes_of(other, path) == glyph_classes.find_classes(other)
        assert "found anew" in caplog.text
        assert {"font": other[3].name, "fewer": FACES[-1], "order": "order"}[
            change
        ] in caplog.text


@pytest.mark.parametrize("setting", ["SAME_SHAPE", "_VISIT", "MIN_FACES"])
def test_other_settings_are_noticed(setting, monkeypatch, caplog, faces):
    anew = []
    monkeypatch.setattr(glyph_table, "find_classes", lambda given: anew.append(given) or [])
    monkeypatch.setattr(glyph_classes, setting, (0.5,))
    assert glyph_table.classes_of(faces) == []
    assert anew == [faces] and setting in caplog.text


def test_a_flipped_bit_in_the_stored_classes_is_noticed(tmp_path):
    text = bytearray(glyph_table.PATH.read_bytes())
    path, rng = tmp_path / "classes.json", np.random.default_rng(0)
    for place in rng.choice(len(text), 25, replace=False):
        changed = text.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises((digest.Damaged, ValueError), match=str(path)):
            glyph_table.read(path)
