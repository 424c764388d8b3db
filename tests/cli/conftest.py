"""Runs for the commands that ask a network or evaluate it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thumbnet import engine
from thumbnet.cli.main import main
from thumbnet.config import DataConfig, load_preset
from thumbnet.data.dataset import Splits, split_validation
from thumbnet.data.shapes import draw_shapes
from thumbnet.models import build_model
from thumbnet.runs.checkpoint import Checkpoint
from thumbnet.runs.run import Run

TRAIN = ["--preset", "svhn", "--data", "shapes", "--batch-size", "20", "--steps", "3", "--threads", "1", "--no-test"]


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one, trained for three steps, and a picture beside it."""
    root = tmp_path_factory.mktemp("asked")
    assert main(["train", *TRAIN, "--precision", "fp32", "--out", str(root / "runs"), "--name", "one"]) == 0
    images, _ = draw_shapes()[1].gather([0])
    Image.fromarray(images[0]).save(root / "shape.png")
    return root / "runs"


@pytest.fixture(scope="module")
def shapes() -> Splits:
    """A little of the built-in shapes: 160 to train on, 40 to validate, 60 to test."""
    train, test = draw_shapes()
    rest, validation = split_validation(train.take(np.arange(200)), 40)
    return Splits(train=rest, validation=validation, test=test.take(np.arange(60)))


@pytest.fixture
def data(shapes, monkeypatch) -> list[DataConfig]:
    """Serve a little of the shapes at once; the list tells which data was asked for."""
    asked: list[DataConfig] = []

    def load(config, *, data_dir=None, offline=False, note=lambda _: None):
        asked.append(config)
        return Splits(train=shapes.train, validation=shapes.validation if config.validation else None, test=shapes.test)

    monkeypatch.setattr("thumbnet.evaluation.evaluator.load_splits", load)
    monkeypatch.setattr(engine, "prepare", lambda threads=None: None)
    return asked


@pytest.fixture(scope="session")
def save_checkpoint() -> Callable[..., None]:
    """Save a checkpoint of random weights into a run, chosen as best by `metric` where one is given."""

    def save(run: Run, step: int, metric: float | None = None) -> None:
        torch.manual_seed(step)
        model = build_model(run.recipe.model, num_classes=10, crop=run.recipe.distort.crop)
        raw = model.state_dict()
        average = {name: value * 0.5 for name, value in raw.items()} if run.recipe.average.decay else None
        run.checkpoints.save(Checkpoint(step=step, model=raw, average=average, state={}, info={}), metric)

    return save


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make_run(out: Path, save_checkpoint: Callable[..., None]) -> Callable[..., Run]:
    """Make a run on the shapes in `out`, with checkpoints of the steps."""

    def make(*steps: int, name: str = "trial", **overrides: object) -> Run:
        settings = {"data.name": "shapes", "distort.crop": 8, "train.precision": "fp32"}
        run = Run.create(out, load_preset("classic", settings | overrides), name)
        for step in steps:
            save_checkpoint(run, step)
        return run

    return make


@pytest.fixture
def evaluate(out: Path, data, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command; returns exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["eval", "--out", str(out), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run
