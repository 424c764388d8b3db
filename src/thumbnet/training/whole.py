"""A whole training, from a recipe to its figures: what `thumbnet train` and `thumbnet.train` both do."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thumbnet import engine
from thumbnet.config import LogFormat, Recipe
from thumbnet.data import lasting_name, load_splits
from thumbnet.data.dataset import Splits
from thumbnet.distributed.place import is_launched
from thumbnet.distributed.replicas import ALONE, Replicas
from thumbnet.errors import DivergedError, UsageError
from thumbnet.monitor.console import say
from thumbnet.monitor.neighbours import Neighbours
from thumbnet.monitor.signals import StopSignal
from thumbnet.printing import silent
from thumbnet.runs.facts import check_facts
from thumbnet.runs.find import find_begun, find_checkpoint
from thumbnet.runs.run import Run, arithmetic
from thumbnet.training.lines import best_line, opening_lines, speed_line, threads_advice
from thumbnet.training.session import conclude, open_training, resumed_recipe, start_run
from thumbnet.training.together import announce_run, folder_of, hear_of_run, insist_same_data, run_of_job


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a training is asked for beside its recipe."""

    data_dir: Path | None = None
    """Where data sets are kept; None for where a resumed run had them, or else the user's cache folder."""
    offline: bool = False
    """Never touch the network."""
    threads: int | None = None
    """Processor threads; None for every core, or as many as a resumed run began with."""
    look_at_test: bool = True
    """Evaluate on the test set at the end, unless the run was once asked to leave that alone, which it remembers."""
    quiet: bool = False
    """Print nothing; the run's log is written all the same."""
    second_signal: StopSignal.Second = "exit"
    """What a second Ctrl-C does: ends the process at once, or raises KeyboardInterrupt."""
    replicas: Replicas = ALONE
    """This process and those that train with it."""
    told: list[str] = field(default_factory=list)
    """What was told before there was a log to write it to."""

    def note(self, text: str) -> None:
        """Tell the user a line, unless nothing is to be printed."""
        self.told.append(text)
        if not self.quiet:
            say(text)

    def load(self, recipe: Recipe) -> Splits:
        """Return the examples that a recipe asks for."""
        note = silent if self.quiet else self.note
        return load_splits(recipe.data, data_dir=self.data_dir, offline=self.offline, note=note)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training has come to; `print` shows it as `thumbnet train` does."""

    run: Path
    """The run's folder."""
    figures: dict[str, Any]
    """What `result.json` holds: steps, epochs, train_seconds, images_per_second, test and more."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Test accuracy, top5, loss and ece by weights, `average` before `raw`; empty where the test was left out."""
        metrics: dict[str, dict[str, float]] = self.figures.get("test", {})
        return metrics

    @property
    def accuracy(self) -> float | None:
        """Test accuracy, 0 to 1, of the averaged weights where there are any; None where the test was left out."""
        return next((metrics["accuracy"] for metrics in self.metrics.values()), None)

    def __str__(self) -> str:
        lines = []
        for weights, metrics in self.metrics.items():
            lines.append(
                f"test accuracy, {weights + ' weights:':<17} {100 * metrics['accuracy']:.2f} %   "
                f"(top-5 {100 * metrics['top5']:.2f} %, loss {metrics['loss']:.3f})"
            )
            if "view_accuracy" in metrics:
                lines.append(f"    over several views of a picture: {100 * metrics['view_accuracy']:.2f} %")
        path = shlex.quote(str(self.run))
        lines.append(f"run folder:       {self.run}")
        lines.append(f"{'evaluate again:' if self.metrics else 'evaluate:':<17} thumbnet eval {path}")
        curves = []
        if (self.run / "evaluation" / "training.png").exists():
            curves.append(f"{self.run}/evaluation/training.png")
        if any((self.run / "tensorboard").glob("events*")):
            curves.append(f"tensorboard --logdir {path}/tensorboard")
        lines += [f"{head:<17} {where}" for head, where in zip(("curves:", "or:"), curves, strict=False)]
        return "\n".join(lines)


class Stopped(KeyboardInterrupt):
    """A training was asked to end early: its last step is saved, and it can go on from there."""

    def __init__(self, run: Path, steps: int, exit_code: int) -> None:
        super().__init__(f"stopped at step {steps}, saved; to go on: thumbnet.train(resume={str(run)!r})")
        self.run = run
        self.steps = steps
        self.exit_code = exit_code
        """That of a command that ends so: 130 for Ctrl-C, 143 for SIGTERM."""


def train_new(
    recipe: Recipe,
    options: Options,
    *,
    out: Path,
    name: str | None = None,
    given: Collection[str] = (),
    splits: Splits | None = None,
) -> TrainResult:
    """Train a new run to its end.

    Args:
        recipe: what to train.
        options: how.
        out: folder of the runs.
        name: of the run's folder; preset and time if None.
        given: entries of the recipe, by dotted key, that were asked for and must not be fitted to the data.
        splits: the examples of `recipe.data`, if they are loaded already.

    Raises:
        UsageError: the recipe, the name or the folder cannot be used.
        DataError: the data cannot be had.
        DivergedError: a loss or gradient was not finite; a checkpoint of the step before it stands.
        Stopped: it was interrupted.
    """
    neighbours = Neighbours()
    engine.prepare(options.threads, sharers=options.replicas.sharers)
    if restarted := run_of_job(out, options.replicas.timeout_s, options.note):
        return train_on(restarted, {}, options)
    run, loaded = start_run(
        recipe,
        out,
        name,
        options.load if splits is None else lambda _: splits,
        given=given,
        data_dir=options.data_dir,
        note=options.note,
    )
    with _no_empty_run(run):
        return _train(run, lambda: loaded, options, run.recipe.train.log_format, resume=False, neighbours=neighbours)


def follow(options: Options) -> TrainResult:
    """Train as another replica than 0: the run that replica 0 makes or goes on with.

    Raises:
        DataError: the data cannot be had.
        DivergedError: as `train_new`.
        Stopped: all replicas were interrupted.
    """
    run, resume, threads, data_dir, look_at_test = hear_of_run(options.replicas)
    options = dataclasses.replace(options, data_dir=options.data_dir or data_dir, look_at_test=look_at_test)
    engine.prepare(options.threads or threads, sharers=options.replicas.sharers)
    return _train(run, lambda: options.load(run.recipe), options, run.recipe.train.log_format, resume=resume)


def run_to_resume(out: Path, name_or_path: str | None, note: Callable[[str], None]) -> Run:
    """Return a run by its name in `out` or its path; None is the newest in `out` that has a checkpoint.

    Args:
        out: folder of the runs.
        name_or_path: of the run.
        note: gets a line where newer runs are passed over.

    Raises:
        UsageError: there is no such run, or one of its checkpoints is named: a run goes on from its newest.
        CheckpointError: the run is damaged, or none in `out` has a checkpoint.
    """
    if name_or_path is None:
        return find_begun(out, note)
    run, step = find_checkpoint(out, name_or_path)
    if step is not None:
        raise UsageError(f"--resume {name_or_path}: a run goes on from its newest checkpoint: give the run, {run.path}")
    return run


def train_on(run: Run, overrides: Mapping[str, object], options: Options) -> TrainResult:
    """Go on with a run from its newest checkpoint, to its end.

    Args:
        run: the run.
        overrides: what to change in its recipe, by dotted key: no more than `session.RESUMABLE`.
        options: how.

    Raises:
        UsageError: an override would change what a step computes, or there is nothing left to do.
        DataError: the data cannot be had, or has changed.
        CheckpointError: no checkpoint is usable, or another process trains the run.
        DivergedError: as `train_new`.
        Stopped: it was interrupted.
    """
    engine.prepare(options.threads, sharers=options.replicas.sharers)
    options = dataclasses.replace(
        options,
        data_dir=options.data_dir or run.data_dir,
        look_at_test=options.look_at_test and run.looks_at_test,
    )
    if "data.name" in overrides:
        overrides = {**overrides, "data.name": lasting_name(str(overrides["data.name"]))}
    recipe = resumed_recipe(run, overrides)
    _keep_threads(run, options)
    _tell_other_arithmetic(run, options)

    def load() -> Splits:
        # Under the lock: the run may be another process's.
        splits = options.load(recipe)
        check_facts(run.path, splits)
        run.recipe = recipe  # written once nothing can be refused any more
        return splits

    return _train(run, load, options, recipe.train.log_format, resume=True)


def _train(
    run: Run,
    load: Callable[[], Splits],
    options: Options,
    log_format: LogFormat,
    *,
    resume: bool,
    neighbours: Neighbours | None = None,
) -> TrainResult:
    """Train a run, new or begun, to its end, and evaluate it; says what to do where `neighbours` keep cores busy."""
    start_seconds: list[float] = []
    replicas = options.replicas
    with folder_of(run, log_format, replicas, quiet=options.quiet) as console:
        splits = load()
        console.remember(options.told)
        if not replicas.rank:
            announce_run(replicas, run, resume=resume, look_at_test=options.look_at_test)
        insist_same_data(replicas, splits)
        training = open_training(run, splits, console, resume=resume, replicas=replicas)
        if not replicas.rank and not options.look_at_test:
            run.leave_test_alone()
        for line in opening_lines(training):
            console.note(line)
        if neighbours is not None and replicas.count == 1 and (advice := threads_advice(neighbours)):
            console.note(advice)
        # Not before: while data is fetched, a Ctrl-C should end the program rather than wait for a step.
        with StopSignal(options.second_signal, launched=is_launched(os.environ)) as stop:
            try:
                outcome = training.fit(stop, lambda: start_seconds.append(engine.process_age_s()))
            except DivergedError as error:
                raise DivergedError(f"{error}\nrun: {run.path}") from error
        if outcome.stopped_by:
            anywhere = ", on any number of devices" if replicas.count > 1 else ""
            console.note(f"stopped at step {outcome.steps}, saved; to go on{anywhere}: {run.resume_command}")
            raise Stopped(run.path, outcome.steps, 128 + outcome.stopped_by)
        try:
            if stop.requested:  # in the last step or its save, when the loop looks no more
                raise KeyboardInterrupt(128 + stop.requested)
            figures = conclude(training, outcome, start_seconds[0], look_at_test=options.look_at_test)
        except KeyboardInterrupt:
            console.note(f"stopped after the last step, all are saved; to go on: {run.resume_command}")
            raise
        console.note(speed_line(outcome, figures))
        if not replicas.rank and (best := best_line(run)):
            console.note(best)
    return TrainResult(run=run.path, figures=figures)


@contextlib.contextmanager
def _no_empty_run(run: Run) -> Iterator[None]:
    """Clear away a new run that ends before its first checkpoint, unless another process has taken hold of it."""
    try:
        yield
    except BaseException:
        if not run.checkpoints.steps() and not run.is_training():
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def _keep_threads(run: Run, options: Options) -> None:
    """Resume with the threads that the run began with: sums over another number of threads round otherwise."""
    before, asked = run.threads, options.threads
    # With grains the weights are the same on any number of devices, if each has as many threads.
    if run.replicas != options.replicas.count and not run.recipe.train.grain:
        options.note(
            f"the run began on {_devices(run.replicas)} and goes on on {_devices(options.replicas.count)}: "
            "its weights are the same to rounding, not to the bit"
        )
        return
    if before is None:
        return
    if asked is None:
        engine.prepare(before)
        cores = engine.usable_cores(options.replicas.sharers)
        if before > cores:
            options.note(
                f"goes on with the {before} threads that the run began with, and there are {cores} cores to use: "
                f"--threads {cores} is faster, and its weights may then differ in the last digits"
            )
    elif asked != before:
        options.note(
            f"--threads {asked}: the run began with --threads {before}, so its weights may differ in the last digits"
        )


def _tell_other_arithmetic(run: Run, options: Options) -> None:
    """Tell of what makes sums round otherwise here than where the run began."""
    now = arithmetic()
    others = [f"{name} {before}, now {now[name]}" for name, before in run.arithmetic.items() if before != now[name]]
    if others:
        options.note(f"the run began with {'; '.join(others)}: its weights may differ in the last digits")


def _devices(count: int) -> str:
    return f"{count} device{'s' * (count > 1)}"
