import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from thumbnet.config import Recipe, load_preset
from thumbnet.data.dataset import ImageDataset, Splits
from thumbnet.data.shapes import draw_shapes
from thumbnet.monitor.console import Console
from thumbnet.monitor.signals import StopSignal
from thumbnet.runs.run import Run
from thumbnet.training.loop import Outcome
from thumbnet.training.session import conclude, open_training


class StopAfter(StopSignal):
    """Asks to stop, as SIGTERM does, once it was looked at this often: before each step, and each batch in between."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        super().__init__()

    @property
    def requested(self) -> int | None:  # type: ignore[override]
        self._looks -= 1
        return 15 if self._looks < 0 else None

    @requested.setter
    def requested(self, value: int | None) -> None:
        pass


@pytest.fixture
def train(splits: Splits) -> Callable[..., Outcome]:
    """Trains a run to its end, or until it was looked at for a stop as often as `stop_after`; tells its log alone.

    The test set, whose plots take longer than such a training, is looked at where `look_at_test` asks for it.
    """

    def train(run: Run, *, resume: bool = False, stop_after: int | None = None, look_at_test: bool = False) -> Outcome:
        with Console(run.recipe.train.log_format, io.StringIO(), run.path / "log.txt") as console:
            training = open_training(run, splits, console, resume=resume)
            outcome = training.fit(StopSignal() if stop_after is None else StopAfter(stop_after), lambda: None)
            if not outcome.stopped_by:
                conclude(training, outcome, 0.0, look_at_test=look_at_test)
        return outcome

    return train


@pytest.fixture(scope="session")
def newest_bytes() -> Callable[[Run], dict[str, bytes]]:
    """Gives the tensors of a run's newest checkpoint as bytes, by file name."""

    def newest_bytes(run: Run) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in run.checkpoints.path("latest").glob("*.safetensors")}

    return newest_bytes


@pytest.fixture(scope="session")
def splits() -> Splits:
    """The built-in shapes: 1,000 to train on, 300 to validate, 200 to test."""
    train, test = draw_shapes()
    return Splits(train=_first(train, 0, 1000), validation=_first(train, 1000, 1300), test=_first(test, 0, 200))


def _first(dataset: ImageDataset, start: int, stop: int) -> ImageDataset:
    return dataset.take(np.arange(start, stop))


@pytest.fixture
def recipe() -> Recipe:
    """A short training of the classic network in float32, whose batches straddle epochs."""
    return load_preset(
        "classic",
        {
            "data.name": "shapes",
            "input.batch_size": 48,
            "train.steps": 30,
            "train.precision": "fp32",
            "train.log_every": 5,
            "train.summary_every": 0,
            "train.checkpoint_every_steps": 10,
        },
    )


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
