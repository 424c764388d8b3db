"""Batches for training, made ahead in a background thread, and batches for evaluation."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from thumbnet.config import DistortConfig, InputConfig
from thumbnet.errors import DataError
from thumbnet.input.device import ResidentPictures, pack, pin, send
from thumbnet.input.distort import Draws, draw, prepare
from thumbnet.input.distort import distort as distort_batch
from thumbnet.input.order import PoolOrder
from thumbnet.input.pool import PoolReader

if TYPE_CHECKING:
    from thumbnet.data.dataset import ImageDataset

PREFETCH_BATCHES = 4
"""Finished batches waiting for the model: enough to bridge the computing of an epoch's order and draws."""

BLOCK_EXAMPLES = 256
"""Examples that are prepared at once, as whole batches: a call of NumPy costs as much as a picture or two."""
SENT_EXAMPLES = 2**16
"""Examples, at most an epoch, whose draws are sent to an accelerator at once: a copy may have to be waited for."""
BLOCK_BYTES = 2**20
"""Neighbours in the files that enter a pool together: read about as fast as the files from front to back."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Input of one step."""

    images: torch.Tensor
    """float32 [B, C, h, w] in channels-last memory format."""
    labels: torch.Tensor
    """int64 [B]."""
    indices: np.ndarray
    """Which examples of the data set these are, int64 [B]."""


def pool_examples(dataset: ImageDataset, config: InputConfig) -> int:
    """Return how many examples the shuffling pool holds: the fraction asked for, as far as memory allows."""
    return min(math.ceil(config.pool * len(dataset)), _budget_examples(dataset, config))


def _block_examples(dataset: ImageDataset, config: InputConfig) -> int | None:
    """Return how many neighbours enter the pool together, where memory has no room for the pool asked for."""
    if math.ceil(config.pool * len(dataset)) <= _budget_examples(dataset, config):
        return None
    return max(BLOCK_BYTES // math.prod(dataset.image_shape), 1)


def _budget_examples(dataset: ImageDataset, config: InputConfig) -> int:
    """Return how many pictures the memory of the pool has room for."""
    return config.pool_mib * 2**20 // math.prod(dataset.image_shape)


class TrainingInput:
    """Distorted batches without end, made ahead in a background thread.

    The stream of examples is continuous: position step * batch_size + i belongs to epoch position // n, so a batch may
    straddle two epochs and every picture comes exactly once an epoch. Batch k depends on (data set, configs, seed, k)
    alone: starting at step k continues exactly where a run of k steps ended.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        distort: DistortConfig,
        input: InputConfig,  # noqa: A002
        *,
        seed: int,
        start_step: int = 0,
        prefetch: int = PREFETCH_BATCHES,
        share: slice = slice(None),
        device: torch.device = _CPU,
    ) -> None:
        """Start making batches; on an accelerator, from a copy there of a data set within `input.pool_mib`.

        Args:
            dataset: training examples.
            distort: distortions.
            input: batch size and shuffling pool.
            seed: seed of order and distortions.
            start_step: step of the first batch.
            prefetch: finished batches held ready.
            share: which images of each batch to make; the others are made by other replicas.
            device: where batches are wanted.

        Raises:
            DataError: the data set is empty, or is damaged and was to be copied to an accelerator.
            UsageError: the crop is larger than the pictures.
        """
        if not len(dataset):
            raise DataError(f"{dataset.name}: there are no examples to train on")
        draw(0, distort, dataset.image_shape, seed=seed, epoch=0)  # tells of an impossible crop here and now
        self.wait_s = 0.0
        """Seconds the consumer has waited for batches, in all."""
        self._dataset, self._distort, self._input, self._seed = dataset, distort, input, seed
        self._prefetch, self._share, self._device = prefetch, share, device
        self._resident: ResidentPictures | None = None
        if device.type != "cpu" and len(dataset) <= _budget_examples(dataset, input):
            self._resident = ResidentPictures(dataset, distort, device)
        self._epoch_draws: dict[int, Draws] = {}
        # What is left to do for a batch on an accelerator is done by the thread that trains, in order with its work.
        self._ready: deque[Callable[[], Batch]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(start_step,), name="thumbnet-input", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Return the next batch, waiting for it if need be; raises what stopped the background thread, if anything."""
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._closed)
            self.wait_s += time.perf_counter() - started
            finish = self._ready.popleft() if self._ready else None
            self._changed.notify_all()
        if finish is not None:
            return finish()
        if self._error:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Stop the background thread and wait for its end; harmless when repeated."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, step: int) -> None:
        """Make batches until closed: the body of the background thread."""
        try:
            for finish in self._batches(step) if self._resident is None else self._resident_batches(step):
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self._prefetch or self._closed)
                    if self._closed:
                        return
                    self._ready.append(finish)
                    self._changed.notify_all()
        except BaseException as error:  # handed to the consumer, whatever it is
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _batches(self, step: int) -> Iterator[Callable[[], Batch]]:
        """Make the batches from `step` on; yields what brings each to the device."""
        block = max(BLOCK_EXAMPLES // self._input.batch_size, 1)
        for numbers, images_NHWC, labels in self._examples(step, block):
            images = distort_batch(images_NHWC, self._draws(numbers), self._distort)
            labels_N, indices = torch.from_numpy(labels), numbers % len(self._dataset)
            for part in self._parts(block):
                images_NCHW, labels_part = pin(images[part], self._device), pin(labels_N[part], self._device)
                batch = Batch(images=images_NCHW, labels=labels_part, indices=indices[part])
                yield functools.partial(self._sent, batch)

    def _resident_batches(self, step: int) -> Iterator[Callable[[], Batch]]:
        """Draw the batches from `step` on; yields what makes each from the pictures on the device."""
        block = max(min(SENT_EXAMPLES, len(self._dataset)) // self._input.batch_size, 1)
        for numbers in self._numbers(step, block):
            indices = numbers % len(self._dataset)
            packed = pin(pack(indices, self._draws(numbers)), self._device)
            sent = functools.cache(functools.partial(send, packed, self._device))
            for part in self._parts(block):
                yield functools.partial(self._cut_out, sent, part, indices[part])

    def _sent(self, batch: Batch) -> Batch:
        """Return a batch of the host on the device."""
        if self._device.type == "cpu":
            return batch
        images, labels = send(batch.images, self._device), send(batch.labels, self._device)
        return Batch(images=images, labels=labels, indices=batch.indices)

    def _cut_out(self, sent: Callable[[], torch.Tensor], part: slice, indices: np.ndarray) -> Batch:
        """Return a batch of the pictures on the device; `sent` gives the draws of its block there."""
        assert self._resident is not None
        packed = sent()[:, part]
        labels = self._resident.labels(packed)
        return Batch(images=self._resident.distorted(packed), labels=labels, indices=indices)

    def _parts(self, block: int) -> Iterator[slice]:
        """Yield, for each of `block` batches, where this replica's share of it is among its share of them all."""
        own = len(range(self._input.batch_size)[self._share])
        for start in range(0, block * own, own):
            yield slice(start, start + own)

    def _examples(self, step: int, block: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield numbers (through all epochs), pictures and labels of a replica's share, `block` batches at a time."""
        size, dataset = self._input.batch_size, self._dataset
        if len(dataset) > _budget_examples(dataset, self._input):
            near = _block_examples(dataset, self._input)
            reader = PoolReader(
                dataset, pool=self._pool(), block=near, seed=self._seed, position=step * size, share=self._own()
            )
            while True:
                yield reader.take(block * size)
        for numbers in self._numbers(step, block):
            yield numbers, *dataset.gather(numbers % len(dataset))

    def _numbers(self, step: int, block: int) -> Iterator[np.ndarray]:
        """Yield the numbers, through all epochs, of the examples of a replica's share, `block` batches at a time."""
        size = self._input.batch_size
        order = PoolOrder(len(self._dataset), pool=self._pool(), seed=self._seed, position=step * size)
        chosen = np.tile(self._own(), block)
        while True:
            numbers, _ = order.take(block * size)
            yield numbers[chosen]

    def _own(self) -> np.ndarray:
        """Return which images of a batch are this replica's, bool [batch_size]."""
        own = np.zeros(self._input.batch_size, bool)
        own[self._share] = True
        return own

    def _pool(self) -> int:
        """Return the places of the shuffling pool."""
        return min(max(pool_examples(self._dataset, self._input), 1), len(self._dataset))

    def _draws(self, numbers: np.ndarray) -> Draws:
        """Return the draws of examples, numbered through all epochs; those of the last epoch are kept for next time."""
        count = len(self._dataset)
        parts = []
        for epoch in range(numbers[0] // count, numbers[-1] // count + 1):
            if epoch not in self._epoch_draws:
                self._epoch_draws.clear()  # before the new ones: for millions of examples they count
                drawn = draw(count, self._distort, self._dataset.image_shape, seed=self._seed, epoch=epoch)
                self._epoch_draws[epoch] = drawn
            parts.append(self._epoch_draws[epoch].take((numbers % count)[numbers // count == epoch]))
        return Draws.concatenate(parts)


def evaluation_batches(
    dataset: ImageDataset, distort: DistortConfig, batch_size: int, share: slice = slice(None)
) -> Iterator[Batch]:
    """Yield every example exactly once, in order, undistorted; the last batch may be short.

    With `share`, only these of the batches: the others are another replica's.
    """
    for start in range(0, len(dataset), batch_size)[share]:
        indices = np.arange(start, min(start + batch_size, len(dataset)), dtype=np.int64)
        images_NHWC, labels_N = dataset.gather(indices)
        yield Batch(images=prepare(images_NHWC, distort), labels=torch.from_numpy(labels_N), indices=indices)
