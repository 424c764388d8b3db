"""One picture of a data set: samples with their labels, and beside each what the distortions make of it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from thumbnet.config import DistortConfig
from thumbnet.data.dataset import ImageDataset
from thumbnet.input.distort import distort as distort_batch
from thumbnet.input.distort import draw
from thumbnet.printing import shortened

TILE = 96
"""Side of a picture in the mosaic, in pixels; 24x24 and 32x32 fill it exactly."""
SHOWN_DEVIATIONS = 2.5
"""A standardized picture is shown from this many deviations below its mean to as many above."""
_GAP, _MARGIN, _LABEL_WIDTH, _HEADER = 8, 28, 176, 112
_LONGEST_NAME, _LONGEST_KEY = 17, 26
"""Letters of a class and of a picture's key that fit into that width."""
_PAPER, _INK, _GREY, _RULE = (250, 250, 248), (28, 28, 30), (125, 125, 130), (222, 222, 220)


def sample(dataset: ImageDataset, count: int, *, seed: int) -> np.ndarray:
    """Return `count` examples (fewer if there are not so many), int64 [count]: each class in turn, by chance within it.

    Classes come in label order; if there are more classes than pictures wanted, chance decides which come.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0x5A3B1E]))
    labels, shuffled = dataset.labels, generator.permutation(len(dataset))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels, minlength=len(dataset.class_names))
    rank = np.arange(len(dataset)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its class
    round_robin = by_class[np.lexsort((generator.permutation(len(sizes))[labels[by_class]], rank))][:count]
    chosen: np.ndarray = round_robin[np.lexsort((round_robin, labels[round_robin]))]
    return chosen


def draw_mosaic(
    dataset: ImageDataset, distort: DistortConfig, chosen: np.ndarray, *, seed: int, title: str, views: int = 6
) -> Image.Image:
    """Draw a mosaic.

    Args:
        dataset: the pictures.
        distort: the distortions.
        chosen: which examples, int64 [n].
        seed: seed of the distortions; column k shows those of epoch k of a training with this seed.
        title: heading.
        views: distorted pictures beside each sample.

    Raises:
        UsageError: the crop is larger than the pictures.
    """
    images_NHWC, labels = dataset.gather(chosen)
    distorted = []
    for epoch in range(views):
        draws = draw(len(dataset), distort, dataset.image_shape, seed=seed, epoch=epoch).take(chosen)
        distorted.append(displayable(distort_batch(images_NHWC, draws, distort)))

    columns = 1 if len(chosen) <= 10 else 2
    rows = -(-len(chosen) // columns)
    card = _LABEL_WIDTH + TILE + 3 * _GAP + views * (TILE + _GAP)
    width = 2 * _MARGIN + columns * card + (columns - 1) * _MARGIN - _GAP
    page = Image.new("RGB", (width, _HEADER + rows * (TILE + _GAP) - _GAP + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(page)
    _text(pen, (_MARGIN, 22), title, 22, _INK)
    _text(pen, (_MARGIN, 54), caption(distort, views), 14, _GREY)
    for place, example in enumerate(chosen):
        left = _MARGIN + place // rows * (card + _MARGIN)
        top = _HEADER + place % rows * (TILE + _GAP)
        _text(pen, (left, top + 30), shortened(dataset.class_names[labels[place]], _LONGEST_NAME), 18, _INK)
        key = dataset.key(int(example))
        _text(pen, (left, top + 54), key if len(key) <= _LONGEST_KEY else f"…{key[1 - _LONGEST_KEY :]}", 12, _GREY)
        left += _LABEL_WIDTH
        _paste(page, images_NHWC[place], left, top)
        left += TILE + 2 * _GAP
        pen.line([(left, top), (left, top + TILE - 1)], fill=_RULE)
        for view in range(views):
            _paste(page, distorted[view][place], left + _GAP + view * (TILE + _GAP), top)
    return page


def displayable(images_NCHW: Tensor) -> np.ndarray:
    """Return pictures to look at, uint8 [N, H, W, C], of standardized ones, float32 [N, C, H, W].

    Standardized values have no natural range: each picture is shown from `SHOWN_DEVIATIONS` deviations below its mean
    to as many above, and what lies beyond is cut off.
    """
    values = images_NCHW.permute(0, 2, 3, 1).numpy()
    mean = values.mean(axis=(1, 2, 3), keepdims=True)
    deviation = np.maximum(values.std(axis=(1, 2, 3), keepdims=True), 1e-6)
    pictures: np.ndarray = np.clip(127.5 + 127.5 / SHOWN_DEVIATIONS * (values - mean) / deviation + 0.5, 0, 255).astype(
        np.uint8
    )
    return pictures


def caption(distort: DistortConfig, views: int) -> str:
    """Return two lines that tell what is seen: which distortions, and how their results are shown."""
    parts = [f"{distort.crop}x{distort.crop} crops"]
    if distort.pad:
        parts.append(f"after a border of {distort.pad}")
    if distort.flip != "none":
        parts.append({"random": "random flips", "alternate": "alternating flips"}[distort.flip])
    if distort.brightness:
        parts.append(f"brightness ±{distort.brightness:g}")
    if distort.contrast != (1.0, 1.0):
        parts.append(f"contrast {distort.contrast[0]:g} to {distort.contrast[1]:g}")
    if distort.cutout:
        parts.append(f"{distort.cutout}x{distort.cutout} cut-outs")
    scale = {
        "image": "standardized by picture",
        "dataset": "standardized by data set",
        "mean": "the data set's mean taken out",
    }[distort.standardize]
    return (
        f"Left: the picture. Right: as the network sees it in {views} epochs - {', '.join(parts)};\n"
        f"{scale}, shown from {SHOWN_DEVIATIONS:g} deviations below each picture's mean to as many above."
    )


def _paste(page: Image.Image, image_HWC: np.ndarray, left: int, top: int) -> None:
    """Put a picture into the middle of its tile: enlarged by a whole number, which keeps pixels square, or shrunk."""
    height, width, channels = image_HWC.shape
    scale = max(1, TILE // max(height, width))
    pixels = np.repeat(np.repeat(image_HWC, scale, axis=0), scale, axis=1)
    picture = Image.fromarray(np.ascontiguousarray(pixels if channels == 3 else pixels[..., 0]))
    picture.thumbnail((TILE, TILE))  # leaves alone what is not larger
    page.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))


def _text(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]) -> None:
    pen.multiline_text(place, text, fill=colour, font=_font(size), spacing=6)


def _font(size: float) -> ImageFont.FreeTypeFont:
    """Return the font of the plots: Pillow's own knows no letter beyond ASCII, such as those of other languages."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
