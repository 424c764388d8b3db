"""A network on a data set: every example exactly once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from thumbnet.config import DistortConfig, EvaluationConfig
from thumbnet.distributed.replicas import ALONE, Replicas
from thumbnet.engine import Precision
from thumbnet.evaluation.metrics import Metrics, compute_metrics
from thumbnet.evaluation.views import over_views
from thumbnet.input.device import pin, send
from thumbnet.input.pipeline import evaluation_batches
from thumbnet.kernels import on_own_cores
from thumbnet.models.modes import evaluation_mode

if TYPE_CHECKING:
    from thumbnet.data.dataset import ImageDataset

MOST_IMAGES = 500
"""Images of one forward pass: it divides the usual test sets."""
MOST_PIXELS = 2**21
"""Pixels of one forward pass, 500 images of 64x64: their activations take some 500 MB."""


class EvaluationStoppedError(Exception):
    """An evaluation was asked to end before its last batch: it has no figures."""


def batch_size_for(side: int) -> int:
    """Return how many images of a side, in pixels, to take in one pass where nobody says."""
    return min(MOST_IMAGES, max(MOST_PIXELS // side**2, 1))


def evaluate_weights(
    model: nn.Module,
    dataset: ImageDataset,
    distort: DistortConfig,
    *,
    precision: Precision,
    batch_size: int | None = None,
    replicas: Replicas = ALONE,
    stopped: Callable[[], bool] = lambda: False,
) -> Metrics:
    """Run every example of a data set through a network once and return the figures.

    Args:
        model: from images [N, C, crop, crop] to logits [N, classes]; its weights and modes are as before afterwards.
        dataset: the examples, taken in order.
        distort: size and standardization of the input; nothing is random.
        precision: arithmetic of the network.
        batch_size: images of one forward pass, `batch_size_for` the input if None; the figures depend on it by rounding
            alone.
        replicas: each evaluates its share of the batches, and all of them return the figures of the whole.
        stopped: asked before each batch whether to end here.

    Raises:
        DataError: the data set is empty, or a label is out of range.
        DivergedError: the network's output is not finite.
        EvaluationStoppedError: `stopped` said so, on this or another replica.
    """
    logits_NC, labels_N = predict_logits(
        model, dataset, distort, precision=precision, batch_size=batch_size, replicas=replicas, stopped=stopped
    )
    return compute_metrics(logits_NC, labels_N, dataset.class_names)


def evaluate_views(
    model: nn.Module,
    dataset: ImageDataset,
    distort: DistortConfig,
    config: EvaluationConfig,
    *,
    precision: Precision,
    batch_size: int | None = None,
    replicas: Replicas = ALONE,
) -> tuple[Metrics, float | None]:
    """Return the figures of a single view of every picture, and the accuracy with several views of the unsure ones.

    Args:
        model: as for `evaluate_weights`, like all that is not named here.
        dataset: the examples.
        distort: input of the network.
        config: which views, and of how many pictures; the accuracy is None where it asks for one view.
        precision: arithmetic of the network.
        batch_size: images of one forward pass.
        replicas: who shares the work.
    """
    predict = functools.partial(predict_logits, precision=precision, batch_size=batch_size, replicas=replicas)
    logits_NC, labels_N = predict(model, dataset, distort)
    single = compute_metrics(logits_NC, labels_N, dataset.class_names)
    if config.views == "one":
        return single, None
    confidence_N = torch.from_numpy(logits_NC).softmax(1).amax(1).numpy()
    count = math.ceil(config.views_share * len(dataset))
    unsure = np.sort(np.argsort(confidence_N, kind="stable")[:count])
    if count:
        asked, whole = over_views(model, distort, config, dataset.image_shape)
        logits_NC[unsure], _ = predict(asked, dataset.take(unsure), whole)
    return single, compute_metrics(logits_NC, labels_N, dataset.class_names).accuracy


def predict_logits(
    model: nn.Module,
    dataset: ImageDataset,
    distort: DistortConfig,
    *,
    precision: Precision,
    batch_size: int | None = None,
    replicas: Replicas = ALONE,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the network's logits, float32 [n, classes], and the labels, int64 [n], of every example in order.

    Arguments are those of `evaluate_weights`.

    Raises:
        EvaluationStoppedError: as `evaluate_weights`.
    """
    device = next(model.parameters()).device
    logits_NC = torch.zeros(len(dataset), len(dataset.class_names), device=device)
    labels_N = torch.zeros(len(dataset), dtype=torch.int64)
    batch_size = batch_size or batch_size_for(distort.crop)
    share = replicas.share(math.ceil(len(dataset) / batch_size))
    ended = False
    with evaluation_mode(model), torch.inference_mode(), precision.autocast(), on_own_cores():
        for batch in evaluation_batches(dataset, distort, batch_size, share):
            if ended := stopped():
                break
            rows = slice(batch.indices[0], batch.indices[-1] + 1)
            logits_NC[rows] = model(send(pin(batch.images, device), device)).float()
            labels_N[rows] = batch.labels
    # One that has done its share cannot know that another has not.
    if replicas.sum(torch.tensor(float(ended))):
        raise EvaluationStoppedError
    # Rows of other replicas are zero here, so the sum is the whole.
    return replicas.sum(logits_NC.cpu()).numpy(), replicas.sum(labels_N).numpy()
