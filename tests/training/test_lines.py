"""What a training says of itself when it begins and when it has ended."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thumbnet.config import Recipe, load_preset
from thumbnet.data.dataset import Splits
from thumbnet.monitor.console import Console
from thumbnet.monitor.neighbours import Neighbours
from thumbnet.runs.run import Run
from thumbnet.training.lines import best_line, opening_lines, speed_line, threads_advice
from thumbnet.training.loop import Outcome
from thumbnet.training.session import open_training

FIGURES = {"test_seconds": 1.5, "memory_mib": 500.0}


def outcome(session_steps: int, *, cores_busy_elsewhere: float | None = 0.1) -> Outcome:
    return Outcome(
        steps=97,
        epochs=2.0,
        train_seconds=34.0,
        session_steps=session_steps,
        images_per_second=2900.0 if session_steps else None,
        wait_fraction=0.01 if session_steps else None,
        cores_busy_elsewhere=cores_busy_elsewhere,
        stopped_by=None,
    )


@pytest.mark.parametrize(
    ("session_steps", "expected"),
    [
        (97, "in 34s, 2,900 images/s, 1.0 % of it waiting for input; evaluation"),
        (20, "in 34s over all sessions; the last 20 of them, since the resume, 2,900 images/s, 1.0 % of it waiting"),
        (0, "in 34s, all of them before this session; evaluation"),
    ],
)
def test_the_speed_is_of_the_session_that_made_the_steps(session_steps: int, expected: str) -> None:
    line = speed_line(outcome(session_steps), FIGURES)
    assert line.startswith(f"trained 97 steps (2.0 epochs) {expected}")
    assert line.endswith("evaluation, not in this time, 1.5 s; 500 MiB resident")


def test_what_slowed_it_down_is_told_with_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thumbnet.engine.visible_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "waiting for input; other programs kept 0.9 cores busy meanwhile; evaluation" in speed_line(
        outcome(97, cores_busy_elsewhere=0.93), FIGURES
    )
    assert "other programs" not in speed_line(outcome(97, cores_busy_elsewhere=None), FIGURES)
    monkeypatch.setattr("thumbnet.engine.visible_cores", lambda: 3)
    assert "other programs" not in speed_line(outcome(97, cores_busy_elsewhere=0.93), FIGURES), "there was a core left"


def test_the_sizes_of_pictures_are_told(splits: Splits, tmp_path: Path) -> None:
    growing = [[0.2, 0.5], [0.4, 0.51], [0.6, 0.75]]
    recipe = load_preset("quick", {"data.name": "shapes", "input.batch_size": 50, "schedule.resize": growing})
    run = Run.create(tmp_path, recipe, "run")
    with Console("default", io.StringIO(), run.path / "log.txt") as console:
        lines = opening_lines(open_training(run, splits, console, resume=False))
    assert "network speed: 568,728 parameters, input 16x16, then 24x24, then 32x32, batch 50" in lines


class Crowd(Neighbours):
    """Other programs, on four cores."""

    cores = 4

    def __init__(self, busy: float | None) -> None:
        self.busy = busy

    def busy_cores(self) -> float | None:
        return self.busy


@pytest.mark.parametrize(
    ("busy", "threads", "advised"),
    [(1.0, 4, 3), (2.4, 4, 2), (4.0, 4, 1), (0.5, 4, None), (0.4, 4, None), (None, 4, None), (1.0, 3, None)],
)
def test_threads_are_advised_where_others_leave_fewer_cores(
    busy: float | None, threads: int, advised: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    advice = threads_advice(Crowd(busy))
    assert (advice is None) == (advised is None)
    assert advice is None or f"--threads {advised} " in advice


def test_the_best_checkpoint_is_told_where_there_was_a_validation(
    train: Callable[..., Outcome], recipe: Recipe, tmp_path: Path
) -> None:
    run = Run.create(tmp_path, recipe, "run")
    assert best_line(run) is None
    train(run)
    accuracies = {row["step"]: row["validation_average"] for row in run.read_metrics() if "validation_average" in row}
    best = run.checkpoints.best_step()
    command = f"thumbnet eval {run.path} --checkpoint best"
    assert best_line(run) == f"best on validation: step {best}, {100 * accuracies[best]:.2f} %: {command}"
