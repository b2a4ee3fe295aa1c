"""Pixels of image files, as a viewer shows them.

A viewer shows a transparent picture on a ground of some colour, turns a photograph as its
EXIF note says, and shows the first frame of an animation first. An array of the stored
values would have none of that: a black drawing on a transparent ground is often stored as
black everywhere. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np

from metalearn.core.optional import require
from metalearn.data.images.limits import Limits, limits_of

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".jfif", ".pgm", ".ppm"),
)
# Formats of these suffixes; Pillow would also start other programs, such as Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_ORIENTATION = 0x0112  # EXIF tag; the method of Pillow that undoes each of its values
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
HOW = (
    "as a viewer shows them (transparent on white, turned by EXIF, first frame of "
    "animations, 16 bits scaled to 8; colour profiles not applied)"
)
TRANSPARENT, TURNED = "transparent, put on white", "turned by EXIF"
FIRST_FRAME, SIXTEEN = "first frame of several", "16 bits scaled to 8"


def pillow() -> Any:
    """The module `PIL.Image`, imported only when an image is read.

    Raises:
      MissingPackage: Pillow is not installed.
    """
    return require("PIL.Image", "to read images")


def decode_image(
    data: bytes, *, mode: str, where: str, limits: Limits | None = None
) -> np.ndarray:
    """Decodes image bytes to uint8 `[H, W, C]`; see `decode`."""
    return decode(data, mode=mode, where=where, limits=limits)[0]


def decode(
    data: bytes, *, mode: str, where: str, limits: Limits | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decodes an image as a viewer shows it.

    Args:
      data: Bytes of a file of one of the formats of `IMAGE_SUFFIXES`.
      mode: Pillow mode: "L" (greyscale) or "RGB".
      where: Source of the bytes, for messages.
      limits: Limits; those around, see `limits_of`, if None.

    Returns:
      The pixels, uint8 `[H, W, C]` with C = 1 for "L", and what was done to the image
      beyond decoding, in words.

    Raises:
      ValueError: The bytes are damaged, are no image, have too many pixels, or hold values
        without a known range.
    """
    Image, limits = pillow(), limits or limits_of()
    try:
        _check_png(data, where)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            # Before decoding: a small file may hold any number of pixels.
            if width * height > limits.max_pixels:
                raise _too_large(where, f"{width}x{height}", limits)
            shown, notes = _shown(image, Image, where, data)
            pixels = np.asarray(shown.convert(mode))
    except _Refused as error:
        raise ValueError(str(error)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow has a limit of its own, and counts before the size is known here.
        raise ValueError(str(_too_large(where, "too many", limits))) from None
    except Exception as error:  # a decoder raises anything on damaged bytes
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "no known format" if unknown else error
        raise ValueError(
            f"{where} cannot be decoded ({reason}; {len(data)} bytes); expected a PNG, "
            "JPEG, BMP, WebP, GIF, TIFF or PPM image. Replace or remove the file."
        ) from error
    # Grey images of Pillow have no axis of channels.
    return pixels[..., None] if pixels.ndim == 2 else pixels, tuple(notes)


class _Refused(Exception):
    """A sound image that is refused; the text is for users."""


_PNG = b"\x89PNG\r\n\x1a\n"


def _check_png(data: bytes, where: str) -> None:
    """Compares the checksum of each part of a PNG; Pillow leaves those of pixels out."""
    at = len(_PNG)
    while data.startswith(_PNG) and at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + size
        if end + 4 <= len(data) and zlib.crc32(data[at + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            part = data[at + 4 : at + 8].decode("latin-1")
            raise _Refused(
                f"{where} is damaged: the part {part!r} at byte {at} differs from its "
                "checksum. Replace or remove the file."
            )
        at = end + 4


def _check_tiff(image: Any, where: str) -> None:
    """Refuses what Pillow decodes otherwise than it is meant.

    These are signed numbers, grey of 9 to 15 bits, and wide grey of which 0 is white.
    """
    tags = getattr(image, "tag_v2", {})
    bits, white = tags.get(258, (1,)), tags.get(262) == 0
    bits = bits if isinstance(bits, tuple) else (bits,)
    if max(bits) > 16:  # refused, or read, as what they are
        return
    signed = 2 in np.atleast_1d(tags.get(339, 1))
    if signed or any(8 < b < 16 for b in bits) or (white and max(bits) > 8):
        raise _Refused(
            f"{where} is a TIFF of {bits[0]}{' signed' if signed else ''} bits a value"
            f"{', of which 0 is white' if white else ''}, which Pillow reads otherwise; "
            "expected 1 to 8 bits, or 16 with 0 for black. Convert the file to PNG."
        )


def _too_large(where: str, pixels: str, limits: Limits) -> _Refused:
    return _Refused(
        f"{where} has {pixels} pixels; expected at most max_pixels={limits.max_pixels} in "
        "one image. Make the image smaller, or raise the option max_pixels."
    )


def _shown(image: Any, Image: Any, where: str, data: bytes) -> tuple[Any, list[str]]:
    """The first frame, turned, in bytes and on white; and what was done."""
    notes = []
    # The further pictures of an MPO photograph are its thumbnails or other views.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append(FIRST_FRAME)
    if image.format == "TIFF":
        _check_tiff(image, where)
    stored = _turn(image)
    image.load()
    # Pillow has turned a TIFF while loading, and has removed the note.
    turn = _turn(image)
    if turn is not None:
        image = image.transpose(Image.Transpose[turn])
    if stored is not None or turn is not None:
        notes.append(TURNED)
    clear = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        image = _in_bytes(image, Image, where)
        notes += [SIXTEEN, TRANSPARENT] if isinstance(clear, int) else [SIXTEEN]
    elif isinstance(clear, int) and image.mode == "L" and image.format == "PNG":
        # Pillow widens grey of 2 and 4 bits to 8, and leaves its transparent shade narrow.
        image.info["transparency"] = clear * 255 // (2 ** _png_bits(data) - 1)
    elif isinstance(clear, tuple) and max(clear) > 255:
        # Pillow reads colours of 16 bits in 8, but their transparent one in 16.
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.has_transparency_data:
        # Pillow has no way from grey with premultiplied transparency to colour.
        straight = image.convert("LA") if image.mode == "La" else image
        image = straight.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            notes.append(TRANSPARENT)
            ground = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(ground, image)
        image = image.convert("RGB")
    return image, notes


def _png_bits(data: bytes) -> int:
    """Bits a value, which stand behind the size in the head of a PNG."""
    return data[24]


def _turn(image: Any) -> str | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # a damaged note raises anything, and the picture is sound
        return None


def _in_bytes(image: Any, Image: Any, where: str) -> Any:
    """A grey image of 16 bits in 8; `convert` would cut off all values above 255."""
    known = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if not known or image.mode == "F":
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise _Refused(
            f"{where} holds {kind} values, whose range for black and white is unknown; "
            "expected 8 or 16 bits. Convert the file to an 8-bit PNG."
        )
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey)
