"""The loop around the step: input, step lines, summaries, checkpoints, validation, and the ways a training ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from thumbnet.config import Recipe
from thumbnet.data.dataset import Splits
from thumbnet.engine import Precision, device
from thumbnet.errors import UsageError
from thumbnet.evaluation.evaluate import evaluate
from thumbnet.input.pipeline import Batch, TrainingInput
from thumbnet.monitor.console import Console
from thumbnet.monitor.signals import StopSignal
from thumbnet.monitor.tensorboard import Summaries
from thumbnet.runs.run import Run
from thumbnet.training.optimizers import decay_terms
from thumbnet.training.progress import Schedule, Window, smooth
from thumbnet.training.schedules import rate_factor
from thumbnet.training.state import TrainingState
from thumbnet.training.step import StepResult, train_step


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended."""

    steps: int
    """Steps done in all."""
    epochs: float
    train_seconds: float
    """Wall clock from the first step to the last, over all resumes; evaluation left out."""
    images_per_second: float
    """Over this session, evaluation left out."""
    wait_fraction: float
    """Share of this session's training time that the network waited for input."""
    stopped_by: int | None
    """The signal that ended it early, or None."""


def length_of(recipe: Recipe, examples: int) -> Schedule:
    """Return the length of the training.

    Raises:
        UsageError: the batch is larger than the data set.
    """
    if recipe.input.batch_size > examples:
        raise UsageError(
            f"--batch-size {recipe.input.batch_size} is larger than the training set ({examples} images): "
            f"use at most {examples}"
        )
    steps_per_epoch = examples / recipe.input.batch_size
    steps = recipe.train.steps or math.ceil(recipe.train.epochs * steps_per_epoch)
    return Schedule(steps=steps, steps_per_epoch=steps_per_epoch, time_limit_s=recipe.train.time_limit_s)


class Training:
    """One session of a training: from a state, new or restored, to the end, a signal, or a failure."""

    def __init__(
        self, run: Run, splits: Splits, state: TrainingState, *, precision: Precision, console: Console
    ) -> None:
        self.run, self.recipe, self.splits, self.state = run, run.recipe, splits, state
        self.precision, self.console = precision, console
        self.schedule = length_of(self.recipe, len(splits.train))
        self.window = Window()
        self.summaries = Summaries(run.path / "tensorboard", purge_step=state.step) if self._wants_summaries else None
        self._excluded_s = 0.0
        self._saved_at = time.monotonic()

    @property
    def _wants_summaries(self) -> bool:
        return self.recipe.train.summary_every > 0

    def fit(self, stop: StopSignal, on_first_step: Callable[[], None]) -> Outcome:
        """Train to the end, or until `stop` is requested; there is a checkpoint of the last step in either case.

        Args:
            stop: asked after every step.
            on_first_step: called once, right before the first step.

        Raises:
            DivergedError: a loss or gradient was not finite; the last checkpoint stands.
        """
        state, recipe = self.state, self.recipe
        first_step, before_s = state.step, state.train_s
        with TrainingInput(
            self.splits.train, recipe.distort, recipe.input, seed=recipe.seed, start_step=state.step
        ) as batches:
            if self.summaries and not state.step:
                self.summaries.graph(state.model, self._to_device(next(batches)).images[:1])
            on_first_step()
            started = time.perf_counter()
            self.window.restart(wait_s=batches.wait_s)
            while self._done() < 1 and not stop.requested:
                self._step(batches)
                state.train_s = before_s + time.perf_counter() - started - self._excluded_s
                self._after_step(batches)
            self._save_if_new()
            if self.summaries:
                self.summaries.close()
        session_s = max(state.train_s - before_s, 1e-9)
        return Outcome(
            steps=state.step,
            epochs=state.step / self.schedule.steps_per_epoch,
            train_seconds=state.train_s,
            images_per_second=(state.step - first_step) * recipe.input.batch_size / session_s,
            wait_fraction=batches.wait_s / session_s,
            stopped_by=stop.requested if self._done() < 1 else None,
        )

    def _done(self) -> float:
        return self.schedule.done(self.state.step, self.state.train_s)

    def _rate(self) -> float:
        """Return the learning rate of the next step."""
        factor = rate_factor(
            self.recipe.schedule, progress=self._done(), epoch=self.state.step / self.schedule.steps_per_epoch
        )
        return self.recipe.optimizer.learning_rate * factor

    def _to_device(self, batch: Batch) -> Batch:
        if device().type == "cpu":
            return batch
        images = batch.images.to(device(), non_blocking=True, memory_format=torch.channels_last)
        return Batch(images=images, labels=batch.labels.to(device(), non_blocking=True), indices=batch.indices)
