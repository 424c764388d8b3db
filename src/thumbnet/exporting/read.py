"""ONNX files of thumbnet, ready to be asked; others, and damaged or treacherous ones, are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.errors import DataError, UsageError
from thumbnet.evaluation.classifier import Classifier
from thumbnet.evaluation.evaluate import batch_size_for
from thumbnet.evaluation.metrics import insist_finite
from thumbnet.exporting.packages import import_onnx
from thumbnet.files import read_regular_file

INPUT, OUTPUT = "pictures", "probabilities"
METADATA = "thumbnet"
"""Key of the metadata: JSON with format, classes, image_shape, run, preset, model, data, step and weights."""
_LIMIT_BYTES = 2**31 - 1  # of a protocol buffer


class OnnxClassifier(Classifier):
    """An exported network: needs neither its run nor PyTorch's weights, and computes in float32."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Read an ONNX file.

        Args:
            path: the file.
            threads: processor threads; None for every core.

        Raises:
            UsageError: the packages for ONNX are not installed, there is no such file, or `export` did not write it.
            DataError: it is damaged, or refers to other files.
        """
        content = _read(path)
        self.facts = facts = _facts_of(path, content)
        """What the file says of itself: the entries of `METADATA`."""
        height, width, channels = facts["image_shape"]
        super().__init__(facts["classes"], (height, width, channels), batch_size_for(height))
        self.path = path
        self.step: int = facts["step"]
        """Step of the checkpoint it was made from."""
        try:
            self._session = start_session(content, threads)
        except Exception as error:  # onnxruntime has a dozen errors of its own
            raise DataError(f"{path}: damaged: {(str(error) or repr(error)).splitlines()[0]}") from error

    def _ask(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float64 [n, classes], of pictures uint8 [n, H, W, C]."""
        parts = [images_NHWC[start : start + self._at_once] for start in range(0, len(images_NHWC), self._at_once)]
        answers = [run_session(self._session, part) for part in parts]
        probabilities = np.concatenate(answers) if answers else np.zeros((0, len(self.class_names)))
        insist_finite(probabilities)
        return probabilities.astype(np.float64)


def start_session(content: bytes, threads: int | None = None) -> Any:
    """Return an onnxruntime session on the processor for a model's bytes."""
    onnxruntime = import_onnx("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, images_NHWC: np.ndarray) -> np.ndarray:
    """Return the probabilities, float32 [n, classes], of pictures uint8 [n, H, W, C]."""
    probabilities: np.ndarray = session.run([OUTPUT], {INPUT: images_NHWC})[0]
    return probabilities


def _read(path: Path) -> bytes:
    try:
        return read_regular_file(path, _LIMIT_BYTES)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file: `thumbnet export` writes one") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _facts_of(path: Path, content: bytes) -> dict[str, Any]:
    """Return what a model says of itself, once it is known to be whole and alone."""
    onnx = import_onnx("onnx")
    not_ours = f"{path}: not a model of `thumbnet export`"
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of the library that parses
        raise UsageError(f"{not_ours}: no ONNX file") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model, onnx.TensorProto)):
        # onnxruntime would read whatever path stands there (as in CVE-2022-25882).
        raise DataError(f"{path}: refers to other files for its weights, which no model of `thumbnet export` does")
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA not in entries:
        raise UsageError(f"{not_ours}: it has no metadata '{METADATA}'")
    try:
        facts: dict[str, Any] = json.loads(entries[METADATA])
        if facts["format"] != 1:
            raise UsageError(f"{path}: format {facts['format']}, which a newer thumbnet has written: upgrade thumbnet")
        sizes, classes = facts["image_shape"], facts["classes"]
        whole = len(sizes) == 3 and all(type(size) is int and size > 0 for size in sizes)
        named = bool(classes) and all(type(name) is str for name in classes)
        if not (whole and sizes[0] == sizes[1] and named and type(facts["step"]) is int):
            raise ValueError("sizes, classes or step")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged: its metadata '{METADATA}' cannot be read ({error})") from error
    return facts


def _tensors(message: Any, kind: type) -> Iterator[Any]:
    """Yield every tensor anywhere in a model: initializers, attributes, subgraphs, functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        # A single message, or a list of them.
        for part in [value] if hasattr(value, "ListFields") else value:
            if isinstance(part, kind):
                yield part
            elif hasattr(part, "ListFields"):
                yield from _tensors(part, kind)
