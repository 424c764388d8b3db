"""The book's trainer, run once for real: its log, its figures, and how its view of the first frog moved.

    python benchmarks/book.py           # trains `thumbnet train --preset book` under runs/, then writes the results
    python benchmarks/book.py RUN       # writes the results of a finished run

The evaluation is that of `thumbnet eval`, a program of its own. Everything goes to benchmarks/results/book/.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thumbnet.data import known_class_names
from thumbnet.evaluation.plots import BLUE, GRID, MUTED, empty_figure, png_of
from thumbnet.runs.find import find_run
from thumbnet.runs.run import Run
from thumbnet.training.narrator import FIRST_PICTURE, table_of

RESULTS = Path(__file__).parent / "results" / "book"
THUMBNET = [sys.executable, "-m", "thumbnet.cli.main"]


def main() -> int:
    """Train unless a run is given, evaluate, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a finished run of the preset")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 is kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    data = ["--data-dir", str(args.data_dir)] if args.data_dir else []
    if args.run is None:
        subprocess.run([*THUMBNET, "train", "--preset", "book", *data], check=True)
    run = find_run(Path("runs"), args.run)
    if run.recipe.preset != "book" or not run.finished:
        parser.error(f"{run.path} is no finished run of the preset book")
    command = [*THUMBNET, "eval", str(run.path), "--json", "--no-plots", *data]
    evaluation = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    write_results(run, evaluation, args.out)
    return 0


def write_results(run: Run, evaluation: Mapping[str, Any], folder: Path) -> None:
    """Write everything about a run that is kept: log, recipe, figures, the first picture's table and plot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("log.txt", "recipe.toml"):
        shutil.copyfile(run.path / name, folder / name)
    class_names = known_class_names(run.recipe.data.name)
    assert class_names is not None
    rows = [row for row in run.read_metrics() if FIRST_PICTURE in row]
    result = json.loads((run.path / "result.json").read_text(encoding="utf-8"))
    figures = {"result": result, "evaluation": evaluation["raw"], FIRST_PICTURE: rows}
    machine = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    figures["machine"] = {key: machine["machine"][key] for key in ("cpu", "cores", "threads", "torch")}
    (folder / "result.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "first_picture.txt").write_text("\n".join(table_of(rows, class_names)) + "\n", encoding="utf-8")
    (folder / "first_picture.png").write_bytes(plot(rows, class_names))
    print(folder)


def plot(rows: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> bytes:
    """Draw the first picture's logits over the epochs, that of its own class in colour."""
    picture = rows[0][FIRST_PICTURE]
    figure = empty_figure(7, 4.5, f"logits of the first training picture, a {class_names[picture['label']]}")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in rows]
    last = rows[-1][FIRST_PICTURE]["logits"]
    line, height = 0.04 * (max(last) - min(last)), -math.inf
    for number in sorted(range(len(class_names)), key=last.__getitem__):
        own = number == picture["label"]
        logits = [row[FIRST_PICTURE]["logits"][number] for row in rows]
        axes.plot(epochs, logits, color=BLUE if own else MUTED, linewidth=2.2 if own else 1, marker=".")
        # Names stand a line apart at least, so that close logits do not print one over the other.
        height = max(logits[-1], height + line)
        axes.annotate(class_names[number], (epochs[-1], height), (6, -3), textcoords="offset points", fontsize=8)
    axes.set_xticks(epochs, [f"after epoch {epoch}" if epoch else "before training" for epoch in epochs])
    axes.set_xlim(epochs[0] - 0.1, epochs[-1] + 0.35)
    axes.set_ylabel("logit")
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    return png_of(figure)


if __name__ == "__main__":
    sys.exit(main())
