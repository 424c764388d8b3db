"""The networks, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from thumbnet.config import ModelConfig
from thumbnet.errors import UsageError, did_you_mean
from thumbnet.models.classic import build_classic
from thumbnet.models.cuda_convnet import build_cuda_convnet
from thumbnet.models.speed import build_speed
from thumbnet.models.timm import PREFIX, build_timm, has_fixed_size

MODELS: dict[str, Callable[..., nn.Module]] = {
    "classic": build_classic,
    "cuda-convnet": build_cuda_convnet,
    "speed": build_speed,
}


@runtime_checkable
class InitializedFromData(Protocol):
    """A network that sets some of its weights from training images before the training begins."""

    examples_wanted: int
    """Images that it asks for; it takes fewer where there are not as many."""

    def initialize_from(self, images_NCHW: Tensor) -> None:
        """Set these weights from prepared images [n, channels, crop, crop]."""


def build_model(config: ModelConfig, *, num_classes: int, crop: int, channels: int = 3) -> nn.Module:
    """Build a network from images [N, channels, crop, crop] to logits [N, num_classes], with fresh weights.

    The weights are drawn from torch's global generator: seed it first for a repeatable start.

    Raises:
        UsageError: the network's name or one of its options is unknown, or an option has an impossible value.
    """
    if config.name.startswith(PREFIX):
        return build_timm(config.name, config.options, num_classes=num_classes, crop=crop, channels=channels)
    if config.name not in MODELS:
        raise UsageError(
            f"unknown model '{config.name}'{did_you_mean(config.name, MODELS)}; `{PREFIX}NAME` is a network of timm"
        )
    build = MODELS[config.name]
    known = inspect.signature(build).parameters.keys() - {"num_classes", "crop", "channels"}
    for option in config.options:
        if option not in known:
            raise UsageError(f"model.options.{option}: no such option of '{config.name}'{did_you_mean(option, known)}")
    try:
        return build(num_classes=num_classes, crop=crop, channels=channels, **config.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"model.options is {config.options}: '{config.name}' cannot be built: {error}") from error


def insist_takes_side(config: ModelConfig, side: int, *, crop: int) -> None:
    """Refuse pictures of another size than a network is built for, unless it takes them with the same weights.

    A network counts as one that does if, built for either size, its weights have the same shapes.

    Args:
        config: the network.
        side: of the pictures, in pixels.
        crop: side that it is built for.

    Raises:
        UsageError: it takes no such pictures.
    """
    if side == crop:
        return
    why = "it takes pictures of one size alone"
    try:
        with torch.device("meta"):
            built, other = (_weight_shapes(build_model(config, num_classes=10, crop=each)) for each in (crop, side))
        if built == other and not has_fixed_size(config.name):
            return
    except UsageError as error:
        why = str(error).splitlines()[0]
    raise UsageError(
        f"schedule.resize: '{config.name}' does not train on {side}x{side} on the way to {crop}x{crop}: {why}\n"
        "take larger scales, or none: --set 'schedule.resize=[]'"
    )


def _weight_shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.state_dict().items()}
