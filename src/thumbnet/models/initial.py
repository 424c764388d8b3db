"""Initial weights."""

from __future__ import annotations

from torch import Tensor, nn


def draw_normal(weight: Tensor, std: float) -> None:
    """Fill a weight from the normal distribution with mean 0, but for one on "meta", the device that holds nothing.

    There, torch would import its compiler to do nothing, a third of all that a training imports.
    """
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)
