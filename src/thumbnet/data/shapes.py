"""A picture set drawn by the program itself: ten kinds of shapes, for trying out without any data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thumbnet.data.dataset import ImageDataset
from thumbnet.data.records import RecordFormat, RecordPart

TRAIN_COUNT, TEST_COUNT = 5_000, 1_000
LAYOUT = RecordFormat(image_shape=(32, 32, 3), label_bytes=1)
_SEED = 2015

# A shape is a function of coordinates in which it fills the unit circle: above 0 inside, below 0 outside, and about
# the distance to the edge, so that edges can be drawn smooth.
Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    inside: np.ndarray = np.minimum(half_width - np.abs(u), half_height - np.abs(v))
    return inside


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    slanted = np.sqrt(0.75) * np.abs(u) - 0.5 * v
    inside: np.ndarray = 0.5 - np.maximum(slanted, v)
    return inside


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius = np.hypot(u, v)
    angle = np.abs(np.arctan2(v, u) % (np.pi / 2.5) - np.pi / 5)
    # In one half of one of five arms: the edge from the tip, at radius 1, to the notch, at radius 0.4.
    notch_x, notch_y = 0.4 * np.cos(np.pi / 5), 0.4 * np.sin(np.pi / 5)
    normal_x, normal_y = np.array([notch_y, 1 - notch_x]) / np.hypot(notch_y, 1 - notch_x)
    inside: np.ndarray = normal_x - (normal_x * radius * np.cos(angle) + normal_y * radius * np.sin(angle))
    return inside


SHAPES: dict[str, Field] = {
    "circle": lambda u, v: 1 - np.hypot(u, v),
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    "triangle": _triangle,
    "cross": lambda u, v: np.maximum(_box(u, v, 0.95, 0.28), _box(u, v, 0.28, 0.95)),
    "ring": lambda u, v: 0.22 - np.abs(np.hypot(u, v) - 0.78),
    "star": _star,
    "crescent": lambda u, v: np.minimum(1 - np.hypot(u, v), np.hypot(u - 0.55, v) - 0.8),
    "stripes": lambda u, v: np.minimum(_box(u, v, 0.9, 0.9), 0.17 - np.abs((v + 0.9) % 0.6 - 0.3)),
    "checkers": lambda u, v: np.minimum(_box(u, v, 0.9, 0.9), np.sign(u * v) * np.minimum(np.abs(u), np.abs(v))),
    "hourglass": lambda u, v: np.minimum(0.9 - np.abs(v), 0.8 * np.abs(v) + 0.08 - np.abs(u)),
}
CLASS_NAMES = tuple(SHAPES)
_COLOURS = np.array(
    [
        (240, 60, 50),
        (60, 90, 230),
        (60, 200, 70),
        (240, 220, 60),
        (200, 70, 220),
        (250, 150, 40),
        (70, 220, 220),
        (130, 80, 40),
        (235, 235, 235),
        (30, 30, 40),
    ],
    np.float32,
)
"""Red, green, blue that hint at each class."""


def draw_shapes() -> tuple[ImageDataset, ImageDataset]:
    """Return 5,000 training and 1,000 test pictures, uint8 [32, 32, 3], as many of each class; the same every time."""
    train, test = (
        ImageDataset(
            "shapes", CLASS_NAMES, LAYOUT, [RecordPart(name=name, where=name, records=_records(count, stream))]
        )
        for name, count, stream in (("shapes_train", TRAIN_COUNT, 0), ("shapes_test", TEST_COUNT, 1))
    )
    return train, test


def _records(count: int, stream: int) -> np.ndarray:
    """Return the records of `count` pictures, uint8 [count, record_bytes]."""
    generator = np.random.Generator(np.random.Philox(key=[_SEED, stream]))
    labels = generator.permutation(np.arange(count) % len(CLASS_NAMES))
    records = np.empty((count, LAYOUT.record_bytes), np.uint8)
    for start in range(0, count, 500):  # few enough to stay in the cache
        part = slice(start, min(start + 500, count))
        records[part] = LAYOUT.pack(_pictures(labels[part], generator), labels[part])
    return records


def _pictures(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw one picture per label, uint8 [n, H, W, C]: shape, size, place, angle, colours, backdrop and noise vary."""
    count = len(labels)
    height, width, _ = LAYOUT.image_shape

    def between(low: float, high: float, *shape: int) -> np.ndarray:
        return generator.uniform(low, high, (count, *shape)).astype(np.float32)

    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    radius = between(7, 13, 1, 1)
    # Off the middle, but never so far that the central three quarters would not show what it is.
    y, x = (
        (axis - (side - 1) / 2 - between(-0.6, 0.6, 1, 1) * (side / 2 - radius)) / radius
        for axis, side in ((rows, height), (columns, width))
    )
    angle = between(-0.4, 0.4, 1, 1)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = np.empty_like(u)
    for label, field in enumerate(SHAPES.values()):
        chosen = labels == label
        inside[chosen] = field(u[chosen], v[chosen])
    cover = np.clip(0.5 + inside * radius, 0, 1)[..., None]

    # Light on dark, so that a network finds its first features soon.
    # In half of the pictures the colour hints at the class, as in nature; in the others only the shape tells it.
    hinted = _COLOURS[labels][:, None, None, :] + between(-40, 40, 1, 1, 3)
    colour = np.where(between(0, 1, 1, 1, 1) < 0.5, hinted, between(0, 256, 1, 1, 3))
    # Going round the circle of 256 values, every channel of the backdrop differs from the shape by 90 or more.
    backdrop = (colour + between(90, 166, 1, 1, 3)) % 256
    slope = between(-1.5, 1.5, 2, 1, 1, 3)
    shaded = backdrop + slope[:, 0] * (rows[..., None] - height / 2) + slope[:, 1] * (columns[..., None] - width / 2)
    # Uniform noise, of 5 to 25 deviation: it is drawn faster than normal noise and looks the same.
    grain = generator.integers(0, 256, (count, *LAYOUT.image_shape), np.uint8) - np.float32(127.5)
    noise = grain * between(5 / 73.9, 25 / 73.9, 1, 1, 1)
    pictures: np.ndarray = np.clip(shaded + cover * (colour - shaded) + noise + 0.5, 0, 255).astype(np.uint8)
    return pictures
