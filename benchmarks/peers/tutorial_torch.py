"""The tutorial's network in plain PyTorch layers, and its input as a data set with transforms image by image."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import BRIGHTNESS, CONTRAST, CROP, LEARNING_RATE, WEIGHT_DECAY, read_records
from torch import Tensor, nn

try:
    from torchvision.transforms import v2
except RuntimeError:
    # Built for CUDA, torchvision cannot load its compiled operators beside a CPU build of PyTorch. The transforms do
    # not need them; the import asks for the declarations of these two.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    from torchvision.transforms import v2

Example = tuple[Tensor, int]


class Images(torch.utils.data.Dataset[Example]):
    """Images of record files, transformed one by one."""

    def __init__(self, files: list[Path]) -> None:
        images, labels = read_records(files)
        self.images, self.labels = torch.from_numpy(images), labels.tolist()
        self.transform: Callable[[Tensor], Tensor] = distortions()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return self.transform(self.images[index]), self.labels[index]


def distortions() -> Callable[[Tensor], Tensor]:
    """Return the tutorial's distortions of one image, uint8 [3, 32, 32] -> float32 [3, 24, 24].

    torchvision has crop and flip; its brightness and contrast are defined otherwise, so those are written out.
    """
    compose: Callable[[Tensor], Tensor] = v2.Compose(
        [
            v2.RandomCrop(CROP),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32),
            v2.Lambda(brighten),
            v2.Lambda(stretch),
            v2.Lambda(standardize),
        ]
    )
    return compose


def brighten(image: Tensor) -> Tensor:
    """Add one random value to all."""
    return image + torch.empty(()).uniform_(-BRIGHTNESS, BRIGHTNESS)


def stretch(image: Tensor) -> Tensor:
    """Scale about the mean of each channel by one random factor."""
    mean = image.mean((1, 2), keepdim=True)
    return (image - mean) * torch.empty(()).uniform_(*CONTRAST) + mean


def standardize(image: Tensor) -> Tensor:
    """Bring the image to mean 0 and deviation 1, dividing by 1 / sqrt(n) at least."""
    std, mean = torch.std_mean(image, correction=0)
    return (image - mean) / std.clamp_min(image.numel() ** -0.5)


def endless(loader: Any) -> Iterator[Any]:
    """Yield the loader's batches, epoch after epoch."""
    while True:
        yield from loader


def build_network() -> nn.Sequential:
    """Return the tutorial's network; flattening in channel, height, width order, which is PyTorch's."""
    network = nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.ReLU(),
        nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(2304, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )
    for layer, std, bias in zip(
        learning(network), (0.05, 0.05, 0.04, 0.04, 1 / 192), (0.0, 0.1, 0.1, 0.1, 0.0), strict=True
    ):
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.constant_(layer.bias, bias)
    return network


def learning(network: nn.Sequential) -> list[Any]:
    """Return the five layers that have weights."""
    return [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]


def parameter_groups(network: nn.Sequential) -> list[dict[str, Any]]:
    """Return the parameters in groups by weight decay, which local3 and local4 have."""
    _, _, local3, local4, _ = learning(network)
    decayed = [local3.weight, local4.weight]
    others = [parameter for parameter in network.parameters() if not any(parameter is one for one in decayed)]
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY, "lr": LEARNING_RATE},
        {"params": others, "weight_decay": 0.0, "lr": LEARNING_RATE},
    ]
