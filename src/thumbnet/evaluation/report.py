"""What is told of an evaluation: terminal table, one line, JSON, CSV, plots, TensorBoard."""

from __future__ import annotations

import csv
import datetime
import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thumbnet.evaluation.metrics import Metrics
from thumbnet.evaluation.mistakes import gallery_png, mistakes_csv
from thumbnet.evaluation.plots import MOST_NAMES, classes_png, confusion_png, reliability_png
from thumbnet.files import replace_file
from thumbnet.printing import printable
from thumbnet.runs.checkpoint import folder_name

if TYPE_CHECKING:
    from rich.table import Table

    from thumbnet.evaluation.evaluator import Evaluation
    from thumbnet.monitor.event_file import EventFile

TABLE_COLUMNS = 100
"""Columns of a terminal that the tables need at most; class names of more than 20 letters are cut."""


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation as plain values; weights that were not evaluated are None."""
    figures = {weights: _metrics_to_json(metrics) for weights, metrics in evaluation.metrics.items()}
    return {
        "run": str(evaluation.run),
        "step": evaluation.step,
        "split": evaluation.split,
        "examples": evaluation.examples,
        "precision": evaluation.precision,
        "average": figures.get("average"),
        "raw": figures.get("raw"),
    } | ({"view_accuracy": evaluation.view_accuracy} if evaluation.view_accuracy else {})


def _metrics_to_json(metrics: Metrics) -> dict[str, Any]:
    return {
        "accuracy": metrics.accuracy,
        "top5": metrics.top5,
        "loss": metrics.loss,
        "ece": metrics.ece,
        "per_class": [
            {"name": e.name, "precision": e.precision, "recall": e.recall, "f1": e.f1, "support": e.support}
            for e in metrics.per_class
        ],
        **_confusion_to_json(metrics.confusion),
    }


def _confusion_to_json(confusion_CC: np.ndarray) -> dict[str, list[list[int]]]:
    """Return the whole matrix, or of many classes the pairs that there are, as label, predicted class and images."""
    if len(confusion_CC) <= MOST_NAMES:
        return {"confusion": confusion_CC.tolist()}
    labels, predicted = np.nonzero(confusion_CC)
    return {"confusion_pairs": np.stack([labels, predicted, confusion_CC[labels, predicted]], axis=1).tolist()}


def to_csv(evaluation: Evaluation) -> str:
    """Return one row for each class and kind of weights."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("weights", "class", "images", "precision", "recall", "f1"))
    for weights, metrics in evaluation.metrics.items():
        for e in metrics.per_class:
            writer.writerow((weights, e.name, e.support, *(f"{x:.6f}" for x in (e.precision, e.recall, e.f1))))
    return file.getvalue()


def describe_examples(evaluation: Evaluation) -> str:
    """Return which examples were evaluated, such as `test`, `test first 500` or, of other data, `test of flowers`."""
    data = f" of {printable(evaluation.data)}" if evaluation.data else ""
    return f"{evaluation.split}{data}" + (f" first {evaluation.examples}" if evaluation.limited else "")


def tutorial_line(evaluation: Evaluation, now: datetime.datetime) -> str:
    """Return the line that the evaluation program of 2015 printed; "precision @ 1" is the accuracy."""
    return f"{now:%Y-%m-%d %H:%M:%S.%f}: precision @ 1 = {evaluation.preferred.accuracy:.3f}"


def watch_line(evaluation: Evaluation, now: datetime.datetime) -> str:
    """Return one line that says all of an evaluation that changes over a training."""
    figures = "; ".join(
        f"{weights} {_percent(metrics.accuracy)}, loss {metrics.loss:.4f}"
        for weights, metrics in evaluation.metrics.items()
    )
    return f"{tutorial_line(evaluation, now)} (step {evaluation.step}, {describe_examples(evaluation)}: {figures})"


def print_tables(evaluation: Evaluation) -> None:
    """Print headline and classes to stdout, averaged and raw weights side by side, as wide as they need."""
    from rich.console import Console

    # A class may be called [red] or :cat: - names are shown as they are.
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(console.width, TABLE_COLUMNS)
    console.print(_title(evaluation), style="bold", soft_wrap=True)
    for table in (_headline_table(evaluation), _class_table(evaluation)):
        console.print()
        console.print(table)
    console.print()


def print_checkpoints(evaluations: Sequence[Evaluation]) -> None:
    """Print the accuracy of every checkpoint to stdout, averaged and raw weights side by side, and their difference."""
    from rich.console import Console

    kinds = list(evaluations[0].metrics)
    table = _table("step")
    for header in [f"{kind} weights" for kind in kinds] + ["difference"] * (len(kinds) == 2):
        table.add_column(header, justify="right")
    for evaluation in evaluations:
        accuracies = [metrics.accuracy for metrics in evaluation.metrics.values()]
        cells = [_percent(accuracy) for accuracy in accuracies]
        if len(accuracies) == 2:
            cells.append(f"{100 * (accuracies[0] - accuracies[1]):+.2f}")
        table.add_row(f"{evaluation.step:,}", *cells)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"accuracy on the {describe_examples(evaluations[0])} split", style="bold")
    console.print(table)


def _title(evaluation: Evaluation) -> str:
    checkpoint = f"{printable(evaluation.run.absolute().name)}, step {evaluation.step:,}"
    first = "the first " if evaluation.limited else ""
    data = f" of {printable(evaluation.data)}" if evaluation.data else ""
    return f"{checkpoint}: {first}{evaluation.examples:,} {evaluation.split} images{data}, {evaluation.precision}"


def _headline_table(evaluation: Evaluation) -> Table:
    table = _table("")
    kinds = list(evaluation.metrics)
    for header in [f"{kind} weights" for kind in kinds] + ["difference"] * (len(kinds) == 2):
        table.add_column(header, justify="right")
    for name, key, share in (
        ("accuracy", "accuracy", True),
        ("top-5 accuracy", "top5", True),
        ("loss", "loss", False),
        ("calibration error (ECE)", "ece", True),
    ):
        values = [getattr(metrics, key) for metrics in evaluation.metrics.values()]
        cells = [_percent(value) if share else f"{value:.4f}" for value in values]
        if len(values) == 2:
            difference = values[0] - values[1]
            cells.append(f"{100 * difference:+.2f}" if share else f"{difference:+.4f}")
        table.add_row(name, *cells, style="bold" if key == "accuracy" else None)
    if evaluation.view_accuracy:
        accuracies = list(evaluation.view_accuracy.values())
        cells = [_percent(accuracy) for accuracy in accuracies]
        if len(accuracies) == 2:
            cells.append(f"{100 * (accuracies[0] - accuracies[1]):+.2f}")
        table.add_row("accuracy over several views", *cells)
    return table


def _class_table(evaluation: Evaluation) -> Table:
    """Return precision, recall and F1 of every class in percent, and the difference of the F1."""
    table = _table("class", max_width=20)
    table.add_column("images", justify="right")
    kinds = list(evaluation.metrics)
    for figure in ("precision", "recall", "F1"):
        for kind in kinds:
            table.add_column(f"{figure}\n{kind}", justify="right")
    if len(kinds) == 2:
        table.add_column("F1\ndifference", justify="right")
    for entries in zip(*(metrics.per_class for metrics in evaluation.metrics.values()), strict=True):
        cells = [f"{100 * getattr(entry, key):.1f}" for key in ("precision", "recall", "f1") for entry in entries]
        if len(entries) == 2:
            cells.append(f"{100 * (entries[0].f1 - entries[1].f1):+.1f}")
        table.add_row(printable(entries[0].name), f"{entries[0].support:,}", *cells)
    return table


def _table(first_header: str, max_width: int | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first_header, max_width=max_width, no_wrap=True, overflow="ellipsis")
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def write_files(evaluation: Evaluation, folder: Path, plots: Mapping[str, bytes] | None = None) -> list[Path]:
    """Write JSON, classes and mistakes as CSV, and plots into a folder; those of the same evaluation are replaced.

    Args:
        evaluation: what to write.
        folder: where to; made if missing.
        plots: PNG files by name, from `draw_plots`.

    Returns:
        The files, named by step and `stem_of`.

    Raises:
        OSError: the disk refuses.
    """
    stem = stem_of(folder_name(evaluation.step), evaluation)
    contents = {
        f"{stem}.json": (json.dumps(to_json(evaluation)) + "\n").encode(),
        # Names may hold bytes that are no text.
        f"{stem}.csv": to_csv(evaluation).encode(errors="backslashreplace"),
        f"{stem}-mistakes.csv": mistakes_csv(evaluation.preferred, evaluation.dataset).encode(
            errors="backslashreplace"
        ),
        **{f"{stem}-{name}.png": png for name, png in (plots or {}).items()},
    }
    return write_contents(contents, folder)


def stem_of(beginning: str, evaluation: Evaluation) -> str:
    """Return how the names of files begin: also by the examples, and the weights if only one kind was evaluated."""
    weights = evaluation.metrics if len(evaluation.metrics) == 1 else ()
    return "-".join([beginning, *describe_examples(evaluation).split(), *weights])


def write_contents(contents: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files by name into a folder, made if missing, and return their paths.

    Raises:
        OSError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        replace_file(folder / name, [content])
    return [folder / name for name in contents]


def draw_plots(evaluation: Evaluation) -> dict[str, bytes]:
    """Return PNG files by name; confusion matrix and mistakes, if there are any, are those of the preferred weights."""
    title, preferred = _title(evaluation), evaluation.preferred
    of_weights = f"{title}, {next(iter(evaluation.metrics))} weights"
    plots = {
        "confusion": confusion_png(preferred, of_weights),
        "classes": classes_png(evaluation.metrics, title),
        "reliability": reliability_png(evaluation.metrics, title),
    }
    if len(preferred.mistakes.examples):
        plots["mistakes"] = gallery_png(preferred, evaluation.dataset, of_weights)
    return plots


def add_summaries(evaluation: Evaluation, events: EventFile, confusion: bytes | None = None) -> None:
    """Add the figures at the checkpoint's step to an event file, with tags such as `accuracy/test average`.

    Args:
        evaluation: the figures.
        events: where to.
        confusion: the plot of that name, shown among the images if given.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    examples = describe_examples(evaluation)
    values = [
        Summary.Value(tag=f"{name}/{examples} {weights}", simple_value=getattr(metrics, name))
        for weights, metrics in evaluation.metrics.items()
        for name in ("accuracy", "loss", "top5", "ece")
    ]
    if confusion:
        width, height = struct.unpack(">II", confusion[16:24])  # where PNG keeps them
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=confusion)
        values.append(Summary.Value(tag=f"confusion/{examples}", image=image))
    events.add_values(evaluation.step, lambda: values)
