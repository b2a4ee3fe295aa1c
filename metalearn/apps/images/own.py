"""Images of the user for a trained run: a support folder, and images to classify.

The images are read as those of training were: turned to grey or colour, cut to their
central square and resized. Characters of glyphs and omniglot are light strokes on a dark
ground, so a dark drawing on light paper is inverted for a run on these sets.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from metalearn.apps.base import DataRecord
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.data.images.archives import ImageTree, decode_image
from metalearn.data.images.folder import refuse_lost, resize
from metalearn.data.images.layout import layout_of, open_images
from metalearn.data.images.limits import limits_of

# Sets of light strokes on a dark ground.
LIGHT_STROKES = ("glyphs", "omniglot")
INVERT = ("auto", "yes", "no")
_MOST_NAMED = 20

# A place in words, and a function that gives its pixels, uint8 `[H, W, C]`.
_Source = tuple[str, Callable[[], np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnImages:
    """Support set and queries.

    Attributes:
      class_names: Name of each class, sorted.
      labels: Class of each support image, int32 `[N]`.
      support: Support images, uint8 `[N, H, W, C]`.
      files: Path of each query.
      queries: Queries, uint8 `[Q, H, W, C]`.
      inverted: Number of images whose light and dark were swapped.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    support: np.ndarray
    files: tuple[str, ...]
    queries: np.ndarray
    inverted: int


def read_own(
    app: FewShotImages,
    record: DataRecord,
    *,
    support: str | Path,
    images: Sequence[str | Path],
    invert: str = "auto",
) -> OwnImages:
    """Reads images as those of a run were read. All are read, or none.

    Args:
      app: Application of the run.
      record: Description of the training data of the run.
      support: Folder or zip with a folder of images for each class.
      images: Image files, or folders or zips of images.
      invert: Whether to swap light and dark: "yes", "no", or "auto", which swaps where a
        run is on light strokes and most of an image is light.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: images cannot be used; names all of them. Or there are too few classes, or
        an option is wrong.
    """
    if invert not in INVERT:
        raise ValueError(f"invert is {invert!r}; expected one of {', '.join(INVERT)}.")
    if isinstance(images, (str, Path)):
        images = [images]
    height, width, channels = record["image_shape"]
    mode, factor = ("L" if channels == 1 else "RGB"), app.shrink
    strokes = record.get("name") in LIGHT_STROKES
    fitted = _Fitted((height, width), factor, area=strokes)
    with contextlib.ExitStack() as stack:
        labelled = _by_class(stack.enter_context(open_images(support, limits_of())), mode)
        names = tuple(sorted(labelled))
        examples = [source for name in names for source in labelled[name]]
        queries = list(_queries(images, mode, stack))
        pixels = _read_all([*examples, *queries], fitted)
    flip = np.full(len(pixels), invert == "yes")
    if invert == "auto" and strokes:
        flip = np.median(pixels.reshape(len(pixels), -1), axis=1) > 127
    pixels = np.where(flip[:, None, None, None], 255 - pixels, pixels)
    counts = [len(labelled[name]) for name in names]
    return OwnImages(
        class_names=names,
        labels=np.repeat(np.arange(len(names), dtype=np.int32), counts),
        support=pixels[: len(examples)],
        files=tuple(place for place, _ in queries),
        queries=pixels[len(examples) :],
        inverted=int(flip.sum()),
    )


def _by_class(tree: ImageTree, mode: str) -> dict[str, list[_Source]]:
    """Sources of the support images by class, as `ml.data.load` finds the classes."""
    found = layout_of(tree, by_parts=False)
    refuse_lost(tree, found, "or move the folder away")
    if len(found.files) < 2:
        raise ValueError(
            f"the support {tree.root} holds images of {len(found.files)} classes; expected "
            "two or more, each in its own folder: class/image.png."
        )
    return {
        name: [_from_tree(tree, path, mode) for path in paths]
        for name, paths in found.files.items()
    }


def _from_tree(tree: ImageTree, path: str, mode: str) -> _Source:
    return str(tree.root / path), lambda: tree.read_image(path, mode=mode)


def _queries(
    images: Iterable[str | Path], mode: str, stack: contextlib.ExitStack
) -> Iterable[_Source]:
    """Sources of the images to classify.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: there is no image.
    """
    number = 0
    for image in map(Path, images):
        if image.is_dir() or (image.is_file() and image.suffix.lower() == ".zip"):
            tree = stack.enter_context(ImageTree(image))
            sources = [_from_tree(tree, path, mode) for path in tree.image_paths()]
            if not sources:
                raise ValueError(f"{image} holds no image. Give files, or another folder.")
        elif image.is_file():
            sources = [(str(image), lambda image=image: _from_file(image, mode))]
        else:
            what = "is no file" if image.exists() else "does not exist"
            raise FileNotFoundError(f"the image {image} {what}. Check the path.")
        number += len(sources)
        yield from sources
    if not number:
        raise ValueError(
            "no images to classify were given; expected files or folders, such as: "
            "--images new/*.png"
        )


def _from_file(path: Path, mode: str) -> np.ndarray:
    size, most = path.stat().st_size, limits_of().max_file_bytes
    if size > most:
        raise ValueError(
            f"'{path}' has {size} bytes; expected at most max_file_bytes={most}. Make the "
            "file smaller, or raise the option max_file_bytes."
        )
    return decode_image(path.read_bytes(), mode=mode, where=f"'{path}'")


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """Function that cuts and resizes pixels `[H, W, C]` to the size of training.

    Attributes:
      size: Height and width of the images that the learner sees.
      factor: Divisor by which the data set was shrunk.
      area: Whether a pixel is the mean of the area that it covers, as for characters.
    """

    size: tuple[int, int]
    factor: int
    area: bool

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        (height, width), channels = self.size, pixels.shape[-1]
        full = (height * self.factor, width * self.factor)
        if pixels.shape[:2] not in (self.size, full):
            if height != width:
                raise ValueError(
                    f"it is {pixels.shape[1]}x{pixels.shape[0]} pixels; the run was "
                    f"trained on {full[1]}x{full[0]}, which are not square, so it is not "
                    "cut."
                )
            pixels = resize(pixels, full[0], "BOX" if self.area else "LANCZOS")
        if pixels.shape[:2] == self.size:
            return pixels
        blocks = (height, self.factor, width, self.factor, channels)
        return np.rint(pixels.reshape(blocks).mean((1, 3))).astype(np.uint8)


def _read_all(sources: Sequence[_Source], fitted: _Fitted) -> np.ndarray:
    """Pixels of all sources, uint8 `[I, H, W, C]`.

    Raises:
      ValueError: some cannot be used; names each of them.
    """
    found, bad = [], []
    for place, read in sources:
        try:
            found.append(fitted(read()))
        except (ValueError, OSError) as error:
            bad.append(f"{place}: {str(error).splitlines()[0]}")
    if bad:
        more = [f"... and {len(bad) - _MOST_NAMED} more"] if len(bad) > _MOST_NAMED else []
        raise ValueError(
            f"{len(bad)} of {len(sources)} images cannot be used, so nothing was predicted:"
            "\n  " + "\n  ".join([*bad[:_MOST_NAMED], *more]) + "\nReplace or remove them."
        )
    return np.stack(found)
