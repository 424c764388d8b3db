from datetime import date
from pathlib import Path

import pytest

from thumbnet.config import Recipe
from thumbnet.distributed.replicas import ALONE
from thumbnet.runs.run import Run
from thumbnet.training.together import insist_same_command, run_of_job


def test_a_command_may_hold_what_json_cannot_say() -> None:
    """The recipe refuses it, and says so better."""
    insist_same_command(ALONE, {"optimizer.learning_rate": date(2024, 1, 1)})


@pytest.fixture
def begun(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of this job, which was killed and restarted."""
    monkeypatch.setattr("thumbnet.training.together.job_of", lambda _: "job")
    monkeypatch.setattr("thumbnet.runs.run.job_of", lambda _: "job")
    return Run.create(tmp_path, recipe, "run")


def test_a_restarted_job_deletes_a_run_that_holds_nothing(begun: Run, tmp_path: Path) -> None:
    (begun.checkpoints.folder / ".tmp-step-00000001").mkdir()
    assert run_of_job(tmp_path, 0.1, lambda _: None) is None
    assert not begun.path.exists()


@pytest.mark.parametrize("name", ["step-00000003", ".replaced-step-00000003"])
def test_a_restarted_job_keeps_a_run_with_anything_of_a_checkpoint(begun: Run, tmp_path: Path, name: str) -> None:
    """One that lacks a file, as after a copy cut short, or one that a killed save has moved."""
    (begun.checkpoints.folder / name).mkdir()
    notes: list[str] = []
    found = run_of_job(tmp_path, 0.1, notes.append)
    assert found is not None
    assert found.path == begun.path
    assert (begun.checkpoints.folder / "step-00000003").is_dir()
    assert "goes on with its run" in notes[0]
