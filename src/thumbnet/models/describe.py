"""The layer table of a network: shapes, parameters, multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thumbnet.models.layers import LocallyConnected
from thumbnet.models.modes import evaluation_mode
from thumbnet.models.speed import Conv3x3, WhiteningConv


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One layer, as one picture passes through it."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    """Without the batch: (channels, height, width) or (features,)."""
    parameters: int
    multiply_adds: int


def describe_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[LayerInfo]:
    """Return the layers of a network in the order in which a picture meets them.

    Args:
        model: any network; it is run once, in evaluation mode, and left as it was.
        image_shape: (channels, height, width) of its input.
    """
    names = {module: name for name, module in model.named_modules()}
    layers: list[LayerInfo] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, Tensor):
            layers.append(
                LayerInfo(
                    name=names[module],
                    kind=type(module).__name__,
                    output_shape=tuple(output.shape[1:]),
                    parameters=sum(parameter.numel() for parameter in module.parameters()),
                    multiply_adds=_multiply_adds(module, inputs[0], output),
                )
            )

    hooks = [module.register_forward_hook(record) for module in names if not list(module.children())]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def _multiply_adds(module: nn.Module, images: Tensor, output: Tensor) -> int:
    """Return the multiply-adds of a layer for one picture: each output value sums over its inputs; biases are free."""
    if isinstance(module, Conv3x3):  # its output is pooled
        return images[0, 0].numel() * module.weight.numel()
    if isinstance(module, WhiteningConv):
        return output[0, 0].numel() * module.weight.numel()
    if isinstance(module, LocallyConnected):  # every weight is used at one position
        return module.weight.numel()
    if isinstance(module, nn.Conv2d | nn.Linear):
        per_value = module.weight[0].numel()
        return output[0].numel() * per_value
    return 0
