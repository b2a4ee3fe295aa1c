"""Omniglot: handwritten characters of many alphabets, twenty drawers each.

The images come from the original archives of github.com/brendenlake/omniglot (MIT licence):
`images_background.zip` and any `images_evaluation*.zip`, or the folders they unpack
to. Images become 28x28 with ink = 255. Each output pixel is the fraction of its area
that ink covers. This exact area average does not depend on the filters of a library.

There are two ways to split the classes, which are different benchmarks:

* `split="lake"` holds back five background alphabets for validation, trains on the other
  background alphabets, and tests on the evaluation alphabets. Alphabets are disjoint.
* `split="random"` shuffles all 1,623 characters: 1,100 train, 100 validation, 423
  test (the 1200/423 split of many papers). Alphabets are shared between the parts.

Rotations by multiples of 90 degrees are further classes in meta-training only.

Reference:
  Lake, Salakhutdinov, Tenenbaum (2015), Human-level concept learning through
  probabilistic program induction.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metalearn.data.builders import PartSource, RecordSource
from metalearn.data.images.archives import ImageTree, fingerprint

IMAGE_SIZE = 28
NUM_CHARACTERS = 1623
# Vinyals' five validation alphabets, then others in a fixed order to fill up to five
# when an archive holds only some of the background alphabets.
VALIDATION_ALPHABETS = (
    *("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"),
    *("Balinese", "Tifinagh", "Grantha", "N_Ko", "Greek", "Korean", "Latin"),
)
NUM_VALIDATION_ALPHABETS = 5
# Unicode's name of the script of each alphabet, because another set may have the same
# characters under another name. Alphabets that somebody invented (Futurama, Tengwar and
# others) have none there; they keep their own names.
SCRIPT_OF_ALPHABET = {
    **{"Anglo-Saxon_Futhorc": "Runic", "Avesta": "Avestan", "N_Ko": "Nko"},
    **{"Asomtavruli_(Georgian)": "Georgian", "Mkhedruli_(Georgian)": "Georgian"},
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": "Canadian Aboriginal",
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": "Canadian Aboriginal",
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": "Canadian Aboriginal",
    **{"Burmese_(Myanmar)": "Myanmar", "Early_Aramaic": "Imperial Aramaic"},
    **{"Ge_ez": "Ethiopic", "Korean": "Hangul", "Malay_(Jawi_-_Arabic)": "Arabic"},
    **{"Japanese_(hiragana)": "Hiragana", "Japanese_(katakana)": "Katakana"},
    **{"Manipuri": "Meetei Mayek", "Sanskrit": "Devanagari", "Sylheti": "Syloti Nagri"},
    "Old_Church_Slavonic_(Cyrillic)": "Cyrillic",
    **{"Syriac_(Estrangelo)": "Syriac", "Syriac_(Serto)": "Syriac"},
    **{
        name: name
        for name in (
            *("Armenian", "Balinese", "Bengali", "Braille", "Cyrillic", "Glagolitic"),
            *("Grantha", "Greek", "Gujarati", "Gurmukhi", "Hebrew", "Kannada", "Latin"),
            *("Malayalam", "Mongolian", "Oriya", "Tagalog", "Tibetan", "Tifinagh"),
        )
    },
}
SOURCE_URL = "https://github.com/brendenlake/omniglot/tree/master/python"
# Alphabet/characterNN, which names a class.
_CLASS = re.compile(r"(?:^|.*/)([^/]+)/character\d+$")
# Alphabet/characterNN/image.png, below any leading folders.
_PATH = re.compile(r"(?:^|.*/)([^/]+)/(character\d+)/[^/]+\.png$")
# Part of the cache key: raise it when the same archives would give other records.
_FORMAT = 1


def omniglot_source(
    data_dir: str | Path,
    *,
    split: str = "lake",
    seed: int = 0,
    validation_alphabets: Sequence[str] | None = None,
    stack: contextlib.ExitStack,
) -> RecordSource:
    """Describes the Omniglot archives of one folder.

    Args:
      data_dir: Folder with `images_background.zip` and/or `images_evaluation*.zip`,
        or the unpacked folders of those names.
      split: Split of the classes, "lake" or "random"; see the module.
      seed: Seed of the random split.
      validation_alphabets: Background alphabets to hold back in the Lake split, in
        place of the five of the module (with fewer than fifteen background alphabets
        the default is a third of them).
      stack: Stack that closes the archives when the caller is done with the source.

    Returns:
      The source. A part is missing when its archive is.

    Raises:
      FileNotFoundError: The folder or every archive is missing.
      ValueError: An archive is damaged, or the split does not fit its contents.
    """
    folder = Path(data_dir)
    background, evaluation = _find_archives(folder)
    if split not in ("lake", "random"):
        raise ValueError(
            f"split={split!r} was given for Omniglot; expected 'lake' or 'random'. "
            "Vinyals' lists are not shipped; 'random' is the nearest to them."
        )
    old = _characters([stack.enter_context(ImageTree(a)) for a in background])
    new = _characters([stack.enter_context(ImageTree(a)) for a in evaluation])
    if both := sorted(old.keys() & new.keys()):
        raise ValueError(
            f"The background and evaluation archives in {folder} share "
            f"{len(both)} characters, such as {both[0]!r}; expected none. Use the "
            "archives as they were published."
        )
    if split == "lake":
        parts = _lake_split(old, new, validation_alphabets)
    else:
        parts = _random_split(old | new, folder, seed)
    contents = [
        (name, stamp)
        for characters in (old, new)
        for name, files in characters.items()
        for stamp in files.values()
    ]
    options = [(part, sorted(members)) for part, members in parts.items()]
    key = fingerprint([*contents, *options, ("format", _FORMAT)])
    files = old | new
    return RecordSource(
        name="omniglot",
        config=f"{split}-{IMAGE_SIZE}px-{key}",
        description=(
            "Omniglot characters as 28x28 greyscale images, ink = 255, from the "
            f"original archives; {split} split."
        ),
        image_shape=(IMAGE_SIZE, IMAGE_SIZE, 1),
        parts={
            part: _part_source(members, files, rotations=part == "train")
            for part, members in parts.items()
            if members
        },
        info={
            "source": SOURCE_URL,
            "archives": [archive.name for archive in [*background, *evaluation]],
            "licence": "MIT, (c) 2015 Brenden Lake",
            "split": split,
            "seed": seed,
            "protocol": _statement(split, seed, parts),
            "characters_per_alphabet": {
                part: dict(Counter(name.split("/")[0] for name in members))
                for part, members in parts.items()
            },
            "preprocessing": "28x28, exact area average, ink 255 on 0",
        },
    )


def alphabet_of(class_name: str) -> str | None:
    """The alphabet in the name of a class, as "Greek/character01"; None in other names."""
    found = _CLASS.match(class_name)
    return None if found is None else found.group(1)


def shrink(ink: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """Area average of square images.

    Args:
      ink: Image, float or bool `[H, H]`, with 1 for ink.
      size: Side of the result.

    Returns:
      uint8 `[size, size]`: 255 times the covered fraction of each pixel.
    """
    # The average over a rectangle is a product of averages over its sides.
    weights = _area_weights(ink.shape[0], size)
    covered = weights @ ink.astype(np.float64) @ weights.T
    return np.rint(255 * covered).astype(np.uint8)


def _area_weights(source, target):
    """Share of each source pixel in each target pixel, `[target, source]`."""
    edges = np.arange(target + 1) * (source / target)
    left = np.arange(source)
    end = np.minimum(edges[1:, None], left + 1)
    start = np.maximum(edges[:-1, None], left)
    return np.maximum(end - start, 0) * (target / source)


def _find_archives(folder):
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data_dir={str(folder)!r} is not a folder; expected one that holds "
            f"images_background.zip and images_evaluation.zip. {how_to_get()}"
        )
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix == ".zip" or (path.is_dir() and path.name.startswith("images_"))
    )
    # An unpacked folder beside its archive holds the same images: the archive wins.
    stems = {path.stem for path in found if path.suffix == ".zip"}
    found = [path for path in found if path.suffix == ".zip" or path.name not in stems]
    background = [p for p in found if p.name.startswith("images_background")]
    whole = [p for p in background if p.stem == "images_background"]
    evaluation = [p for p in found if p.name.startswith("images_evaluation")]
    if not background and not evaluation:
        names = sorted(path.name for path in folder.iterdir())[:10]
        raise FileNotFoundError(
            f"{folder} holds {names or 'nothing'}; expected images_background.zip "
            f"and/or images_evaluation*.zip. {how_to_get()}"
        )
    return whole or background, evaluation


def _characters(trees) -> dict[str, Mapping]:
    """Maps "Alphabet/characterNN" to its files: {(tree, path): content stamp}."""
    characters: dict[str, dict] = {}
    seen: dict[str, tuple] = {}
    for tree in trees:
        paths = [path for path in tree.image_paths() if _PATH.match(path)]
        if not paths:
            raise ValueError(
                f"{tree.root} holds no file like 'Alphabet/character01/0001_01.png' "
                f"among {len(tree.paths)}; expected the layout of the original "
                f"archives. {how_to_get()}"
            )
        for path in paths:
            alphabet, character = _PATH.match(path).groups()
            name = f"{alphabet}/{character}"
            place = f"{name}/{path.rsplit('/', 1)[1]}"
            if place in seen:  # background_small1 and small2 share two alphabets
                first, first_path = seen[place]
                if first.read(first_path) != tree.read(path):
                    raise ValueError(
                        f"{path!r} in {tree.root} differs from the same image in "
                        f"{first.root}; expected equal copies. Keep one archive."
                    )
                continue
            seen[place] = tree, path
            characters.setdefault(name, {})[tree, path] = (place, *tree.paths[path])
    return dict(sorted(characters.items()))


def _part_source(members, files, *, rotations):
    def images(index):
        for tree, path in files[members[index]]:
            pixels = tree.read_image(path, mode="L")[..., 0]
            if pixels.shape[0] != pixels.shape[1] or pixels.shape[0] < IMAGE_SIZE:
                raise ValueError(
                    f"{path!r} in {tree.root} has shape {pixels.shape}; expected a "
                    f"square image of at least {IMAGE_SIZE}x{IMAGE_SIZE} (105x105 in "
                    "the original archives). Fetch the archive again."
                )
            yield shrink(pixels < 128)[..., None]

    return PartSource(
        class_names=tuple(members),
        class_groups=tuple(name.split("/")[0] for name in members),
        images=images,
        rotations=rotations,
    )


def _lake_split(old, new, wanted):
    alphabets = sorted({name.split("/")[0] for name in old})
    if wanted is None:
        count = min(NUM_VALIDATION_ALPHABETS, len(alphabets) // 3)
        order = [a for a in VALIDATION_ALPHABETS if a in alphabets]
        order += [a for a in alphabets if a not in order]
        held_back = set(order[:count])
    else:
        held_back = set(wanted)
        if unknown := sorted(held_back - set(alphabets)):
            raise ValueError(
                f"validation_alphabets names {unknown}, not among the background "
                f"alphabets; expected some of {alphabets}."
            )
    return {
        "train": [name for name in old if name.split("/")[0] not in held_back],
        "validation": [name for name in old if name.split("/")[0] in held_back],
        "test": list(new),
    }


def _random_split(files, folder, seed):
    if len(files) != NUM_CHARACTERS:
        raise ValueError(
            f"split='random' needs all {NUM_CHARACTERS} characters; {folder} holds "
            f"{len(files)}. Add the missing archives or use split='lake'. "
            f"{how_to_get()}"
        )
    names = sorted(files)
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = [names[i] for i in order]
    return {
        "train": sorted(shuffled[:1100]),
        "validation": sorted(shuffled[1100:1200]),
        "test": sorted(shuffled[1200:]),
    }


def _statement(split, seed, parts):
    numbers = ", ".join(
        f"{part} {len(members)} characters of "
        f"{len({name.split('/')[0] for name in members})} alphabets"
        for part, members in parts.items()
    )
    if split == "lake":
        return (
            f"Lake-type split, alphabets disjoint: {numbers}. Rotations are further "
            "classes in training only. Numbers on it are not comparable with those on "
            "the Vinyals or random 1200/423 splits, nor between different sets of "
            "evaluation alphabets."
        )
    return (
        f"Random split of the characters, seed {seed}, alphabets shared: {numbers}. "
        "Rotations are further classes in training only. Published random 1200/423 "
        "splits use other seeds, and Vinyals' lists rotate test classes too."
    )


def how_to_get() -> str:
    """The source of the archives and the command to run, as one sentence for messages."""
    return (
        f"Fetch images_background.zip and images_evaluation.zip from {SOURCE_URL} into "
        "a folder DIR and run: metalearn data prepare omniglot --data-dir DIR"
    )
