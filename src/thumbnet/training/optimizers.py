"""From a recipe's optimizer section to a torch optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from thumbnet.config import OptimizerConfig
from thumbnet.errors import UsageError, did_you_mean


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.SGD:
    """Build gradient descent over all weights, one parameter group for each coefficient of weight decay.

    The gradient of c/2 * ||w||^2 is c * w, which is what SGD's `weight_decay` adds: the loss term itself is only
    computed for display (`decay_terms`).
    """
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(decay_of(name, parameter, config.weight_decay), []).append(parameter)
    check_layers(model, config.weight_decay)
    return torch.optim.SGD(
        [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        foreach=True,
    )


def check_layers(model: nn.Module, weight_decay: Mapping[str, float]) -> None:
    """Raise `UsageError` when weight decay names a layer that the network does not have."""
    layers = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    for name in weight_decay:
        if name != "default" and name not in layers:
            raise UsageError(f"optimizer.weight_decay.{name}: no such layer{did_you_mean(name, layers)}")


def decay_of(name: str, parameter: Tensor, weight_decay: Mapping[str, float]) -> float:
    """Return a parameter's coefficient: weights (two dimensions or more) decay, biases and norms do not."""
    if parameter.ndim < 2:
        return 0.0
    return weight_decay.get(name.rpartition(".")[0], weight_decay.get("default", 0.0))


def decay_terms(model: nn.Module, weight_decay: Mapping[str, float]) -> dict[str, Tensor]:
    """Return c/2 * ||w||^2 of each decayed layer, by layer name: what weight decay adds to the loss."""
    return {
        name.rpartition(".")[0]: decay / 2 * parameter.detach().square().sum()
        for name, parameter in model.named_parameters()
        if (decay := decay_of(name, parameter, weight_decay))
    }
