"""What a finished training can go on with, and how it is concluded where something refuses."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from thumbnet.config import Recipe, recipe_from_dict, recipe_to_dict
from thumbnet.data.dataset import Splits
from thumbnet.errors import UsageError
from thumbnet.monitor.console import format_duration
from thumbnet.runs.facts import write_facts
from thumbnet.runs.run import Run
from thumbnet.training.session import resumed_recipe


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Run:
    return Run.create(tmp_path, recipe_from_dict(recipe_to_dict(recipe), {"train.steps": 2}), "run")


def test_a_result_is_written_though_tensorboards_files_cannot_be(train: Callable, run: Run) -> None:
    (run.path / "tensorboard").write_text("in the way")
    train(run, look_at_test=True)
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
    train(run, look_at_test=True)
    assert run.finished
    assert "TensorBoard's files are not complete: [Errno 28] No space left" in (run.path / "log.txt").read_text()


def test_a_result_is_written_though_the_reports_cannot_be(train: Callable, run: Run) -> None:
    (run.path / "evaluation").write_text("in the way")
    train(run, look_at_test=True)
    assert run.finished
    (warning,) = [line for line in (run.path / "log.txt").read_text().splitlines() if line.startswith("warning")]
    assert re.fullmatch(
        rf"warning: {run.path}/evaluation: not complete: .*: `thumbnet eval {run.path}` writes the reports", warning
    )


def test_a_result_is_written_though_memory_does_not_suffice_for_the_plots(
    train: Callable, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("thumbnet.training.session.draw_plots", refuse)
    train(run, look_at_test=True)
    assert run.finished
    assert "run/evaluation: not complete: MemoryError" in (run.path / "log.txt").read_text()


def test_a_run_that_time_has_finished_needs_more_time(
    train: Callable, recipe: Recipe, splits: Splits, tmp_path: Path
) -> None:
    limited = recipe_from_dict(recipe_to_dict(recipe), {"train.steps": 0, "train.time_limit_s": 0.2})
    run = Run.create(tmp_path, limited, "run")
    write_facts(run.path, splits)
    train(run)
    took = format_duration(json.loads((run.path / "result.json").read_text())["train_seconds"])
    wanted = f"this run has finished: give a --time of more than {took} to go on with it"
    for overrides in ({}, {"train.steps": 100_000}, {"train.keep": 5}):
        with pytest.raises(UsageError, match=wanted):
            resumed_recipe(run, overrides)
    assert resumed_recipe(run, {"train.time_limit_s": 9.0}).train.time_limit_s == 9
    with pytest.raises(UsageError, match="give more --steps or --epochs to go on"):
        resumed_recipe(run, {"train.time_limit_s": 9.0, "train.steps": run.checkpoints.steps()[-1]})


def test_a_run_interrupted_in_its_evaluation_has_that_left_to_do(
    train: Callable, recipe: Recipe, splits: Splits, run: Run
) -> None:
    write_facts(run.path, splits)
    train(run)
    (run.path / "result.json").unlink()
    assert resumed_recipe(run, {}) == run.recipe
    outcome = train(run, resume=True)
    assert (outcome.session_steps, outcome.images_per_second, outcome.wait_fraction) == (0, None, None)
    assert json.loads((run.path / "result.json").read_text())["images_per_second"] is None
