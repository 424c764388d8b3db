import shutil
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from thumbnet.engine import resolve_precision
from thumbnet.errors import CheckpointError
from thumbnet.evaluation.evaluator import Evaluator
from thumbnet.evaluation.watch import LOOK_S, watch


class Training:
    """A training in fast motion: every sleep of the watcher, the next thing happens."""

    def __init__(self, run, *events: Callable[[], None]) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(run.lock())
        self.events = list(events)
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert len(self.slept) < 1000
        if self.events:
            self.events.pop(0)()

    def stop(self) -> None:
        self.stack.close()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def follow(splits, notes):
    def follow(run, training: Training, every_s: float = 1e-6) -> list[int]:
        evaluator = Evaluator(run, splits, "test", weights=("raw",), precision=resolve_precision("fp32"))
        return [e.step for e in watch(evaluator, every_s=every_s, note=notes.append, sleep=training.sleep)]

    return follow


def test_every_checkpoint_is_evaluated_once_until_the_run_ends(make_run, save, follow, notes):
    run = make_run(10, 20)

    def save_last_and_end():
        save(run, 50)
        training.stop()

    training = Training(
        run, lambda: save(run, 30), lambda: None, lambda: save(run, 40), lambda: None, save_last_and_end
    )
    assert follow(run, training) == [10, 20, 30, 40, 50]
    assert notes == []
    assert training.events == []


def test_finished_run_ends_the_watch_though_its_process_lives(make_run, follow):
    run = make_run(10)
    training = Training(run, lambda: run.finish({"steps": 10}))
    assert follow(run, training) == [10]
    training.stop()


def test_run_that_nobody_trains_is_evaluated_once(make_run, follow):
    run = make_run(10, 20)
    training = Training(run)
    training.stop()
    assert follow(run, training) == [10, 20]
    assert training.slept == []


def test_end_is_noticed_within_the_interval(make_run, follow):
    run = make_run(10)
    training = Training(run, lambda: None, lambda: training.stop())
    assert follow(run, training, every_s=3600) == [10]
    assert training.slept == [LOOK_S] * 2


def test_new_checkpoints_are_looked_for_at_the_interval(make_run, follow, monkeypatch):
    run, now = make_run(10), [0.0]
    monkeypatch.setattr("thumbnet.evaluation.watch.time", SimpleNamespace(monotonic=lambda: now[0]))
    looked_at: list[float] = []
    steps = run.checkpoints.steps
    monkeypatch.setattr(run.checkpoints, "steps", lambda: looked_at.append(now[0]) or steps())

    class Clocked(Training):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            now[0] += seconds
            if now[0] > 7:
                self.stop()

    training = Clocked(run)
    assert follow(run, training, every_s=2.5) == [10]
    assert sorted(set(looked_at)) == [0, 2.5, 5, 7.5]


def test_run_without_a_checkpoint_yet_is_waited_for(make_run, save, follow):
    run = make_run()
    training = Training(run, lambda: None, lambda: save(run, 10), lambda: training.stop())
    assert follow(run, training) == [10]


def test_run_that_ends_without_a_checkpoint_is_an_error(make_run, follow):
    run = make_run()
    training = Training(run, lambda: training.stop())
    with pytest.raises(CheckpointError, match="ended without a checkpoint"):
        follow(run, training)


def test_damaged_checkpoint_is_named_once_and_left_out(make_run, follow, notes):
    run = make_run(10, 20, 30)
    (run.checkpoints.path(20) / "model.safetensors").write_bytes(b"not a model")
    training = Training(run, lambda: None, lambda: None, lambda: training.stop())
    assert follow(run, training) == [10, 30]
    assert len(notes) == 1
    assert "step-00000020/model.safetensors" in notes[0]


def test_checkpoint_deleted_before_it_is_read_is_left_out(make_run, splits, notes):
    run = make_run(10, 20, 30)
    evaluator = Evaluator(run, splits, "test", weights=("raw",), precision=resolve_precision("fp32"))
    steps = []
    for evaluation in watch(evaluator, every_s=1, note=notes.append, sleep=pytest.fail):
        steps.append(evaluation.step)
        shutil.rmtree(run.path / "checkpoints" / "step-00000020", ignore_errors=True)
    assert steps == [10, 30]
    assert notes == ["step 20: its checkpoint was deleted before it was read"]
