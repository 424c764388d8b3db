"""A network on a data set: every example exactly once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from thumbnet.config import DistortConfig
from thumbnet.engine import Precision
from thumbnet.evaluation.metrics import Metrics, compute_metrics
from thumbnet.input.pipeline import evaluation_batches

if TYPE_CHECKING:
    from thumbnet.data.dataset import ImageDataset

BATCH_SIZE = 500
"""Images of one forward pass: it divides the usual test sets, and the activations stay in a processor's cache."""


def evaluate_weights(
    model: nn.Module,
    dataset: ImageDataset,
    distort: DistortConfig,
    *,
    precision: Precision,
    batch_size: int = BATCH_SIZE,
) -> Metrics:
    """Run every example of a data set through a network once and return the figures.

    Args:
        model: from images [N, C, crop, crop] to logits [N, classes]; its weights and modes are as before afterwards.
        dataset: the examples, taken in order.
        distort: size and standardization of the input; nothing is random.
        precision: arithmetic of the network.
        batch_size: images of one forward pass; the figures do not depend on it but for rounding.

    Raises:
        DataError: the data set is empty, or a label is out of range.
        DivergedError: the network's output is not finite.
    """
    logits_NC, labels_N = predict_logits(model, dataset, distort, precision=precision, batch_size=batch_size)
    return compute_metrics(logits_NC, labels_N, dataset.class_names)


def predict_logits(
    model: nn.Module,
    dataset: ImageDataset,
    distort: DistortConfig,
    *,
    precision: Precision,
    batch_size: int = BATCH_SIZE,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the network's logits, float32 [n, classes], and the labels, int64 [n], of every example in order.

    Arguments are those of `evaluate_weights`.
    """
    device = next(model.parameters()).device
    logits: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    with _evaluation_mode(model), torch.inference_mode(), precision.autocast():
        for batch in evaluation_batches(dataset, distort, batch_size):
            logits.append(model(batch.images.to(device, memory_format=torch.channels_last)).float())
            labels.append(batch.labels)
    if not labels:
        return np.zeros((0, len(dataset.class_names)), np.float32), np.zeros(0, np.int64)
    return torch.cat(logits).cpu().numpy(), torch.cat(labels).numpy()


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
