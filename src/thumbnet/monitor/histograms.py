"""Histograms of tensors, fast enough for every summary step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = 64
"""Bins of a histogram, of equal width from the least to the greatest value; TensorBoard draws 30."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of values in bins of equal width from `low` to `high`, and the moments that TensorBoard keeps."""

    low: float
    high: float
    counts: np.ndarray
    """int64 [BINS]; they sum to the number of finite values looked at."""
    total: float
    """Sum of the values."""
    total_squares: float
    """Sum of their squares."""


def histogram(values: Tensor, *, sample: int, rectify: bool = False) -> Histogram:
    """Count a tensor's finite values, or those of a strided sample of at most `sample` of them.

    Args:
        values: any shape and floating type.
        sample: most values to look at; a larger tensor is sampled with a fixed stride.
        rectify: count max(value, 0) instead.
    """
    flat = strided_sample(values.detach(), sample).float()
    if rectify:
        flat = flat.relu()
    low, high = (float(end) for end in torch.aminmax(flat)) if flat.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        flat = flat[torch.isfinite(flat)]
        low, high = (float(end) for end in torch.aminmax(flat)) if flat.numel() else (0.0, 0.0)
    if low == high:
        # One value, or none: a bin has to have a width.
        low, high = low - 0.5, high + 0.5
    if high - low > torch.finfo(torch.float32).max:
        flat = flat.double()
    counts = torch.histc(flat, BINS, low, high)
    return Histogram(
        low=low,
        high=high,
        counts=counts.long().numpy(force=True),
        total=float(flat.sum()),
        total_squares=float(torch.dot(flat, flat)),
    )


def strided_sample(values: Tensor, limit: int) -> Tensor:
    """Return at most `limit` values as a one-dimensional tensor: every k-th in the order of memory.

    k has no factor in common with any dimension: otherwise it could stay in few channels of a channels-last tensor.
    """
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    flat = values.reshape(-1)
    stride = max(1, math.ceil(flat.numel() / limit)) if flat.numel() else 1
    while math.gcd(stride, flat.numel()) > 1:
        stride += 1
    return flat[::stride]


def zero_fraction(values: Tensor, *, rectify: bool = False) -> float:
    """Return the exact share of zeros (sparsity); with `rectify`, of values that a ReLU makes zero. NaN if empty."""
    if not values.numel():
        return math.nan
    values = values.detach()
    # Not-a-number is not zero, so the positive are not counted from the other side.
    # Counting what a mask holds is eight times as fast as summing it.
    zeros = torch.count_nonzero(values <= 0) if rectify else values.numel() - torch.count_nonzero(values)
    return float(zeros) / values.numel()
