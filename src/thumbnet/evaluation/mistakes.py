"""What a network took for something else: a list of all such pictures, and a gallery of those it was surest of."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from thumbnet.evaluation.metrics import Metrics
from thumbnet.evaluation.plots import empty_figure, png_of
from thumbnet.printing import shortened

if TYPE_CHECKING:
    from thumbnet.data.dataset import ImageDataset

GALLERY = (4, 8)
"""Rows and columns of the gallery."""
_LONGEST_NAME = 12
"""Letters that, with the percentage after them, are as wide as a picture."""


def mistakes_csv(metrics: Metrics, dataset: ImageDataset) -> str:
    """Return a row for each mistake, the most confident one first.

    Args:
        metrics: figures of an evaluation.
        dataset: what was evaluated.
    """
    file, mistakes = io.StringIO(), metrics.mistakes
    names = [entry.name for entry in metrics.per_class]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("picture", "class", "predicted", "probability"))
    for example, label, predicted, confidence in zip(
        mistakes.examples, mistakes.labels, mistakes.predicted, mistakes.confidence, strict=True
    ):
        writer.writerow((dataset.key(example), names[label], names[predicted], f"{confidence:.6f}"))
    return file.getvalue()


def gallery_png(metrics: Metrics, dataset: ImageDataset, title: str) -> bytes:
    """Draw the most confident mistakes as a PNG file; there must be one.

    Args:
        metrics: figures of an evaluation.
        dataset: what was evaluated.
        title: heading.
    """
    rows, columns = GALLERY
    mistakes = metrics.mistakes
    images_NHWC, _ = dataset.gather(mistakes.examples[: rows * columns])
    rows = -(-len(images_NHWC) // columns)
    height, width = images_NHWC.shape[1:3]
    across, down = 1.12 * width, height + 0.37 * width  # from one picture to the next; its heading stands above it
    inches = 1.3 / across
    title = f"{title}: the most confident mistakes"
    figure = empty_figure(inches * columns * across, inches * rows * down + 0.5, title)
    axes = figure.add_subplot()  # one for all: an axes for each picture takes five times as long
    axes.set_axis_off()
    for number, image_HWC in enumerate(images_NHWC):
        left, top = number % columns * across, number // columns * down
        axes.imshow(image_HWC, cmap="gray", vmin=0, vmax=255, extent=(left, left + width, top + height, top))
        pair = mistakes.labels[number], mistakes.predicted[number]
        label, predicted = (shortened(metrics.per_class[index].name, _LONGEST_NAME) for index in pair)
        heading = f"{label} \N{RIGHTWARDS ARROW}\n{predicted} {100 * mistakes.confidence[number]:.0f} %"
        axes.text(left + width / 2, top - 0.04 * width, heading, ha="center", va="bottom", fontsize=8, parse_math=False)
    axes.set_xlim(0, columns * across - 0.12 * width)
    axes.set_ylim(rows * down - 0.37 * width, -0.37 * width)
    return png_of(figure)
