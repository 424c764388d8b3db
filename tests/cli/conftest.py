"""A run for the commands that ask a network."""

from pathlib import Path

import pytest
from PIL import Image

from thumbnet.cli.main import main
from thumbnet.data.shapes import draw_shapes

TRAIN = ["--preset", "svhn", "--data", "shapes", "--batch-size", "20", "--steps", "3", "--threads", "1", "--no-test"]


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one, trained for three steps, and a picture beside it."""
    root = tmp_path_factory.mktemp("asked")
    assert main(["train", *TRAIN, "--precision", "fp32", "--out", str(root / "runs"), "--name", "one"]) == 0
    images, _ = draw_shapes()[1].gather([0])
    Image.fromarray(images[0]).save(root / "shape.png")
    return root / "runs"
