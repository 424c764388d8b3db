"""Summaries for TensorBoard: scalars, histograms of weights, gradients and activations, images, the graph."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from thumbnet.errors import ThumbnetError
from thumbnet.models.layers import SameMaxPool
from thumbnet.monitor.event_file import EventFile
from thumbnet.monitor.graph import ACTIVATION_FUNCTIONS, graph_def
from thumbnet.monitor.histograms import Histogram, histogram, strided_sample, zero_fraction

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_MAX_POOLS = (nn.MaxPool2d, SameMaxPool)
_MOSAIC = (4, 8)
# Charts of the page "custom scalars": what belongs together in one picture, as regular expressions of tags.
_CHARTS = {
    "loss, raw and averaged": "^loss/total",
    "parts of the loss, raw and averaged": "^loss/(cross_entropy|decay_)",
    "accuracy of raw and averaged weights": "^accuracy/",
    "sparsity by layer": "^sparsity/",
    "learning rate": ".*learning_rate$",
}

PARAMETER_SAMPLE = 2**20
"""Most values of a weight or gradient that its histogram counts: the 2015 network's are counted whole."""
ACTIVATION_SAMPLE = 2**16
"""Most values of a layer's output that its histogram counts; its sparsity counts all."""


class Summaries:
    """Writes what TensorBoard shows of a run. Everything is encoded and written on a thread of its own.

    Args:
        folder: folder of event files. TensorBoard follows the newest file of a folder only, so what is written beside a
            training, such as evaluations by another process, belongs in a folder of its own.
        purge_step: on resuming, the step that comes next: what was written for it and later is hidden.

    Raises:
        ThumbnetError: the folder or file cannot be created.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        try:
            self._events = EventFile(folder, purge_step=purge_step)
        except OSError as error:
            raise ThumbnetError(
                f"{folder}: cannot write TensorBoard's files here: {error.strerror}; --summary-every 0 does without"
            ) from error
        self._events.add_values(0, lambda: [_layout_value(_CHARTS)])

    @property
    def failure(self) -> Exception | None:
        """Why writing was given up (disk full), or None; the training need not stop for it."""
        return self._events.failure

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag; the part of a tag before the first slash is its group.

        Tags must not hold " (": where TensorBoard draws several tags in one chart, it takes that for a run's name.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        copies = dict(values)
        self._events.add_values(
            step, lambda: [Summary.Value(tag=tag, simple_value=value) for tag, value in copies.items()]
        )

    def parameters(self, step: int, model: nn.Module) -> None:
        """Write a histogram of each weight and gradient: call it after backward and before the update."""
        histograms = {}
        for name, parameter in model.named_parameters():
            layer, _, kind = name.rpartition(".")
            suffix = layer if kind == "weight" else name
            histograms[f"weights/{suffix}"] = histogram(parameter, sample=PARAMETER_SAMPLE)
            if parameter.grad is not None:
                histograms[f"gradients/{suffix}"] = histogram(parameter.grad, sample=PARAMETER_SAMPLE)
        self._add_histograms(step, histograms)

    @contextlib.contextmanager
    def activations(self, step: int, model: nn.Module) -> Iterator[None]:
        """Write histogram and sparsity of each layer's output, of all forward passes within this context.

        Layers are the direct children of the network but for activation functions and mere views of their input. A
        layer that a ReLU follows, at once or after max pooling (the two commute), is shown as the ReLU makes it: that
        is what the tutorial calls its activation.
        """
        samples: dict[str, list[Tensor]] = {}
        zeros: dict[str, tuple[list[float], list[int]]] = {}
        rectified = rectified_layers(model)

        def look(name: str, inputs: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not _is_view(output, inputs):
                # A copy: what follows may write into the output, and its memory is not to be kept.
                samples.setdefault(name, []).append(strided_sample(output.detach(), ACTIVATION_SAMPLE).clone())
                share = zero_fraction(output, rectify=name in rectified)
                zeros.setdefault(name, ([], []))
                zeros[name][0].append(share)
                zeros[name][1].append(output.numel())

        hooks = [
            layer.register_forward_hook(lambda _module, inputs, output, name=name: look(name, inputs, output))
            for name, layer in model.named_children()
            if not isinstance(layer, ACTIVATION_FUNCTIONS)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        histograms = {
            f"activations/{name}": histogram(torch.cat(parts), sample=ACTIVATION_SAMPLE, rectify=name in rectified)
            for name, parts in samples.items()
        }
        self._add_histograms(step, histograms)
        self.scalars(step, {f"sparsity/{name}": statistics.fmean(*parts) for name, parts in zeros.items()})

    def images(self, step: int, images_NCHW: Tensor, *, tag: str = "input/images") -> None:
        """Write the first images of a batch as one mosaic, each stretched to its own least and greatest value.

        Args:
            step: the step.
            images_NCHW: floating or uint8, 1 or 3 channels, any range.
            tag: its tag.
        """
        rows, columns = _MOSAIC
        # Laid out here: torch operations in the writer's thread would start OpenMP threads of its own, and more of them
        # than cores make every later step a sixth slower.
        sheet_HWC = mosaic(images_NCHW[: rows * columns].detach().float(), columns)
        self._events.add_values(step, lambda: [_image_value(tag, sheet_HWC)])

    def graph(self, model: nn.Module, example: Tensor) -> None:
        """Write the network's layers and how they are connected, from one forward pass of `example` [N, C, H, W]."""
        self._events.add_graph(graph_def(model, example))

    def close(self) -> None:
        """Write what is queued and close the event file."""
        self._events.close()

    def __enter__(self) -> Summaries:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def _add_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        self._events.add_values(step, lambda: [_histogram_value(tag, counted) for tag, counted in histograms.items()])


def rectified_layers(model: nn.Module) -> frozenset[str]:
    """Return the children of a sequential network whose output goes through a ReLU, at once or after max pooling.

    The ReLU is a layer, or part of the next one, which then has an attribute `relu` that is true.
    """
    names: set[str] = set()
    if isinstance(model, nn.Sequential):
        rectifies = False
        for name, layer in reversed(list(model.named_children())):
            if rectifies:
                names.add(name)
            rectifies = (
                isinstance(layer, nn.ReLU)
                or getattr(layer, "relu", False) is True
                or (rectifies and isinstance(layer, _MAX_POOLS))
            )
    return frozenset(names)


def _is_view(output: Tensor, inputs: tuple[object, ...]) -> bool:
    """Tell whether a layer only shows its input's memory in another shape."""
    memory = output.untyped_storage().data_ptr()
    return any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == memory for x in inputs)


def mosaic(images_NCHW: Tensor, columns: int) -> np.ndarray:
    """Lay images out in rows, with a border of one pixel: uint8 [rows * (H + 1) - 1, columns * (W + 1) - 1, C]."""
    N, C, H, W = images_NCHW.shape
    flat = images_NCHW.flatten(1)
    low, high = flat.min(1).values.view(N, 1, 1, 1), flat.max(1).values.view(N, 1, 1, 1)
    pixels = (images_NCHW - low) / (high - low).clamp_min(1e-12) * 255
    rows = math.ceil(N / columns)
    sheet = torch.full((rows * (H + 1), columns * (W + 1), C), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels.round().to(torch.uint8).permute(0, 2, 3, 1)):
        top, left = i // columns * (H + 1), i % columns * (W + 1)
        sheet[top : top + H, left : left + W] = image
    return sheet[:-1, :-1].numpy(force=True)


def _image_value(tag: str, pixels_HWC: np.ndarray) -> Summary.Value:
    """Encode an image as PNG."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width, channels = pixels_HWC.shape
    file = io.BytesIO()
    Image.fromarray(pixels_HWC.squeeze(2) if channels == 1 else pixels_HWC).save(file, "PNG", compress_level=1)
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue())
    return Summary.Value(tag=tag, image=image)


def _histogram_value(tag: str, counted: Histogram) -> Summary.Value:
    """Encode a histogram."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    limits = np.linspace(counted.low, counted.high, len(counted.counts) + 1)[1:]
    return Summary.Value(
        tag=tag,
        histo=HistogramProto(
            min=counted.low,
            max=counted.high,
            num=float(counted.counts.sum()),
            sum=counted.total,
            sum_squares=counted.total_squares,
            bucket_limit=limits.tolist(),
            bucket=counted.counts.astype(float).tolist(),
        ),
    )


def _layout_value(charts: Mapping[str, str]) -> Summary.Value:
    """Encode the layout of the page "custom scalars": a chart of each title, of the tags that an expression matches."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    category = layout_pb2.Category(title="thumbnet")
    for title, tags in charts.items():
        category.chart.add(title=title, multiline=layout_pb2.MultilineChartContent(tag=[tags]))
    layout = layout_pb2.Layout(category=[category]).SerializeToString()
    return Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        tensor=TensorProto(dtype=DT_STRING, string_val=[layout]),
        metadata=metadata.create_summary_metadata(),
    )
