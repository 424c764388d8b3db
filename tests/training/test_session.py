"""How a training is concluded where the disk refuses."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from thumbnet.config import Recipe, recipe_from_dict, recipe_to_dict
from thumbnet.errors import ThumbnetError
from thumbnet.runs.run import Run


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Run:
    return Run.create(tmp_path, recipe_from_dict(recipe_to_dict(recipe), {"train.steps": 2}), "run")


def test_a_result_is_written_though_tensorboards_files_cannot_be(train: Callable, run: Run) -> None:
    (run.path / "tensorboard").write_text("in the way")
    train(run)
    assert json.loads((run.path / "result.json").read_text())["test"]["raw"]["accuracy"] >= 0
    (warning,) = [line for line in (run.path / "log.txt").read_text().splitlines() if line.startswith("warning")]
    assert f"{run.path / 'tensorboard' / 'eval'}: TensorBoard's files are not complete: [Errno 20]" in warning


def test_tensorboards_files_that_are_given_up_are_told_of(
    train: Callable, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        "thumbnet.training.session.add_summaries", lambda evaluation, events: events.add_values(2, refuse)
    )
    train(run)
    assert run.finished
    assert "TensorBoard's files are not complete: [Errno 28] No space left" in (run.path / "log.txt").read_text()


def test_a_training_whose_evaluation_cannot_be_written_says_what_to_do(train: Callable, run: Run) -> None:
    (run.path / "evaluation").write_text("in the way")
    with pytest.raises(ThumbnetError, match=r"run/evaluation: cannot write: .*\nTo go on: check that disk") as error:
        train(run)
    assert "--eval-dir" not in str(error.value)
    assert not run.finished
    (run.path / "evaluation").unlink()
    train(run, resume=True)
    assert run.finished
