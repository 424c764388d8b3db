"""The checkpoints of one run on one split: what `thumbnet eval` computes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from thumbnet.config import DataConfig, EvaluationConfig, Recipe
from thumbnet.data import load_splits
from thumbnet.data.dataset import ImageDataset, Splits
from thumbnet.engine import Precision, place
from thumbnet.errors import CheckpointError, DivergedError, UsageError
from thumbnet.evaluation.evaluate import evaluate_views
from thumbnet.evaluation.metrics import Metrics, Weights
from thumbnet.models import build_model
from thumbnet.printing import silent
from thumbnet.runs.checkpoint import NewerFormatError, fit_state, folder_name, load_weights, read_manifest
from thumbnet.runs.facts import check_classes, facts_of, is_same_data, read_facts
from thumbnet.runs.run import Run

Split = Literal["test", "val", "train"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One checkpoint on one split."""

    run: Path
    """Folder of the run."""
    step: int
    """Step of the checkpoint."""
    split: Split
    limited: bool
    """Whether only the first examples of the split were taken."""
    precision: str
    """Arithmetic of the network: fp32, bf16 or fp16."""
    metrics: dict[Weights, Metrics]
    """By weights, averaged before raw; one or both. Of a single view of each picture."""
    view_accuracy: dict[Weights, float] = field(default_factory=dict)
    """Accuracy over the views that the recipe asks for, by weights; empty where it asks for one view."""
    data: str = ""
    """Name of the data set if it is another one than the run was trained on."""
    dataset: ImageDataset
    """The examples themselves."""

    @property
    def examples(self) -> int:
        """Examples that were evaluated."""
        return self.preferred.examples

    @property
    def preferred(self) -> Metrics:
        """The figures that count: of the averaged weights where they were evaluated."""
        return next(iter(self.metrics.values()))


def choose_weights(recipe: Recipe, requested: Literal["average", "raw", "both"]) -> tuple[Weights, ...]:
    """Return the weights to evaluate, averaged ones first; `both` means those that the run has.

    Raises:
        UsageError: averaged weights are asked for and the run keeps none.
    """
    if recipe.average.decay:
        return ("average", "raw") if requested == "both" else (requested,)
    if requested == "average":
        raise UsageError(
            "--weights average: this run keeps no average of its weights (average.decay is 0)\n"
            "use --weights raw, or train with --set average.decay=0.9999"
        )
    return ("raw",)


def usual_split(splits: Splits) -> Split:
    """Return the split that tells most of what a network does with new pictures: of test, validation and training."""
    if splits.test is not None:
        return "test"
    return "train" if splits.validation is None else "val"


def choose_examples(splits: Splits, split: Split, limit: int | None = None) -> ImageDataset:
    """Return the first `limit` examples of a split, or all of them.

    Raises:
        UsageError: the data has no such split.
    """
    dataset = {"train": splits.train, "val": splits.validation, "test": splits.test}[split]
    if dataset is None and split == "val":
        raise UsageError(
            "--split val: this run trained on all of its training images, none were kept for validation\n"
            "evaluate --split test, or train with --validation N to keep N of them"
        )
    if dataset is None:
        raise UsageError(f"--split {split}: {splits.train.name} has no {split} images; evaluate --split train")
    return dataset if limit is None or limit >= len(dataset) else dataset.take(np.arange(limit))


def load_for(
    run: Run,
    split: Split | None,
    *,
    data: str | None = None,
    skip_bad: bool = False,
    data_dir: Path | None = None,
    offline: bool = False,
    note: Callable[[str], None] = silent,
) -> tuple[Splits, Split]:
    """Return the data to evaluate a run on, and which split of it.

    Args:
        run: the run.
        split: the part that is asked for; None for the test images, or where there are none what comes closest.
        data: another name or path than that of the run: its pictures were moved, or others are to be looked at.
        skip_bad: go on without damaged pictures, as a run may have done, too.
        data_dir: where data sets are kept; None for where the run had them, or else the user's cache folder.
        offline: never touch the network.
        note: gets lines for the user.

    Raises:
        UsageError: the data set is unknown.
        DataError: it cannot be had.
    """
    own = run.recipe.data
    config = dataclasses.replace(own, name=data or own.name, skip_bad=skip_bad or own.skip_bad)
    load = functools.partial(load_splits, data_dir=data_dir or run.data_dir, offline=offline)
    may_be_others = data is not None and config.validation and split in ("test", None)
    splits = _load_moved(run, load, config, note) if may_be_others else load(config, note=note)
    if split is not None:
        return splits, split
    split = usual_split(splits)
    if split != "test":
        note(f"{splits.train.name} has no test images: evaluating its {split} split")
    return splits, split


def _load_moved(run: Run, load: Callable[..., Splits], config: DataConfig, note: Callable[[str], None]) -> Splits:
    """Return the run's pictures, which were moved, with those kept for validation apart as in the run; all of others.

    What was kept for validation does not matter with others, which may be too few for it.
    """
    with contextlib.suppress(UsageError):
        splits, facts = load(config, note=note), read_facts(run.path)
        if facts is not None and is_same_data(facts, facts_of(splits)):
            return splits
    return load(dataclasses.replace(config, validation=0.0), note=silent)


class Evaluator:
    """Evaluates checkpoints of a run: network and data are set up once."""

    def __init__(
        self,
        run: Run,
        splits: Splits,
        split: Split,
        *,
        weights: tuple[Weights, ...],
        precision: Precision,
        limit: int | None = None,
        batch_size: int | None = None,
        views: bool = True,
    ) -> None:
        """Build the run's network.

        Args:
            run: the run.
            splits: its data.
            split: which part of it to evaluate on.
            weights: from `choose_weights`.
            precision: arithmetic of the network.
            limit: take only the first examples of the split, if it has more.
            batch_size: images of one forward pass; as many as suit their size if None.
            views: also take the accuracy over several views of a picture, where the recipe asks for them.

        Raises:
            UsageError: the data has no such split, or the run's recipe names an unknown network.
            DataError: the data has other classes than when the run began.
        """
        check_classes(run.path, splits)
        self.run, self.split, self.weights, self.precision, self.batch_size = run, split, weights, precision, batch_size
        self._views = run.recipe.evaluation if views else EvaluationConfig(views="one")
        self.dataset = choose_examples(splits, split, limit)
        self.limited = len(self.dataset) < len(choose_examples(splits, split))
        facts = read_facts(run.path)
        self._other_data = "" if facts is None or is_same_data(facts, facts_of(splits)) else splits.train.name
        self._model = place(
            build_model(
                run.recipe.model,
                num_classes=len(self.dataset.class_names),
                crop=run.recipe.distort.crop,
                channels=self.dataset.image_shape[2],
            )
        )

    def evaluate(self, which: Literal["best"] | int) -> Evaluation:
        """Evaluate the best checkpoint by validation, or that of a step.

        Raises:
            CheckpointError: it is missing, damaged, or does not fit the network.
        """
        path = self.run.checkpoints.path(which)
        return self._evaluate(read_manifest(path).step, self._load(path))

    def evaluate_latest(self, note: Callable[[str], None]) -> Evaluation:
        """Evaluate the newest checkpoint that can be used.

        Args:
            note: as for `CheckpointStore.newest`.

        Raises:
            CheckpointError: there is none, none can be used, or one that would be used has a newer format.
        """
        return self._evaluate(*self.run.checkpoints.newest(self._load, note))

    def evaluate_all(self, note: Callable[[str], None]) -> list[Evaluation]:
        """Evaluate every checkpoint that can be used; arguments are those of `evaluate_each`.

        Raises:
            CheckpointError: there is none, none can be used, or one has a newer format.
        """
        store = self.run.checkpoints
        evaluations = list(self.evaluate_each(store.steps(), note))
        if not evaluations:
            raise CheckpointError(f"{store.folder}: there is no checkpoint that can be used")
        return evaluations

    def evaluate_each(self, steps: Iterable[int], note: Callable[[str], None]) -> Iterator[Evaluation]:
        """Evaluate the checkpoints of several steps.

        Args:
            steps: which.
            note: gets a line for each that cannot be used, and for each that was deleted before it was read.

        Raises:
            CheckpointError: one has a newer format.
        """
        for step in steps:
            try:
                evaluation = self.evaluate(step)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                deleted = not (self.run.checkpoints.folder / folder_name(step)).exists()
                note(f"step {step}: its checkpoint was deleted before it was read" if deleted else f"warning: {error}")
            except DivergedError as error:
                note(f"warning: step {step}: {error}")
            else:
                yield evaluation

    def _load(self, path: Path) -> dict[Weights, dict[str, Tensor]]:
        """Read all weights before any is evaluated, so that a checkpoint deleted meanwhile does not matter."""
        return {weights: load_weights(path, weights) for weights in self.weights}

    def _evaluate(self, step: int, loaded: dict[Weights, dict[str, Tensor]]) -> Evaluation:
        metrics: dict[Weights, Metrics] = {}
        view_accuracy: dict[Weights, float] = {}
        for weights, tensors in loaded.items():
            fit_state(self._model, tensors, f"{self.run.path}, step {step}, {weights} weights")
            metrics[weights], several = evaluate_views(
                self._model,
                self.dataset,
                self.run.recipe.distort,
                self._views,
                precision=self.precision,
                batch_size=self.batch_size,
            )
            if several is not None:
                view_accuracy[weights] = several
        return Evaluation(
            run=self.run.path,
            step=step,
            split=self.split,
            limited=self.limited,
            precision=self.precision.name,
            metrics=metrics,
            view_accuracy=view_accuracy,
            data=self._other_data,
            dataset=self.dataset,
        )
