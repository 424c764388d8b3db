"""From a run's checkpoint to an ONNX file, which is written only if it says what PyTorch says."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import thumbnet
from thumbnet.errors import ThumbnetError
from thumbnet.evaluation.metrics import insist_finite
from thumbnet.evaluation.predict import Predictor
from thumbnet.exporting.network import PictureNet
from thumbnet.exporting.packages import import_onnx
from thumbnet.exporting.read import INPUT, METADATA, OUTPUT, OnnxClassifier, messages_in
from thumbnet.extras import ONNX
from thumbnet.files import expand_home, replace_file, write_error

MODEL_FILE = "model.onnx"
"""In the run's folder, where nothing else is asked for."""
OPSET = 20
"""Of ONNX's own operations: the first with GELU."""
TOLERANCE = 1e-4
"""Largest difference of a probability from PyTorch's in float32, which is some 1e-6 for a trained network."""
PARITY_PICTURES = 64
"""Pictures of noise, and as many smooth ones, that both are asked about."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """An ONNX file that was written, and how well it agrees."""

    path: Path
    size_bytes: int
    difference: float
    """Largest difference of a probability from PyTorch's in float32."""
    difference_to_run: float
    """The same from the run's own arithmetic and kernels, such as bf16."""
    precision: str
    """The run's own arithmetic."""


def export_onnx(predictor: Predictor, to: str | os.PathLike[str], threads: int | None = None) -> Export:
    """Write a run's network, with the preprocessing of its pictures and the names of its classes, as an ONNX file.

    Input `pictures`: uint8 [N, H, W, C], any N, of the size that the run was trained on. Output `probabilities`:
    float32 [N, classes]. Metadata: `read.METADATA`.

    Args:
        predictor: the run's network.
        to: the file; one that is there is replaced. Of a folder, or what ends with a slash, `model.onnx` in it.
        threads: processor threads that onnxruntime is compared with; None for every core.

    Raises:
        UsageError: the packages for ONNX are not installed.
        DivergedError: the network's output is not finite.
        ThumbnetError: the network cannot be said in ONNX, it answers otherwise there, or the disk refuses.
    """
    for package in ONNX:
        import_onnx(package)
    path = expand_home(Path(to))
    if os.fspath(to).endswith("/") or os.path.isdir(path):  # noqa: PTH112 - a Path's method raises for long names
        path = path / MODEL_FILE
    network = copy.deepcopy(predictor.network).cpu().float()
    plain = PictureNet(network, predictor.run.recipe.distort, predictor.image_shape).eval()
    pictures_NHWC = _parity_pictures(predictor.image_shape)
    with torch.inference_mode():
        expected_NC = plain(torch.from_numpy(pictures_NHWC)).numpy()
    insist_finite(expected_NC)
    content = _as_onnx(plain, predictor)
    probabilities_NC = OnnxClassifier(content, path, threads).probabilities(pictures_NHWC)  # as it will be read
    difference = float(np.abs(probabilities_NC - expected_NC).max())
    if not difference <= TOLERANCE:
        raise ThumbnetError(
            f"{path}: not written: probabilities of the ONNX form differ from PyTorch's by up to {difference:.2g}, and "
            f"{TOLERANCE:g} is allowed\nthis network cannot be exported with these versions of torch and onnxruntime"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, [content])
    except OSError as error:
        raise write_error(path, error, "--to") from error
    return Export(
        path=path,
        size_bytes=len(content),
        difference=difference,
        difference_to_run=float(np.abs(probabilities_NC - predictor.probabilities(pictures_NHWC)).max()),
        precision=predictor.precision.name,
    )


def _as_onnx(plain: PictureNet, predictor: Predictor) -> bytes:
    """Return the network as the content of an ONNX file.

    Raises:
        ThumbnetError: some of its operations have no form there, or it is too large.
    """
    onnx = import_onnx("onnx")
    # Two pictures: a batch of one would be taken for a constant.
    example = torch.from_numpy(_parity_pictures(predictor.image_shape)[:2])
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                plain,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("pictures")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        _describe(model, predictor)
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
    except Exception as error:  # whatever an operation without a form raises
        why = (str(error) or repr(error)).strip().splitlines()[0]
        name = predictor.run.recipe.model.name
        raise ThumbnetError(f"network {name}: this cannot be said in ONNX: {why}") from error
    return content


def _describe(model: Any, predictor: Predictor) -> None:
    """Say in a model what it is, in place of what PyTorch's exporter writes to every node: code and paths of here."""
    for message in messages_in(model):
        for name in ("metadata_props", "doc_string"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
    run, recipe = predictor.run, predictor.run.recipe
    facts = {
        "format": 1,
        "thumbnet": thumbnet.__version__,
        "run": run.path.absolute().name,
        "preset": recipe.preset,
        "model": recipe.model.name,
        "data": Path(recipe.data.name).name,
        "step": predictor.step,
        "weights": predictor.weights,
        "image_shape": predictor.image_shape,
        "classes": predictor.class_names,
    }
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(facts)
    height, width, channels = predictor.image_shape
    model.doc_string = (
        f"{INPUT}: uint8 [N, {height}, {width}, {channels}], values 0 to 255, as decoded; everything else is inside. "
        f"{OUTPUT}: float32 [N, {len(predictor.class_names)}]; the classes are in the metadata, under {METADATA}."
    )
    model.producer_name, model.producer_version = "thumbnet", thumbnet.__version__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what PyTorch's exporter tells its own developers from the user."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _parity_pictures(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return pictures to compare on, uint8 [n, H, W, C]: noise, and smooth ones, flat black and white among them."""
    height, width, channels = image_shape
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (PARITY_PICTURES, *image_shape), dtype=np.uint8)
    corners = generator.uniform(0, 255, (PARITY_PICTURES, 2, 2, channels))
    corners[:2] = [[[[0.0]]], [[[255.0]]]]
    down, across = np.linspace(0, 1, height), np.linspace(0, 1, width)
    rows, columns = np.stack([1 - down, down], axis=1), np.stack([1 - across, across], axis=1)
    smooth = np.einsum("ha,wb,nabc->nhwc", rows, columns, corners).round().astype(np.uint8)
    return np.concatenate([noise, smooth])
