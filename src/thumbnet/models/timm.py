"""The networks of timm by name, `timm/resnet18`: their architectures alone, never their trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from thumbnet.errors import UsageError, close_match

PREFIX = "timm/"

# Options that would fetch weights or descriptions from elsewhere, and those that follow from the data and the recipe.
_NOT_OPTIONS = {
    "cache_dir",
    "checkpoint_path",
    "features_only",
    "in_chans",
    "model_name",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}


def build_timm(name: str, options: Mapping[str, Any], *, num_classes: int, crop: int, channels: int) -> nn.Module:
    """Build one of timm's networks with fresh weights.

    Args:
        name: `timm/` and timm's own name of an architecture.
        options: keyword arguments of timm's builder, such as `drop_rate`.
        num_classes: classes.
        crop: side of the input in pixels, which networks of a fixed size are built for.
        channels: channels of the input.

    Returns:
        A module from images [N, channels, crop, crop] to logits [N, num_classes].

    Raises:
        UsageError: timm is not installed, or the name or an option is unknown, or the network takes no such input.
    """
    timm = _import()
    architecture = name.removeprefix(PREFIX)
    known = timm.list_models()
    if architecture not in known:
        raise UsageError(
            f"unknown model '{name}'{close_match(architecture, known, PREFIX)}\n"
            f"timm {timm.__version__} has {len(known):,} architectures; those of one kind are listed by: "
            "python -c 'import timm; print(timm.list_models(\"*resnet*\"))'"
        )
    for option in options:
        if option in _NOT_OPTIONS:
            raise UsageError(f"model.options.{option}: not an option here: networks are trained from scratch")
    sized = {"img_size": crop} if has_fixed_size(name) else {}
    arguments = {"pretrained": False, "num_classes": num_classes, "in_chans": channels, **sized, **options}
    try:
        with torch.device("meta"):
            _try(timm.create_model(architecture, **arguments), crop, channels, num_classes)
        network: nn.Module = timm.create_model(architecture, **arguments)
    except Exception as error:  # a thousand builders raise whatever they stumble over
        what = f"{name} with model.options {dict(options)}" if options else name
        why = (str(error) or repr(error)).splitlines()[0]
        raise UsageError(
            f"{what} cannot be built for {crop}x{crop} pixels: {why}\n"
            "take a larger --set distort.crop=N (with --image-size for pictures of your own), or another network"
        ) from error
    return network


def has_fixed_size(name: str) -> bool:
    """Tell whether a network of timm takes pictures of the size alone that it is built for; of others, False."""
    if not name.startswith(PREFIX):
        return False
    description = _import().get_pretrained_cfg(name.removeprefix(PREFIX))
    return bool(description is not None and description.fixed_input_size)


def _try(network: nn.Module, crop: int, channels: int, num_classes: int) -> None:
    """Ask a network that holds no numbers about one picture; raises what it raises."""
    logits = network.eval()(torch.zeros(1, channels, crop, crop))
    if logits.shape != (1, num_classes):
        raise ValueError(f"it gives {list(logits.shape)} values for a picture, not one for each class")


def _import() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise UsageError(_broken(error)) from error
        raise UsageError(
            "the networks of timm need the package timm: pip install timm\n"
            "beside a CPU build of PyTorch, take torchvision, which timm needs, from where PyTorch came from"
        ) from error
    except Exception as error:
        raise UsageError(_broken(error)) from error
    module: ModuleType = timm
    return module


def _broken(error: Exception) -> str:
    return (
        f"timm is installed, but cannot be imported: {error}\n"
        "if this is about torchvision: it must be of the same build as PyTorch, take both from the same place"
    )
