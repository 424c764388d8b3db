"""The loop around the step: input, step lines, summaries, checkpoints, validation, and the ways a training ends."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from thumbnet.data.dataset import Splits
from thumbnet.distributed.exact import team_for
from thumbnet.distributed.replicas import ALONE, Replicas
from thumbnet.engine import Precision, device
from thumbnet.errors import DivergedError, ThumbnetError
from thumbnet.evaluation.evaluate import EvaluationStoppedError, evaluate_weights
from thumbnet.input.pipeline import Batch, TrainingInput
from thumbnet.input.resize import shrink
from thumbnet.kernels import on_own_cores
from thumbnet.monitor.console import Console
from thumbnet.monitor.health import GradientCheck, SpikeDetector, check_late
from thumbnet.monitor.neighbours import Neighbours
from thumbnet.monitor.signals import StopSignal
from thumbnet.monitor.tensorboard import Summaries
from thumbnet.runs.checkpoint import Checkpoint
from thumbnet.runs.run import Run
from thumbnet.training.narrator import Narrator
from thumbnet.training.optimizers import decay_terms, set_rates
from thumbnet.training.progress import TrainClock, Window, length_of, smooth
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
    session_steps: int
    """Steps of this session, since the start or the resume."""
    images_per_second: float | None
    """Over this session, evaluation left out; None if it made no step."""
    wait_fraction: float | None
    """Share of this session's training time that the network waited for input; None if it made no step."""
    cores_busy_elsewhere: float | None
    """Cores' worth of time that other programs took of those this process may use, over this session; None where the
    system does not tell, and on several devices, whose replicas are other programs to each other."""
    stopped_by: int | None
    """The signal that ended it early, if only in the validation of its last step, or None."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is recorded of a step."""

    losses: dict[str, float]
    """Each term of the loss by name, and the total."""
    accuracy: float
    gradient_norm: float


class Training:
    """One session of a training: from a state, new or restored, to its end, a signal, or a failure."""

    def __init__(
        self,
        run: Run,
        splits: Splits,
        state: TrainingState,
        *,
        precision: Precision,
        console: Console,
        replicas: Replicas = ALONE,
    ) -> None:
        self.run, self.recipe, self.splits, self.state = run, run.recipe, splits, state
        self.precision, self.console = precision, console
        self.length = length_of(run.recipe, len(splits.train))
        self.summaries: Summaries | None = None
        self._check = GradientCheck(state.model)
        # On an accelerator figures are read when something is due (`monitor.health` tells why): those of the steps
        # since the last time, and the state as it was then.
        self._defers = device().type != "cpu"
        self._unread: list[Tensor] = []
        self._decay_terms: dict[str, Tensor] = {}
        self._kept: Checkpoint | None = None
        self._decays = [f"decay_{name}" for name in decay_terms(state.model, run.recipe.optimizer.weight_decay)]
        self._spikes = SpikeDetector()
        self._window = Window()
        self._clock = TrainClock(state.train_s)
        self._saved = (state.step, state.train_s)
        self._over = self._done() == 1
        self._stop = StopSignal()
        self.replicas = replicas
        self._leads = replicas.rank == 0
        batch_size = run.recipe.input.batch_size
        grain = run.recipe.train.grain
        self.team = team_for(replicas, state.model, batch_size=batch_size, grain=grain, seconds=self._clock.seconds)
        self._narrator = (
            Narrator(run, splits, state, precision=precision, console=console)
            if self._leads and run.recipe.train.log_format == "book"
            else None
        )

    def fit(self, stop: StopSignal, on_first_step: Callable[[], None]) -> Outcome:
        """Train to the end, or until a stop is requested; in either case the last step has a checkpoint.

        Args:
            stop: looked at after every step, and between the batches of a validation, which a resume then begins with.
            on_first_step: called once, right before the first step.

        Raises:
            DivergedError: a loss, gradient or running statistic was not finite; a checkpoint of the step before it
                stands, or on an accelerator of the last step before it that something was told or saved at.
        """
        state, recipe, self._stop = self.state, self.recipe, stop
        first_step, first_s = state.step, state.train_s
        neighbours = Neighbours()  # while this thread may still use all cores
        if recipe.train.summary_every and self._leads:
            self.summaries = Summaries(self.run.path / "tensorboard", purge_step=state.step)
        try:
            with (
                TrainingInput(
                    self.splits.train,
                    recipe.distort,
                    recipe.input,
                    seed=recipe.seed,
                    start_step=state.step,
                    share=self.team.share,
                    device=device(),
                ) as batches,
                on_own_cores(),  # after the input, whose thread is to run wherever there is time
            ):
                if self._leads and not state.step and not self.run.checkpoints.steps():
                    # A full disk shows now rather than in an hour, and a run killed early can be resumed.
                    self.run.checkpoints.save(state.capture(recipe), note=self.console.note)
                self._keep()
                on_first_step()
                self._clock.start()
                self._window.restart(wait_s=batches.wait_s)
                if state.validation_due:
                    self._save()
                stopped = None
                while not self._over and not (stopped := self.team.stop(stop.requested)):
                    if self._narrator:
                        self._narrator.before_step()
                    batch = shrink(next(batches), self.length.side(self._done()))
                    rate = self._set_rate()
                    with self.precision.autocast():
                        self.team.get_ready(batch.images)
                    with self._watched(batch) as look:
                        result = train_step(
                            state,
                            batch,
                            check=self._check,
                            precision=self.precision,
                            label_smoothing=recipe.train.label_smoothing,
                            before_update=functools.partial(self._before_update, look),
                            team=self.team,
                        )
                    self._after_step(result, rate, self.team.waited(batches.wait_s))
                # What asked for a stop may not wait for long, so that is not validated.
                self._save_unless_saved(validate=self._over)
                if state.validation_due:  # of the last step, after which the loop looks no more
                    stopped = self.team.stop(stop.requested)
                if self._narrator:
                    self._narrator.conclude(finished=self._over and not stopped)
                wait_s = self.team.waited(batches.wait_s)
                busy_elsewhere = neighbours.busy_cores() if self.replicas.count == 1 else None
        except DivergedError:
            self._go_back()
            try:
                self._save_unless_saved(validate=False)
            except ThumbnetError as error:  # its weights may have overflowed: what happened is told all the same
                self.console.note(f"warning: {error}")
            raise
        finally:
            self._close_summaries()
        session_s, session_steps = max(state.train_s - first_s, 1e-9), state.step - first_step
        return Outcome(
            steps=state.step,
            epochs=state.step / self.length.steps_per_epoch,
            train_seconds=state.train_s,
            session_steps=session_steps,
            images_per_second=session_steps * recipe.input.batch_size / session_s if session_steps else None,
            wait_fraction=wait_s / session_s if session_steps else None,
            cores_busy_elsewhere=busy_elsewhere,
            stopped_by=stopped,
        )

    def _close_summaries(self) -> None:
        """Write what is left of TensorBoard's files, and tell if they are not whole."""
        if self.summaries:
            self.summaries.close()
            if self.summaries.failure:
                self.console.note(f"warning: TensorBoard's files are not complete: {self.summaries.failure}")

    def _done(self) -> float:
        """Return the share of the training that is done."""
        return self.length.done(self.state.step, self.state.train_s)

    @contextlib.contextmanager
    def _watched(self, batch: Batch) -> Iterator[Callable[[], None] | None]:
        """Summarize the step inside where a summary is due; gives what to call before the update."""
        summaries, model, step = self.summaries, self.state.model, self.state.step
        if summaries is None or step % self.recipe.train.summary_every:
            yield None
            return
        if step == 0:
            # Of the size that pictures have in the end, whatever they have in this step.
            side = self.recipe.distort.crop
            summaries.graph(model, batch.images.new_zeros(1, batch.images.shape[1], side, side))
        with summaries.activations(step, model):
            yield functools.partial(summaries.parameters, step, model)
        summaries.images(step, batch.images)

    def _before_update(self, look: Callable[[], None] | None) -> None:
        """Take what the loss holds beside the cross-entropy, of the same weights, and summarize where that is due."""
        self._decay_terms = decay_terms(self.state.model, self.recipe.optimizer.weight_decay)
        if look:
            look()

    def _after_step(self, result: StepResult, rate: float, wait_s: float) -> None:
        """Record a step, and do what is due after it."""
        state, train = self.state, self.recipe.train
        state.train_s = self.team.seconds()
        self._over = self._done() == 1
        self._unread.append(torch.hstack([result.figures, *self._decay_terms.values()]))
        # By recipe and step alone, so that all replicas look at the same figures: only the first one writes them.
        summary = train.summary_every and (state.step - 1) % train.summary_every == 0
        # The first step has a line as in the tutorial, so that one sees at once that it runs.
        line = state.step == 1 or state.step % train.log_every == 0 or self._over
        if summary or line or not self._defers:
            record = self._catch_up()
            # Time has passed meanwhile, and the last step is to have its line.
            self._over = self._done() == 1
            line = line or self._over
            if self.summaries and (summary or line):
                self.summaries.scalars(state.step - 1, self._scalars(record, rate))
            if line and self._leads:
                self._report(record.losses["total"], result, rate, wait_s)
        if line:
            self._window.restart(wait_s=wait_s)
        if self._checkpoint_due():
            self._save()

    def _catch_up(self) -> Record:
        """Read and record the figures of the steps since the last time; return those of the last step.

        Raises:
            DivergedError: on an accelerator, one of them is not finite.
        """
        rows = torch.stack(self._unread).tolist()  # the one place where the loop waits for an accelerator
        self._unread = []
        for step, (loss, accuracy, norm, *decays) in enumerate(rows, self.state.step - len(rows)):
            if self._kept is not None:
                check_late(step + 1, loss, norm, self._kept.step)
            losses = {"cross_entropy": loss} | dict(zip(self._decays, decays, strict=True))
            losses["total"] = sum(losses.values())
            smooth(self.state.smoothed, losses)
            self._window.add(accuracy)
            if spike := self._spikes.update(step + 1, loss):
                self.console.note(spike)
        self.state.train_s = self.team.seconds()
        self._keep()
        return Record(losses=losses, accuracy=accuracy, gradient_norm=norm)

    def _keep(self) -> None:
        """Copy the state, all of whose figures have been looked at, where one may have to go back to it."""
        if self._defers:
            self._kept = copy.deepcopy(self.state.capture(self.recipe))

    def _go_back(self) -> None:
        """Go back to the state last kept, if any."""
        if self._kept is not None:
            self.state.restore(self._kept, f"step {self._kept.step}")

    def _set_rate(self) -> float:
        """Set and return the learning rate of the next step."""
        epoch = self.state.step / self.length.steps_per_epoch
        factor = rate_factor(self.recipe.schedule, progress=self._done(), epoch=epoch)
        set_rates(self.state.optimizer, factor=factor, progress=self._done())
        return self.recipe.optimizer.learning_rate * factor

    def _scalars(self, record: Record, rate: float) -> dict[str, float]:
        """Return what TensorBoard shows of a step, by tag."""
        raw = {f"loss/{name}": value for name, value in record.losses.items()}
        averaged = {f"loss/{name} average": value for name, value in self.state.smoothed.items()}
        return (
            raw
            | averaged
            | {
                "training/learning_rate": rate,
                "training/gradient_norm": record.gradient_norm,
                "accuracy/batch": record.accuracy,
            }
        )

    def _report(self, loss: float, result: StepResult, rate: float, wait_s: float) -> None:
        """Show a step line and add it to the metrics."""
        report = self._window.report(
            step=self.state.step,
            length=self.length,
            batch_size=self.recipe.input.batch_size,
            loss=loss,
            smoothed_loss=self.state.smoothed["total"],
            rate=rate,
            wait_s=wait_s,
            done=self._done(),
            label=int(result.first_label),
            logits=tuple(result.first_logits.tolist()),
        )
        self.console.step(report)
        row = {"step": report.step, "epoch": report.epoch, "loss": loss, "smoothed_loss": report.smoothed_loss}
        row |= {"accuracy": report.accuracy, "learning_rate": rate, "images_per_second": report.images_per_second}
        self.run.append_metrics(row | {"wait_fraction": report.wait_fraction, "train_s": self.state.train_s})

    def _checkpoint_due(self) -> bool:
        """Tell whether a checkpoint is due by steps or by time."""
        train = self.recipe.train
        by_steps = train.checkpoint_every_steps and self.state.step % train.checkpoint_every_steps == 0
        # By the clock of the training, which replicas share.
        by_time = train.checkpoint_every_s and self.state.train_s - self._saved[1] >= train.checkpoint_every_s
        return bool(by_steps or by_time)

    def _save_unless_saved(self, *, validate: bool) -> None:
        """Make sure that the last step has a checkpoint."""
        if self.state.step and self.state.step != self._saved[0]:
            self._save(validate=validate)

    def _save(self, *, validate: bool = True) -> None:
        """Save a checkpoint, chosen as best by its accuracy on the validation split where there is one."""
        state, accuracy = self.state, None
        if self._unread:
            self._catch_up()
        state.validation_due = False
        if validate and self.splits.validation is not None:
            try:
                accuracy = self._validate()
            except EvaluationStoppedError:
                state.validation_due = True
                self.team.agree_on_stop(self._stop.requested)
            except DivergedError as error:
                # Finite weights whose output overflows: worth keeping to look at, never the best.
                self.console.note(f"step {state.step}: not validated: {error}")
        if self._leads:
            self.run.checkpoints.save(state.capture(self.recipe), accuracy, note=self.console.note)
        self._saved = (state.step, state.train_s)

    def _validate(self) -> float:
        """Evaluate on the validation split, off the clock; return the accuracy of the weights evaluation prefers.

        Raises:
            DivergedError: the network's output is not finite.
            EvaluationStoppedError: a stop was requested meanwhile; no figure is told.
        """
        state, dataset = self.state, self.splits.validation
        assert dataset is not None
        with self._clock.paused() as pause:
            models = {"raw": state.model} | ({"average": state.average.model} if state.average else {})
            evaluate = functools.partial(
                evaluate_weights,
                dataset=dataset,
                distort=self.recipe.distort,
                precision=self.precision,
                replicas=self.replicas,
                stopped=lambda: self.team.hears_stop(self._stop.requested),
            )
            accuracies = {name: evaluate(model).accuracy for name, model in models.items()}
        self._window.exclude(pause.seconds)
        shown = ", ".join(f"{name} {100 * accuracy:.2f} %" for name, accuracy in accuracies.items())
        self.console.note(f"step {state.step}: validation accuracy: {shown}")
        if self._leads:
            self.run.append_metrics({"step": state.step} | {f"validation_{k}": v for k, v in accuracies.items()})
        if self.summaries:
            # Beside the figures of the step just done, which TensorBoard counts from 0: a resume hides what is later.
            self.summaries.scalars(state.step - 1, {f"accuracy/validation {k}": v for k, v in accuracies.items()})
        return accuracies.get("average", accuracies["raw"])
