"""The exponential moving average of the weights that evaluation prefers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """A second copy of the network whose weights follow the trained ones slowly.

    After step k (from 0) average <- d * average + (1 - d) * weights with d = min(decay, (1 + k) / (10 + k)), the
    warm-up of TensorFlow's ExponentialMovingAverage, so that early evaluations do not see the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self._averages = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        self._sources = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]

    def update(self, step: int) -> None:
        """Move the average towards the weights as they are after step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights by name."""
        state: dict[str, Tensor] = self.model.state_dict()
        return state
