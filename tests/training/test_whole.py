"""What a whole training comes to."""

from pathlib import Path

import pytest

from thumbnet.config import load_preset
from thumbnet.training.whole import TrainResult


def test_curves_are_named_where_there_are_some(tmp_path: Path) -> None:
    result = TrainResult(run=tmp_path, figures={})
    assert "curves:" not in str(result)
    (tmp_path / "tensorboard" / "eval").mkdir(parents=True)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "training.png").touch()
    assert str(result).endswith(f"curves:           {tmp_path}/evaluation/training.png")
    (tmp_path / "tensorboard" / "events.out.tfevents.1").touch()
    assert str(result).endswith(f"training.png\nor:               tensorboard --logdir {tmp_path}/tensorboard")


@pytest.mark.parametrize("name", ["quick", "fast", "strong", "best", "cifar100"])
def test_a_preset_that_takes_minutes_can_be_resumed_and_followed(name: str) -> None:
    train = load_preset(name).train
    assert 0 < train.checkpoint_every_s <= 60
    assert train.summary_every > 0
