"""The typefaces that draw the embedded glyphs.

matplotlib and pymupdf-fonts, both dependencies of this package, ship some fifty
free typefaces (DejaVu, STIX, Computer Modern; FiraGO, Noto, Ubuntu, Cascadia and
others). Each typeface acts as one person with a pen. Nothing is downloaded, and no font
of the machine is used, so the set is the same everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import math
from pathlib import Path

import numpy as np

from metalearn.core import optional
from metalearn.core.optional import require

# In order of preference as drawers: one regular face of every family first, then
# slanted and bold ones, families alternating.
FACES = (
    *("DejaVuSans", "STIXGeneral", "FiraGO_Regular", "NotoSans_Regular"),
    *("Ubuntu_Regular", "DejaVuSerif", "cmr10", "CascadiaMono_Regular"),
    *("SpaceMono_Regular", "cmtt10", "UbuntuMono_Regular", "STIXGeneralItalic"),
    *("DejaVuSansMono", "FiraMono_Regular", "cmss10", "NotoSansMath_Regular"),
    *("DejaVuSerif-Bold", "cmti10", "FiraGO_BoldItalic", "STIXGeneralBolIta"),
    *("SpaceMono_Italic", "NotoSans_Bold", "Ubuntu_Italic", "DejaVuSans-BoldOblique"),
    *("CascadiaMono_BoldItalic", "DejaVuSerif-Italic", "UbuntuMono_BoldItalic"),
    *("FiraGO_Italic", "STIXGeneralBol", "cmb10", "NotoSans_Italic", "FiraMono_Bold"),
    *("DejaVuSansMono-Oblique", "Ubuntu_Bold", "SpaceMono_Bold", "FiraGO_Bold"),
    *("DejaVuSans-Bold", "CascadiaMono_Italic", "DejaVuSerif-BoldItalic"),
    *("NotoSans_BoldItalic", "UbuntuMono_Italic", "DejaVuSansMono-Bold"),
    *("Ubuntu_BoldItalic", "SpaceMono_BoldItalic", "CascadiaMono_Bold"),
    *("DejaVuSans-Oblique", "DejaVuSansMono-BoldOblique", "UbuntuMono_Bold"),
    *("NotoSansSymbols_Regular", "NotoSansSymbols2_Regular"),
)
# Computer Modern's character map is TeX's; only letters and digits are where Unicode
# has them.
_TEX_FACES = ("cmr10", "cmtt10", "cmss10", "cmti10", "cmb10")
FONT_SIZE = 80


class Face:
    """One typeface at one size.

    Attributes:
      name: Name in `FACES`.
      digest: SHA-256 of the file of the font.

    Raises:
      FileNotFoundError: The installed packages do not have this face.
    """

    def __init__(self, name: str, *, size: int):
        ImageFont = require("PIL.ImageFont", "to draw characters")

        data = _font_bytes(name)
        self.name, self.digest = name, hashlib.sha256(data).hexdigest()
        self._data = data
        # The basic layout draws a character as it is, whether or not Raqm is there.
        self._font = ImageFont.truetype(
            io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC
        )
        # U+FFFF is no character, so every face draws its sign for missing glyphs.
        self._missing = self._render("\uffff")

    @functools.cached_property
    def code_points(self) -> frozenset[int]:
        """Code points for which the face has a glyph."""
        TTFont = require("fontTools.ttLib", "to read typefaces").TTFont
        with TTFont(io.BytesIO(self._data), lazy=True) as font:
            found = frozenset(font.getBestCmap())
        if self.name in _TEX_FACES:
            found = frozenset(c for c in found if c < 128 and chr(c).isalnum())
        return found

    def render(self, code_point: int) -> np.ndarray | None:
        """Draws one character, cut to its ink.

        Returns:
          uint8 `[h, w]`, ink 255; None for a blank glyph and for the box or cross
          that a face shows in place of a character it does not have.
        """
        pixels = self._render(chr(code_point))
        if pixels is None or (
            self._missing is not None and np.array_equal(pixels, self._missing)
        ):
            return None
        return pixels

    def render_on_baseline(self, code_point: int, *, side: int, factor: int) -> np.ndarray:
        """Draws one character where it stands on its line.

        Args:
          code_point: The character.
          side: Side of the square that is drawn; parts outside the square are cut off.
          factor: Factor by which the result is smaller than the square.

        Returns:
          uint8 `[side / factor, side / factor]`, ink 255.
        """
        place = (side * 3 // 20, side * 7 // 10)
        return np.asarray(
            self._drawn((side, side), place, chr(code_point), anchor="ls").reduce(factor)
        )

    def _render(self, character):
        left, top, right, bottom = self._font.getbbox(character)
        # A pixel around, where the box was rounded.
        size = (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2)
        ink = cut_to_ink(np.asarray(self._drawn(size, (1 - left, 1 - top), character)))
        return ink if ink.size else None

    def _drawn(self, size, place, character, **how):
        """A picture of a size with the character at a place."""
        Image, ImageDraw = (
            require(f"PIL.{name}", "to draw characters") for name in ("Image", "ImageDraw")
        )
        picture = Image.new("L", size)
        ImageDraw.Draw(picture).text(place, character, font=self._font, fill=255, **how)
        return picture


def open_faces() -> list[Face]:
    """The faces of `FACES` at the size in which characters are compared and drawn.

    Raises:
      FileNotFoundError: The installed packages do not have a face.
    """
    return [Face(name, size=FONT_SIZE) for name in FACES]


def drawing_versions() -> dict[str, str]:
    """Versions of everything that decides what the pixels are."""
    features = require("PIL.features", "to draw characters")
    optional.check("to draw characters", "matplotlib", "pymupdf_fonts")
    packages = {
        name: importlib.metadata.version(name)
        for name in ("pillow", "matplotlib", "pymupdf-fonts")
    }
    return {**packages, "freetype": str(features.version("freetype2"))}


def cut_to_ink(pixels: np.ndarray) -> np.ndarray:
    """The smallest rectangle with all pixels that are not 0; uint8 `[h, w]`."""
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    if not len(rows):
        return pixels[:0, :0]
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.ascontiguousarray(pixels[box])


def _font_bytes(name):
    if "_" in name:
        module = require(f"pymupdf_fonts.{name}", "to draw characters")
        return module.fontbuffer
    matplotlib = require("matplotlib", "to draw characters")

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected the fonts that matplotlib ships. "
            "Install matplotlib anew: pip install --force-reinstall matplotlib"
        )
    return path.read_bytes()
