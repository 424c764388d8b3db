"""ONNX files of thumbnet, ready to be asked; others, and damaged or treacherous ones, are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from thumbnet import engine
from thumbnet.errors import DataError, UsageError
from thumbnet.evaluation.classifier import Classifier
from thumbnet.evaluation.evaluate import batch_size_for
from thumbnet.evaluation.metrics import insist_finite
from thumbnet.exporting.packages import import_onnx
from thumbnet.files import read_regular_file
from thumbnet.printing import printable

INPUT, OUTPUT = "pictures", "probabilities"
METADATA = "thumbnet"
"""Key of the metadata: JSON with `_TEXTS`, format, classes, image_shape and step."""
_TEXTS = ("thumbnet", "run", "preset", "model", "data", "weights")
_MOST_PIXELS_A_SIDE = 4096
_LIMIT_BYTES = 2**31 - 1  # of a protocol buffer


class OnnxClassifier(Classifier):
    """An exported network: needs neither its run nor PyTorch's weights, and computes in float32."""

    def __init__(self, content: bytes, where: Path, threads: int | None = None) -> None:
        """Take what a file holds; `open` reads it.

        Args:
            content: the file's bytes.
            where: what messages call it.
            threads: processor threads; None for every core.

        Raises:
            UsageError: the packages for ONNX are not installed, or `export` did not write it.
            DataError: it is damaged, or refers to other files.
        """
        self.facts = facts = _facts_of(where, content)
        """What the file says of itself: the entries of `METADATA`."""
        height, width, channels = facts["image_shape"]
        super().__init__(facts["classes"], (height, width, channels), batch_size_for(height))
        self.step: int = facts["step"]
        """Step of the checkpoint it was made from."""
        self._where = where
        onnxruntime = import_onnx("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or engine.usable_cores()
        options.log_severity_level = 4  # what goes wrong is raised, too
        # Else its own guess by the first bytes may take for another format what was just looked at as ONNX.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen errors of its own
            raise _damaged(where, error) from error
        self._insist_graph_as_told()

    @classmethod
    def open(cls, path: Path, threads: int | None = None) -> Self:
        """Read an ONNX file.

        Raises:
            UsageError: as for the bytes, or there is no such file.
            DataError: as for the bytes, or the file cannot be read.
        """
        try:
            content = read_regular_file(path, _LIMIT_BYTES)
        except FileNotFoundError as error:
            raise UsageError(f"{path}: there is no such file: `thumbnet export` writes one") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        return cls(content, path, threads)

    def _insist_graph_as_told(self) -> None:
        """Refuse a graph that takes or gives something else than the metadata say."""
        told = [
            (INPUT, "tensor(uint8)", list(self.image_shape)),
            (OUTPUT, "tensor(float)", [len(self.class_names)]),
        ]
        ends = [*self._session.get_inputs(), *self._session.get_outputs()]
        if [(end.name, end.type, list(end.shape[1:])) for end in ends] != told:
            raise DataError(f"{self._where}: damaged: its metadata '{METADATA}' do not fit its network")

    def ask(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float64 [n, classes], of pictures uint8 [n, H, W, C]."""
        answers = [np.zeros((0, len(self.class_names)), np.float32)]
        for start in range(0, len(images_NHWC), self._at_once):
            part = images_NHWC[start : start + self._at_once]
            try:
                (probabilities_NC,) = self._session.run([OUTPUT], {INPUT: part})
            except Exception as error:
                raise _damaged(self._where, error) from error
            answers.append(probabilities_NC)
        probabilities = np.concatenate(answers)
        insist_finite(probabilities)
        return probabilities.astype(np.float64)


def _damaged(where: Path, error: Exception) -> DataError:
    """Return the error for what onnxruntime refuses; its message may hold names from the file."""
    return DataError(f"{where}: damaged: {printable((str(error) or repr(error)).splitlines()[0])}")


def _facts_of(where: Path, content: bytes) -> dict[str, Any]:
    """Return what a model says of itself, once it is known to be whole and alone."""
    onnx = import_onnx("onnx")
    not_ours = f"{where}: not a model of `thumbnet export`"
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of the library that parses
        raise UsageError(f"{not_ours}: no ONNX file") from error
    tensors = (message for message in messages_in(model) if isinstance(message, onnx.TensorProto))
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        # onnxruntime would read whatever path stands there (as in CVE-2022-25882).
        raise DataError(f"{where}: refers to other files for its weights, which no model of `thumbnet export` does")
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA not in entries:
        raise UsageError(f"{not_ours}: it has no metadata '{METADATA}'")
    try:
        facts: dict[str, Any] = json.loads(entries[METADATA])
        if facts["format"] != 1:
            newer = printable(str(facts["format"]))
            raise UsageError(f"{where}: format {newer}, which a newer thumbnet has written: upgrade thumbnet")
        if not _usable(facts):
            raise ValueError("sizes, classes, step or a text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = printable(str(error))
        raise DataError(f"{where}: damaged: its metadata '{METADATA}' cannot be read ({why})") from error
    return facts


def _usable(facts: dict[str, Any]) -> bool:
    """Tell whether all entries are what they must be; raises KeyError and TypeError, too, if they are not."""
    height, width, channels = facts["image_shape"]
    return (
        all(type(facts[key]) is str for key in _TEXTS)
        and type(facts["step"]) is int
        and type(height) is int
        and 0 < height == width <= _MOST_PIXELS_A_SIDE
        and channels == 3
        and bool(facts["classes"])
        and all(type(name) is str for name in facts["classes"])
    )


def messages_in(message: Any) -> Iterator[Any]:
    """Yield every message anywhere in a protocol buffer: graphs, nodes, tensors, attributes, functions."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield part
                yield from messages_in(part)
