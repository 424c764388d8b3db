"""Everything a training carries from step to step, to and from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from thumbnet.config import Recipe
from thumbnet.engine import device
from thumbnet.models import build_model
from thumbnet.runs.checkpoint import Checkpoint, fit_state
from thumbnet.training.averages import WeightAverage
from thumbnet.training.optimizers import build_optimizer

RNG_KEY = "rng.torch"


@dataclass(kw_only=True)
class TrainingState:
    """A training between two steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    step: int = 0
    """Steps done."""
    train_s: float = 0.0
    """Seconds spent in training so far, over all resumes, evaluation left out."""
    smoothed: dict[str, float] = field(default_factory=dict)
    """Moving average (decay 0.9) of each loss, by name."""

    def capture(self) -> Checkpoint:
        """Return a checkpoint that shares memory with this state: save it before the next step."""
        tensors = {RNG_KEY: torch.get_rng_state()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{key}.{name}"] = value
        info: dict[str, Any] = {"train_s": self.train_s, "smoothed": dict(self.smoothed)}
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            average=self.average.state() if self.average else None,
            state=tensors,
            info=info,
        )

    def restore(self, checkpoint: Checkpoint, where: str) -> None:
        """Continue from a checkpoint, exactly.

        Raises:
            CheckpointError: a tensor does not fit this recipe's network.
        """
        fit_state(self.model, checkpoint.model, where)
        if self.average is not None and checkpoint.average is not None:
            fit_state(self.average.model, checkpoint.average, where)
        parameters = dict(self.model.named_parameters())
        for full_name, value in checkpoint.state.items():
            if full_name == RNG_KEY:
                torch.set_rng_state(value)
                continue
            _, key, name = full_name.split(".", 2)
            parameter = parameters[name]
            restored = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            self.optimizer.state[parameter][key] = restored
        self.step = checkpoint.step
        self.train_s = float(checkpoint.info["train_s"])
        self.smoothed = dict(checkpoint.info["smoothed"])


def new_state(recipe: Recipe, *, num_classes: int, channels: int) -> TrainingState:
    """Build network, optimizer and average with fresh weights drawn from the recipe's seed.

    Raises:
        UsageError: the recipe names an unknown network or layer.
    """
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, num_classes=num_classes, crop=recipe.distort.crop, channels=channels)
    model = model.to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainingState(
        model=model,
        optimizer=build_optimizer(model, recipe.optimizer),
        average=WeightAverage(model, recipe.average.decay) if recipe.average.decay else None,
    )
