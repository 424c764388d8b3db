"""One picture file, of any size and mode, becomes a small square of RGB pixels.

Training on one's own pictures, predicting and serving all decode with this, so that they see the same pixels.

How a picture becomes a square of S x S: it is turned as its EXIF orientation says, its short side is resized to S
(bilinear, averaging over all the pixels that fall together), and the central square is cut out. A picture that is S x S
already keeps its pixels. Transparent parts are laid over white, 16-bit grey keeps its high byte, of an animation the
first frame counts; colour profiles are not applied.
"""

from __future__ import annotations

import contextlib
import stat
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from thumbnet.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are read, by content, whatever the file is called; no others, so that Pillow's rarer and more fragile
decoders are out of reach."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"})
"""Endings, in lower case, by which a file in a folder counts as a picture."""
MAX_PIXELS = 80_000_000
"""Most pixels of a picture: decoding takes up to 4 bytes for each. Pillow itself objects from 89 million on."""

_NAMES = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP"}
_ORIENTATION_TAG = 0x0112
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what shows the picture upright (Exif 2.32, section 4.6.4, tag 274)."""

# A JPEG is decoded at a half, a quarter or an eighth, which is far faster, as long as this many times the size asked
# for is left for the resize to average over.
_DRAFT_MARGIN = 2

_MASQUERADES = {
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"<": "HTML, SVG or other markup",
    b"PK\3\4": "a ZIP archive",
}


class PictureError(DataError):
    """A file that cannot be decoded; the message is the reason alone, without the file's name."""


class UnreadPictureError(PictureError):
    """The same for a reason that may pass without a change of the file: the disk refuses it, or memory is short."""


def decode_picture(
    source: Path | IO[bytes] | Image.Image,
    size: int,
    *,
    formats: tuple[str, ...] = FORMATS,
    most_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Return a picture as a square, uint8 [size, size, 3].

    Args:
        source: a file, a stream that can seek, or a picture that Pillow has opened or made, which stays as it is.
        size: side of the square, in pixels.
        formats: some or all of `FORMATS`, others are refused.
        most_pixels: pictures with more are refused before they are decoded.

    Raises:
        PictureError: it is no picture of these formats, is damaged or cut short, or has too many pixels.
        UnreadPictureError: the disk refuses it, or there is too little memory.
    """
    # The filters of `warnings` are shared by all threads (before Python 3.14): at worst a warning shows in another.
    with warnings.catch_warnings():
        # What Pillow warns of (odd EXIF data, odd palettes) does not keep it from decoding.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            if isinstance(source, Image.Image):
                return _square(source.copy(), size, most_pixels)
            if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
                raise PictureError("not a regular file")  # a pipe would block for ever
            with Image.open(source, formats=formats) as image:
                return _square(image, size, most_pixels)
        except PictureError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise PictureError(f"more than {most_pixels:,} pixels") from error
        except UnidentifiedImageError as error:
            what = "not a picture" if isinstance(source, Image.Image) else _what_instead(source, formats)
            raise PictureError(what) from error
        except MemoryError as error:
            raise UnreadPictureError("takes more memory than there is") from error
        except OSError as error:
            if error.errno is None:  # Pillow's own
                raise PictureError(f"damaged: {error}") from error
            raise UnreadPictureError(error.strerror or str(error)) from error
        except Exception as error:  # decoders of a damaged file raise whatever they stumble over
            raise PictureError(f"damaged: {error or type(error).__name__}") from error


def _square(image: Image.Image, size: int, most_pixels: int) -> np.ndarray:
    """Return an opened picture, not decoded yet, as uint8 [size, size, 3]."""
    if image.width * image.height > most_pixels:
        raise PictureError(f"{image.width:,} x {image.height:,} pixels, at most {most_pixels:,} in all")
    image.draft(None, (_DRAFT_MARGIN * size, _DRAFT_MARGIN * size))  # does nothing unless it is a JPEG
    image = _resizable(image)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    # The square is central, so turning it afterwards comes to the same, and is cheaper.
    turn = _TURNED.get(_orientation(image))
    if turn is not None:
        square = square.transpose(turn)
    return np.asarray(_to_rgb(square))


def _resizable(image: Image.Image) -> Image.Image:
    """Return a picture in a mode whose values can be averaged; only a palette, 1 bit and 16 bits need a change."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
        grey.info = image.info
        return grey
    if image.mode in ("1", "P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if "transparency" in image.info:  # one colour of the picture stands for transparent
        return image.convert("RGBA")
    image.load()
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none."""
    with contextlib.suppress(Exception):  # EXIF data is written by all kinds of devices; a picture is none the worse
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode in RGB, its transparent parts over white."""
    if image.mode in ("RGBA", "LA", "RGBa", "La"):
        backdrop = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(backdrop, image.convert("RGBA"))
    return image.convert("RGB")


def _what_instead(source: Path | IO[bytes], formats: tuple[str, ...]) -> str:
    """Return why a file cannot be told to be a picture, by its first bytes."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(64)
    else:
        source.seek(0)
        start = source.read(64)
    if not start:
        return "empty, 0 bytes"
    *others, last = (_NAMES[name] for name in formats)
    expected = f"{', '.join(others)} or {last}"
    for beginning, kind in _MASQUERADES.items():
        if start.lstrip().startswith(beginning):
            return f"{kind}, not a {expected}"
    return f"not a {expected}, or damaged at its beginning"
