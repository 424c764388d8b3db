"""One training step: forward, loss, backward, check, update, average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from thumbnet.distributed.replicas import ALONE
from thumbnet.distributed.team import Team
from thumbnet.engine import Precision
from thumbnet.input.philox import Stream, words
from thumbnet.input.pipeline import Batch
from thumbnet.monitor.health import GradientCheck
from thumbnet.training.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves behind for the record."""

    figures: Tensor
    """float32 [3], where the network is: mean cross-entropy of the batch, with label smoothing if any, without weight
    decay; share of the batch that the network had right before the update, 0 to 1; Euclidean norm of the gradient of
    the cross-entropy over all weights."""
    first_label: Tensor
    """Label of the first picture of the batch, int64 []."""
    first_logits: Tensor
    """What the network said of that picture before the update, float32 [classes]."""


def train_step(
    state: TrainingState,
    batch: Batch,
    *,
    check: GradientCheck,
    precision: Precision,
    label_smoothing: float = 0.0,
    before_update: Callable[[], None] | None = None,
    team: Team | None = None,
) -> StepResult:
    """Train on one batch and count the step.

    Args:
        state: changed in place.
        batch: images float32 [B, C, h, w], labels int64 [B]: this replica's share of the batch.
        check: refuses what is not finite, see there; on an accelerator, the caller has to, from the figures.
        precision: arithmetic of forward and backward.
        label_smoothing: share of each target spread evenly over all classes.
        before_update: called when the gradients are there and the weights have not moved yet.
        team: the replicas that train together, None for this one alone; figures and gradients are of the whole batch.

    Raises:
        DivergedError: on a processor, loss, gradient or a running statistic is not finite; the state is as before.
    """
    team = team or Team(ALONE, state.model, batch_size=len(batch.labels), seconds=lambda: 0.0)
    state.optimizer.zero_grad()
    first_logits: list[Tensor] = []
    check.remember()
    for part in team.parts(len(batch.labels)):
        labels_B = batch.labels[part]
        seed_draws(state.seed, team.position(state.step, part), labels_B.device)
        with precision.autocast():
            logits_BK = team.forward(batch.images[part])
        logits_BK = logits_BK.float()
        loss = F.cross_entropy(logits_BK, labels_B, label_smoothing=label_smoothing)
        first_logits.append(logits_BK.detach()[0])
        team.begin(loss, logits_BK.detach().argmax(1) == labels_B)
        (loss * (precision.loss_scale * team.loss_factor(len(labels_B)))).backward()
        team.collect()
    whole = team.finish()
    if precision.loss_scale != 1:
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / precision.loss_scale)
    figures = check.measure(whole.loss, whole.accuracy)
    if figures.device.type == "cpu":
        check.check(state.step + 1, figures)
    if before_update:
        before_update()
    state.optimizer.step()
    if state.average is not None:
        state.average.update(state.step)
    state.step += 1
    return StepResult(
        figures=figures,
        first_label=batch.labels[0],
        first_logits=first_logits[0],
    )


def seed_draws(seed: int, position: int, device: torch.device) -> None:
    """Make what the network draws in its forward pass, as dropout does, a function of the run's seed and the pictures.

    So it is the same after a resume, and on any number of devices that cut the batch alike (`--grain`), and different
    for parts that are computed beside each other.

    Args:
        seed: of the run.
        position: of the first picture of the part, through all epochs.
        device: where the network is.
    """
    (word,) = words(1, seed=seed, epoch=position, stream=Stream.NETWORK).tolist()
    if device.type == "cpu":
        torch.default_generator.manual_seed(word)  # the others too would take a hundred microseconds, without a GPU
    else:
        torch.manual_seed(word)
