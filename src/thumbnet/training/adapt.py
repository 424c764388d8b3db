"""Fits a recipe that was made for one data set or network to another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from thumbnet.config import Recipe, preset_names

DEFAULT_PRESET = "quick"
_PRESET_OF_FAMILY = {"cuda-convnet": "cuda-convnet-18pct"}
"""Where several presets share a network, the one whose network is built by default."""

_STEPS_PER_EPOCH = 8
_SMALLEST_BATCH = 16
_FEWEST_STEPS = 200


def preset_for(model: str | None) -> str:
    """Return the preset to start from where none is given: the one made for the network that is asked for, if any."""
    if model is None:
        return DEFAULT_PRESET
    family = model.partition("/")[0]
    return _PRESET_OF_FAMILY.get(family, family if family in preset_names() else DEFAULT_PRESET)


def fit_to_examples(recipe: Recipe, examples: int, given: Collection[str] = ()) -> tuple[Recipe, str | None]:
    """Shrink a batch that is larger than the data set, and what depends on it.

    The smaller batch leaves some steps to an epoch. The learning rate of gradient descent follows it in proportion
    (Goyal et al. 2017, https://arxiv.org/abs/1706.02677), and so do rates of layers; that of Muon, whose updates have a
    norm of their own, does not. A length in epochs, which meant many batches of another data set, becomes at least 200
    steps.

    Args:
        recipe: whose batch to look at.
        examples: images to train on.
        given: entries, by dotted key, that were asked for and stay as they are; with `input.batch_size` among them the
            recipe comes back unchanged.

    Returns:
        The recipe, and a line for the user if it has changed.
    """
    batch = recipe.input.batch_size
    if batch <= examples or "input.batch_size" in given:
        return recipe, None
    smaller = min(examples, max(examples // _STEPS_PER_EPOCH, _SMALLEST_BATCH))
    optimizer, train = recipe.optimizer, recipe.train
    share = smaller / batch
    if "optimizer.learning_rate" not in given and optimizer.name == "sgd":
        optimizer = dataclasses.replace(optimizer, learning_rate=optimizer.learning_rate * share)
    if "optimizer.rates" not in given:
        rates = {
            layer: rate if f"optimizer.rates.{layer}" in given else rate * share
            for layer, rate in optimizer.rates.items()
        }
        optimizer = dataclasses.replace(optimizer, rates=rates)
    text = f"{examples:,} images to train on do not fill a batch of {batch:,}: batches of {smaller}"
    if train.epochs and "train.epochs" not in given and train.epochs * examples / smaller < _FEWEST_STEPS:
        train = dataclasses.replace(train, steps=_FEWEST_STEPS, epochs=0.0)
        text += f", {_FEWEST_STEPS} steps ({_FEWEST_STEPS * smaller / examples:.0f} epochs)"
    fitted = dataclasses.replace(
        recipe, input=dataclasses.replace(recipe.input, batch_size=smaller), optimizer=optimizer, train=train
    )
    return fitted, f"{text}; --batch-size and --epochs set others"
