"""What a run says of pictures it has never seen.

They go the way of an evaluation, from records to logits, so nothing can differ between what was evaluated and what is
predicted.
"""

from __future__ import annotations

import functools
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from thumbnet.config import PrecisionName
from thumbnet.data.dataset import ImageDataset
from thumbnet.data.records import RecordFormat, RecordPart
from thumbnet.data.tree import walk_pictures
from thumbnet.engine import device, place, resolve_precision
from thumbnet.errors import DataError
from thumbnet.evaluation.classifier import STDIN, Classifier
from thumbnet.evaluation.evaluate import batch_size_for, predict_logits
from thumbnet.evaluation.evaluator import choose_weights
from thumbnet.evaluation.metrics import Weights, insist_finite
from thumbnet.files import expand_home_in
from thumbnet.models import build_model
from thumbnet.printing import printable, silent
from thumbnet.runs.checkpoint import fit_state, load_weights, read_manifest
from thumbnet.runs.facts import class_names_of, read_facts
from thumbnet.runs.find import Which
from thumbnet.runs.run import Run

_KNOWN_SHAPE = (32, 32, 3)


class Predictor(Classifier):
    """The network of a run, ready to be asked."""

    def __init__(
        self,
        run: Run,
        *,
        checkpoint: Which = "latest",
        weights: Weights | None = None,
        precision: PrecisionName | None = None,
        note: Callable[[str], None] = silent,
    ) -> None:
        """Load a checkpoint of a run.

        Args:
            run: the run.
            checkpoint: the newest that is whole, the best by validation, or that of a step.
            weights: averaged or raw ones; averaged where there are any if None.
            precision: arithmetic of the network; that of the run if None, or fp32 where it cannot be had.
            note: gets a line for each checkpoint that is damaged.

        Raises:
            CheckpointError: there is no checkpoint, it is damaged, or the run does not say what its classes are.
            UsageError: the run's recipe names an unknown network, or the run keeps no average and that is asked for.
        """
        facts = read_facts(run.path)
        image_shape, crop = facts.image_shape if facts else _KNOWN_SHAPE, run.recipe.distort.crop
        super().__init__(
            class_names_of(run.path, run.recipe.data.name), image_shape, batch_size_for(max(image_shape[0], crop))
        )
        self.run = run
        self.weights: Weights = choose_weights(run.recipe, weights or "both")[0]
        """Which weights of the checkpoint are used."""
        load = functools.partial(load_weights, weights=self.weights)
        if checkpoint == "latest":
            step, tensors = run.checkpoints.newest(load, note)
        else:
            path = run.checkpoints.path(checkpoint)
            step, tensors = read_manifest(path).step, load(path)
        self.step = step
        """Step of the checkpoint."""
        self.precision = resolve_precision(precision or own_precision(run))
        """Arithmetic of the network."""
        self._layout = RecordFormat(image_shape=self.image_shape)
        self.network = place(
            build_model(run.recipe.model, num_classes=len(self.class_names), crop=crop, channels=self.image_shape[2])
        )
        """From standardized images [N, C, crop, crop] to logits [N, classes]."""
        fit_state(self.network, tensors, f"{run.path}, step {self.step}, {self.weights} weights")

    def ask(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float64 [n, classes], of pictures uint8 [n, H, W, C].

        Raises:
            DivergedError: the network's output is not finite.
        """
        records = self._layout.pack(images_NHWC, np.zeros(len(images_NHWC), np.int64))
        part = RecordPart(name="pictures", where="pictures", records=records)
        dataset = ImageDataset("pictures", self.class_names, self._layout, [part])
        distort = self.run.recipe.distort
        logits_NC, _ = predict_logits(self.network, dataset, distort, precision=self.precision)
        insist_finite(logits_NC)
        shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True, initial=-np.inf)
        weights_NC = np.exp(shifted_NC)
        probabilities: np.ndarray = weights_NC / weights_NC.sum(axis=1, keepdims=True)
        return probabilities


def own_precision(run: Run) -> PrecisionName:
    """Return the arithmetic that a run was trained in, or what comes near it here: processors have no fp16."""
    own = run.recipe.train.precision
    return "fp32" if own == "fp16" and device().type == "cpu" else own


def find_pictures(arguments: Sequence[str]) -> list[str]:
    """Return the paths that arguments stand for: files as they are, folders and patterns by what they hold.

    A folder stands for the pictures at any depth below it, by their endings, a pattern such as ``photos/*.jpg`` for
    what it matches. An argument that stands for nothing is kept, to be told of as a file that is not there.

    Raises:
        DataError: a folder cannot be read.
    """
    files: list[str] = []
    # The methods of a Path raise where a name is too long or a folder above it is closed (before Python 3.14).
    for argument in map(expand_home_in, arguments):
        if argument == STDIN or os.path.isfile(argument):  # noqa: PTH113
            files.append(argument)
        elif os.path.isdir(argument):  # noqa: PTH112
            files += _pictures_below(Path(argument)) or [argument]
        else:
            # `**` matches a folder and also what is in it.
            named = (file for match in sorted(_matches(argument)) for file in _named_by(match))
            files += list(dict.fromkeys(named)) or [argument]
    return files


def _matches(pattern: str) -> Iterator[Path]:
    """Yield the files and folders that a pattern matches; `**` follows no links, which may make circles."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.glob(pattern))  # noqa: PTH207 - patterns may be absolute
        return
    at = parts.index("**")
    below = Path(*parts[at:], *(["*"] if parts[-1] == "**" else []))
    for start in map(Path, glob.glob(str(Path(*parts[:at])))):  # noqa: PTH207
        for match in start.glob(str(below)):
            hidden = any(part.startswith(".") for part in match.relative_to(start).parts)
            # What is in a folder that `**` itself matches comes one by one.
            if not hidden and not (match.is_dir() and (parts[-1] == "**" or match.is_symlink())):
                yield match


def _named_by(match: Path) -> list[str]:
    return _pictures_below(match) if os.path.isdir(match) else [str(match)]  # noqa: PTH112


def _pictures_below(folder: Path) -> list[str]:
    try:
        return [path for path, _ in walk_pictures(folder, set(), Counter())]
    except OSError as error:
        raise DataError(
            f"{printable(str(error.filename or folder))}: cannot be read: {error.strerror or error}\n"
            "make it readable, or name the pictures themselves"
        ) from error
