"""Everything a training carries from step to step, to and from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from thumbnet.config import Recipe, recipe_to_dict
from thumbnet.engine import place, resolve_precision
from thumbnet.errors import CheckpointError
from thumbnet.models import InitializedFromData, build_model
from thumbnet.runs.checkpoint import Checkpoint, fit_state
from thumbnet.training.averages import WeightAverage
from thumbnet.training.optimizers import GradientDescent, build_optimizer


@dataclass(kw_only=True)
class TrainingState:
    """A training between two steps."""

    model: nn.Module
    optimizer: GradientDescent
    average: WeightAverage | None
    seed: int = 0
    """Of the run, for what the network draws."""
    step: int = 0
    """Steps done."""
    train_s: float = 0.0
    """Seconds spent in training so far, over all resumes, evaluation left out."""
    smoothed: dict[str, float] = field(default_factory=dict)
    """Moving average (decay 0.9) of each loss, by name."""
    validation_due: bool = False
    """Whether a stop cut short the validation of this step, with which a resume begins."""

    def capture(self, recipe: Recipe) -> Checkpoint:
        """Return a checkpoint that shares memory with this state: save it before the next step.

        Args:
            recipe: what the training follows; kept in the checkpoint, so that a resume notices when it was edited.
        """
        tensors = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        info: dict[str, Any] = {
            "train_s": self.train_s,
            "smoothed": dict(self.smoothed),
            "validation_due": self.validation_due,
            "recipe": recipe_to_dict(recipe),
        }
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
            CheckpointError: something in it does not fit this recipe's training.
        """
        if (self.average is None) != (checkpoint.average is None):
            kept, wanted = ("none", "one") if checkpoint.average is None else ("one", "none")
            raise CheckpointError(f"{where}: the recipe asks for {wanted} average of the weights, {kept} was kept")
        fit_state(self.model, checkpoint.model, where)
        if self.average is not None and checkpoint.average is not None:
            fit_state(self.average.model, checkpoint.average, where)
        try:
            self.optimizer.state.clear()
            self._restore_optimizer(checkpoint.state)
            self.step = checkpoint.step
            self.train_s = float(checkpoint.info["train_s"])
            self.validation_due = bool(checkpoint.info.get("validation_due", False))  # older ones do not say
            self.smoothed = {str(name): float(value) for name, value in checkpoint.info["smoothed"].items()}
        except (KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{where}: the state of step {checkpoint.step} does not fit this recipe ({error!r}): "
                "was recipe.toml edited? Put it back, or start a new run"
            ) from error

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Give each parameter its optimizer state back, in the parameter's own memory format."""
        parameters = dict(self.model.named_parameters())
        for full_name, value in tensors.items():
            if not full_name.startswith("optimizer."):
                continue  # older checkpoints hold the state of torch's generator, which every step seeds now
            _, key, name = full_name.split(".", 2)
            restored = torch.empty_like(parameters[name], dtype=value.dtype).copy_(value)
            self.optimizer.state[parameters[name]][key] = restored


def new_state(
    recipe: Recipe, *, num_classes: int, channels: int, examples: Callable[[int], Tensor] | None = None
) -> TrainingState:
    """Build network, optimizer and average with fresh weights drawn from the recipe's seed.

    Args:
        recipe: what to build.
        num_classes: classes of the data set.
        channels: channels of its pictures.
        examples: returns that many prepared training images, for networks that set some of their weights from the data
            (`initialize_from`); None where all weights are going to be loaded.

    Raises:
        UsageError: the recipe names an unknown network or layer.
    """
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, num_classes=num_classes, crop=recipe.distort.crop, channels=channels)
    if examples is not None and isinstance(model, InitializedFromData):
        model.initialize_from(examples(model.examples_wanted))
    model = place(model)
    # Gradients have been scaled back by now, so that fp16 has not the range for them.
    precise = resolve_precision(recipe.train.precision).name == "fp32"
    return TrainingState(
        model=model,
        optimizer=build_optimizer(model, recipe.optimizer, products=torch.float32 if precise else torch.bfloat16),
        average=WeightAverage(model, recipe.average.decay) if recipe.average.decay else None,
        seed=recipe.seed,
    )
