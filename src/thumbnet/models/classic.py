"""The network of the 2015 CIFAR-10 tutorial: two convolutions with response normalization, three dense layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from thumbnet.errors import UsageError
from thumbnet.models.first_layer import PooledFirst
from thumbnet.models.layers import LocalResponseNorm, PaddedConv2d, SameMaxPool


class FlattenHWC(nn.Module):
    """Flatten [N, C, H, W] to [N, H*W*C] in height, width, channel order, in which TensorFlow's dense layers see it."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Flatten; of a channels-last tensor this is a view."""
        return images_NCHW.permute(0, 2, 3, 1).flatten(1)


def build_classic(*, num_classes: int, crop: int, channels: int = 3, initial_std: float = 0.05) -> nn.Sequential:
    """Build the tutorial's network; 1,068,298 parameters for 10 classes of 24x24 RGB pictures.

    The ReLU after conv1 stands behind pool1 and the one after conv2 in norm2: the results are the same.

    Args:
        num_classes: classes, the width of `softmax_linear`.
        crop: side of the input, in pixels.
        channels: channels of the input.
        initial_std: deviation of the initial convolution weights (0.05; the first release had 1e-4).

    Returns:
        A module from images [N, channels, crop, crop] to logits [N, num_classes]; its layers have the tutorial's names.

    Raises:
        UsageError: the deviation is no number above 0.
    """
    if isinstance(initial_std, bool) or not isinstance(initial_std, int | float) or not initial_std > 0:
        raise UsageError(f"model.options.initial_std is {initial_std!r}: it must be a number above 0")
    side = -(-crop // 4)
    model = PooledFirst(
        OrderedDict(
            conv1=nn.Conv2d(channels, 64, 5, padding=2),
            pool1=SameMaxPool(3, 2, relu=True),
            norm1=LocalResponseNorm(radius=4, bias=1.0, alpha=0.001 / 9),
            conv2=PaddedConv2d(64, 64, 5),
            norm2=LocalResponseNorm(radius=4, bias=1.0, alpha=0.001 / 9, relu=True),
            pool2=SameMaxPool(3, 2),
            flatten=FlattenHWC(),
            local3=nn.Linear(side * side * 64, 384),
            relu3=nn.ReLU(),
            local4=nn.Linear(384, 192),
            relu4=nn.ReLU(),
            softmax_linear=nn.Linear(192, num_classes),
        )
    )
    for name, std, bias in (
        ("conv1", initial_std, 0.0),
        ("conv2", initial_std, 0.1),
        ("local3", 0.04, 0.1),
        ("local4", 0.04, 0.1),
        ("softmax_linear", 1 / 192, 0.0),
    ):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert layer.bias is not None
        # TensorFlow's truncated normal redraws what falls outside two deviations.
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        with torch.no_grad():
            layer.bias.fill_(bias)
    return model
