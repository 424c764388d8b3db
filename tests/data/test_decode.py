import errno
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thumbnet.data.decode import MAX_PIXELS, PictureError, UnreadPictureError, decode_picture

SIDE = 16
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def saved(picture: Image.Image | np.ndarray, kind: str, **options: object) -> io.BytesIO:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    stream.seek(0)
    return stream


def smooth(width: int, height: int) -> np.ndarray:
    """A picture that hardly changes when it is resized in another way."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    return np.stack([255 * x, 255 * y, 128 + 100 * np.sin(3 * x + 2 * y)], axis=-1).astype(np.uint8)


def png_by_hand(width: int, height: int, depth: int, colour: int, rows: bytes) -> io.BytesIO:
    """A PNG written without Pillow: `rows` are the raw rows, each after a filter byte of 0."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_a_picture_of_the_right_size_keeps_its_pixels(kind: str, options: dict[str, object]):
    image = decode_picture(saved(RGB, kind, **options), SIDE)
    assert image.dtype == np.uint8
    assert np.array_equal(image, RGB)


def test_a_path_is_read_as_a_stream_is(tmp_path: Path):
    path = tmp_path / "picture.of.any.name"
    path.write_bytes(saved(RGB, "PNG").read())
    assert np.array_equal(decode_picture(path, SIDE), RGB)


def test_grey_is_the_same_in_all_channels():
    assert np.array_equal(decode_picture(saved(GREY, "PNG"), SIDE), np.repeat(GREY[..., None], 3, axis=2))


def test_one_bit_is_black_and_white():
    bits = GREY > 127
    image = decode_picture(saved(Image.fromarray(bits), "PNG"), SIDE)
    assert np.array_equal(image, np.repeat(255 * bits[..., None].astype(np.uint8), 3, axis=2))


def test_a_palette_gives_its_colours():
    palette = RNG.integers(0, 256, (7, 3), dtype=np.uint8)
    indices = RNG.integers(0, 7, (SIDE, SIDE), dtype=np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette(palette.tobytes())
    assert picture.mode == "P"
    assert np.array_equal(decode_picture(saved(picture, "PNG"), SIDE), palette[indices])


def test_a_transparent_colour_of_a_palette_is_white():
    palette = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    indices = RNG.integers(0, 2, (SIDE, SIDE), dtype=np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette(palette.tobytes())
    image = decode_picture(saved(picture, "PNG", transparency=1), SIDE)
    assert np.array_equal(image, np.array([[200, 0, 0], [255, 255, 255]], np.uint8)[indices])


@pytest.mark.parametrize("transparent", [0, 1])
def test_a_transparent_bit_is_white(transparent: int):
    bits = GREY > 127
    image = decode_picture(saved(Image.fromarray(bits), "PNG", transparency=transparent), SIDE)
    expected = np.full_like(bits, True) if transparent == 0 else bits  # white was white before
    assert np.array_equal(image, np.repeat(255 * expected[..., None].astype(np.uint8), 3, axis=2))


def test_one_transparent_colour_is_white():
    rgb = np.where(GREY[..., None] > 127, np.uint8(10), np.uint8(90)) * np.ones(3, np.uint8)
    image = decode_picture(saved(rgb, "PNG", transparency=(10, 10, 10)), SIDE)
    assert np.array_equal(image, np.where(rgb == 10, 255, rgb))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_laid_over_white(kind: str):
    rgba = np.dstack([RGB, GREY])
    image = decode_picture(saved(rgba, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})), SIDE)
    alpha = GREY[..., None] / 255
    assert np.abs(image - (alpha * RGB + (1 - alpha) * 255)).max() <= 1


def test_grey_with_alpha_is_laid_over_white():
    picture = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY.T.copy())))
    alpha = GREY.T / 255
    image = decode_picture(saved(picture, "PNG"), SIDE)
    assert np.abs(image - (alpha * GREY + (1 - alpha) * 255)[..., None]).max() <= 1


def test_alpha_does_not_bleed_the_hidden_colour_when_resized():
    rgba = np.zeros((4 * SIDE, 4 * SIDE, 4), np.uint8)
    rgba[..., 0] = 255  # hidden red
    assert np.array_equal(decode_picture(saved(rgba, "PNG"), SIDE), np.full((SIDE, SIDE, 3), 255, np.uint8))


def test_sixteen_bit_grey_keeps_its_high_byte():
    values = RNG.integers(0, 2**16, (SIDE, SIDE), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    image = decode_picture(png_by_hand(SIDE, SIDE, 16, 0, rows), SIDE)
    assert np.array_equal(image, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_sixteen_bit_colour_keeps_its_high_bytes():
    values = RNG.integers(0, 2**16, (SIDE, SIDE, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    image = decode_picture(png_by_hand(SIDE, SIDE, 16, 2, rows), SIDE)
    assert np.array_equal(image, values >> 8)


def test_cmyk_gives_its_colours():
    flat = np.zeros((SIDE, SIDE, 4), np.uint8)
    flat[:, : SIDE // 2, 0] = 255  # cyan
    flat[:, SIDE // 2 :, 2] = 255  # yellow
    picture = Image.merge("CMYK", [Image.fromarray(flat[..., channel].copy()) for channel in range(4)])
    image = decode_picture(saved(picture, "JPEG", quality=95), SIDE).astype(int)
    assert np.abs(image[:, :4].mean((0, 1)) - [0, 255, 255]).max() < 12
    assert np.abs(image[:, -4:].mean((0, 1)) - [255, 255, 0]).max() < 12


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9, 1000])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_orientation_turns_the_picture_upright(orientation: int, kind: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_picture(saved(RGB, kind, exif=exif, **options), SIDE)
    assert np.array_equal(image, UPRIGHT.get(orientation, UPRIGHT[1])(RGB))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_oblong_jpeg_is_turned_about_its_middle(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = smooth(90, 61)
    image = decode_picture(saved(stored, "JPEG", exif=exif, quality=95), SIDE).astype(int)
    expected = decode_picture(saved(np.ascontiguousarray(UPRIGHT[orientation](stored)), "PNG"), SIDE)
    assert np.abs(image - expected).mean() < 3


def test_damaged_exif_data_do_not_matter():
    image = decode_picture(saved(RGB, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), SIDE)
    assert np.array_equal(image, RGB)


@pytest.mark.parametrize("shape", [(SIDE, 3 * SIDE), (3 * SIDE, SIDE)])
def test_the_central_square_is_taken(shape: tuple[int, int]):
    wide = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    middle = wide[:, SIDE : 2 * SIDE] if shape[1] > SIDE else wide[SIDE : 2 * SIDE]
    assert np.array_equal(decode_picture(saved(wide, "PNG"), SIDE), middle)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_shrinking_averages(kind: str):
    fine = np.indices((8 * SIDE, 8 * SIDE)).sum(0) % 2 * np.uint8(255)
    image = decode_picture(saved(fine.astype(np.uint8), kind, **({"quality": 95} if kind == "JPEG" else {})), SIDE)
    assert np.abs(image.astype(int) - 127).max() <= 3


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (40, 20), (1001, 333), (333, 1001)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_any_size_becomes_the_square(width: int, height: int, kind: str):
    picture = Image.fromarray(smooth(width, height))
    image = decode_picture(saved(picture, kind, **({"quality": 95} if kind == "JPEG" else {})), SIDE).astype(int)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    expected = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    assert image.shape == (SIDE, SIDE, 3)
    assert np.abs(image - np.asarray(expected)).mean() < 4


def test_an_animation_counts_by_its_first_frame():
    others = [Image.fromarray(255 - RGB)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        stream = saved(RGB, kind, save_all=True, append_images=others, **options)
        assert np.array_equal(decode_picture(stream, SIDE), RGB)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty, 0 bytes"),
        (b"not a picture at all", "not a JPEG, PNG, WebP or BMP"),
        (saved(RGB, "GIF").read(), "a GIF, not a JPEG"),
        (saved(RGB, "TIFF").read(), "a TIFF, not a JPEG"),
        (saved(RGB, "PPM").read(), "not a JPEG, PNG, WebP or BMP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript, not a JPEG"),
        (b"%PDF-1.7\n", "a PDF, not a JPEG"),
        (b'  \n<?xml version="1.0"?><svg width="9" height="9"/>', "HTML, SVG or other markup"),
        (b"\x89PNG\r\n\x1a\n", "damaged at its beginning"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(content: bytes, reason: str, tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for source in (path, io.BytesIO(content)):
        with pytest.raises(PictureError, match=reason):
            decode_picture(source, SIDE)


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path):
    with pytest.raises(PictureError, match="No such file"):
        decode_picture(tmp_path / "nothing.png", SIDE)
    os.mkfifo(tmp_path / "pipe.png")  # would block for ever
    for path in (tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(PictureError, match="not a regular file"):
            decode_picture(path, SIDE)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_fault_that_may_pass_is_told_from_damage(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "picture.png"
    path.write_bytes(saved(RGB, "PNG").read()[:100])
    with pytest.raises(PictureError) as damaged:
        decode_picture(path, SIDE)
    assert not isinstance(damaged.value, UnreadPictureError)

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UnreadPictureError, match=r"Input/output error|more memory than there is"):
        decode_picture(path, SIDE)


@pytest.mark.parametrize(("width", "height"), [(9_000, 9_000), (10_000, 10_000), (20_000, 20_000), (2**31 - 1, 1)])
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(width: int, height: int):
    assert width * height > MAX_PIXELS
    with pytest.raises(PictureError, match=r"pixels|damaged"):
        decode_picture(png_by_hand(width, height, 8, 2, b""), SIDE)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_a_picture_of_no_size_is_refused(width: int, height: int):
    with pytest.raises(PictureError):
        decode_picture(png_by_hand(width, height, 8, 2, b""), SIDE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_picture_cut_short_is_refused(kind: str, share: float):
    data = saved(smooth(64, 64), kind).read()
    with pytest.raises(PictureError):
        decode_picture(io.BytesIO(data[: int(share * len(data))]), SIDE)


WHOLE = {kind: saved(smooth(20, 20), kind).read() for kind in ("JPEG", "PNG", "WEBP", "BMP")}


@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 10_000), st.integers(1, 255), st.booleans())
def test_damage_gives_a_picture_or_a_reason_and_nothing_else(kind: str, place: int, change: int, cut: bool):
    data = bytearray(WHOLE[kind])
    data[place % len(data)] ^= change
    if cut:
        del data[place % len(data) + 1 :]
    try:
        image = decode_picture(io.BytesIO(data), SIDE)
    except PictureError:
        return
    assert image.shape == (SIDE, SIDE, 3)
