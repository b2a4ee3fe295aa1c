"""What a viewer shows is what is read: transparency, orientation, depth, frames, limits.

Expected pixels come from the arrays that the files were made of and from closed forms.
"""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from metalearn.data.images import decoding
from metalearn.data.images.decoding import decode
from metalearn.data.images.limits import Limits

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 11, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (9, 11, 1), np.uint8)
GREY = RNG.integers(0, 256, (9, 11, 1), np.uint8)
INDEX = RNG.integers(0, 3, (9, 11), np.uint8)
PALETTE = np.array([[0, 0, 0], [10, 20, 30], [200, 100, 50]], np.uint8)
DEEP = RNG.integers(0, 65536, (9, 11)).astype(np.uint16)


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def of_palette():
    image = Image.fromarray(INDEX, "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(PALETTE.ravel().tolist())
    return image


def of_grey_and_alpha():
    parts = [Image.fromarray(a[..., 0]) for a in (GREY, ALPHA)]
    return Image.merge("LA", parts)


def read(data, mode="RGB", limits=None):
    pixels, notes = decode(data, mode=mode, where="here", limits=limits or Limits())
    assert pixels.dtype == np.uint8
    return pixels.astype(int), notes


def on_white(colour, alpha):
    colour, alpha = colour.astype(float), alpha.astype(float)
    return np.rint((colour * alpha + 255 * (255 - alpha)) / 255)


RGBA = Image.fromarray(np.concatenate([COLOUR, ALPHA], -1))
CLEAR_BLACK = np.where(INDEX == 0, 0, 255)[..., None]
BINARY = (INDEX > 0)[..., None].astype(np.uint8) * 100
TRANSPARENT = {
    "RGBA png": (saved(RGBA, "png"), on_white(COLOUR, ALPHA)),
    "RGBA webp": (
        saved(RGBA, "webp", lossless=True, exact=True),
        on_white(COLOUR, ALPHA),
    ),
    "RGBA tif": (saved(RGBA, "tiff"), on_white(COLOUR, ALPHA)),
    "RGBA tif lzw": (
        saved(RGBA, "tiff", compression="tiff_lzw"),
        on_white(COLOUR, ALPHA),
    ),
    "LA png": (saved(of_grey_and_alpha(), "png"), on_white(GREY, ALPHA)),
    "palette with alphas": (
        saved(of_palette(), "png", transparency=bytes([0, 128, 255])),
        on_white(PALETTE[INDEX], np.array([0, 128, 255])[INDEX][..., None]),
    ),
    "palette with a clear colour": (
        saved(of_palette(), "png", transparency=0),
        on_white(PALETTE[INDEX], CLEAR_BLACK),
    ),
    "gif": (
        saved(of_palette(), "gif", transparency=0),
        on_white(PALETTE[INDEX], CLEAR_BLACK),
    ),
    "grey with a clear shade": (
        saved(Image.fromarray(BINARY[..., 0]), "png", transparency=0),
        on_white(BINARY, CLEAR_BLACK),
    ),
    "colour with a clear shade": (
        saved(
            Image.fromarray(BINARY.repeat(3, -1)),
            "png",
            transparency=(0, 0, 0),
        ),
        on_white(BINARY, CLEAR_BLACK),
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_stands_on_white(kind):
    data, wanted = TRANSPARENT[kind]
    found, notes = read(data)
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=1)
    assert notes == (decoding.TRANSPARENT,)
    luma = wanted @ [0.299, 0.587, 0.114] if wanted.shape[-1] == 3 else wanted[..., 0]
    np.testing.assert_allclose(read(data, "L")[0][..., 0], luma, atol=1.5)


def test_a_black_drawing_on_a_transparent_ground_is_seen():
    drawing = np.zeros((12, 12, 4), np.uint8)
    drawing[4:8, 4:8, 3] = 255
    found, _ = read(saved(Image.fromarray(drawing), "png"), "L")
    assert found[5, 5, 0] == 0 and found[0, 0, 0] == 255


def test_what_is_opaque_stays():
    opaque = np.concatenate([COLOUR, np.full_like(ALPHA, 255)], -1)
    for image in (Image.fromarray(COLOUR), Image.fromarray(opaque)):
        found, notes = read(saved(image, "png"))
        np.testing.assert_array_equal(found, COLOUR)
        assert notes == ()


# Six different blocks, large enough for JPEG; what each value of EXIF's tag means.
BLOCKS = np.array(
    [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 250, 250], [250, 0, 250]]]
)
STORED = BLOCKS.repeat(8, 0).repeat(8, 1).astype(np.uint8)
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def exif(orientation):
    """One entry of one directory, written by hand: tag 0x0112, short, one value."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("jpeg", {"quality": 100, "subsampling": 0}),
        ("png", {}),
        ("webp", {"lossless": True}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
    ],
)
def test_photographs_are_turned(kind, options, orientation):
    note = {"exif": exif(orientation)}
    if kind == "tiff":
        note = {"tiffinfo": {0x0112: orientation}}
    found, notes = read(saved(Image.fromarray(STORED), kind, **note, **options))
    wanted = SHOWN[orientation](STORED)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=3)
    assert notes == ((decoding.TURNED,) if orientation > 1 else ())


def test_a_damaged_or_unknown_note_leaves_the_picture():
    for note in (exif(9), exif(0), b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, notes = read(saved(Image.fromarray(STORED), "png", exif=note))
        np.testing.assert_array_equal(found, STORED)
        assert notes == ()


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_16_bits_are_scaled(kind):
    found, notes = read(saved(Image.fromarray(DEEP), kind), "L")
    np.testing.assert_array_equal(found[..., 0], np.rint(DEEP / 257))
    assert notes == (decoding.SIXTEEN,)
    assert read(saved(Image.fromarray(DEEP), kind))[0].shape == (9, 11, 3)


def png_of_16_bits(values, kind, extra=b""):
    """A PNG written by hand; Pillow writes no colours of 16 bits."""

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    extra = chunk(b"tRNS", extra) if extra else b""
    body = extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


@pytest.mark.parametrize("colours", [1, 3])
def test_16_bits_with_transparency(colours):
    deep = np.random.default_rng(1).integers(0, 65536, (9, 11, colours + 1))
    colour, alpha = deep[..., :colours], deep[..., colours:]
    found, notes = read(png_of_16_bits(deep, {1: 4, 3: 6}[colours]))
    wanted = np.broadcast_to(on_white(colour / 257, alpha / 257), found.shape)
    np.testing.assert_allclose(found, wanted, atol=2)
    assert notes == (decoding.TRANSPARENT,)
    # One colour is clear, in a chunk of its own.
    clear = np.array([1000, 2000, 3000])[:colours]
    colour[0, :5] = clear
    data = png_of_16_bits(
        colour, {1: 0, 3: 2}[colours], struct.pack(f">{colours}H", *clear)
    )
    found, notes = read(data)
    assert decoding.TRANSPARENT in notes
    wanted = np.where((colour == clear).all(-1, keepdims=True), 255, colour / 257)
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=1)


@pytest.mark.parametrize(
    ("dtype", "word"), [(np.float32, "floating-point"), (np.int32, "32-bit")]
)
def test_values_of_unknown_range_are_refused(dtype, word):
    data = saved(Image.fromarray(DEEP.astype(dtype)), "tiff")
    with pytest.raises(ValueError, match=f"here holds {word} values.*8-bit PNG"):
        read(data)


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_inks_become_colours(kind):
    """Cyan, magenta and yellow absorb red, green and blue, and black absorbs all."""
    inks, black = np.array([10, 100, 200]), 50
    image = Image.new("CMYK", (16, 16), (*inks.tolist(), black))
    found, _ = read(saved(image, kind))
    wanted = (255 - inks) * (255 - black) / 255
    np.testing.assert_allclose(found[8, 8], wanted, atol=3)


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff", "png"])
def test_the_first_frame_is_read(kind):
    frames = [Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)) for i in range(3)]
    options = {"save_all": True, "append_images": frames[1:]}
    found, notes = read(saved(frames[0], kind, **options))
    assert found.max() == 0
    assert notes == (decoding.FIRST_FRAME,)


@pytest.mark.parametrize("side", [9_000, 13_000, 14_000])
def test_images_of_too_many_pixels_are_refused_by_their_header(side):
    data = saved(Image.new("1", (side, side)), "png")
    assert len(data) < 200_000
    with pytest.raises(
        ValueError, match=r"here has .* pixels; expected at most max_pixels"
    ):
        read(data)


def test_the_limit_is_an_option():
    data = saved(Image.fromarray(COLOUR), "png")
    with pytest.raises(ValueError, match=r"here has 11x9 pixels"):
        read(data, limits=Limits(max_pixels=98))
    assert read(data, limits=Limits(max_pixels=99))[0].shape == (9, 11, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nothing",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"II*\0\xff\xff\xff\xff",
        # Pillow would start Ghostscript.
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        *(
            saved(Image.fromarray(COLOUR), kind)[:-40]
            for kind in ("png", "jpeg", "bmp", "gif", "tiff", "webp")
        ),
    ],
    ids=lambda data: f"{data[:4]!r} {len(data)}",
)
def test_damaged_bytes_are_named(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"^here cannot be decoded .* expected a PNG"):
            read(data)
