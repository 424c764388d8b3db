"""What changes over training: the learning rate, as a factor of its peak, and the side of the pictures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from thumbnet.config import ScheduleConfig


def rate_factor(config: ScheduleConfig, *, progress: float, epoch: float) -> float:
    """Return the factor on the peak learning rate.

    Args:
        config: the schedule.
        progress: share of the training that is done, 0 to 1; `piecewise` follows it.
        epoch: epochs done, fractional; `staircase` and `stairs` follow it.
    """
    # An epoch is a float quotient of steps: the tiny allowance keeps a stair that falls on a step at that step.
    if config.name == "staircase":
        return config.factor ** int(epoch / config.every_epochs + 1e-9)
    if config.name == "stairs":
        return config.factor ** sum(stair <= epoch + 1e-9 for stair in config.at_epochs)
    fractions, factors = zip(*config.points, strict=True)
    return float(np.interp(progress, fractions, factors))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a training in which pictures have one size."""

    start: float
    """Share of the training that is done when it begins, 0 to 1."""
    end: float
    """And when it ends."""
    side: int
    """Of the pictures that the network gets, in pixels."""

    @property
    def share(self) -> float:
        """Of the whole training, 0 to 1."""
        return self.end - self.start


def phases_of(config: ScheduleConfig, crop: int) -> list[Phase]:
    """Return the phases of a training in order; without `schedule.resize` it is one.

    Args:
        config: the schedule.
        crop: side of the pictures before they are resized, in pixels.
    """
    fractions = [0.0, *(fraction for fraction, _ in config.resize), 1.0]
    sides = [*(round(scale * crop) for _, scale in config.resize), crop]
    return [
        Phase(start=start, end=end, side=max(side, 1))
        for (start, end), side in zip(itertools.pairwise(fractions), sides, strict=True)
    ]
