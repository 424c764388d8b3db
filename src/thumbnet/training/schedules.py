"""The learning rate over training, as a factor of its peak."""

from __future__ import annotations

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
