"""The embedded glyphs: drawn here once, then looked at as a whole."""

import hashlib
import os
import unicodedata

import numpy as np
import pytest

from metalearn import data
from metalearn.data import glyph_classes, glyphs

# SHA-256 of each part's images, by the versions that drew them.
VERSIONS = {
    "pillow": "13.0.0",
    "matplotlib": "3.11.2",
    "pymupdf-fonts": "1.0.5",
    "freetype": "2.14.3",
}
DIGESTS = {
    "train": "fe688ad9adf162a137f697da339735cd676b3bf53eed74ab08711c1fd57f5df2",
    "validation": "731027b11c2d2d821c5510cf78a593107d3d4aaf45c33d0387b26e1c67ad2f90",
    "test": "36aa26e646257ec06075d4329bb0f0a69effe3450e49647b1496b7923000d158",
}
NUM_CLASSES = {"train": 710, "validation": 100, "test": 219}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("METALEARN_DATA"):
            patch.setenv("METALEARN_DATA", str(tmp_path_factory.mktemp("cache")))
        yield data.load("glyphs")


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


def test_no_two_images_of_a_class_are_equal(dataset):
    for part in dataset.parts.values():
        for images in np.split(part.images, part.num_classes):
            assert len({image.tobytes() for image in images}) == len(images)


def test_faces(dataset):
    faces = np.array(list(dataset.info["faces_per_class"].values()))
    assert faces.min() >= glyph_classes.MIN_FACES
    assert np.median(faces) >= 12


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
    yes = "Aб\N{GREEK SMALL LETTER XI}\N{ARABIC LETTER BEH INITIAL FORM}7∑"
    no = "éª\N{COMBINING ACUTE ACCENT}\N{MATHEMATICAL BOLD CAPITAL A}\ufffd"
    assert all(glyph_classes.is_candidate(ord(c)) for c in yes)
    assert not any(glyph_classes.is_candidate(ord(c)) for c in no)
    assert glyph_classes.script_of(ord("ж")) == "Cyrillic"
    assert glyph_classes.script_of(ord("+")) == "Symbols"
