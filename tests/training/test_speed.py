"""The speed network in the training loop: learns, and resumes exactly."""

import io
from pathlib import Path

import pytest
import torch

from thumbnet.config import Recipe, load_preset
from thumbnet.data.dataset import Splits
from thumbnet.models import grid
from thumbnet.monitor.console import Console
from thumbnet.monitor.signals import StopSignal
from thumbnet.runs.run import Run
from thumbnet.training.loop import Outcome
from thumbnet.training.session import open_training


class StopAt(StopSignal):
    """Asks to stop, as SIGTERM does, when it is looked at for the given time."""

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


def train(run: Run, splits: Splits, *, resume: bool = False, stop: StopSignal | None = None) -> Outcome:
    with Console(stream=io.StringIO(), log_path=run.path / "log.txt") as console:
        return open_training(run, splits, console, resume=resume).fit(stop or StopSignal(), lambda: None)


def newest_bytes(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.checkpoints.path("latest").glob("*.safetensors")}


def recipe(precision: str) -> Recipe:
    return load_preset(
        "fast",
        {
            "data.name": "shapes",
            "input.batch_size": 100,
            "model.options.widths": [32, 32, 64],
            "optimizer.rates": {"biases": 5.0, "head": 60.0},
            "train.steps": 24,
            "train.precision": precision,
            "train.checkpoint_every_steps": 8,
        },
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_and_resumed_training_is_the_same_to_the_bit(precision: str, splits: Splits, tmp_path: Path) -> None:
    if precision == "bf16" and not grid.amx_ready():
        pytest.skip("no AMX kernels on this machine, and emulated bf16 is slow")
    whole = Run.create(tmp_path, recipe(precision), "whole")
    outcome = train(whole, splits)
    parts = Run.create(tmp_path, recipe(precision), "parts")
    # The whitening bias freezes at step 9: one stop lies before it, one after.
    for resume, steps in ((False, 5), (True, 9)):
        train(parts, splits, resume=resume, stop=StopAt(steps))
    train(parts, splits, resume=True)
    assert newest_bytes(parts) == newest_bytes(whole)
    assert outcome.steps == 24
    assert whole.read_metrics()[-1]["validation_raw"] > 0.5


def test_whitening_comes_from_the_training_images(splits: Splits, tmp_path: Path) -> None:
    run = Run.create(tmp_path, recipe("fp32"), "run")
    train(run, splits, stop=StopAt(1))
    filters = run.checkpoints.latest(note=print).model["whiten.weight"]
    images, _ = splits.train.gather(torch.arange(1000).numpy())
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    outputs = torch.conv2d((values - mean[:, None, None]) / std[:, None, None], filters[:12])
    products = outputs.transpose(0, 1).flatten(1)
    products = products @ products.T / products.shape[1]
    off_diagonal = products - torch.diag(products.diagonal())
    assert off_diagonal.abs().max() < 1e-3
