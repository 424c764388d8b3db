"""What a training says of itself when it has ended."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thumbnet.config import Recipe, load_preset
from thumbnet.monitor.neighbours import Neighbours
from thumbnet.runs.run import Run
from thumbnet.training.loop import Outcome
from thumbnet.training.whole import TrainResult, _best_line, _speed_line, _threads_advice

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
    line = _speed_line(outcome(session_steps), FIGURES)
    assert line.startswith(f"trained 97 steps (2.0 epochs) {expected}")
    assert line.endswith("evaluation, not in this time, 1.5 s; 500 MiB resident")


def test_what_slowed_it_down_is_told_with_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thumbnet.engine.visible_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "waiting for input; other programs kept 0.9 cores busy meanwhile; evaluation" in _speed_line(
        outcome(97, cores_busy_elsewhere=0.93), FIGURES
    )
    assert "other programs" not in _speed_line(outcome(97, cores_busy_elsewhere=None), FIGURES)
    monkeypatch.setattr("thumbnet.engine.visible_cores", lambda: 3)
    assert "other programs" not in _speed_line(outcome(97, cores_busy_elsewhere=0.93), FIGURES), "there was a core left"


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
    advice = _threads_advice(Crowd(busy))
    assert (advice is None) == (advised is None)
    assert advice is None or f"--threads {advised} " in advice


def test_the_best_checkpoint_is_told_where_there_was_a_validation(
    train: Callable[..., Outcome], recipe: Recipe, tmp_path: Path
) -> None:
    run = Run.create(tmp_path, recipe, "run")
    assert _best_line(run) is None
    train(run)
    accuracies = {row["step"]: row["validation_average"] for row in run.read_metrics() if "validation_average" in row}
    best = run.checkpoints.best_step()
    command = f"thumbnet eval {run.path} --checkpoint best"
    assert _best_line(run) == f"best on validation: step {best}, {100 * accuracies[best]:.2f} %: {command}"


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
