"""The training step over replicas: gradients averaged, figures added up, decisions made together."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thumbnet.distributed.replicas import Replicas
from thumbnet.models.modes import evaluation_mode
from thumbnet.monitor.health import batch_statistics

_STOP = "stop"
"""Key of the store by which a replica that is asked to stop between two steps tells the others."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Loss and accuracy of a whole batch."""

    loss: Tensor
    """Mean cross-entropy, a scalar."""
    accuracy: Tensor
    """Share of the images that were right, a scalar."""


class Team:
    """All replicas of one network, as the training loop sees them; on its own, nothing is exchanged.

    Every replica computes its share of the batch, and all make the same update of the same weights. What one replica
    alone can know (that a signal came, what its clock says) is cast as a vote with the figures of a step, and acted on
    by all after that step.
    """

    def __init__(self, replicas: Replicas, model: nn.Module, *, batch_size: int, seconds: Callable[[], float]) -> None:
        """Join a network to its copies.

        Args:
            replicas: from `joined`.
            model: this replica's copy; all are equal.
            batch_size: images of one step over all replicas.
            seconds: clock of the training; replica 0's counts.
        """
        self.replicas = replicas
        self._model, self._batch_size, self._seconds = model, batch_size, seconds
        self.share = replicas.share(batch_size)
        """Which images of a batch are this replica's."""
        self._portion: float = (self.share.stop - self.share.start) / batch_size
        self._parallel: DistributedDataParallel | None = None
        self._learning: list[bool] = []
        self._statistics = list(batch_statistics(model).values())
        self._agreed = [0.0] * 4
        self._stop, self._wait_s = 0, 0.0
        self._figures: Figures | None = None
        self._sums: list[Tensor] = []
        self._works: list[dist.Work] = []

    def parts(self, count: int) -> list[slice]:
        """Begin a step: return the parts in which this replica computes its `count` images, here all at once."""
        return [slice(0, count)]

    def position(self, step: int, part: slice) -> int:
        """Return which picture a part begins with, counted from the first of the training; `step` from 0."""
        first: int = step * self._batch_size + self.share.start + part.start
        return first

    def loss_factor(self, count: int) -> float:
        """Return the factor on the mean loss of `count` images that makes the gradients those of the whole batch."""
        return count / self._batch_size * self.replicas.count

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of this replica's images; the backward that follows averages the gradients."""
        self.get_ready(images)
        logits: Tensor = (self._parallel or self._model)(images)
        return logits

    def get_ready(self, images: Tensor) -> None:
        """Hook the gradients of the layers that learn at present, if that has not been done; takes any images."""
        if self.replicas.count == 1:
            return
        learning = [parameter.requires_grad for parameter in self._model.parameters()]
        if self._parallel is None or learning != self._learning:
            self._parallel, self._learning = None, learning
            gc.collect()  # the former one takes its hooks away when it goes
            # Batch statistics are averaged here; see `begin`.
            self._parallel = DistributedDataParallel(
                self._model, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
            if self.replicas.count > 2:
                self._settle_buckets(images)

    def _settle_buckets(self, images: Tensor) -> None:
        """Go forward and back once, without effect: from the second time on DDP's buckets stay as they are.

        The sum of three gradients depends on where in a bucket they lie. A resume would otherwise round its first step
        otherwise than a training that was not interrupted.
        """
        assert self._parallel is not None
        with evaluation_mode(self._model):  # which draws nothing and leaves statistics alone
            (self._parallel(images).sum() * 0).backward()
        for parameter in self._model.parameters():
            parameter.grad = None

    def begin(self, loss: Tensor, hits: Tensor) -> None:
        """Start adding up the figures of a step, between its forward and its backward.

        Args:
            loss: mean cross-entropy of this replica's images.
            hits: whether each of them was classified rightly, bool [b].
        """
        if self.replicas.count == 1:
            self._figures = Figures(loss=loss, accuracy=hits.float().mean())
            return
        mine = torch.stack([loss.detach() * self._portion, hits.sum() / self._batch_size]).double()
        self._sums = self._messages(mine)
        if self._statistics:
            self._sums.append(self._flat_statistics() * self._portion)
        self._works = [dist.all_reduce(values, async_op=True) for values in self._sums]

    def collect(self) -> None:
        """Take in the gradients of a part, after its backward: they are summed up already."""

    def finish(self) -> Figures:
        """Return the figures of the whole batch; its gradients are in their places."""
        if self.replicas.count == 1:
            assert self._figures is not None
            return self._figures
        for work in self._works:
            work.wait()
        if self._statistics:
            self._set_statistics(self._sums[-1])
        return self._read(self._sums)

    def _messages(self, figures: Tensor) -> list[Tensor]:
        """Return what all replicas sum up: figures, float64 [2], and votes, between processors in one message.

        Votes never leave the host, where they are read after every step: a GPU would have to be waited for.
        """
        votes = self._votes()
        return [torch.cat([figures, votes])] if figures.device.type == "cpu" else [figures, votes]

    def _votes(self) -> Tensor:
        """Return what this replica says beside its figures, float64 [4]."""
        clock = self._seconds() if self.replicas.rank == 0 else 0.0
        wait_s = self._wait_s / self.replicas.count
        votes = [self._stop == signal.SIGINT, self._stop == signal.SIGTERM, wait_s, clock]
        return torch.tensor(votes, dtype=torch.float64)

    def _read(self, sums: Sequence[Tensor]) -> Figures:
        """Return the figures, and keep the votes, of all replicas, from the sums of `_messages`."""
        figures = sums[0]
        self._agreed = (figures[2:] if figures.device.type == "cpu" else sums[1]).tolist()
        return Figures(loss=figures[0].float(), accuracy=figures[1].float())

    def _flat_statistics(self) -> Tensor:
        """Return a copy of the running statistics as one tensor."""
        return torch.cat([buffer.flatten() for buffer in self._statistics]) if self._statistics else torch.zeros(0)

    def _set_statistics(self, flat: Tensor) -> None:
        """Set the running statistics from one tensor."""
        for buffer, values in zip(
            self._statistics, flat.split([buffer.numel() for buffer in self._statistics]), strict=True
        ):
            buffer.copy_(values.view_as(buffer))

    def stop(self, requested: int | None) -> int | None:
        """Cast a vote to stop because of a signal; return the signal that all stop for, as of the step before."""
        if self.replicas.count == 1:
            return requested
        self._stop = requested or 0
        interrupted, terminated = self._agreed[:2]
        return signal.SIGTERM if terminated else signal.SIGINT if interrupted else None

    def hears_stop(self, requested: int | None) -> bool:
        """Tell, between two steps, whether a replica was asked to stop: this one, or another that has called this."""
        store = self.replicas.store
        if requested and store:
            store.set(_STOP, "")
        return bool(requested) or (store is not None and store.check([_STOP]))

    def agree_on_stop(self, requested: int | None) -> None:
        """Vote at once, not with the next step, on the signal that all stop for; every replica must call this."""
        if self.replicas.count > 1:
            self._stop = requested or 0
            self._agreed = self.replicas.sum(self._votes()).tolist()

    def seconds(self) -> float:
        """Return what the clock says that counts, as of the step before."""
        return self._seconds() if self.replicas.count == 1 else self._agreed[3]

    def waited(self, wait_s: float) -> float:
        """Tell how long this replica has waited for input; return the mean over all, as of the step before."""
        if self.replicas.count == 1:
            return wait_s
        self._wait_s = wait_s
        return self._agreed[2]
