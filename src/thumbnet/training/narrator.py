"""What the book's trainer tells beside its lines: each file as it is begun, and how its view of one picture moves."""

from __future__ import annotations

import bisect
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thumbnet.data.dataset import Splits
from thumbnet.engine import Precision
from thumbnet.evaluation.evaluate import predict_logits
from thumbnet.monitor.console import Console
from thumbnet.printing import padded, width_of
from thumbnet.runs.run import Run
from thumbnet.training.state import TrainingState

FIRST_PICTURE = "first_picture"
"""Key, in a row of the metrics, of what the network says of the first training picture."""


class Narrator:
    """Follows a training from file to file, and asks it about the first picture before training and after each epoch.

    The answers are rows of the run's metrics, so that the table at the end is whole after a resume, too.
    """

    def __init__(
        self, run: Run, splits: Splits, state: TrainingState, *, precision: Precision, console: Console
    ) -> None:
        self._run, self._train, self._state = run, splits.train, state
        self._precision, self._console = precision, console
        self._batch_size = run.recipe.input.batch_size
        # What a session that was killed had asked after the checkpoint is asked again.
        told = (row["step"] for row in run.read_metrics() if FIRST_PICTURE in row)
        self._asked = {step for step in told if step <= state.step}
        # In a shuffled order no file is read from front to back.
        self._files = splits.train.files() if run.recipe.input.pool == 0 else {}
        self._starts = list(self._files)
        self._next_file = self._begin_of_file() if self._files else math.inf

    def before_step(self) -> None:
        """Tell what there is to tell before the next step."""
        self._ask()
        end = (self._state.step + 1) * self._batch_size
        while self._next_file < end:
            epoch, start = divmod(int(self._next_file), len(self._train))
            self._console.note(f"epoch {epoch + 1}: {self._files[start]}")
            following = bisect.bisect_right(self._starts, start)
            begin = self._starts[following] if following < len(self._starts) else len(self._train)
            self._next_file = epoch * len(self._train) + begin

    def conclude(self, *, finished: bool) -> None:
        """Tell what there is to tell after the last step of a session, which may be the last of the training."""
        self._ask()
        if finished:
            self._console.note("\n".join(table_of(self._run.read_metrics(), self._train.class_names)))
            self._console.note(f"total duration: {datetime.timedelta(seconds=round(self._state.train_s))}")

    def _begin_of_file(self) -> int:
        """Return the position, through all epochs, at which the file of the next example begins."""
        epoch, offset = divmod(self._state.step * self._batch_size, len(self._train))
        return epoch * len(self._train) + self._starts[bisect.bisect_right(self._starts, offset) - 1]

    def _ask(self) -> None:
        """Record what the network says of the first picture, if an epoch has ended or nothing has begun."""
        step = self._state.step
        epoch, offset = divmod(step * self._batch_size, len(self._train))
        # A batch may straddle two epochs: the first step that begins in the new one counts.
        if offset >= self._batch_size or step in self._asked:
            return
        self._asked.add(step)
        logits_1C, labels_1 = predict_logits(
            self._state.model,
            self._train.take(np.zeros(1, np.int64)),
            self._run.recipe.distort,
            precision=self._precision,
        )
        picture = {"key": self._train.key(0), "label": int(labels_1[0]), "logits": logits_1C[0].tolist()}
        self._run.append_metrics({"step": step, "epoch": epoch, FIRST_PICTURE: picture})


def table_of(rows: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> list[str]:
    """Return the table of the first picture's logits, a line for each class and a column for each time it was asked.

    Args:
        rows: the rows of a run's metrics; those with `first_picture` count.
        class_names: in label order.
    """
    asked = [row for row in rows if FIRST_PICTURE in row]
    if not asked:
        return []
    label = asked[0][FIRST_PICTURE]["label"]
    # What was not finite has been written down as null.
    columns = [[math.nan if logit is None else logit for logit in row[FIRST_PICTURE]["logits"]] for row in asked]
    highest = [max((logit for logit in column if not math.isnan(logit)), default=math.nan) for column in columns]
    heads = [f"epoch {row['epoch']}" if row["epoch"] else "before" for row in asked]
    width = max(map(width_of, class_names))
    lines = [
        f"logits of the first picture, {asked[0][FIRST_PICTURE]['key']}, which is {label} ({class_names[label]}); "
        "* marks the highest",
        " ".join([" " * (width + 4), *(f"{head:>10} " for head in heads)]).rstrip(),
    ]
    for number, name in enumerate(class_names):
        cells = [
            f"{column[number]:10.3f}{'*' if column[number] == most else ' '}"
            for column, most in zip(columns, highest, strict=True)
        ]
        lines.append(" ".join([f"{number:>3} {padded(name, width)}", *cells]).rstrip())
    return lines
