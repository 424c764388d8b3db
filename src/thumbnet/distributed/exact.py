"""Gradients that are the same to the bit on any number of devices: computed grain by grain, summed without rounding.

How a sum over a batch rounds depends on how the batch is cut, and a network amplifies that: where two values of a
maximum all but tie, the last bit decides. So the batch is always cut into the same grains, whatever the number of
devices, and their gradients are summed in float64, where float32 values of similar size add up exactly in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from thumbnet.distributed.replicas import Replicas
from thumbnet.distributed.team import Figures, Team
from thumbnet.errors import UsageError


class ExactTeam(Team):
    """A team whose replicas take whole grains of the batch. Batch normalization is by grain."""

    def __init__(
        self, replicas: Replicas, model: nn.Module, *, batch_size: int, grain: int, seconds: Callable[[], float]
    ) -> None:
        """Join a network to its copies.

        Args:
            replicas: from `joined`.
            model: this replica's copy; all are equal.
            batch_size: images of one step over all replicas.
            grain: images whose gradients are computed together.
            seconds: clock of the training; replica 0's counts.

        Raises:
            UsageError: there are fewer grains than replicas, or the device cannot add in float64.
        """
        self._device = next(model.parameters()).device
        try:
            torch.zeros(1, dtype=torch.float64, device=self._device)
        except TypeError as error:
            raise UsageError(f"--grain sums in float64, which {self._device.type} lacks: train without it") from error
        super().__init__(replicas, model, batch_size=batch_size, seconds=seconds)
        grains = math.ceil(batch_size / grain)
        if grains < replicas.count:
            raise UsageError(
                f"--grain {grain} cuts a batch of {batch_size} into {grains}, too few for {replicas.count} devices: "
                f"use at most {batch_size // replicas.count}"
            )
        share = replicas.share(grains)
        self.share = slice(share.start * grain, min(share.stop * grain, batch_size))
        self._grain = grain
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        self._former = self._flat_statistics()
        # Those of PyTorch's batch normalization also count how often they were moved.
        self._counters = [value for name, value in model.named_buffers() if name.endswith("num_batches_tracked")]
        self._former_counts: list[Tensor] = []

    def parts(self, count: int) -> list[slice]:
        """Begin a step: return the grains of this replica's images."""
        self._former = self._flat_statistics()
        self._former_counts = [counter.clone() for counter in self._counters]
        # What all replicas sum up: loss, hits and votes; and the running statistics of batch normalization.
        self._sums = [torch.zeros(2, dtype=torch.float64, device=self._device), self._former.double().zero_()]
        self._gradients = []
        return [slice(start, min(start + self._grain, count)) for start in range(0, count, self._grain)]

    def loss_factor(self, count: int) -> float:
        """Return the share of the batch that `count` images are."""
        return count / self._batch_size

    def get_ready(self, images: Tensor) -> None:
        """Do nothing: gradients are taken from the network itself."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a grain."""
        logits: Tensor = self._model(images)
        return logits

    def begin(self, loss: Tensor, hits: Tensor) -> None:
        """Take in the figures of a grain, between its forward and its backward."""
        portion = len(hits) / self._batch_size
        self._sums[0][0] += loss.detach().double() * portion
        self._sums[0][1] += hits.sum() / self._batch_size
        if self._statistics:
            self._sums[1] += self._flat_statistics() * portion

    def collect(self) -> None:
        """Take in the gradients of a grain, after its backward."""
        if not self._gradients:
            learning = [parameter for parameter in self._model.parameters() if parameter.grad is not None]
            self._gradients = [(p, torch.zeros_like(p, dtype=torch.float64)) for p in learning]
        for parameter, total in self._gradients:
            assert parameter.grad is not None
            total += parameter.grad
            parameter.grad = None
        if self._statistics:
            self._set_statistics(self._former)

    def finish(self) -> Figures:
        """Return the figures of the whole batch; its gradients are in their places then."""
        flat = self.replicas.sum(torch.cat([total.flatten() for _, total in self._gradients]))
        sizes = [parameter.numel() for parameter, _ in self._gradients]
        for (parameter, _), values in zip(self._gradients, flat.split(sizes), strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(values.view(parameter.shape))
        if self._statistics:
            self._set_statistics(self.replicas.sum(self._sums[1]))
        for counter, former in zip(self._counters, self._former_counts, strict=True):
            counter.copy_(torch.minimum(counter, former + 1))  # a step counts once, however many grains it had here
        return self._read([self.replicas.sum(message) for message in self._messages(self._sums[0])])


def team_for(
    replicas: Replicas, model: nn.Module, *, batch_size: int, grain: int, seconds: Callable[[], float]
) -> Team:
    """Return the team that a recipe asks for: exact with a grain above 0."""
    if grain:
        return ExactTeam(replicas, model, batch_size=batch_size, grain=grain, seconds=seconds)
    return Team(replicas, model, batch_size=batch_size, seconds=seconds)
