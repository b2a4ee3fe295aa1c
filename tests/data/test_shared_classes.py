"""Classes that image sets share under any name, and what a mixture does about them."""

import json

import numpy as np
import pytest
from image_folders import image_set
from PIL import Image

from metalearn import data
from metalearn.data.images import splits
from metalearn.data.images.image_sets import PARTS


def names(sets):
    return {
        name: {part: list(found.class_names) for part, found in made.parts.items()}
        for name, made in sets.items()
    }


def two(earlier, later, parts=("train", "test"), words=None, merged=None):
    """Set a with a class in an earlier part, set b with one in a later part."""
    first, last = parts
    info = {"words": words or {}, "merged": merged or {}}
    return {
        "a": image_set({first: ["own", earlier]}, **info),
        "b": image_set({last: ["else", later]}, **info),
    }


ALIKE = {
    "one name": ("lion", "lion"),
    "case": ("Lion", "lION"),
    "underscores": ("sweet_pepper", "Sweet-Pepper"),
    "spaces": ("sweet  pepper", "sweet.pepper"),
    "a path": ("animals/lion", "lion"),
    "two paths": ("photo/wild/lion", "sketch/lion"),
    "numbered": ("017.Sea_Lion", "sea lion"),
    "accents composed and not": ("café", "cafe\u0301"),
    "wide letters": ("ｌｉｏｎ", "lion"),
    "sharp s": ("Straße", "STRASSE"),
    "a thing put differently": ("sweet_pepper", "bell_pepper"),
    "an alphabet and a letter": ("Greek/character01", "GREEK SMALL LETTER BETA"),
    "an alphabet, unpacked": ("images_background/Greek/character24", "β"),
    "two alphabets": (
        "Asomtavruli_(Georgian)/character01",
        "Mkhedruli_(Georgian)/character40",
    ),
    "an invented one": ("Futurama/character01", "Futurama/character02"),
    "two letters of a script": ("я", "Ж"),
    "a letter and its number": ("U+03B1", "α"),
    "a letter as a file name": ("greek_small_letter_alpha", "α"),
    "a bold letter": ("MATHEMATICAL BOLD SMALL ALPHA", "Greek/character01"),
    "the sign alef": ("ALEF SYMBOL", "Hebrew/character03"),
    "a digit": ("7", "DIGIT SEVEN"),
    "a sign": ("+", "plus sign"),
    "kana": ("あ", "Japanese_(hiragana)/character10"),
    "hangul": ("한", "Korean/character01"),
    "syllabics": ("ᐁ", "Inuktitut_(Canadian_Aboriginal_Syllabics)/character02"),
}
OTHER = {
    "another name": ("lion", "sea lion"),
    "part of a word": ("ant", "elephant"),
    "two digits": ("7", "8"),
    "numbers": ("10", "11"),
    "two scripts": ("α", "Ж"),
    "two alphabets": ("Greek/character01", "Cyrillic/character01"),
    "two invented ones": ("Futurama/character01", "Angelic/character01"),
    "a character that is no file of Omniglot": ("Greek/characters", "α"),
    "two signs": ("+", "-"),
    "cjk and kana": ("あ", "漢"),
    "what has no letters": ("__", "--"),
    "no character": ("U+FFFFFF", "α"),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("kind", ALIKE)
def test_the_same_class_under_two_names(kind, swapped):
    earlier, later = ALIKE[kind][:: -1 if swapped else 1]
    sets = two(earlier, later)
    (found,) = data.shared_classes(sets)
    assert (found.name, found.part, found.classes) == ("a", "train", (earlier,))
    assert (found.other, found.other_part, found.other_classes) == ("b", "test", (later,))
    left = names(data.disjoint(sets, shared="leave_out"))
    assert left == {"a": {"train": ["own"]}, "b": {"test": ["else", later]}}


@pytest.mark.parametrize("kind", OTHER)
def test_different_classes(kind):
    sets = two(*OTHER[kind])
    assert data.shared_classes(sets) == []
    assert names(data.disjoint(sets)) == names(sets)


@pytest.mark.parametrize("first", PARTS)
@pytest.mark.parametrize("last", PARTS)
def test_the_earlier_part_loses_the_class(first, last):
    sets = two("lion", "LION", (first, last))
    left = names(data.disjoint(sets, shared="leave_out"))
    a, b = {first: ["own", "lion"]}, {last: ["else", "LION"]}
    if PARTS.index(first) < PARTS.index(last):
        a[first].remove("lion")
    elif PARTS.index(first) > PARTS.index(last):
        b[last].remove("LION")
    assert left == {"a": a, "b": b}


def test_words_for_numbers_are_names():
    words = {"n02129165": "lion, king of beasts, Panthera leo", "n1": "α, alpha"}
    for earlier, later, shared in (
        ("lion", "n02129165", True),
        ("n02129165", "Panthera_Leo", True),
        ("n02129165", "king of beasts", True),
        ("n02129165", "beasts", False),
        ("n1", "Greek/character02", True),
        ("n02129165", "n02129165", True),
        ("n02129166", "lion", False),
    ):
        assert bool(data.shared_classes(two(earlier, later, words=words))) == shared


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"names": {"n1": "lion, cat", "n2": "ant"}}, {"n1": "lion, cat", "n2": "ant"}),
        ({"train": ["a"], "names": {"e\u0301": "x"}}, {"é": "x"}),
        ({"train": ["a"]}, {}),
        ({"names": ["a", "b"]}, {}),
        ({"names": {"n1": ["lion"], "n2": "ant"}}, {"n2": "ant"}),
        (["names"], {}),
        (None, {}),
    ],
)
def test_words_of_a_splits_file(content, expected):
    assert splits.read_words(content) == expected


def test_words_of_a_folder(tmp_path, monkeypatch):
    """Also of a split at random; a file that is no JSON gives none."""
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    for name in ("n1", "n2", "n3"):
        (tmp_path / "set" / name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / name / "0.png")
    file = tmp_path / "set" / "splits.json"
    file.write_text(json.dumps({"names": {"n1": "lion", "n9": "elk"}}))
    made = data.load(tmp_path / "set", split="random", channels=1)
    assert made.info["words"] == {"n1": "lion"}
    file.write_text("{")
    made = data.load(tmp_path / "set", split="random", channels=1)
    assert made.info["words"] == {}
    parts = {"train": ["n1"], "test": ["n2"], "names": {"n2": "ant"}}
    made = data.load(tmp_path / "set", splits=parts, channels=1)
    assert made.info["words"] == {"n2": "ant"}


def test_a_glyph_is_what_looks_like_it():
    """The Latin A stands for the Greek Alpha, so it is out where Alpha is tested."""
    merged = {"LATIN CAPITAL LETTER A": ["U+0391", "U+0410"]}
    a = "LATIN CAPITAL LETTER A"
    assert data.shared_classes(two(a, "Α", merged=merged))  # the second is Greek
    assert data.shared_classes(two(a, "CYRILLIC CAPITAL LETTER A", merged=merged))
    assert not data.shared_classes(two(a, "β", merged=merged))
    assert not data.shared_classes(two(a, "Greek/character01", merged=merged))


def test_names_that_nobody_gave_are_not_compared():
    part = data.from_arrays(np.zeros((4, 2, 2, 1), np.uint8), [0, 0, 1, 1])
    whole = data.ImageDataset(name="x", train=part, validation=part, test=part, info={})
    assert data.shared_classes({"a": whole, "b": whole}) == []
    given = two("class_0", "class_0")
    assert data.shared_classes(given)


def test_parts_of_one_set_are_its_own_affair():
    whole = image_set({"train": ["photo/dog", "Greek/character01"], "test": ["dog", "α"]})
    assert data.shared_classes({"a": whole}) == []


def three():
    return {
        "a": image_set({"train": ["lion", "ant", "bee", "cow"], "test": ["α", "x1"]}),
        "b": image_set({"train": ["Ant"], "validation": ["BEE", "Lion", "dog"]}),
        "c": image_set({"train": ["β", "elk", "dog"], "test": ["lion", "gnu"]}),
    }


def test_images_and_labels_follow_their_classes():
    before = three()
    left = data.disjoint(before, shared="leave_out")
    # By hand: b validates bee and dog, c tests lion, and β is Greek as the tested α is.
    assert names(left) == {
        "a": {"train": ["ant", "cow"], "test": ["α", "x1"]},
        "b": {"train": ["Ant"], "validation": ["BEE", "dog"]},
        "c": {"train": ["elk"], "test": ["lion", "gnu"]},
    }
    assert left["a"].info["left_out"] == {"train": ["lion", "bee"]}
    assert left["b"].info["left_out"] == {"validation": ["Lion"]}
    assert left["c"].info["left_out"] == {"train": ["β", "dog"]}
    assert "Left out: 2 of train (" in left["a"].info["protocol"]
    # The image of a class is its number.
    np.testing.assert_array_equal(left["a"].train.images.ravel(), [1, 3])
    np.testing.assert_array_equal(left["a"].train.labels, [0, 1])
    np.testing.assert_array_equal(left["b"].validation.images.ravel(), [0, 2])
    assert before["a"].train.num_classes == 4 and not before["a"].info
    assert left["a"].test is before["a"].test


def test_what_is_shared_is_refused_and_named():
    with pytest.raises(ValueError) as caught:
        data.disjoint(three())
    message = str(caught.value)
    for words in (
        "the name 'bee': 'bee' in train of a, 'BEE' in validation of b",
        "the name 'lion': 'Lion' in validation of b, 'lion' in test of c",
        "the script Greek: 'β' in train of c, 'α' in test of a",
        "--app.shared-classes leave_out",
        "shared=",
        "'keep'",
    ):
        assert words in message


def test_long_lists_are_cut():
    letters = [f"Greek/character{i:02d}" for i in range(1, 25)]
    sets = {"a": image_set({"train": letters}), "b": image_set({"test": ["α"]})}
    with pytest.raises(
        ValueError, match=r"character03', \.\.\. \(24 classes\) in train of a"
    ):
        data.disjoint(sets)
    assert len(data.shared_classes({**sets, "c": image_set({"test": ["β"]})})) == 2
    greek = [chr(c) for c in range(ord("α"), ord("ω") + 1)]
    sets = {"a": image_set({"train": greek}), "b": image_set({"test": greek})}
    (found,) = data.shared_classes(sets)  # the script, and not each letter as well
    assert found.what == "the script Greek" and len(found.classes) == len(greek)
    many = [f"name{i}" for i in range(30)]
    sets = {"a": image_set({"train": many}), "b": image_set({"test": many})}
    with pytest.raises(ValueError, match="; 20 more"):
        data.disjoint(sets)


def test_what_is_meant_is_kept_and_said():
    sets = three()
    kept = data.disjoint(sets, shared="keep")
    assert names(kept) == names(sets)
    assert "left_out" not in kept["a"].info
    assert "Kept although shared (" in kept["a"].info["protocol"]
    assert "the name 'lion': 'lion' in train of a" in kept["a"].info["protocol"]


def test_a_whole_validation_part_stays_and_tests_lose_the_classes():
    """Glyphs validate on Cyrillic, and the whole Omniglot tests Old Church Slavonic."""
    slavonic = [f"Old_Church_Slavonic_(Cyrillic)/character{i:02d}" for i in (1, 2)]
    sets = {
        "glyphs": image_set({"train": ["a"], "validation": ["я", "Ж"], "test": ["α"]}),
        "omniglot": image_set(
            {
                "train": ["Cyrillic/character01", "Tagalog/character01"],
                "validation": ["Hebrew/character01"],
                "test": [*slavonic, "Angelic/character01"],
            }
        ),
    }
    left = data.disjoint(sets, shared="leave_out")
    assert names(left) == {
        "glyphs": {"train": ["a"], "validation": ["я", "Ж"], "test": ["α"]},
        "omniglot": {
            "train": ["Tagalog/character01"],
            "validation": ["Hebrew/character01"],
            "test": ["Angelic/character01"],
        },
    }
    assert left["omniglot"].info["left_out"]["test"] == slavonic
    assert data.shared_classes(left) == []


def test_too_few_classes_are_refused():
    sets = two("lion", "lion")
    with pytest.raises(ValueError, match=r"train of a has 2 classes and 1 without.*'lion'"):
        data.disjoint(sets, shared="leave_out", at_least=2)
    sets = {
        "a": image_set({"validation": ["lion"]}),
        "b": image_set({"test": ["lion"]}),
    }
    with pytest.raises(ValueError, match="test of b has 1 classes and 0 without"):
        data.disjoint(sets, shared="leave_out")


@pytest.mark.parametrize(
    ("sets", "options", "error", "message"),
    [
        (None, {"shared": "leave-out"}, ValueError, "expected one of refuse, leave_out"),
        (None, {"at_least": 0}, ValueError, "at_least is 0"),
        (None, {"at_least": 1.5}, ValueError, "at_least is 1.5"),
        ([1], {}, TypeError, "expected whole data sets by name"),
        ({"a": 3}, {}, TypeError, "sets are int; expected whole data sets"),
    ],
)
def test_bad_arguments(sets, options, error, message):
    with pytest.raises(error, match=message):
        data.disjoint(three() if sets is None else sets, **options)
    if error is TypeError:
        with pytest.raises(error, match=message):
            data.shared_classes(sets)
