"""What the commands do, from Python, in a few lines each; `import thumbnet` offers these names (docs/python.md)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, overload

from thumbnet import engine
from thumbnet.config import (
    DataConfig,
    PrecisionName,
    Recipe,
    insist_within,
    load_preset,
    load_recipe,
    recipe_from_dict,
    recipe_to_dict,
)
from thumbnet.data import lasting_name, load_splits
from thumbnet.data.dataset import Splits
from thumbnet.errors import UsageError, did_you_mean
from thumbnet.evaluation.classifier import Classifier
from thumbnet.evaluation.evaluator import Evaluator, Split, choose_weights, load_for
from thumbnet.evaluation.metrics import Metrics, Weights
from thumbnet.evaluation.predict import Predictor, own_precision
from thumbnet.exporting.read import OnnxClassifier
from thumbnet.exporting.write import export_onnx
from thumbnet.files import expand_home
from thumbnet.monitor.console import say
from thumbnet.printing import silent
from thumbnet.runs.find import Which, choose_checkpoint
from thumbnet.runs.run import Run
from thumbnet.training.adapt import preset_for
from thumbnet.training.whole import Options, TrainResult, run_to_resume, train_new, train_on

PathLike = str | os.PathLike[str]
RunLike = PathLike | Run | TrainResult
"""A run by its name or folder, or what `train` returned."""


def load_dataset(
    name: PathLike,
    *,
    validation: float = 0.0,
    image_size: int = 32,
    skip_bad: bool = False,
    data_dir: PathLike | None = None,
    offline: bool = False,
    quiet: bool = False,
) -> Splits:
    """Return the pictures of a data set, fetched or decoded at first use.

    Args:
        name: cifar10, cifar100, svhn, svhn-extra or shapes; a folder with one folder per class; or a CSV file.
        validation: training images to keep for validation: how many, or below 1 which share, which gives way to a
            validation split that the pictures bring.
        image_size: side in pixels that pictures of a folder or CSV file are resized to.
        skip_bad: go on without pictures that cannot be read.
        data_dir: where data sets are kept; None for `THUMBNET_DATA_DIR`, or else the user's cache folder.
        offline: never touch the network.
        quiet: print nothing.

    Returns:
        Splits `train`, `validation` and `test`; each has `gather(indices)`, `labels` and `class_names`.

    Raises:
        UsageError: the name is unknown, or the validation split impossible.
        DataError: the data cannot be had, is damaged, or holds no two classes.
    """
    config = DataConfig(
        name=lasting_name(os.fspath(name)), validation=validation, image_size=image_size, skip_bad=skip_bad
    )
    return load_splits(config, data_dir=_path(data_dir), offline=offline, note=_teller(quiet))


def train(
    recipe: PathLike | Recipe | None = None,
    data: PathLike | Splits | None = None,
    *,
    model: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    validation: float | None = None,
    seed: int | None = None,
    overrides: Mapping[str, object] | None = None,
    resume: bool | RunLike | None = False,
    out: PathLike = "runs",
    name: str | None = None,
    test: bool = True,
    threads: int | None = None,
    data_dir: PathLike | None = None,
    offline: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train a network and evaluate it once on the test set, as `thumbnet train` does; no run is ever overwritten.

    Args:
        recipe: a preset by name, a recipe's .toml file, or a `Recipe`; None for the preset `quick`, or that made for
            `model`.
        data: a name or path as for `load_dataset`, or what that returned; None for the recipe's own. A name or path
            takes the place of the recipe's `data.name` only, what was loaded that of its whole section `data`, which
            must not say otherwise.
        model: network, by name, in place of the recipe's.
        steps: length of the training; give one of this and `epochs`.
        epochs: length of the training.
        batch_size: images of one step.
        validation: training images kept for validation: how many, or below 1 which share.
        seed: of weights, order and distortions.
        overrides: any entry of the recipe by its dotted key, such as `{"optimizer.learning_rate": 0.05}`.
        resume: go on with this run, exactly (True: the newest in `out` that has a checkpoint); only its length, `data`,
            where its pictures have been moved to, and what it writes may change.
        out: folder of the runs.
        name: of the run's folder; preset and time if None.
        test: look at the test set at the end; a run that was once trained without remembers that when it is resumed.
        threads: processor threads; None for every core.
        data_dir: where data sets are kept; None for where a run had them, then as for `load_dataset`.
        offline: never touch the network.
        quiet: print nothing.

    Raises:
        UsageError: an argument cannot be used; says which, and what can be.
        DataError: the data cannot be had.
        DivergedError: a loss or gradient was not finite; a checkpoint of the step before it stands.
        Stopped: a KeyboardInterrupt that comes when Ctrl-C, or a notebook's stop button, has ended the training early
            and its last step is saved.
    """
    if steps is not None and epochs is not None:
        raise UsageError("steps and epochs: give one of the two")
    for what, length in (("steps", steps), ("epochs", epochs)):
        if isinstance(length, int | float) and not length > 0:
            raise UsageError(f"{what} is {length}: it must be above 0")
    asked = {
        "model.name": model,
        "train.steps": steps,
        "train.epochs": epochs,
        "input.batch_size": batch_size,
        "data.validation": validation,
        "seed": seed,
    }
    changes = {key: value for key, value in asked.items() if value is not None} | dict(overrides or {})
    if data_dir is None and isinstance(data, Splits):
        data_dir = data.data_dir  # where the run, its resume and its evaluation find the same pictures again
    options = Options(
        data_dir=_path(data_dir),
        offline=offline,
        threads=threads,
        look_at_test=test,
        quiet=quiet,
        second_signal="raise",
    )
    if resume is None:
        resume = False
    if data is not None:
        if isinstance(data, Splits) and resume is False:
            _insist_loaded_as_said(data, recipe, changes)
        changes = _data_changes(data) | changes
    if resume is not False:
        if recipe is not None or name is not None:
            raise UsageError("recipe, name and resume: a resumed run keeps its own; start a new one without resume")
        run = _run_of(resume) if resume is not True else None
        return train_on(run_to_resume(_path(out), run, options.note), changes, options)
    chosen = _recipe_of(recipe, changes)
    ready = data if isinstance(data, Splits) and data.config == chosen.data else None
    return train_new(chosen, options, out=_path(out), name=name, given=changes.keys(), splits=ready)


def evaluate(
    run: RunLike | None = None,
    *,
    split: Split | None = None,
    checkpoint: Which = "latest",
    weights: Weights | None = None,
    data: PathLike | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    batch_size: int | None = None,
    precision: PrecisionName | None = None,
    out: PathLike = "runs",
    threads: int | None = None,
    data_dir: PathLike | None = None,
    offline: bool = False,
    quiet: bool = False,
) -> Metrics:
    """Return the figures of a checkpoint on every image of a split; writes nothing.

    Args:
        run: None for the newest in `out`.
        split: test, val or train; None for test, or where there are no test images what comes closest.
        checkpoint: the newest, the best by validation, or that of a step.
        weights: average or raw; None for the averaged ones where the run has them.
        data: where the pictures are now, or others of the same classes.
        skip_bad: go on without pictures that cannot be read.
        limit: only the first images of the split.
        batch_size: images of one pass; None for as many as suit their size.
        precision: arithmetic; None for that of the run.
        out: folder of the runs.
        threads: processor threads; None for every core.
        data_dir: where data sets are kept; None for where a run had them, then as for `load_dataset`.
        offline: never touch the network.
        quiet: print nothing.

    Raises:
        UsageError: there is no such run, split or weights.
        DataError: the data cannot be had, or has other classes than the run.
        CheckpointError: the checkpoint is missing or damaged.
    """
    _insist("split", split, Split)
    _insist("weights", weights, Weights)
    _insist("precision", precision, PrecisionName)
    for what, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None:
            insist_within(what, value, 1)
    engine.prepare(threads)
    tell = _teller(quiet)
    found, checkpoint = _find(run, out, checkpoint)
    splits, split = load_for(
        found,
        split,
        data=None if data is None else os.fspath(data),
        skip_bad=skip_bad,
        data_dir=_path(data_dir),
        offline=offline,
        note=tell,
    )
    evaluator = Evaluator(
        found,
        splits,
        split,
        weights=choose_weights(found.recipe, weights or "both")[:1],
        precision=engine.resolve_precision(precision or own_precision(found)),
        limit=limit,
        batch_size=batch_size,
        views=False,
    )
    evaluation = evaluator.evaluate_latest(tell) if checkpoint == "latest" else evaluator.evaluate(checkpoint)
    return evaluation.preferred


def load(
    run: RunLike | None = None,
    *,
    checkpoint: Which = "latest",
    weights: Weights | None = None,
    precision: PrecisionName | None = None,
    out: PathLike = "runs",
    threads: int | None = None,
) -> Classifier:
    """Return the network of a run, ready to be asked: `predict(pictures)`, `probabilities(pictures)`, `class_names`.

    Args:
        run: None for the newest in `out`; a file NAME.onnx is one that `export` wrote, which leaves no choice of
            checkpoint, weights and precision.
        checkpoint: the newest, the best by validation, or that of a step.
        weights: average or raw; None for the averaged ones where the run has them.
        precision: arithmetic; None for that of the run.
        out: folder of the runs.
        threads: processor threads; None for every core.

    Raises:
        UsageError: there is no such run, or no such weights.
        CheckpointError: the checkpoint is missing or damaged.
        DataError: the file is damaged.
    """
    _insist("weights", weights, Weights)
    _insist("precision", precision, PrecisionName)
    engine.prepare(threads)
    if run is not None and (path := _run_of(run)).endswith(".onnx"):
        if (checkpoint, weights, precision) != ("latest", None, None):
            raise UsageError(f"{path} is of one checkpoint, in fp32: checkpoint, weights and precision are for runs")
        return OnnxClassifier.open(Path(path), threads)
    found, checkpoint = _find(run, out, checkpoint)
    return Predictor(found, checkpoint=checkpoint, weights=weights, precision=precision, note=say)


def export(
    run: RunLike | None = None,
    to: PathLike | None = None,
    *,
    checkpoint: Which = "latest",
    weights: Weights | None = None,
    out: PathLike = "runs",
    threads: int | None = None,
) -> Path:
    """Write the network of a run as an ONNX file, once it is known to answer as PyTorch does; returns its path.

    Args:
        run: None for the newest in `out`.
        to: the file, replaced if it is there, or a folder for it; None for `model.onnx` in the run's folder.
        checkpoint: the newest, the best by validation, or that of a step.
        weights: average or raw; None for the averaged ones where the run has them.
        out: folder of the runs.
        threads: processor threads; None for every core.

    Raises:
        UsageError: there is no such run, no such weights, or the extra `onnx` is not installed.
        CheckpointError: the checkpoint is missing or damaged.
        ThumbnetError: the network cannot be exported, or the file not written.
    """
    _insist("weights", weights, Weights)
    engine.prepare(threads)
    found, checkpoint = _find(run, out, checkpoint)
    predictor = Predictor(found, checkpoint=checkpoint, weights=weights, note=say)
    return export_onnx(predictor, found.path if to is None else to, threads).path


def _recipe_of(recipe: PathLike | Recipe | None, changes: Mapping[str, object]) -> Recipe:
    """Return a recipe with changes: a preset by name, a file by its ending or kind, or one that is built already."""
    if isinstance(recipe, Recipe):
        return recipe_from_dict(recipe_to_dict(recipe), changes)
    if recipe is None:
        model = changes.get("model.name")
        return load_preset(preset_for(None if model is None else str(model)), changes)
    if isinstance(recipe, str) and not recipe.endswith(".toml"):
        return load_preset(recipe, changes)
    return load_recipe(_path(recipe), changes)


def _data_changes(data: PathLike | Splits) -> dict[str, object]:
    """Return what a data set means for a recipe."""
    if not isinstance(data, Splits):
        return {"data.name": lasting_name(os.fspath(data))}
    if data.config is None:
        raise UsageError("data: a run must find its pictures again: give a name, a path or what load_dataset returned")
    return {f"data.{key}": value for key, value in dataclasses.asdict(data.config).items()}


def _insist_loaded_as_said(data: Splits, recipe: PathLike | Recipe | None, changes: Mapping[str, object]) -> None:
    """Refuse pictures that were loaded otherwise than the recipe says, unless `changes` has the last word on that."""
    if data.config is None:
        return
    said = _recipe_of(recipe, changes).data
    for key in ("validation", "image_size", "skip_bad"):
        value, loaded = getattr(said, key), getattr(data.config, key)
        if f"data.{key}" not in changes and value not in (getattr(DataConfig, key), loaded):
            raise UsageError(
                f"data.{key} is {value} in the recipe, and the data was loaded with {loaded}\n"
                f"load it with {key}={value}, or give `train` its name or path"
            )


def _run_of(run: RunLike) -> str:
    """Return a run's name or path."""
    if isinstance(run, TrainResult):
        return str(run.run)
    return str(run.path if isinstance(run, Run) else _path(run))


def _find(run: RunLike | None, out: PathLike, checkpoint: Which) -> tuple[Run, Which]:
    """Return a run, and the checkpoint: that asked for, or that which the path names."""
    if checkpoint not in ("latest", "best") and not hasattr(checkpoint, "__index__"):
        raise UsageError(f"checkpoint is {checkpoint!r}: give 'latest', 'best' or the number of a step")
    return choose_checkpoint(_path(out), None if run is None else _run_of(run), checkpoint)


def _insist(what: str, value: str | None, names: Any) -> None:
    """Refuse a value that is none of the names of a `Literal`: nothing checks types in a notebook."""
    known: tuple[str, ...] = get_args(names)
    if value is not None and value not in known:
        raise UsageError(f"{what} is {value!r}{did_you_mean(str(value), known)}")


@overload
def _path(path: PathLike) -> Path: ...
@overload
def _path(path: None) -> None: ...
def _path(path: PathLike | None) -> Path | None:
    return None if path is None else expand_home(Path(path))


def _teller(quiet: bool) -> Callable[[str], None]:
    return silent if quiet else say
