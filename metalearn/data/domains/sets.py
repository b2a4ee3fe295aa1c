"""The record of images in several domains, its checks, and what is held back."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from metalearn.core.given import check_unmasked
from metalearn.data import arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainImages:
    """Images of the same classes in several domains.

    Attributes:
      name: Name of the set.
      images: Pixels, uint8 `[I, H, W, C]`.
      labels: Class of each image, int32 `[I]`.
      domains: Domain of each image, int32 `[I]`.
      class_names: Name of each class.
      domain_names: Name of each domain.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    domains: np.ndarray
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of pixels, classes and domains."""
        found = hashlib.sha256()
        for part in (self.images, self.labels, self.domains):
            found.update(repr((part.shape, str(part.dtype))).encode())
            found.update(np.ascontiguousarray(part).tobytes())
        found.update(repr((self.class_names, self.domain_names)).encode())
        return found.hexdigest()

    def domain(self, name: str) -> int:
        """Number of a domain.

        Raises:
          ValueError: there is none of that name.
        """
        if name not in self.domain_names:
            raise ValueError(
                f"{name!r} is no domain of {self.name}; expected one of "
                f"{', '.join(self.domain_names)}."
            )
        return self.domain_names.index(name)


def domain_images(
    images: Any,
    labels: Any,
    domains: Any,
    *,
    class_names: Sequence[str],
    domain_names: Sequence[str],
    name: str = "own",
) -> DomainImages:
    """Checks images in several domains.

    Args:
      images: Pixels, uint8 `[I, H, W, C]`, where C is 1 or 3.
      labels: Class of each image, whole numbers `[I]` from 0.
      domains: Domain of each image, whole numbers `[I]` from 0.
      class_names: Name of each class.
      domain_names: Name of each domain.
      name: Name of the set.

    Returns:
      The set, in the order that was given.

    Raises:
      TypeError: images are no bytes, labels or domains no whole numbers, or names no text.
      ValueError: values are masked, shapes do not fit, a number has no name, there are
        fewer than two classes or domains, or a domain has no image of a class.
    """
    for what, given in (("images", images), ("labels", labels), ("domains", domains)):
        check_unmasked(given, what)
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(
            f"images have dtype {images.dtype}; expected uint8, 0 to 255. Write "
            "np.rint(255 * images).astype(np.uint8) for values of 0 to 1."
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images have shape {images.shape}; expected [I, H, W, C] with C 1 or 3."
        )
    names = {
        "class": arguments.names("class_names", class_names),
        "domain": arguments.names("domain_names", domain_names),
    }
    codes = {}
    for what, given in (("class", labels), ("domain", domains)):
        found, known = np.asarray(given), names[what]
        if found.dtype.kind not in "iu":
            raise TypeError(
                f"the {what} of each image has dtype {found.dtype}; expected whole numbers."
            )
        if found.shape != images.shape[:1]:
            raise ValueError(
                f"the {what} of each image has shape {found.shape}; expected one for each "
                f"of {len(images)} images."
            )
        if len(known) < 2 or len(set(known)) < len(known):
            raise ValueError(
                f"{name} has the {what} names {list(known)}; expected two or more, each "
                "once."
            )
        outside = (found < 0) | (found >= len(known))
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"the {what} of image {row} is {found[row]}; expected 0 to "
                f"{len(known) - 1}, for there are {len(known)} names."
            )
        codes[what] = found.astype(np.int32)
    made = DomainImages(
        name=name,
        images=images,
        labels=codes["class"],
        domains=codes["domain"],
        class_names=names["class"],
        domain_names=names["domain"],
    )
    empty = np.argwhere(counts(made) == 0)
    if len(empty):
        told = [f"{names['domain'][d]}/{names['class'][c]}" for d, c in empty[:5]]
        raise ValueError(
            f"{name} has no image of {len(empty)} of the classes in a domain: "
            f"{', '.join(told)}; expected every class in every domain. Add images, or "
            "leave the class or the domain out."
        )
    return made


def counts(data: DomainImages) -> np.ndarray:
    """Number of images by domain and class, `[D, W]`."""
    found = np.zeros((len(data.domain_names), len(data.class_names)), int)
    np.add.at(found, (data.domains, data.labels), 1)
    return found


def validation_rows(data: DomainImages, share: float, *, seed: int = 1) -> np.ndarray:
    """Images that are held back for validation: as large a part of each class and domain.

    Args:
      data: The images.
      share: Share of the images of a class in a domain, above 0 and below 1.
      seed: Seed of the draw.

    Returns:
      Mask `[I]`.

    Raises:
      TypeError: the data are something else.
      ValueError: the share or the seed is out of range, or a class has fewer than two
        images in a domain, so that none is left for training or for validation.
    """
    arguments.record("data", data, DomainImages, "domain_images(...)")
    arguments.share("share", share)
    arguments.seed(seed)
    few = np.argwhere(counts(data) < 2)
    if len(few):
        domain, label = few[0]
        raise ValueError(
            f"{data.name} has one image of {data.class_names[label]!r} in the domain "
            f"{data.domain_names[domain]!r}; expected two or more of each class, one of "
            "which is for validation."
        )
    rng = np.random.default_rng(seed)
    found = np.zeros(len(data.labels), bool)
    for domain in range(len(data.domain_names)):
        for label in range(len(data.class_names)):
            rows = np.flatnonzero((data.domains == domain) & (data.labels == label))
            num = min(max(round(share * len(rows)), 1), len(rows) - 1)
            found[rng.permutation(rows)[:num]] = True
    return found
