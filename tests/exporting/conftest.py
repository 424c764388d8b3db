"""Runs with a checkpoint of random weights, and what asks them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from thumbnet.config import load_preset
from thumbnet.data.dataset import Splits
from thumbnet.evaluation.predict import Predictor
from thumbnet.input.distort import prepare
from thumbnet.models import build_model
from thumbnet.runs.checkpoint import Checkpoint
from thumbnet.runs.facts import write_facts
from thumbnet.runs.run import Run


class Pictures:
    """A data set as far as a run keeps it: names, size, number."""

    name = "pictures"
    class_names = ("cat", "dog", "r\N{LATIN SMALL LETTER A WITH DIAERESIS}v")

    def __init__(self, side: int) -> None:
        self.image_shape = (side, side, 3)

    def __len__(self) -> int:
        return 9


@pytest.fixture(scope="session")
def make_predictor(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Predictor]:
    """Makes a run of a preset, in fp32, whose network takes pictures of a side and gives logits up to 3."""

    def make(preset: str, *, side: int = 32, **overrides: object) -> Predictor:
        recipe = load_preset(preset, {"average.decay": 0.0, "train.precision": "fp32", **overrides})
        run = Run.create(tmp_path_factory.mktemp("runs"), recipe, "run")
        pictures = Pictures(side)
        write_facts(run.path, Splits(train=pictures, validation=None, test=None))  # type: ignore[arg-type]
        torch.manual_seed(3)
        network = build_model(recipe.model, num_classes=3, crop=recipe.distort.crop)
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2.0)
        network.eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
            *_, last = (module for module in network.modules() if list(module.parameters(recurse=False)))
            noise = np.random.default_rng(4).integers(0, 256, (20, side, side, 3), dtype=np.uint8)
            largest = network(prepare(noise, recipe.distort)).abs().max()
            for parameter in last.parameters():
                parameter.mul_(3 / largest)
        model = {name: value.clone() for name, value in network.state_dict().items()}
        run.checkpoints.save(Checkpoint(step=7, model=model, average=None, state={}, info={}))
        return Predictor(run)

    return make


@pytest.fixture(scope="session")
def predictor(make_predictor: Callable[..., Predictor]) -> Predictor:
    """Of the classic network."""
    return make_predictor("classic")


@pytest.fixture(scope="session")
def exported(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its ONNX file."""
    from thumbnet.exporting.write import export_onnx

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(predictor, path)
    return path
