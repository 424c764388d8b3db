"""Begins, resumes and concludes a training: what stands around the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thumbnet import engine
from thumbnet.config import Recipe, recipe_from_dict, recipe_to_dict
from thumbnet.data import lasting_name
from thumbnet.data.dataset import ImageDataset, Splits
from thumbnet.distributed.replicas import ALONE, Replicas
from thumbnet.errors import CheckpointError, UsageError
from thumbnet.evaluation.curves import training_png
from thumbnet.evaluation.evaluate import evaluate_views
from thumbnet.evaluation.evaluator import Evaluation
from thumbnet.evaluation.metrics import Metrics, Weights
from thumbnet.evaluation.report import add_summaries, draw_plots, write_contents, write_files
from thumbnet.input.distort import draw, prepare
from thumbnet.models import build_model, insist_takes_side
from thumbnet.monitor.console import Console, format_duration
from thumbnet.monitor.event_file import EventFile
from thumbnet.printing import silent
from thumbnet.runs.checkpoint import Manifest, NewerFormatError, missing_files, read_manifest
from thumbnet.runs.facts import read_facts, write_facts
from thumbnet.runs.run import Run
from thumbnet.runs.transfer import pack_checkpoint, unpack_checkpoint
from thumbnet.training.adapt import fit_to_examples
from thumbnet.training.loop import Outcome, Training
from thumbnet.training.optimizers import build_optimizer
from thumbnet.training.progress import Length, length_of
from thumbnet.training.schedules import phases_of
from thumbnet.training.state import new_state

# What a resumed training may change: how long it goes on, what it writes, and where its pictures are, which must be the
# same ones (`facts.check_facts`); never what a step computes.
RESUMABLE = (
    "train.steps",
    "train.epochs",
    "train.time_limit_s",
    "train.log_every",
    "train.log_format",
    "train.summary_every",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_s",
    "train.keep",
    "data.name",
)


def start_run(
    recipe: Recipe,
    out: Path,
    name: str | None,
    load: Callable[[Recipe], Splits],
    *,
    given: Collection[str] = (),
    data_dir: Path | None = None,
    note: Callable[[str], None] = silent,
) -> tuple[Run, Splits]:
    """Make the folder of a new run and load its data; the folder does not stay when the data cannot be had.

    The arithmetic that `auto` stands for is written into the recipe, so that a resume elsewhere computes the same, and
    so are the whole path of pictures of one's own and the batch that their number allows (`fit_to_examples`).

    Args:
        recipe: what to train.
        out: folder of the runs.
        name: of the run's folder; preset and time if None.
        load: returns the data of a recipe.
        given: entries of the recipe that must not be fitted to the data.
        data_dir: where `load` keeps data sets.
        note: gets a line where something was.

    Raises:
        UsageError: the folder cannot be made, or the recipe does not fit the data.
        DataError: the data cannot be had.
    """
    precision = engine.resolve_precision(recipe.train.precision)
    check_network(recipe)
    recipe = dataclasses.replace(
        recipe,
        train=dataclasses.replace(recipe.train, precision=precision.name),
        data=dataclasses.replace(recipe.data, name=lasting_name(recipe.data.name)),
    )
    # Before the data, which may take minutes to fetch: a place that cannot be written to is told at once.
    run = Run.create(out, recipe, name, data_dir=data_dir)
    try:
        with run.lock():  # whoever looks at the run meanwhile sees that it is alive
            splits = load(recipe)
            recipe, remark = fit_to_examples(recipe, len(splits.train), given)
            if remark:
                run.change_recipe(recipe)
                note(remark)
            draw(0, recipe.distort, splits.train.image_shape, seed=recipe.seed, epoch=0)  # tells of an impossible crop
            write_facts(run.path, splits)
            length_of(recipe, len(splits.train))
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run, splits


def check_network(recipe: Recipe) -> None:
    """Refuse a network or layer that there is not, before a folder is made and data is fetched.

    Raises:
        UsageError: the recipe names an unknown network, option or layer, or an option has an impossible value, or the
            network does not take pictures as small as the recipe makes them.
    """
    # Names do not depend on the number of classes or channels, which only the data tells; "meta" tensors hold nothing.
    with torch.device("meta"):
        build_optimizer(build_model(recipe.model, num_classes=10, crop=recipe.distort.crop), recipe.optimizer)
    for phase in phases_of(recipe.schedule, recipe.distort.crop):
        insist_takes_side(recipe.model, phase.side, crop=recipe.distort.crop)


def resumed_recipe(run: Run, overrides: Mapping[str, object]) -> Recipe:
    """Return the recipe that a resumed run goes on with.

    Raises:
        UsageError: an override would change what a step computes, or the run has nothing left to do, or it has done
            more than the new length.
    """
    recipe = recipe_from_dict(recipe_to_dict(run.recipe), overrides, where=str(run.path))
    _refuse_changes(run, recipe_to_dict(run.recipe), recipe)
    facts = read_facts(run.path)
    length = length_of(recipe, facts.train) if facts else None
    newest = _newest(run)
    if length and newest and length.steps is not None and length.steps < newest.step:
        raise UsageError(
            f"{run.path}: {newest.step} steps are done, and the length asked for is {length.steps}: give at least "
            f"{newest.step}"
        )
    wanted = _wanted(newest, length) if run.finished and newest and length else []
    if run.finished and (wanted or recipe.train == run.recipe.train):
        raise UsageError(
            f"{run.path}: this run has finished: give {' and '.join(wanted) or 'more --steps or --epochs'} to go on "
            "with it, or start a new one without --resume"
        )
    return recipe


def _newest(run: Run) -> Manifest | None:
    """Return what the newest checkpoint that seems whole says; what is wrong with others is told as they are loaded.

    Raises:
        CheckpointError: it has a newer format.
    """

    def read(path: Path) -> Manifest:
        if missing := missing_files(path):
            raise CheckpointError(f"{path}: {', '.join(missing)} missing")
        return read_manifest(path)

    try:
        return run.checkpoints.newest(read, silent)[1]
    except NewerFormatError:
        raise
    except CheckpointError:
        return None


def _wanted(newest: Manifest, length: Length) -> list[str]:
    """Return what a finished run needs more of after its newest checkpoint, to have something to do within a length."""
    train_s = float(newest.info["train_s"])
    wanted = []
    if length.steps is not None and newest.step >= length.steps:
        wanted.append("more --steps or --epochs")
    if length.time_limit_s and train_s >= length.time_limit_s:
        wanted.append(f"a --time of more than {format_duration(train_s)}")
    return wanted


def _refuse_changes(run: Run, before: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise `UsageError` when two recipes differ in more than a resume may change."""
    # Built as a recipe, so that an entry that a newer version has added counts as its default.
    former = recipe_from_dict(before, where=str(run.path))
    old, new = _flat(recipe_to_dict(former)), _flat(recipe_to_dict(recipe))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key not in RESUMABLE:
            raise UsageError(
                f"{run.path}: {key} is {old.get(key)} in this run and cannot become {new.get(key)} on --resume: "
                f"start a new run\nA resume may change only {', '.join(RESUMABLE)}"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys, and values as JSON gives them back (it knows no tuples)."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def open_training(run: Run, splits: Splits, console: Console, *, resume: bool, replicas: Replicas = ALONE) -> Training:
    """Build the training of a run, from fresh weights or from its newest usable checkpoint.

    Replica 0 alone reads the run's folder; the others take over its state. Of a resumed run the recipe is written and
    what came after the checkpoint taken back at last, so that a refusal leaves it as it was.

    Raises:
        UsageError: the recipe does not fit the data.
        CheckpointError: no checkpoint is usable.
    """

    def examples(count: int) -> Tensor:
        images_NHWC, _ = splits.train.gather(np.arange(min(count, len(splits.train))))
        return prepare(images_NHWC, run.recipe.distort)

    state = new_state(
        run.recipe,
        num_classes=len(splits.train.class_names),
        channels=splits.train.image_shape[2],
        examples=None if resume or replicas.rank else examples,
    )
    if resume and not replicas.rank:
        checkpoint = run.checkpoints.latest(note=console.note)
        _refuse_changes(run, checkpoint.info["recipe"], run.recipe)
        state.restore(checkpoint, str(run.path))
    if replicas.count > 1:
        packed = replicas.broadcast(b"" if replicas.rank else pack_checkpoint(state.capture(run.recipe)))
        if replicas.rank:
            state.restore(unpack_checkpoint(packed), "replica 0")
    training = Training(run, splits, state, precision=_precision_of(run), console=console, replicas=replicas)
    if resume and not replicas.rank:
        run.change_recipe(run.recipe)
        run.rewind(state.step)
    return training


def _precision_of(run: Run) -> engine.Precision:
    """Return the run's arithmetic, with the reason that `auto` had where it would choose the same today."""
    automatic = engine.resolve_precision()
    name = run.recipe.train.precision
    return automatic if automatic.name == name else engine.resolve_precision(name)


def conclude(
    training: Training, outcome: Outcome, start_seconds: float, *, look_at_test: bool = True
) -> dict[str, Any]:
    """Take the one look at the test set, write `result.json`, and return what it holds.

    Args:
        training: at its last step.
        outcome: how it ended.
        start_seconds: seconds from the start of the process to the first step.
        look_at_test: False while recipes are compared, which is what the validation split is for.
    """
    run, test = training.run, training.splits.test
    result: dict[str, Any] = {
        "run": str(run.path),
        "preset": run.recipe.preset,
        "steps": outcome.steps,
        "epochs": outcome.epochs,
        "start_seconds": start_seconds,
        "train_seconds": outcome.train_seconds,
        "images_per_second": outcome.images_per_second,
        "input_wait_fraction": outcome.wait_fraction,
        "cores_busy_elsewhere": outcome.cores_busy_elsewhere,
        "memory_mib": engine.process_memory_mib(),
        "precision": training.precision.name,
        "replicas": training.replicas.count,
    }
    evaluation = None
    if test is not None and look_at_test:
        started = time.perf_counter()
        evaluation = evaluate_test(training, test)
        result["test_seconds"] = time.perf_counter() - started
        result["test"] = {name: summary_of(values) for name, values in evaluation.metrics.items()}
        for name, accuracy in evaluation.view_accuracy.items():
            result["test"][name]["view_accuracy"] = accuracy
    if training.replicas.rank == 0:
        _write_evaluation(run, evaluation, training.console.note)
        run.finish(result)
    return result


def _write_evaluation(run: Run, evaluation: Evaluation | None, note: Callable[[str], None]) -> None:
    """Write the curves of a training and, if it took its look at the test set, what that showed.

    A training that is done does not fail for want of them: whatever goes wrong is noted.
    """
    folder = run.path / "evaluation"
    try:
        curves = training_png(run.read_metrics(), f"{run.path.absolute().name}: training")
        write_contents({"training.png": curves}, folder)
        if evaluation is not None:
            write_files(evaluation, folder, draw_plots(evaluation))
    except Exception as error:  # from the disk's to memory's
        again = f": `thumbnet eval {shlex.quote(str(run.path))}` writes the reports" if evaluation else ""
        note(f"warning: {folder}: not complete: {str(error) or type(error).__name__}{again}")
    if evaluation is not None:
        _show_in_tensorboard(evaluation, run.path / "tensorboard" / "eval", note)


def _show_in_tensorboard(evaluation: Evaluation, folder: Path, note: Callable[[str], None]) -> None:
    """Write TensorBoard's copy of the figures."""
    try:
        with contextlib.closing(EventFile(folder)) as events:
            add_summaries(evaluation, events)
        failure: Exception | None = events.failure
    except Exception as error:
        failure = error
    if failure:
        note(f"warning: {folder}: TensorBoard's files are not complete: {str(failure) or type(failure).__name__}")


def evaluate_test(training: Training, test: ImageDataset) -> Evaluation:
    """Evaluate the last weights on the test set: averaged, where there is an average, and raw."""
    state, run = training.state, training.run
    models: dict[Weights, nn.Module] = {"average": state.average.model} if state.average else {}
    models["raw"] = state.model
    figures = {
        name: evaluate_views(
            model,
            test,
            run.recipe.distort,
            run.recipe.evaluation,
            precision=training.precision,
            replicas=training.replicas,
        )
        for name, model in models.items()
    }
    return Evaluation(
        run=run.path,
        step=state.step,
        split="test",
        limited=False,
        precision=training.precision.name,
        metrics={name: metrics for name, (metrics, _) in figures.items()},
        view_accuracy={name: several for name, (_, several) in figures.items() if several is not None},
        dataset=test,
    )


def summary_of(metrics: Metrics) -> dict[str, float]:
    """Return the headline numbers of an evaluation."""
    return {"accuracy": metrics.accuracy, "top5": metrics.top5, "loss": metrics.loss, "ece": metrics.ece}
