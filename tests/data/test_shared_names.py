"""Classes that the real image sets share, by their names alone."""

import json
import re

import pytest
from fontTools import unicodedata as scripts
from image_folders import image_set

from metalearn import data
from metalearn.data.images import glyph_classes, glyph_table, omniglot, splits
from metalearn.data.images.image_sets import PARTS

# The alphabets of the published archives, as their authors name the folders.
BACKGROUND = {
    **{"Alphabet_of_the_Magi": 20, "Anglo-Saxon_Futhorc": 29, "Arcadian": 26},
    **{"Armenian": 41, "Asomtavruli_(Georgian)": 40, "Balinese": 24, "Bengali": 46},
    **{"Blackfoot_(Canadian_Aboriginal_Syllabics)": 14, "Braille": 26},
    **{"Burmese_(Myanmar)": 34, "Cyrillic": 33, "Early_Aramaic": 22, "Futurama": 26},
    **{"Grantha": 43, "Greek": 24, "Gujarati": 48, "Hebrew": 22},
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    **{"Japanese_(hiragana)": 52, "Japanese_(katakana)": 47, "Korean": 40, "Latin": 26},
    **{"Malay_(Jawi_-_Arabic)": 40, "Mkhedruli_(Georgian)": 41, "N_Ko": 33},
    **{"Ojibwe_(Canadian_Aboriginal_Syllabics)": 14, "Sanskrit": 42},
    **{"Syriac_(Estrangelo)": 23, "Tagalog": 17, "Tifinagh": 55},
}
EVALUATION = (
    *("Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez"),
    *("Glagolitic", "Gurmukhi", "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian"),
    *("Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar"),
    *("Tibetan", "ULOG"),
)
INVENTED = {
    *("Alphabet_of_the_Magi", "Arcadian", "Futurama", "Angelic", "Atemayar_Qelisayer"),
    *("Atlantean", "Aurek-Besh", "Keble", "Tengwar", "ULOG"),
}
HALF = ("Angelic", "Atlantean", "Avesta", "Glagolitic", "Kannada", "Malayalam")
HALF += ("Mongolian", "Oriya", "Syriac_(Serto)", "Tibetan")


def test_every_alphabet_has_a_script_or_is_invented():
    for alphabet in (*BACKGROUND, *EVALUATION):
        script = omniglot.SCRIPT_OF_ALPHABET.get(alphabet)
        assert (script is None) == (alphabet in INVENTED), alphabet
        if script is not None:  # spelt as Unicode has it
            assert scripts.script_name(scripts.script_code(script)) == script


def characters_of(alphabets):
    return [
        f"{alphabet}/character{i:02d}"
        for alphabet in sorted(alphabets)
        for i in range(1, BACKGROUND.get(alphabet, 20) + 1)
    ]


def omniglot_names(evaluation):
    held_back = omniglot.VALIDATION_ALPHABETS[: omniglot.NUM_VALIDATION_ALPHABETS]
    return image_set(
        {
            "train": characters_of(set(BACKGROUND) - set(held_back)),
            "validation": characters_of(held_back),
            "test": characters_of(evaluation),
        }
    )


def glyph_names():
    classes = glyph_table.stored_classes()
    merged = {c.name: [f"U+{m:04X}" for m in c.merged] for c in classes if c.merged}
    parts = {p: [c.name for c in classes if c.part == p] for p in PARTS}
    return image_set(parts, merged=merged)


def groups(lost):
    return {name.split("/")[0] for name in lost}


@pytest.mark.parametrize("whole", [False, True])
def test_omniglot_and_glyphs(whole):
    """146 characters of the glyphs' test scripts and 33 of their validation script."""
    before = {
        "omniglot": omniglot_names(EVALUATION if whole else HALF),
        "glyphs": glyph_names(),
    }
    left = data.disjoint(before, shared="leave_out", at_least=5)
    lost = left["omniglot"].info["left_out"]
    assert groups(lost["train"]) == {"Greek", "Asomtavruli_(Georgian)", "Cyrillic"}
    assert groups(lost["validation"]) == {"Armenian", "Mkhedruli_(Georgian)"}
    assert len(lost["train"]) == 24 + 40 + 33 and len(lost["validation"]) == 41 + 41
    assert groups(lost.get("test", ())) == (
        {"Old_Church_Slavonic_(Cyrillic)"} if whole else set()
    )
    for part in ("validation", "test"):
        assert getattr(left["glyphs"], part) is getattr(before["glyphs"], part)
    # Signs that are letters of Hebrew, on which Omniglot validates.
    assert left["glyphs"].info.get("left_out", {}) == {}
    # Independently: no script of the glyphs' later parts is left in an earlier part.
    for part, scripts_of in (("train", "validation"), ("train", "test")):
        tested = set(glyph_classes.SCRIPTS[scripts_of])
        assert not tested & {
            re.sub(r".*\((.*)\)", r"\1", alphabet)
            for alphabet in groups(getattr(left["omniglot"], part).class_names)
        }


@pytest.mark.data
@pytest.mark.parametrize("split", ["cifar_fs", "fc100"])
def test_photographs(shared_dir, split):
    folders = {"cifar_fs": "cifar_fs", "tiny": "tiny_imagenet80"}
    sets = {}
    for name, folder in folders.items():
        path = shared_dir / "data" / folder / "splits.json"
        if not path.is_file():
            pytest.skip(f"no {path}: the test reads the names of real classes")
        content = json.loads(path.read_text())
        lists = splits.read_splits(
            path, path.read_bytes(), split if name != "tiny" else None
        )
        parts = {splits.part_of(part): found for part, found in lists.items()}
        sets[name] = image_set(parts, words=splits.read_words(content))
    found = {
        (one.what, one.name, one.part, one.other_part) for one in data.shared_classes(sets)
    }
    by_split = {
        "cifar_fs": {
            ("the name 'bee'", "cifar_fs", "train", "validation"),
            ("the name 'lion'", "cifar_fs", "train", "test"),
            ("the name 'butterfly'", "cifar_fs", "validation", "test"),
            ("the name 'sweet pepper'", "tiny", "validation", "test"),
        },
        "fc100": {
            ("the name 'bee'", "tiny", "validation", "test"),
            ("the name 'lion'", "cifar_fs", "validation", "test"),
            ("the name 'sweet pepper'", "cifar_fs", "train", "validation"),
        },
    }
    assert found == by_split[split]
    left = data.disjoint(sets, shared="leave_out", at_least=5)
    assert data.shared_classes(left) == []
