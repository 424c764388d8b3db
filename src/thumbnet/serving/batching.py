"""Pictures of several requests asked about at once: what came while the network was busy makes the next batch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MOST = 32
"""Pictures in a batch: a larger one makes the first of it wait, and is no faster for each."""


class Batcher:
    """Asks a network about single pictures, as many at once as wait."""

    def __init__(self, ask: Callable[[np.ndarray], np.ndarray], most: int = MOST) -> None:
        """Start nothing yet: `running` does.

        Args:
            ask: takes pictures [n, H, W, C] and returns probabilities [n, classes]; called in a thread of its own.
            most: pictures that it is given at once.
        """
        self._ask_network = ask
        self._most = most
        self._waiting: asyncio.Queue[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer while entered."""
        with ThreadPoolExecutor(1, "network") as thread:
            answering = asyncio.create_task(self._answer(thread))
            try:
                yield
            finally:
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await answering

    async def ask(self, image_HWC: np.ndarray) -> np.ndarray:
        """Return the probability of each class, [classes].

        Raises:
            Exception: whatever the network's call raised.
        """
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((image_HWC, answer))
        return await answer

    async def _answer(self, thread: ThreadPoolExecutor) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            answers = [answer for _, answer in batch]
            try:
                images_NHWC = np.stack([image for image, _ in batch])
                probabilities_NC = await asyncio.get_running_loop().run_in_executor(
                    thread, self._ask_network, images_NHWC
                )
                answered = list(zip(answers, probabilities_NC, strict=True))
            except Exception as error:  # belongs to those who asked; the next batch is not concerned
                for answer in answers:
                    if not answer.done():  # a request that was given up has no use for it
                        answer.set_exception(error)
            else:
                for answer, probabilities_C in answered:
                    if not answer.done():
                        answer.set_result(probabilities_C)
