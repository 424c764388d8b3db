"""Small data and small runs with real checkpoints, as the evaluation meets them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from thumbnet.config import load_preset
from thumbnet.data.dataset import Splits
from thumbnet.evaluation.evaluator import Evaluation
from thumbnet.evaluation.metrics import Metrics, compute_metrics
from thumbnet.models import build_model
from thumbnet.runs.checkpoint import Checkpoint
from thumbnet.runs.run import Run

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Pictures:
    """Random pictures in memory with the interface of an ImageDataset."""

    def __init__(self, count: int, *, seed: int = 0, side: int = 12) -> None:
        rng = np.random.default_rng(seed)
        self.name = "pictures"
        self.class_names = CLASS_NAMES
        self.image_shape = (side, side, 3)
        self.images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 10, count)
        self.served: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices):
        self.served += indices.tolist()
        return self.images[indices], self.labels[indices]

    def key(self, index):
        return f"pictures.bin:{index}"

    def take(self, indices):
        part = Pictures(0)
        part.image_shape = self.image_shape
        part.images, part.labels = self.images[indices], self.labels[indices]
        return part


@pytest.fixture
def pictures() -> type[Pictures]:
    return Pictures


@pytest.fixture
def splits() -> Splits:
    return Splits(train=Pictures(30, seed=1), validation=Pictures(20, seed=2), test=Pictures(50, seed=3))


def checkpoint_of(run: Run, step: int) -> Checkpoint:
    """A checkpoint with fresh weights that the step decides."""
    torch.manual_seed(step)
    raw, average = (
        build_model(run.recipe.model, num_classes=10, crop=run.recipe.distort.crop).state_dict() for _ in range(2)
    )
    average = average if run.recipe.average.decay else None
    return Checkpoint(step=step, model=raw, average=average, state={}, info={})


@pytest.fixture
def save() -> Callable[..., None]:
    def save(run: Run, step: int, metric: float | None = None) -> None:
        run.checkpoints.save(checkpoint_of(run, step), metric)

    return save


@pytest.fixture
def save_overflowing() -> Callable[[Run, int], None]:
    """A checkpoint whose weights are finite and whose logits are not."""

    def save(run: Run, step: int) -> None:
        checkpoint = checkpoint_of(run, step)
        for weights in (checkpoint.model, checkpoint.average):
            weights["local4.bias"].fill_(1e10)
            weights["softmax_linear.weight"].fill_(1e38)
        run.checkpoints.save(checkpoint)

    return save


@pytest.fixture
def make_run(tmp_path: Path, save) -> Callable[..., Run]:
    def make(*steps: int, **overrides: object) -> Run:
        settings = {"distort.crop": 8, "train.precision": "fp32", "train.keep": 9}
        run = Run.create(tmp_path / "runs", load_preset("classic", settings | overrides), "trial")
        for step in steps:
            save(run, step)
        return run

    return make


def some_metrics(classes: tuple[str, ...] = CLASS_NAMES, *, gain: float = 2, examples: int = 200) -> Metrics:
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(examples, len(classes))), rng.integers(0, len(classes), examples)
    logits[np.arange(examples), labels] += gain
    return compute_metrics(logits, labels, classes)


@pytest.fixture
def make_metrics() -> Callable[..., Metrics]:
    return some_metrics


@pytest.fixture
def make_evaluation(tmp_path: Path) -> Callable[..., Evaluation]:
    def make(**changes: object) -> Evaluation:
        values = {
            "run": tmp_path / "runs" / "trial",
            "step": 1000,
            "split": "test",
            "limited": False,
            "precision": "fp32",
            "metrics": {"average": some_metrics(gain=3), "raw": some_metrics(gain=2)},
            "dataset": Pictures(200),
        }
        return Evaluation(**(values | changes))

    return make
