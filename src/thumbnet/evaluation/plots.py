"""Plots of an evaluation, as PNG files: confusion matrix, classes, calibration. No display is needed."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thumbnet.evaluation.metrics import CALIBRATION_BINS, Metrics, Weights
from thumbnet.printing import printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, INK, MUTED, GRID = "#2a6f97", "#e07a3f", "#1f2933", "#7b8794", "#e4e7eb"
COLORS: dict[Weights, str] = {"average": BLUE, "raw": ORANGE}
_MANY_CLASSES = 25
"""With more classes than this, numbers in the confusion matrix would be too small to read, and names get small."""
_LONGEST_NAME = 40
"""Letters of a class's name, whatever the plot: longer ones would leave no room for it."""
MOST_NAMES = 200
"""With more classes than this, plots would grow past any screen, so they show no more names."""


def confusion_png(metrics: Metrics, title: str) -> bytes:
    """Draw the confusion matrix as a PNG file: cells hold images, shades show the share of the label's images.

    The axes name the classes; where these are more than `MOST_NAMES`, they count them in label order.
    """
    from matplotlib.colors import PowerNorm

    classes = len(metrics.per_class)
    few, named = classes <= _MANY_CLASSES, classes <= MOST_NAMES
    side_in = max((0.62 if few else 0.13) * classes, 3.2) + 2.4 if named else 15
    figure = empty_figure(side_in + 0.6, side_in, title)
    axes = figure.add_subplot()
    share_CC = metrics.confusion / np.maximum(metrics.confusion.sum(axis=1, keepdims=True), 1)
    # The square root of the share sets a confusion of one in a hundred apart from none at all.
    image = axes.imshow(share_CC, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if few:
        _number_cells(axes, metrics.confusion, share_CC)
    if named:
        _name_cells(axes, [shortened(entry.name, _LONGEST_NAME) for entry in metrics.per_class], few=few)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    bar = figure.colorbar(image, ax=axes, shrink=0.75, aspect=28, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"], fontsize=8.5)
    bar.set_label("share of the label's images", fontsize=9)
    bar.outline.set_visible(False)
    return png_of(figure)


def _name_cells(axes: Axes, names: Sequence[str], *, few: bool) -> None:
    """Write the classes along both sides of the confusion matrix, and set its cells apart."""
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    font: dict[str, Any] = {"fontsize": 9.5 if few else 6, "parse_math": False}
    axes.set_xticks(range(len(names)), names, **font, **slant)
    axes.set_yticks(range(len(names)), names, **font)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2 if few else 0.3)
    axes.tick_params(which="both", length=0)


def _number_cells(axes: Axes, confusion_CC: np.ndarray, share_CC: np.ndarray) -> None:
    """Write the number of images into every cell that has any."""
    for row, column in np.argwhere(confusion_CC):
        axes.text(
            column,
            row,
            str(confusion_CC[row, column]),
            ha="center",
            va="center",
            fontsize=9,
            color="white" if share_CC[row, column] > 0.3 else INK,
            fontweight="bold" if row == column else "normal",
        )


def classes_png(metrics: Mapping[Weights, Metrics], title: str) -> bytes:
    """Draw each class's F1 as a bar with marks for precision and recall, the best class on top.

    Of more classes than `MOST_NAMES`, the worst of that number.

    Args:
        metrics: by weights ("average", "raw"); the first is drawn in full, of a second only the F1.
        title: title of the plot.

    Returns:
        A PNG file.
    """
    (main, first), *others = metrics.items()
    classes = len(first.per_class)
    order = sorted(range(classes), key=lambda label: -first.per_class[label].f1)[-MOST_NAMES:]
    if len(order) < classes:
        title = f"{title}: the worst {len(order)} of {classes:,} classes"
    entries = [first.per_class[label] for label in order]
    f1 = np.array([entry.f1 for entry in entries])
    rows = np.arange(len(order))
    few = len(order) <= _MANY_CLASSES
    figure = empty_figure(8.6, 1.9 + (0.4 if few else 0.19) * len(order), title)
    axes = figure.add_subplot()
    axes.barh(rows, f1, height=0.66, color=COLORS[main], alpha=0.45, label=f"F1, {main} weights")
    mark: dict[str, Any] = {"s": 34 if few else 14, "edgecolor": INK, "linewidth": 1.3, "zorder": 3}
    axes.scatter([e.precision for e in entries], rows, marker="D", facecolor=INK, label="precision", **mark)
    axes.scatter([e.recall for e in entries], rows, marker="o", facecolor="white", label="recall", **mark)
    for other, second in others:
        values = [second.per_class[label].f1 for label in order]
        axes.vlines(values, rows - 0.33, rows + 0.33, color=COLORS[other], linewidth=2.4, label=f"F1, {other} weights")
    beside: dict[str, Any] = {"xytext": (10, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
    for row, value in zip(rows, f1, strict=True):
        axes.annotate(f"{value:.3f}", (1, row), color=INK, **beside)
    axes.annotate("F1", (1, -0.85), color=MUTED, **beside)
    axes.set_yticks(
        rows, [shortened(entry.name, _LONGEST_NAME) for entry in entries], fontsize=10 if few else 7, parse_math=False
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(order) - 0.4, -1.15)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return png_of(figure)


def reliability_png(metrics: Mapping[Weights, Metrics], title: str) -> bytes:
    """Draw accuracy against confidence, and the share of images in each bin below; one panel for each of `metrics`.

    Returns:
        A PNG file.
    """
    figure = empty_figure(1.3 + 4.1 * len(metrics), 5.8, title)
    panels = figure.subplots(2, len(metrics), sharex=True, squeeze=False, height_ratios=(3.4, 1))
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    bar = {"width": 0.92 / CALIBRATION_BINS}
    hatched = {"facecolor": "none", "edgecolor": INK, "hatch": "////", "linewidth": 0.7}
    for (weights, entry), upper, lower in zip(metrics.items(), panels[0], panels[1], strict=True):
        color, calibration = COLORS[weights], entry.calibration
        filled = calibration.count > 0
        at, accuracy = centres[filled], calibration.accuracy[filled]
        gap = calibration.confidence[filled] - accuracy
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="perfect", zorder=3)
        upper.bar(at, accuracy, color=color, alpha=0.85, label="accuracy", **bar)
        upper.bar(at, gap, bottom=accuracy, label="gap to mean confidence", **bar, **hatched)
        heading = f"{weights} weights: accuracy {100 * entry.accuracy:.2f} %, ECE {100 * entry.ece:.2f} %"
        upper.set_title(heading, fontsize=9.5, color=INK)
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1)
        upper.legend(loc="upper left", frameon=False, fontsize=8.5)
        lower.bar(centres, calibration.count / entry.examples, color=color, alpha=0.45, **bar)
        lower.set_xlabel("confidence: probability of the predicted class", fontsize=9)
        for axes in (upper, lower):
            axes.grid(axis="y", color=GRID)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8.5)
    panels[0][0].set_ylabel("accuracy", fontsize=9)
    panels[1][0].set_ylabel("share of images", fontsize=9)
    return png_of(figure)


def empty_figure(width_in: float, height_in: float, title: str) -> Figure:
    """Return an empty figure with a title on the left that is broken into lines to fit."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width_in, height_in), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    lines = textwrap.wrap(printable(title), width=int(11 * width_in))
    figure.suptitle("\n".join(lines), x=0.02, ha="left", fontsize=11, fontweight="bold", color=INK, parse_math=False)
    return figure


def png_of(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks, such as Chinese ones in a class's name, become boxes; a table holds the names.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()
