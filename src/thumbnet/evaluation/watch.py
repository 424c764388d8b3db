"""Follows a run that another process trains, and evaluates each of its checkpoints once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from thumbnet.errors import CheckpointError
from thumbnet.evaluation.evaluator import Evaluation, Evaluator

LOOK_S = 1.0
"""Seconds between looks at whether the run has ended, so that nobody waits a whole interval for nothing."""


def watch(
    evaluator: Evaluator,
    *,
    every_s: float,
    note: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Evaluation]:
    """Evaluate every checkpoint there is, then look for new ones, until the run has ended and all are evaluated.

    Args:
        evaluator: of the run.
        every_s: seconds between looks for new checkpoints; the end of the run is noticed sooner.
        note: gets a line for each checkpoint that cannot be used, and for each that was deleted before it was read.
        sleep: waits for some seconds.

    Raises:
        CheckpointError: the run has ended and not one checkpoint could be evaluated, or one has a newer format.
    """
    run, seen, evaluated = evaluator.run, set[int](), 0
    while True:
        # Asked before looking: whatever the run saved before its end is then seen.
        ended = run.finished or not run.is_training()
        new = [step for step in run.checkpoints.steps() if step not in seen]
        seen.update(new)
        for evaluation in evaluator.evaluate_each(new, note):
            evaluated += 1
            yield evaluation
        if ended:
            break
        _wait(evaluator, every_s, sleep)
    if not evaluated:
        raise CheckpointError(f"{run.checkpoints.folder}: the run has ended without a checkpoint that can be used")


def _wait(evaluator: Evaluator, seconds: float, sleep: Callable[[float], None]) -> None:
    """Wait, or until the run has ended."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not evaluator.run.finished and evaluator.run.is_training():
        sleep(min(left, LOOK_S))
