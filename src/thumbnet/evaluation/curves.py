"""How a training went: loss and accuracy over its steps, as plots and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thumbnet.evaluation.plots import COLORS, GRID, MUTED, empty_figure, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from thumbnet.evaluation.evaluator import Evaluation


def checkpoints_to_json(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return one row for each checkpoint: its step, and accuracy and loss of each kind of weights."""
    return [
        {"step": evaluation.step, "split": evaluation.split, "examples": evaluation.examples}
        | {f"{weights}_accuracy": metrics.accuracy for weights, metrics in evaluation.metrics.items()}
        | {f"{weights}_loss": metrics.loss for weights, metrics in evaluation.metrics.items()}
        for evaluation in evaluations
    ]


def checkpoints_png(evaluations: Sequence[Evaluation], title: str) -> bytes:
    """Draw the accuracy of averaged and raw weights over the checkpoints of a run, as a PNG file."""
    figure = empty_figure(8, 4.5, title)
    axes = figure.add_subplot()
    steps = [evaluation.step for evaluation in evaluations]
    for weights in evaluations[0].metrics:
        accuracies = [100 * evaluation.metrics[weights].accuracy for evaluation in evaluations]
        label = f"{weights} weights, last {accuracies[-1]:.2f} %"
        axes.plot(steps, accuracies, color=COLORS[weights], linewidth=1.6, marker=".", label=label)
    _dress(axes, f"accuracy on the {evaluations[0].split} split, %")
    return png_of(figure)


def training_png(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw loss and accuracy of a run's metrics over its steps, as a PNG file.

    Args:
        rows: the rows of `metrics.jsonl`; those of step lines have `loss`, those of validations `validation_raw`.
        title: heading.
    """
    figure = empty_figure(10, 4.2, title)
    left, right = figure.subplots(1, 2)
    lines = [row for row in rows if row.get("loss") is not None]
    steps = [row["step"] for row in lines]
    left.plot(steps, [row["loss"] for row in lines], color=MUTED, linewidth=0.7, alpha=0.6, label="loss of a step")
    left.plot(steps, [row["smoothed_loss"] for row in lines], color=COLORS["average"], linewidth=1.5, label="smoothed")
    _dress(left, "training loss, weight decay included")
    accuracies = [100 * row["accuracy"] for row in lines]
    right.plot(steps, accuracies, color=MUTED, linewidth=0.9, label="training batches, distorted")
    for weights, color in COLORS.items():
        validated = [row for row in rows if row.get(f"validation_{weights}") is not None]
        if validated:
            values = [100 * row[f"validation_{weights}"] for row in validated]
            at = [row["step"] for row in validated]
            right.plot(at, values, color=color, linewidth=1.5, marker=".", label=f"validation, {weights} weights")
    _dress(right, "accuracy, %")
    return png_of(figure)


def _dress(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8.5)
