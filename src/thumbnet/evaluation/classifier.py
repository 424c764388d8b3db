"""Pictures in, answers out: what everything that classifies pictures has in common, from files or from memory.

Pictures are decoded as those of a folder are for training (`data.decode`).
"""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, overload

import numpy as np
from PIL import Image

from thumbnet.config import insist_within
from thumbnet.data.decode import PictureError, decode_picture
from thumbnet.errors import DataError, UsageError
from thumbnet.files import expand_home_in
from thumbnet.printing import printable

STDIN = "-"
"""Stands for a picture on standard input."""
MAX_STDIN_BYTES = 64 * 2**20
"""Largest picture taken from standard input."""

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A file by its path; a picture of Pillow's; or values uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. Of any size."""


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


class Classifier(ABC):
    """A network ready to be asked what pictures show."""

    def __init__(self, class_names: Sequence[str], image_shape: tuple[int, int, int], at_once: int) -> None:
        """Say what it knows.

        Args:
            class_names: one per label, in label order.
            image_shape: height, width and channels that pictures are resized to.
            at_once: files to read before it is asked about them.
        """
        self.class_names = tuple(class_names)
        """One per label, in label order."""
        self.image_shape = image_shape
        """Height, width and channels of the pictures it was trained on."""
        self._at_once = at_once

    @abstractmethod
    def ask(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float64 [n, classes], of pictures uint8 [n, H, W, C].

        Raises:
            DivergedError: the network's output is not finite.
        """

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
                top=self.likeliest(probabilities_C, top),
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
        if isinstance(pictures, str | os.PathLike | Image.Image) or getattr(pictures, "ndim", 4) in (2, 3):
            raise UsageError("probabilities takes several pictures: put one into a list, or ask predict")
        squares = [self._square(picture, number) for number, picture in enumerate(pictures)]
        return self.ask(np.stack(squares) if squares else np.zeros((0, *self.image_shape), np.uint8))

    def predict_files(self, files: Sequence[str], *, top: int, stdin: IO[bytes] | None = None) -> Iterator[Prediction]:
        """Yield what each file shows, in order, and for those that cannot be read, the reason.

        Args:
            files: paths of pictures, or `-` for one on standard input.
            top: how many of the likeliest classes to tell.
            stdin: where `-` is read from.

        Raises:
            DivergedError: the network's output is not finite.
        """
        for start in range(0, len(files), self._at_once):
            part = files[start : start + self._at_once]
            decoded = [self._decode(file, stdin) for file in part]
            images = [picture for picture in decoded if isinstance(picture, np.ndarray)]
            answers = iter(self.ask(np.stack(images)) if images else ())
            for file, picture in zip(part, decoded, strict=True):
                if isinstance(picture, str):
                    yield Prediction(file=file, problem=picture)
                else:
                    yield Prediction(file=file, top=self.likeliest(next(answers), top))

    def likeliest(self, probabilities_C: np.ndarray, top: int) -> tuple[tuple[str, float], ...]:
        """Return (class, probability) of the `top` likeliest classes, the likeliest first."""
        likeliest = np.argsort(-probabilities_C, kind="stable")[:top]
        return tuple((self.class_names[label], float(probabilities_C[label])) for label in likeliest)

    def _square(self, picture: Picture, number: int) -> np.ndarray:
        """Return a picture as the network's data were made, uint8 [H, W, C]; `number` names it in messages."""
        if isinstance(picture, str | os.PathLike):
            decoded = self._decode(expand_home_in(os.fspath(picture)), None)
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
