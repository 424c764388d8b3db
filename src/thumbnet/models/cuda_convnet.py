"""Alex Krizhevsky's CIFAR-10 networks of cuda-convnet (2011), which the 2015 tutorial starts from."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

import torch
from torch import nn

from thumbnet.errors import UsageError
from thumbnet.models.classic import FlattenHWC
from thumbnet.models.first_layer import PooledFirst
from thumbnet.models.initial import draw_normal
from thumbnet.models.layers import LocallyConnected, LocalResponseNorm, MapResponseNorm, PaddedConv2d, SameMaxPool

NETS = ("80sec", "18pct", "13pct", "11pct")
"""The networks, named by the time that the first took on a GPU of its day and by the test errors of the others."""


def build_cuda_convnet(*, num_classes: int, crop: int, channels: int = 3, net: str = "18pct") -> nn.Sequential:
    """Build one of cuda-convnet's networks.

    For 10 classes of 32x32 RGB pictures they have 145,578 (`80sec`), 89,578 (`18pct`), 1,901,386 (`13pct`) and
    3,672,906 (`11pct`) parameters.
    All have 5x5 convolutions and 3x3 pools of stride 2; weights are drawn from normal distributions, biases start at 0.
    They expect pictures whose mean is taken out on the scale 0..255: hence the small deviation of the first layer.

    Args:
        num_classes: classes, the width of the last layer.
        crop: side of the input, in pixels; at least 7 for `80sec` and `18pct`.
        channels: channels of the input.
        net: one of `NETS`.

    Returns:
        A module from images [N, channels, crop, crop] to logits [N, num_classes].

    Raises:
        ValueError: there is no such net.
        UsageError: the input is too small.
    """
    if net not in NETS:
        raise ValueError(f"net is '{net}': it must be one of {', '.join(NETS)}")
    shared = net in ("80sec", "18pct")
    if shared and crop < 7:
        raise UsageError(
            f"{crop}x{crop} pixels are too few: cuda-convnet's {net} halves its input three times and needs 7x7 "
            "(distort.crop)"
        )
    build = _shared_weights if shared else _local_weights
    return PooledFirst(build(num_classes, crop, channels, net))


def _shared_weights(num_classes: int, crop: int, channels: int, net: str) -> OrderedDict[str, nn.Module]:
    """Return the layers of the nets whose weights are all shared: three convolutions, average pools, dense layers."""
    # The max pool rounds half of a side up, the average pools round down: no window of theirs begins at the last pixel.
    normalized, side = net == "18pct", -(-crop // 2) // 4
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_convolution(channels, 32, std=1e-4), pool1=SameMaxPool(3, 2, relu=True)
    )
    if normalized:
        layers["norm1"] = MapResponseNorm(size=3, alpha=5e-5 / 9)
    layers |= OrderedDict(conv2=_convolution(32, 32, std=0.01), relu2=nn.ReLU(), pool2=_average_pool())
    if normalized:
        layers["norm2"] = MapResponseNorm(size=3, alpha=5e-5 / 9)
    layers |= OrderedDict(conv3=_convolution(32, 64, std=0.01), relu3=nn.ReLU(), pool3=_average_pool())
    layers["flatten"] = FlattenHWC()
    if normalized:
        layers["dense10"] = _dense(side * side * 64, num_classes, std=0.01)
    else:
        layers |= OrderedDict(dense64=_dense(side * side * 64, 64, std=0.1), relu4=nn.ReLU())
        layers["dense10"] = _dense(64, num_classes, std=0.1)
    return layers


def _local_weights(num_classes: int, crop: int, channels: int, net: str) -> OrderedDict[str, nn.Module]:
    """Return the layers of the nets with two locally connected layers above two convolutions."""
    normalized, side = net == "11pct", -(-crop // 4)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_convolution(channels, 64, std=1e-4), pool1=SameMaxPool(3, 2, relu=True)
    )
    if normalized:
        layers["norm1"] = LocalResponseNorm(radius=4, bias=1.0, alpha=0.001 / 9)
    layers["conv2"] = _convolution(64, 64, std=0.01)
    if normalized:
        layers["norm2"] = LocalResponseNorm(radius=4, bias=1.0, alpha=0.001 / 9, relu=True)
        layers["pool2"] = SameMaxPool(3, 2)
    else:
        layers["pool2"] = SameMaxPool(3, 2, relu=True)
    wide = 64 if normalized else 32
    layers |= OrderedDict(
        local3=LocallyConnected(64, wide, kernel=3, side=side, std=0.04),
        relu3=nn.ReLU(),
        local4=LocallyConnected(wide, 32, kernel=3, side=side, std=0.04),
        relu4=nn.ReLU(),
        flatten=FlattenHWC(),
        dense10=_dense(side * side * 32, num_classes, std=0.01),
    )
    return layers


def _average_pool() -> nn.AvgPool2d:
    """Return the average pool 3/2; windows over the border average the values that there are."""
    return nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)


def _convolution(inputs: int, outputs: int, *, std: float) -> PaddedConv2d:
    return _drawn(PaddedConv2d(inputs, outputs, 5), std)


def _dense(inputs: int, outputs: int, *, std: float) -> nn.Linear:
    return _drawn(nn.Linear(inputs, outputs), std)


_Layer = TypeVar("_Layer", PaddedConv2d, nn.Linear)


def _drawn(layer: _Layer, std: float) -> _Layer:
    """Draw a layer's weight from a normal distribution and set its bias to 0."""
    draw_normal(layer.weight, std)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.zero_()
    return layer
