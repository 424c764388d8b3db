"""From logits and labels to the figures of an evaluation; NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from thumbnet.errors import DataError, DivergedError

Weights = Literal["average", "raw"]
"""Weights that are evaluated: their moving average, or as trained."""

CALIBRATION_BINS = 15
"""Bins of confidence of equal width, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"."""


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """How well one class is recognized; a ratio of nothing to nothing is 0."""

    name: str
    precision: float
    """Share of the images called this class that are of it, 0 to 1."""
    recall: float
    """Share of the images of this class that are called so, 0 to 1."""
    f1: float
    """Harmonic mean of precision and recall, 0 to 1."""
    support: int
    """Images of this class."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Confidence against accuracy, in bins of confidence of equal width; a value at an edge is in the bin below it."""

    count: np.ndarray
    """Images in each bin, int64 [B]."""
    confidence: np.ndarray
    """Mean probability of the predicted class, float64 [B]; 0 in an empty bin."""
    accuracy: np.ndarray
    """Share predicted right, float64 [B]; 0 in an empty bin."""


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The examples whose most probable class is not their label, the most confident mistake first."""

    examples: np.ndarray
    """Their places in the data set, int64 [M]."""
    labels: np.ndarray
    """Their classes, int64 [M]."""
    predicted: np.ndarray
    """The classes that they were taken for, int64 [M]."""
    confidence: np.ndarray
    """Probability of the predicted class, float64 [M]."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The figures of one evaluation; shares are 0 to 1."""

    examples: int
    accuracy: float
    """Share of images whose most probable class is their label ("precision @ 1")."""
    top5: float
    """Share of images whose label is among the five most probable classes; 1 where there are five classes or fewer."""
    loss: float
    """Mean cross-entropy in nats, without weight decay."""
    ece: float
    """Expected calibration error: mean distance between confidence and accuracy over the bins, weighted by images."""
    per_class: tuple[ClassMetrics, ...]
    """In label order."""
    confusion: np.ndarray
    """Images by label (row) and predicted class (column), int64 [C, C]."""
    calibration: Calibration
    mistakes: Mistakes


def compute_metrics(logits_NC: np.ndarray, labels_N: np.ndarray, class_names: Sequence[str]) -> Metrics:
    """Compute every figure of an evaluation, in float64.

    Of classes with equal logits the one with the lower label ranks higher, in accuracy and top-5 alike.

    Args:
        logits_NC: float [N, C], N of 1 or more; not normalized.
        labels_N: integers [N], 0 to C - 1.
        class_names: C names in label order.

    Raises:
        DataError: there are no examples, a label is out of range, or the shapes do not fit together.
        DivergedError: a logit is not finite.
    """
    _check(logits_NC, labels_N, class_names)
    logits_NC = logits_NC.astype(np.float64)
    rows = np.arange(len(labels_N))
    predicted_N = logits_NC.argmax(axis=1)
    shifted_NC = logits_NC - logits_NC[rows, predicted_N][:, None]
    log_sum_N = np.log(np.exp(shifted_NC).sum(axis=1))
    classes = len(class_names)
    confusion_CC = np.bincount(labels_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)
    confidence_N = np.exp(-log_sum_N)  # the predicted class has a shifted logit of 0
    calibration = calibrate(confidence_N, predicted_N == labels_N)
    return Metrics(
        examples=len(labels_N),
        accuracy=float(np.trace(confusion_CC) / len(labels_N)),
        top5=float((_rank(logits_NC, labels_N) < 5).mean()),
        loss=float((log_sum_N - shifted_NC[rows, labels_N]).mean()),
        ece=expected_calibration_error(calibration),
        per_class=_per_class(confusion_CC, class_names),
        confusion=confusion_CC,
        calibration=calibration,
        mistakes=_mistakes(labels_N, predicted_N, confidence_N),
    )


def calibrate(confidence_N: np.ndarray, correct_N: np.ndarray) -> Calibration:
    """Collect confidences (float [N], above 0 and at most 1) and whether they were right (bool [N]) into bins."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins_N = np.searchsorted(edges[1:-1], confidence_N, side="left")
    count_B = np.bincount(bins_N, minlength=CALIBRATION_BINS)
    divisor_B = np.maximum(count_B, 1)
    return Calibration(
        count=count_B,
        confidence=np.bincount(bins_N, weights=confidence_N, minlength=CALIBRATION_BINS) / divisor_B,
        accuracy=np.bincount(bins_N, weights=correct_N, minlength=CALIBRATION_BINS) / divisor_B,
    )


def expected_calibration_error(calibration: Calibration) -> float:
    """Return the mean of |accuracy - confidence| over the bins, weighted by their images (Guo et al. 2017, eq. 3)."""
    gap_B = np.abs(calibration.accuracy - calibration.confidence)
    return float((gap_B * calibration.count).sum() / calibration.count.sum())


def insist_finite(logits_NC: np.ndarray) -> None:
    """Refuse what a network says when it says nothing.

    Raises:
        DivergedError: a logit is not finite.
    """
    broken = np.flatnonzero(~np.isfinite(logits_NC).all(axis=1))
    if len(broken):
        raise DivergedError(
            f"the network's output is not finite for {len(broken)} of {len(logits_NC)} examples, first for example"
            f" {broken[0]}\nthese weights are of no use: take an earlier checkpoint"
        )


def _check(logits_NC: np.ndarray, labels_N: np.ndarray, class_names: Sequence[str]) -> None:
    """Raise for examples that cannot be counted."""
    if not len(labels_N):
        raise DataError("there are no examples to evaluate")
    if logits_NC.shape != (len(labels_N), len(class_names)):
        raise DataError(
            f"{len(labels_N)} labels and {len(class_names)} classes do not fit logits of shape {logits_NC.shape}"
        )
    outside = np.flatnonzero((labels_N < 0) | (labels_N >= len(class_names)))
    if len(outside):
        raise DataError(
            f"example {outside[0]} has label {labels_N[outside[0]]}: it must be 0 to {len(class_names) - 1}"
        )
    insist_finite(logits_NC)


def _mistakes(labels_N: np.ndarray, predicted_N: np.ndarray, confidence_N: np.ndarray) -> Mistakes:
    wrong = np.flatnonzero(predicted_N != labels_N)
    wrong = wrong[np.argsort(-confidence_N[wrong], kind="stable")]
    return Mistakes(
        examples=wrong, labels=labels_N[wrong], predicted=predicted_N[wrong], confidence=confidence_N[wrong]
    )


def _rank(logits_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Return how many classes rank before the label, int64 [N]."""
    own_N1 = np.take_along_axis(logits_NC, labels_N[:, None], axis=1)
    lower_label_NC = np.arange(logits_NC.shape[1])[None, :] < labels_N[:, None]
    before_NC = (logits_NC > own_N1) | ((logits_NC == own_N1) & lower_label_NC)
    return np.asarray(before_NC.sum(axis=1))


def _per_class(confusion_CC: np.ndarray, class_names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    """Return precision, recall and F1 = 2 hits / (predicted + support) of every class."""
    hits_C, predicted_C, support_C = np.diag(confusion_CC), confusion_CC.sum(axis=0), confusion_CC.sum(axis=1)
    precision_C = hits_C / np.maximum(predicted_C, 1)
    recall_C = hits_C / np.maximum(support_C, 1)
    f1_C = 2 * hits_C / np.maximum(predicted_C + support_C, 1)
    columns = zip(class_names, precision_C, recall_C, f1_C, support_C, strict=True)
    return tuple(
        ClassMetrics(name=name, precision=float(p), recall=float(r), f1=float(f), support=int(s))
        for name, p, r, f, s in columns
    )
