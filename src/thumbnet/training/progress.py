"""What a training tells while it runs: smoothed losses, speed, time left."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from thumbnet.config import Recipe
from thumbnet.errors import UsageError
from thumbnet.monitor.console import StepReport
from thumbnet.training.schedules import Phase, phases_of

# The tutorial's decay of the displayed losses.
LOSS_DECAY = 0.9


def smooth(smoothed: dict[str, float], losses: dict[str, float]) -> None:
    """Move each named moving average (in place) towards its new value; the first value starts it."""
    for name, value in losses.items():
        smoothed[name] = LOSS_DECAY * smoothed[name] + (1 - LOSS_DECAY) * value if name in smoothed else value


@dataclass(frozen=True, kw_only=True)
class Length:
    """The length of a training and where it stands."""

    steps: int | None
    """Steps in all, or None where time alone decides."""
    steps_per_epoch: float
    time_limit_s: float
    """0 for no limit."""
    phases: tuple[Phase, ...]
    """In which pictures have one size each."""

    def done(self, step: int, train_s: float) -> float:
        """Return the share of the training that is done, 0 to 1: by steps, or by time where that runs out first."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = train_s / self.time_limit_s if self.time_limit_s else 0.0
        return min(max(by_steps, by_time), 1.0)

    def side(self, done: float) -> int:
        """Return the side of the pictures of the next step, in pixels, when a share of the training is done."""
        return next((phase.side for phase in self.phases if done < phase.end), self.phases[-1].side)

    def steps_by(self, step: int, done: float) -> int:
        """Return the steps in all: as many as were asked for, or an estimate where time alone decides.

        A step is taken to last as long as its pictures have pixels.

        Args:
            step: steps done.
            done: share of the training that is done, above 0.
        """
        if done == 1:  # where time ends the training first, its steps are those done by then
            return step
        if self.steps:
            return self.steps
        pace = [(phase, 1 / phase.side**2) for phase in self.phases]
        so_far = sum(min(phase.share, max(done - phase.start, 0.0)) * steps for phase, steps in pace)
        return max(step, round(step * sum(phase.share * steps for phase, steps in pace) / so_far))

    def slowdown(self, done: float) -> float:
        """Return by what factor the steps to come take longer, on average, than the last one did.

        A step is taken to last as long as its pictures have pixels.

        Args:
            done: share of the training that is done, 0 to 1.
        """
        to_come = [(min(phase.end - done, phase.share), phase.side**2) for phase in self.phases if phase.end > done]
        if not to_come:
            return 1.0
        now = next(phase.side**2 for phase in self.phases if done <= phase.end)
        return sum(share * pixels for share, pixels in to_come) / (1 - done) / now


def length_of(recipe: Recipe, examples: int) -> Length:
    """Return the length of the training.

    Raises:
        UsageError: the batch is larger than the data set.
    """
    if recipe.input.batch_size > examples:
        raise UsageError(
            f"--batch-size {recipe.input.batch_size:,} is larger than the training set ({examples:,} images): "
            f"use at most {examples}"
        )
    steps_per_epoch = examples / recipe.input.batch_size
    # The allowance keeps 3 epochs of 1,000 steps at 3,000 where the product of floats ends a hair above.
    of_epochs = max(math.ceil(recipe.train.epochs * steps_per_epoch - 1e-6), 1) if recipe.train.epochs else None
    steps = recipe.train.steps or of_epochs
    return Length(
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        time_limit_s=recipe.train.time_limit_s,
        phases=tuple(phases_of(recipe.schedule, recipe.distort.crop)),
    )


@dataclass(kw_only=True)
class Pause:
    """Time that does not count as training."""

    seconds: float = 0.0


class TrainClock:
    """Seconds spent in training, over all resumes; what happens while it is paused does not count."""

    def __init__(self, before_s: float) -> None:
        self._before_s = before_s
        self._started = 0.0

    def start(self) -> None:
        """Start, right before the first step of this session."""
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._before_s + time.perf_counter() - self._started

    @contextlib.contextmanager
    def paused(self) -> Iterator[Pause]:
        """Stop the clock for what happens inside; the pause's length is known afterwards."""
        pause, began = Pause(), time.perf_counter()
        try:
            yield pause
        finally:
            pause.seconds = time.perf_counter() - began
            self._started += pause.seconds


class Window:
    """Sums over the steps since the last step line."""

    def __init__(self) -> None:
        self.restart(wait_s=0.0)

    def restart(self, *, wait_s: float) -> None:
        """Begin a new window; `wait_s` is the input's total wait so far."""
        self.steps, self.accuracy_sum = 0, 0.0
        self._started, self._excluded_s, self._wait_s = time.perf_counter(), 0.0, wait_s

    def add(self, accuracy: float) -> None:
        """Count one step."""
        self.steps += 1
        self.accuracy_sum += accuracy

    def exclude(self, seconds: float) -> None:
        """Leave evaluation time out of this window's speed."""
        self._excluded_s += seconds

    def report(
        self,
        *,
        step: int,
        length: Length,
        batch_size: int,
        loss: float,
        smoothed_loss: float,
        rate: float,
        wait_s: float,
        done: float,
        label: int,
        logits: tuple[float, ...],
    ) -> StepReport:
        """Return the step line of this window."""
        seconds = max(time.perf_counter() - self._started - self._excluded_s, 1e-9)
        seconds_per_step = seconds / self.steps
        steps = length.steps_by(step, done)
        remaining_s = (steps - step) * seconds_per_step * length.slowdown(done)
        if length.time_limit_s:
            remaining_s = min(remaining_s, (1 - done) * length.time_limit_s)
        return StepReport(
            step=step,
            steps=steps,
            epoch=step / length.steps_per_epoch,
            epochs=steps / length.steps_per_epoch,
            loss=loss,
            smoothed_loss=smoothed_loss,
            accuracy=self.accuracy_sum / self.steps,
            images_per_second=batch_size / seconds_per_step,
            wait_fraction=(wait_s - self._wait_s) / seconds,
            seconds_per_batch=seconds_per_step,
            learning_rate=rate,
            eta_s=remaining_s,
            label=label,
            logits=logits,
        )
