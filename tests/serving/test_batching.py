"""Pictures of several requests, asked about at once."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from thumbnet.serving.batching import Batcher


class Network:
    """Answers with the first value of each picture; can be held up."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        assert self.may_answer.wait(30)
        self.sizes.append(len(images_NHWC))
        if (images_NHWC == 13).any():
            raise ValueError("unlucky")
        if (images_NHWC == 17).any():
            return np.zeros((0, 1))
        return images_NHWC[:, 0, 0, :1].astype(np.float64)


def picture(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def run(network: Network, most: int, script: Callable[[Batcher], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        batcher = Batcher(network, most)
        async with batcher.running():
            await asyncio.wait_for(script(batcher), 30)

    asyncio.run(whole())


def test_what_came_meanwhile_is_asked_at_once_and_each_gets_its_own_answer() -> None:
    network = Network()

    async def script(batcher: Batcher) -> None:
        network.may_answer.clear()
        first = asyncio.create_task(batcher.ask(picture(100)))
        await asyncio.sleep(0)  # it is taken alone
        await asyncio.sleep(0)
        others = [asyncio.create_task(batcher.ask(picture(value))) for value in range(10)]
        await asyncio.sleep(0.01)
        network.may_answer.set()
        assert await first == [100]
        assert [(await other)[0] for other in others] == list(range(10))

    run(network, 4, script)
    assert network.sizes == [1, 4, 4, 2]


def test_a_failure_reaches_those_who_asked_and_nobody_else() -> None:
    network = Network()

    async def script(batcher: Batcher) -> None:
        with pytest.raises(ValueError, match="unlucky"):
            await batcher.ask(picture(13))
        assert await batcher.ask(picture(14)) == [14]

    run(network, 4, script)


def test_another_number_of_answers_than_of_pictures_reaches_those_who_asked() -> None:
    async def script(batcher: Batcher) -> None:
        with pytest.raises(ValueError, match="zip"):
            await batcher.ask(picture(17))
        assert await batcher.ask(picture(18)) == [18]

    run(Network(), 4, script)


def test_a_request_that_was_given_up_harms_nobody() -> None:
    network = Network()

    async def script(batcher: Batcher) -> None:
        network.may_answer.clear()
        asked = [asyncio.create_task(batcher.ask(picture(value))) for value in (1, 2, 13, 3)]
        await asyncio.sleep(0.01)
        for number in (0, 1, 2):
            asked[number].cancel()
        network.may_answer.set()
        given_up = await asyncio.gather(*asked[:3], return_exceptions=True)
        assert [type(answer) for answer in given_up] == 3 * [asyncio.CancelledError]
        assert await asked[3] == [3]
        assert await batcher.ask(picture(4)) == [4]

    run(network, 1, script)
