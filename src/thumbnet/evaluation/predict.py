"""What a run says of pictures it has never seen: from files to class names and probabilities.

Pictures are decoded as those of a folder are for training (`data.decode`), and then go the way of an evaluation, from
records to logits, so nothing can differ between what was evaluated and what is predicted.
"""

from __future__ import annotations

import glob
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from thumbnet.config import PrecisionName
from thumbnet.data.dataset import ImageDataset
from thumbnet.data.decode import PictureError, decode_picture
from thumbnet.data.records import RecordFormat, RecordPart
from thumbnet.data.tree import walk_pictures
from thumbnet.engine import device, resolve_precision
from thumbnet.evaluation.evaluate import predict_logits
from thumbnet.evaluation.metrics import Weights
from thumbnet.models import build_model
from thumbnet.runs.checkpoint import fit_state, load_checkpoint
from thumbnet.runs.facts import class_names_of, read_facts
from thumbnet.runs.run import Run

STDIN = "-"
"""Stands for a picture on standard input."""
MAX_STDIN_BYTES = 64 * 2**20
"""Largest picture taken from standard input."""

_BATCH = 256
_KNOWN_SHAPE = (32, 32, 3)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a picture shows, as the network has it; or why it could not be looked at."""

    file: str
    """The picture's path, or `-`."""
    top: tuple[tuple[str, float], ...] = ()
    """(class, probability), the likeliest first."""
    problem: str | None = None
    """Why there is no answer, None if there is one."""


class Predictor:
    """The network of a run, ready to be asked."""

    def __init__(
        self,
        run: Run,
        *,
        step: int | None = None,
        precision: PrecisionName | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Load a checkpoint of a run, its averaged weights where it has them.

        Args:
            run: the run.
            step: of the checkpoint; the newest that is whole if None.
            precision: arithmetic of the network; that of the run if None.
            note: gets a line for each checkpoint that is damaged.

        Raises:
            CheckpointError: there is no checkpoint, it is damaged, or the run does not say what its classes are.
            UsageError: the run's recipe names an unknown network.
        """
        facts = read_facts(run.path)
        self.class_names = class_names_of(run.path, run.recipe.data.name)
        """One per label, in label order."""
        self.image_shape = facts.image_shape if facts else _KNOWN_SHAPE
        """Height, width and channels of the pictures the run was trained on."""
        store = run.checkpoints
        checkpoint = store.latest(note) if step is None else load_checkpoint(store.path(step))
        self.run = run
        self.step = checkpoint.step
        """Step of the checkpoint."""
        self.weights: Weights = "raw" if checkpoint.average is None else "average"
        """Which weights of it are used."""
        self._precision = resolve_precision(precision or run.recipe.train.precision)
        self._layout = RecordFormat(image_shape=self.image_shape)
        model = build_model(
            run.recipe.model,
            num_classes=len(self.class_names),
            crop=run.recipe.distort.crop,
            channels=self.image_shape[2],
        )
        self._model = model.to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        tensors = checkpoint.model if checkpoint.average is None else checkpoint.average
        fit_state(self._model, tensors, f"{run.path}, step {self.step}, {self.weights} weights")

    def probabilities(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float64 [n, classes], of pictures uint8 [n, H, W, C].

        The pictures have the shape of those the run was trained on, `image_shape`.
        """
        records = self._layout.pack(images_NHWC, np.zeros(len(images_NHWC), np.int64))
        part = RecordPart(name="pictures", where="pictures", records=records)
        dataset = ImageDataset("pictures", self.class_names, self._layout, [part])
        distort = self.run.recipe.distort
        logits_NC, _ = predict_logits(self._model, dataset, distort, precision=self._precision, batch_size=_BATCH)
        shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True, initial=-np.inf)
        weights_NC = np.exp(shifted_NC)
        probabilities: np.ndarray = weights_NC / weights_NC.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, files: Sequence[str], *, top: int, stdin: IO[bytes] | None = None) -> Iterator[Prediction]:
        """Yield what each file shows, in order.

        Args:
            files: paths of pictures, or `-` for one on standard input.
            top: how many of the likeliest classes to tell.
            stdin: where `-` is read from.
        """
        for start in range(0, len(files), _BATCH):
            part = files[start : start + _BATCH]
            decoded = [self._decode(file, stdin) for file in part]
            images = [picture for picture in decoded if isinstance(picture, np.ndarray)]
            answers = iter(self.probabilities(np.stack(images)) if images else ())
            for file, picture in zip(part, decoded, strict=True):
                if isinstance(picture, str):
                    yield Prediction(file=file, problem=picture)
                    continue
                probabilities_C = next(answers)
                likeliest = np.argsort(-probabilities_C, kind="stable")[:top]
                yield Prediction(
                    file=file,
                    top=tuple((self.class_names[label], float(probabilities_C[label])) for label in likeliest),
                )

    def _decode(self, file: str, stdin: IO[bytes] | None) -> np.ndarray | str:
        """Return a picture, uint8 [H, W, C], or why it cannot be had."""
        try:
            if file == STDIN and stdin is not None:
                data = stdin.read(MAX_STDIN_BYTES + 1)
                if len(data) > MAX_STDIN_BYTES:
                    return f"larger than {MAX_STDIN_BYTES // 2**20} MiB"
                return decode_picture(io.BytesIO(data), self.image_shape[0])
            path = Path(file)
            if path.is_dir():
                return "a folder without pictures"
            if not path.is_file():  # a pipe would block for ever
                return "not a regular file" if path.exists() else "there is no such file"
            return decode_picture(path, self.image_shape[0])
        except PictureError as error:
            return str(error)


def find_pictures(arguments: Sequence[str]) -> list[str]:
    """Return the paths that arguments stand for: files as they are, folders and patterns by what they hold.

    A folder stands for the pictures at any depth below it, by their endings, a pattern such as ``photos/*.jpg`` for
    what it matches. An argument that stands for nothing is kept, to be told of as a file that is not there.
    """
    files: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN or path.is_file():
            files.append(argument)
        elif path.is_dir():
            files += _pictures_below(path) or [argument]
        else:
            matches = sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207 - patterns may be absolute
            files += [file for match in matches for file in _named_by(match)] or [argument]
    return files


def _named_by(match: Path) -> list[str]:
    return _pictures_below(match) if match.is_dir() else [str(match)]


def _pictures_below(folder: Path) -> list[str]:
    return [path for path, _ in walk_pictures(folder, set(), Counter())]
