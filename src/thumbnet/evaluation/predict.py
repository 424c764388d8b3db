"""What a run says of pictures it has never seen: from files, or pictures in memory, to class names and probabilities.

Pictures are decoded as those of a folder are for training (`data.decode`), and then go the way of an evaluation, from
records to logits, so nothing can differ between what was evaluated and what is predicted.
"""

from __future__ import annotations

import functools
import glob
import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, overload

import numpy as np
from PIL import Image

from thumbnet.config import PrecisionName, insist_within
from thumbnet.data.dataset import ImageDataset
from thumbnet.data.decode import PictureError, decode_picture
from thumbnet.data.records import RecordFormat, RecordPart
from thumbnet.data.tree import walk_pictures
from thumbnet.engine import place, resolve_precision
from thumbnet.errors import DataError, UsageError
from thumbnet.evaluation.evaluate import batch_size_for, predict_logits
from thumbnet.evaluation.evaluator import choose_weights
from thumbnet.evaluation.metrics import Weights, insist_finite
from thumbnet.models import build_model
from thumbnet.printing import printable
from thumbnet.runs.checkpoint import fit_state, load_weights, read_manifest
from thumbnet.runs.facts import class_names_of, read_facts
from thumbnet.runs.find import Which
from thumbnet.runs.run import Run

STDIN = "-"
"""Stands for a picture on standard input."""
MAX_STDIN_BYTES = 64 * 2**20
"""Largest picture taken from standard input."""

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A file by its path; a picture of Pillow's; or values uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. Of any size."""

_KNOWN_SHAPE = (32, 32, 3)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a picture shows, as the network has it; or why it could not be looked at."""

    file: str
    """The picture's path, or `-`; empty for one in memory."""
    top: tuple[tuple[str, float], ...] = ()
    """(class, probability), the likeliest first."""
    problem: str | None = None
    """Why there is no answer, None if there is one."""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """That of the likeliest class, 0 to 1."""
        return self.top[0][1]


class Predictor:
    """The network of a run, ready to be asked."""

    def __init__(
        self,
        run: Run,
        *,
        checkpoint: Which = "latest",
        weights: Weights | None = None,
        precision: PrecisionName | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Load a checkpoint of a run.

        Args:
            run: the run.
            checkpoint: the newest that is whole, the best by validation, or that of a step.
            weights: averaged or raw ones; averaged where there are any if None.
            precision: arithmetic of the network; that of the run if None.
            note: gets a line for each checkpoint that is damaged.

        Raises:
            CheckpointError: there is no checkpoint, it is damaged, or the run does not say what its classes are.
            UsageError: the run's recipe names an unknown network, or the run keeps no average and that is asked for.
        """
        facts = read_facts(run.path)
        self.class_names = class_names_of(run.path, run.recipe.data.name)
        """One per label, in label order."""
        self.image_shape = facts.image_shape if facts else _KNOWN_SHAPE
        """Height, width and channels of the pictures the run was trained on."""
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
        self._precision = resolve_precision(precision or run.recipe.train.precision)
        self._layout = RecordFormat(image_shape=self.image_shape)
        self._model = place(
            build_model(
                run.recipe.model,
                num_classes=len(self.class_names),
                crop=run.recipe.distort.crop,
                channels=self.image_shape[2],
            )
        )
        fit_state(self._model, tensors, f"{run.path}, step {self.step}, {self.weights} weights")

    @overload
    def predict(  # type: ignore[overload-overlap]  # texts and arrays are iterable, too
        self, pictures: str | os.PathLike[str] | Image.Image, *, top: int = 3
    ) -> Prediction: ...
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, pictures: np.ndarray, *, top: int = 3
    ) -> Prediction | list[Prediction]: ...
    @overload
    def predict(self, pictures: Iterable[Picture], *, top: int = 3) -> list[Prediction]: ...
    def predict(self, pictures: Picture | Iterable[Picture], *, top: int = 3) -> Prediction | list[Prediction]:
        """Say what a picture shows, or each of several.

        Args:
            pictures: one, or an iterable of them; an array [N, H, W, C] counts as several.
            top: how many of the likeliest classes to tell.

        Returns:
            A `Prediction`, or a list of them in order.

        Raises:
            DataError: a file cannot be read; names it.
            DivergedError: the network's output is not finite.
            UsageError: something is no picture, or `top` is less than 1.
        """
        insist_within("top", top, 1)
        one = isinstance(pictures, str | os.PathLike | Image.Image) or getattr(pictures, "ndim", 4) < 4
        several: list[Picture] = [pictures] if one else list(pictures)  # type: ignore[list-item, arg-type]
        told = [
            Prediction(
                file=os.fspath(picture) if isinstance(picture, str | os.PathLike) else "",
                top=self._likeliest(probabilities_C, top),
            )
            for picture, probabilities_C in zip(several, self.probabilities(several), strict=True)
        ]
        return told[0] if one else told

    def probabilities(self, pictures: Iterable[Picture]) -> np.ndarray:
        """Return the probability of each class, in the order of `class_names`, float64 [n, classes].

        Args:
            pictures: several, as for `predict`.

        Raises:
            DataError: a file cannot be read; names it.
            DivergedError: the network's output is not finite.
            UsageError: something is no picture.
        """
        squares = [self._square(picture, number) for number, picture in enumerate(pictures)]
        return self._ask(np.stack(squares) if squares else np.zeros((0, *self.image_shape), np.uint8))

    def predict_files(self, files: Sequence[str], *, top: int, stdin: IO[bytes] | None = None) -> Iterator[Prediction]:
        """Yield what each file shows, in order, and for those that cannot be read, the reason.

        Args:
            files: paths of pictures, or `-` for one on standard input.
            top: how many of the likeliest classes to tell.
            stdin: where `-` is read from.

        Raises:
            DivergedError: the network's output is not finite.
        """
        count = batch_size_for(max(self.image_shape[0], self.run.recipe.distort.crop))
        for start in range(0, len(files), count):
            part = files[start : start + count]
            decoded = [self._decode(file, stdin) for file in part]
            images = [picture for picture in decoded if isinstance(picture, np.ndarray)]
            answers = iter(self._ask(np.stack(images)) if images else ())
            for file, picture in zip(part, decoded, strict=True):
                if isinstance(picture, str):
                    yield Prediction(file=file, problem=picture)
                else:
                    yield Prediction(file=file, top=self._likeliest(next(answers), top))

    def _ask(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float64 [n, classes], of pictures uint8 [n, H, W, C].

        Raises:
            DivergedError: the network's output is not finite.
        """
        records = self._layout.pack(images_NHWC, np.zeros(len(images_NHWC), np.int64))
        part = RecordPart(name="pictures", where="pictures", records=records)
        dataset = ImageDataset("pictures", self.class_names, self._layout, [part])
        distort = self.run.recipe.distort
        logits_NC, _ = predict_logits(self._model, dataset, distort, precision=self._precision)
        insist_finite(logits_NC)
        shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True, initial=-np.inf)
        weights_NC = np.exp(shifted_NC)
        probabilities: np.ndarray = weights_NC / weights_NC.sum(axis=1, keepdims=True)
        return probabilities

    def _likeliest(self, probabilities_C: np.ndarray, top: int) -> tuple[tuple[str, float], ...]:
        likeliest = np.argsort(-probabilities_C, kind="stable")[:top]
        return tuple((self.class_names[label], float(probabilities_C[label])) for label in likeliest)

    def _square(self, picture: Picture, number: int) -> np.ndarray:
        """Return a picture as the network's data were made, uint8 [H, W, C]; `number` names it in messages."""
        if isinstance(picture, str | os.PathLike):
            decoded = self._decode(os.fspath(picture), None)
            if isinstance(decoded, str):
                raise DataError(f"{printable(os.fspath(picture))}: {printable(decoded)}")
            return decoded
        image = picture if isinstance(picture, Image.Image) else _image_of(picture, number)
        try:
            return decode_picture(image, self.image_shape[0])
        except PictureError as error:
            raise DataError(f"picture {number}: {error}") from error

    def _decode(self, file: str, stdin: IO[bytes] | None) -> np.ndarray | str:
        """Return a picture, uint8 [H, W, C], or why it cannot be had."""
        try:
            if file == STDIN and stdin is not None:
                data = stdin.read(MAX_STDIN_BYTES + 1)
                if len(data) > MAX_STDIN_BYTES:
                    return f"larger than {MAX_STDIN_BYTES // 2**20} MiB"
                return decode_picture(io.BytesIO(data), self.image_shape[0])
            mode = os.stat(file).st_mode  # noqa: PTH116 - an empty name would be the current folder
            if stat.S_ISDIR(mode):
                return "a folder without pictures"
            if not stat.S_ISREG(mode):  # a pipe would block for ever
                return "not a regular file"
            return decode_picture(Path(file), self.image_shape[0])
        except PictureError as error:
            return str(error)
        except (FileNotFoundError, ValueError):  # a name with a null byte is a ValueError
            return "there is no such file"
        except OSError as error:
            return error.strerror or str(error)


def find_pictures(arguments: Sequence[str]) -> list[str]:
    """Return the paths that arguments stand for: files as they are, folders and patterns by what they hold.

    A folder stands for the pictures at any depth below it, by their endings, a pattern such as ``photos/*.jpg`` for
    what it matches. An argument that stands for nothing is kept, to be told of as a file that is not there.

    Raises:
        DataError: a folder cannot be read.
    """
    files: list[str] = []
    # The methods of a Path raise where a name is too long or a folder above it is closed (before Python 3.14).
    for argument in arguments:
        if argument == STDIN or os.path.isfile(argument):  # noqa: PTH113
            files.append(argument)
        elif os.path.isdir(argument):  # noqa: PTH112
            files += _pictures_below(Path(argument)) or [argument]
        else:
            matches = sorted(map(Path, glob.glob(argument, recursive=True)))  # noqa: PTH207 - patterns may be absolute
            files += [file for match in matches for file in _named_by(match)] or [argument]
    return files


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


def _image_of(values: object, number: int) -> Image.Image:
    """Return an array as a picture.

    Raises:
        UsageError: it is not one.
    """
    if not isinstance(values, np.ndarray):
        kind = type(values).__name__
        raise UsageError(f"picture {number} is of type {kind}: give a path, a picture of Pillow's or an array")
    squeezed = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    fits = squeezed.ndim == 2 or (squeezed.ndim == 3 and squeezed.shape[2] in (3, 4))
    if values.dtype != np.uint8 or not fits or not values.size:
        raise UsageError(
            f"picture {number} is an array {list(values.shape)} of {values.dtype}: expected uint8 (0 to 255), "
            "[H, W, 3], [H, W, 4], [H, W, 1] or [H, W]"
        )
    return Image.fromarray(np.ascontiguousarray(squeezed))
