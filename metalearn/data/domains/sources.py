"""Sets of several domains: rotated digits, PACS, and folders of the user.

| name | files | domains |
|---|---|---|
| rotated-mnist | t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz | angles |
| pacs | pacs64.zip, or a folder pacs64 | art_painting, cartoon, photo, sketch |
| own | a folder or zip of DOMAIN/CLASS/image | the first folders |

Rotated MNIST is that of M. Ghifary et al., Domain Generalization for Object Recognition
with Multi-task Autoencoders, ICCV 2015, but here each digit is in one domain only, and the
digits are the 10,000 test digits. PACS is that of D. Li et al., Deeper, Broader and Artier
Domain Generalization, ICCV 2017.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metalearn.core import cost
from metalearn.data import arguments
from metalearn.data.domains.sets import DomainImages, domain_images
from metalearn.data.images.digits import IMAGES, LABELS, read_digits
from metalearn.data.images.folder import check_size, refuse_lost, resize
from metalearn.data.images.layout import layout_of, open_images
from metalearn.data.images.limits import check_total, limits_of
from metalearn.data.lookup import check_name, place_of

# Description and files, by name.
LAYOUTS = {
    "rotated-mnist": (
        "test digits of MNIST, each at one of several angles",
        f"{IMAGES} and {LABELS}",
    ),
    "pacs": (
        "seven classes as art, cartoons, photographs and sketches",
        "pacs64.zip, or a folder pacs64",
    ),
    "own": ("one's own images", "a folder or zip of DOMAIN/CLASS/image"),
}
DATASETS = tuple(LAYOUTS)
ANGLES = (0, 15, 30, 45, 60, 75)


def load_domains(
    name: str,
    data_dir: str | Path | None,
    *,
    angles: Sequence[int] = ANGLES,
    image_size: int | None = None,
) -> DomainImages:
    """Reads images of several domains.

    Args:
      name: A name of `DATASETS`.
      data_dir: Folder of the files, or the folder that has them in a folder "mnist" or
        "pacs64"; for "own" the folder of the domains, or a zip.
      angles: Angles of rotated-mnist, in degrees.
      image_size: Side to which images of files are cut and resized; all have one size
        already if None.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the name is unknown, a file is damaged, or see `domain_images`.
    """
    check_name("domains", name, DATASETS)
    if data_dir is None or name == "rotated-mnist":
        needed = (IMAGES, LABELS) if name == "rotated-mnist" else (LAYOUTS[name][1],)
        within = {"rotated-mnist": ("mnist",), "pacs": ("pacs64",)}.get(name, (name,))
        folder = place_of(f"the domains {name!r}", data_dir, needed, within=within)
        return rotated_digits(folder, angles)
    arguments.path("data_dir", data_dir)
    root = Path(data_dir)
    if name == "pacs":
        places = [root / "pacs64" / "pacs64.zip", root / "pacs64.zip", root / "pacs64"]
        root = next((place for place in places if place.exists()), root)
    return domain_folder(root, name=name, image_size=image_size)


def domain_folder(
    path: str | Path, *, name: str = "own", image_size: int | None = None
) -> DomainImages:
    """Images of a folder or zip of DOMAIN/CLASS/image, in colour.

    Args:
      path: The folder or zip.
      name: Name of the set.
      image_size: Side to which images are cut and resized; all have one size already if
        None.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: images are not in folders of classes in folders of domains, have several
        sizes, cannot be decoded, or see `domain_images`.
    """
    arguments.path("path", path)
    limits = limits_of()
    check_size(image_size, limits)
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(open_images(path, limits))
        found = layout_of(tree, by_parts=False)
        refuse_lost(tree, found, "or move the folder away")
        wrong = [folder for folder in found.files if folder.count("/") != 1]
        if wrong:
            raise ValueError(
                f"{tree.root} holds images in {wrong[0]!r}; expected DOMAIN/CLASS/image, "
                "in folders of two or more domains."
            )
        pairs = [folder.split("/") for folder in found.files]
        domains = sorted({domain for domain, _ in pairs})
        classes = sorted({label for _, label in pairs})
        pixels, codes = [], []
        first = ""
        for (domain, label), files in zip(pairs, found.files.values(), strict=True):
            for file in sorted(files):
                image = tree.read_image(file, mode="RGB")
                if image_size is not None:
                    image = resize(image, image_size)
                if not pixels:
                    first = file
                    num = sum(map(len, found.files.values()))
                    check_total(num, image.shape, limits, str(tree.root))
                    _check_memory(num, image.shape)
                elif image.shape != pixels[0].shape:
                    raise ValueError(
                        f"{file!r} in {tree.root} is {image.shape[1]}x{image.shape[0]} "
                        f"pixels, but {first!r} is {pixels[0].shape[1]}x"
                        f"{pixels[0].shape[0]}; expected one size. Give --app.image-size."
                    )
                pixels.append(image)
                codes.append((classes.index(label), domains.index(domain)))
    labels, numbers = np.asarray(codes, np.int32).T
    return domain_images(
        np.stack(pixels),
        labels,
        numbers,
        class_names=classes,
        domain_names=domains,
        name=name,
    )


def _check_memory(num: int, shape: tuple[int, ...]) -> None:
    """Refuses images that the host cannot hold twice: as they are read, and together."""
    size = f"{shape[1]}x{shape[0]}"
    cost.check_bytes(
        f"{num:,} images of {size} pixels, which are there twice while they are read,",
        2 * num * int(np.prod(shape)),
        "Choose a smaller --app.image-size.",
        cost.host_memory(),
    )


def rotated_digits(folder: str | Path, angles: Sequence[int] = ANGLES) -> DomainImages:
    """The test digits of MNIST, dealt out to the angles in turn and rotated.

    Args:
      folder: Folder of the two files.
      angles: Angle of each domain in degrees, counterclockwise; two or more.

    Raises:
      ValueError: a file is damaged, or the angles are not two or more different ones.
    """
    angles = tuple(angles)
    turns = {angle % 360 for angle in angles}
    if len(angles) < 2 or len(turns) < len(angles):
        raise ValueError(
            f"angles are {angles}; expected two or more, each once: 0 and 360 are one, and "
            "a target among them would be seen in training."
        )
    images, labels = read_digits(folder)
    # The files have the digits in no order of classes.
    domains = np.arange(len(images)) % len(angles)
    pixels = np.empty_like(images)
    for number, angle in enumerate(angles):
        pixels[domains == number] = rotated(images[domains == number], angle)
    return domain_images(
        pixels[..., None],
        labels,
        domains,
        class_names=[str(digit) for digit in range(10)],
        domain_names=[str(angle) for angle in angles],
        name="rotated-mnist",
    )


def rotated(images: np.ndarray, angle: float) -> np.ndarray:
    """Images turned counterclockwise about their centre, by bilinear interpolation.

    Args:
      images: Pixels, uint8 `[I, H, W]`.
      angle: Angle in degrees.

    Returns:
      Pixels of the same shape, 0 where nothing was.

    Raises:
      TypeError: the images are no numbers.
      ValueError: they are not `[I, H, W]`, or the angle is no finite number.
    """
    images = arguments.numbers("images", images, ndim=3)
    arguments.number("angle", angle)
    if not angle % 360:
        return images
    height, width = images.shape[1:]
    turn = np.deg2rad(angle)
    down, right = np.mgrid[:height, :width].astype(float)
    down -= (height - 1) / 2
    right -= (width - 1) / 2
    # Where each pixel comes from.
    row = np.cos(turn) * down + np.sin(turn) * right + (height - 1) / 2
    column = -np.sin(turn) * down + np.cos(turn) * right + (width - 1) / 2
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    row = np.clip(row + 1, 0, height + 1)
    column = np.clip(column + 1, 0, width + 1)
    top = np.minimum(row.astype(int), height)
    left = np.minimum(column.astype(int), width)
    below, beside = (row - top)[None], (column - left)[None]
    upper = padded[:, top, left] * (1 - beside) + padded[:, top, left + 1] * beside
    lower = padded[:, top + 1, left] * (1 - beside) + padded[:, top + 1, left + 1] * beside
    return np.rint(upper * (1 - below) + lower * below).astype(np.uint8)
