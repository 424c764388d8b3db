"""The speed network in the training loop: learns, and resumes exactly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thumbnet.config import Recipe, load_preset
from thumbnet.data.dataset import Splits
from thumbnet.models import grid
from thumbnet.runs.run import Run
from thumbnet.training.loop import Outcome

Train = Callable[..., Outcome]
Bytes = Callable[[Run], dict[str, bytes]]


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
def test_a_stopped_and_resumed_training_is_the_same_to_the_bit(
    train: Train, newest_bytes: Bytes, precision: str, tmp_path: Path
) -> None:
    if precision == "bf16" and not grid.amx_ready():
        pytest.skip("no AMX kernels on this machine, and emulated bf16 is slow")
    whole = Run.create(tmp_path, recipe(precision), "whole")
    outcome = train(whole)
    parts = Run.create(tmp_path, recipe(precision), "parts")
    # The whitening bias freezes at step 9: one stop lies before it, one after.
    for resume, steps in ((False, 5), (True, 9)):
        train(parts, resume=resume, stop_after=steps)
    train(parts, resume=True)
    assert newest_bytes(parts) == newest_bytes(whole)
    assert outcome.steps == 24
    assert whole.read_metrics()[-1]["validation_raw"] > 0.5


def test_whitening_comes_from_the_training_images(train: Train, splits: Splits, tmp_path: Path) -> None:
    run = Run.create(tmp_path, recipe("fp32"), "run")
    train(run, stop_after=1)
    filters = run.checkpoints.latest(note=print).model["whiten.weight"]
    images, _ = splits.train.gather(torch.arange(1000).numpy())
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    outputs = torch.conv2d((values - mean[:, None, None]) / std[:, None, None], filters[:12])
    products = outputs.transpose(0, 1).flatten(1)
    products = products @ products.T / products.shape[1]
    off_diagonal = products - torch.diag(products.diagonal())
    assert off_diagonal.abs().max() < 1e-3
