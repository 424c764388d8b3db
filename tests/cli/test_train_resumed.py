"""Trainings of the built-in shapes that are stopped, killed, made longer: what a resume goes on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from thumbnet.cli.main import main
from thumbnet.evaluation import evaluate
from thumbnet.input.pipeline import Batch
from thumbnet.runs.run import Run
from thumbnet.training import loop

SMALL = ["--data", "shapes", "--preset", "classic", "--batch-size", "50", "--precision", "fp32", "--threads", "1"]
UNTESTED = [*SMALL, "--no-test"]
"""Without a look at the test set, whose plots take longer than such a training."""


def weights_of(run: Path) -> bytes:
    return (max((run / "checkpoints").glob("step-*")) / "model.safetensors").read_bytes()


class Training:
    """A training in another process, on one thread, that can be signalled once it is past a step."""

    def __init__(self, out: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "thumbnet.cli.main", "train", *arguments, "--out", str(out)]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def wait_for_step(self, run: Path, step: int) -> None:
        """Wait until the metrics tell of a step; fail when the process ends before."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            metrics = run / "metrics.jsonl"
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if lines and lines[-1].endswith("}") and json.loads(lines[-1])["step"] >= step:
                return
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        raise AssertionError("the training did not get that far in two minutes")

    def end(self) -> tuple[int, str]:
        """Wait for the end; give exit code and standard error."""
        _, error = self.process.communicate(timeout=120)
        return self.process.returncode, error


MID_EPOCH = ("--steps", "60")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The final weights of 60 steps without an interruption; 100 steps are an epoch."""
    out = tmp_path_factory.mktemp("uninterrupted")
    assert main(["train", *UNTESTED, *MID_EPOCH, "--out", str(out), "--name", "run"]) == 0
    return weights_of(out / "run")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["kill", "term", "int"]
)
def test_interrupted_in_mid_epoch_and_resumed_the_weights_are_the_same_to_the_byte(
    number: signal.Signals, code: int, uninterrupted: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = [*UNTESTED, *MID_EPOCH, "--name", "run", "--log-every", "1", "--checkpoint-every", "10"]
    training = Training(tmp_path, *arguments)
    training.wait_for_step(run, 23)
    training.process.send_signal(number)
    returned, error = training.end()
    assert returned == code, error
    if number is not signal.SIGKILL:
        assert f"thumbnet train --resume {run}" in error
        assert "Traceback" not in error
    assert not (run / "result.json").exists()
    # Without any other flag, as promised; and the newest run is found by itself.
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert "resumed after step" in capsys.readouterr().err
    assert weights_of(run) == uninterrupted
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def test_a_resume_passes_over_a_run_that_was_killed_before_its_first_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(name: str) -> None:
        assert main(["train", *UNTESTED, "--steps", "1", "--out", str(tmp_path), "--name", name]) == 0
        shutil.rmtree(tmp_path / name / "checkpoints")
        (tmp_path / name / "result.json").unlink()

    resume = ["train", "--resume", "--steps", "2", "--out", str(tmp_path)]
    killed("first")
    assert main(resume) == 1
    assert f"{tmp_path}: no run here has a checkpoint to go on from" in capsys.readouterr().err
    assert main(["train", *UNTESTED, "--steps", "1", "--out", str(tmp_path), "--name", "second"]) == 0
    killed("third")
    assert main(resume) == 0
    assert f"passed over {tmp_path / 'third'}, " in capsys.readouterr().err
    assert json.loads((tmp_path / "second" / "result.json").read_text())["steps"] == 2


def test_a_signal_in_the_last_save_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = loop.Training._save_unless_saved

    def interrupted(training: loop.Training, *, validate: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(training, validate=validate)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_save_unless_saved", interrupted)
        assert main(["train", *UNTESTED, "--steps", "2", "--out", str(tmp_path), "--name", "run"]) == 143
    assert not (tmp_path / "run" / "result.json").exists()
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("number", "code", "batch", "saved"),
    [(signal.SIGTERM, 143, 3, "stopped at step 2"), (signal.SIGINT, 130, 6, "stopped at step 4")],
    ids=["in mid-training", "after the last step"],
)
def test_a_signal_in_a_validation_ends_it_and_the_resume_validates(
    number: signal.Signals,
    code: int,
    batch: int,
    saved: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Each validation, after the second step and the fourth, is of four batches, two for each kind of weights.
    arguments = ["train", *UNTESTED, "--steps", "4", "--checkpoint-every", "2", "--validation", "1000"]
    arguments += ["--log-every", "1", "--out", str(tmp_path), "--name"]
    assert main([*arguments, "whole"]) == 0
    with monkeypatch.context() as patch:
        seen = signalled_at(batch, number, patch)
        assert main([*arguments, "parts"]) == code
        assert len(seen) == batch
    assert f"{saved}, saved; to go on: thumbnet train --resume {tmp_path / 'parts'}" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "result.json").exists()
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")
    keys = ("step", "loss", "validation_raw", "validation_average")
    told, expected = (
        [[row.get(key) for key in keys] for row in Run.open(tmp_path / name).read_metrics()]
        for name in ("parts", "whole")
    )
    assert told == expected


def signalled_at(batch: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> list[int]:
    """Let a batch of evaluations, counted from 1, bring a signal; the list gets the pictures of each."""
    seen: list[int] = []
    batches = evaluate.evaluation_batches

    def counted(*arguments: object) -> Iterator[Batch]:
        for images in batches(*arguments):  # type: ignore[arg-type]
            seen.append(len(images.labels))
            if len(seen) == batch:
                os.kill(os.getpid(), number)
            yield images

    patch.setattr(evaluate, "evaluation_batches", counted)
    return seen


def test_a_signal_in_the_evaluation_at_the_end_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = signalled_at(1, signal.SIGTERM, monkeypatch)
    assert main(["train", *SMALL, "--steps", "1", "--out", str(tmp_path), "--name", "run"]) == 143
    assert len(seen) == 1
    told = f"stopped after the last step, all are saved; to go on: thumbnet train --resume {tmp_path / 'run'}"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_resume_keeps_the_threads_that_its_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Sums over another number of threads round otherwise: the resume would not be exact.
    monkeypatch.setattr("thumbnet.engine.usable_cores", lambda *_: 2)
    steps = ["--steps", "2", "--out", str(tmp_path), "--name", "one"]
    assert main(["train", *UNTESTED, *steps]) == 0
    assert main(["train", "--resume", "--no-test", "--steps", "3", "--out", str(tmp_path)]) == 0
    assert ", 1 thread," in capsys.readouterr().err
    assert torch.get_num_threads() == 1
    assert main(["train", "--resume", "--no-test", "--steps", "4", "--out", str(tmp_path), "--threads", "2"]) == 0
    assert "the run began with --threads 1" in capsys.readouterr().err
    assert torch.get_num_threads() == 2


def test_a_resume_tells_what_rounds_otherwise_than_where_its_run_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *UNTESTED, "--steps", "1", "--out", str(tmp_path), "--name", "one"]) == 0
    resume = ["train", "--resume", "--no-test", "--out", str(tmp_path), "--steps"]
    assert main([*resume, "2"]) == 0
    assert "the run began with" not in capsys.readouterr().err
    written = tmp_path / "one" / "run.json"
    described = json.loads(written.read_text())
    described["machine"] |= {"kernels": "FPGA", "torch": "1.0"}
    del described["machine"]["device"]  # as a version that did not write it
    written.write_text(json.dumps(described))
    assert main([*resume, "3"]) == 0
    told = f"the run began with torch 1.0, now {torch.__version__}; kernels FPGA, now "
    assert told in capsys.readouterr().err


def test_resume_and_eval_find_the_data_where_the_training_had_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (30 * number, 9, 9)).save(path)
    data = ["--data", str(tmp_path / "pictures"), "--data-dir", str(tmp_path / "cache")]
    out = ["--threads", "1", "--out", str(tmp_path / "runs")]
    assert main(["train", *UNTESTED, *data, "--batch-size", "4", "--steps", "1", *out]) == 0
    assert main(["train", "--resume", "--steps", "2", *out]) == 0
    assert main(["eval", "--no-plots", *out]) == 0
    assert capsys.readouterr().err.count("decoding 8 pictures") == 1


@pytest.mark.parametrize("shorter", [["--steps", "2"], ["--epochs", "0.02"]])
def test_a_run_cannot_be_resumed_to_fewer_steps_than_it_has_done(
    shorter: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *UNTESTED, "--steps", "3", "--out", str(tmp_path), "--name", "one"]) == 0
    result, recipe = ((tmp_path / "one" / name).read_bytes() for name in ("result.json", "recipe.toml"))
    assert main(["train", "--resume", "--out", str(tmp_path), *shorter]) == 2
    assert "3 steps are done, and the length asked for is 2" in capsys.readouterr().err
    assert result == (tmp_path / "one" / "result.json").read_bytes()
    assert recipe == (tmp_path / "one" / "recipe.toml").read_bytes()


def test_a_running_training_cannot_be_resumed_by_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    training = Training(tmp_path, *UNTESTED, "--steps", "100000", "--name", "run", "--log-every", "1")
    try:
        training.wait_for_step(run, 2)
        recipe = (run / "recipe.toml").read_bytes()
        assert main(["train", "--resume", str(run), "--steps", "7"]) == 1
        assert "is training this run" in capsys.readouterr().err
        assert (run / "recipe.toml").read_bytes() == recipe
    finally:
        training.process.kill()
        training.end()


def test_a_resume_leaves_the_test_set_alone_where_its_run_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("thumbnet.data.shapes.TEST_COUNT", 50)
    out = ["--out", str(tmp_path)]
    assert main(["train", *SMALL, "--steps", "1", *out]) == 0
    assert "test" in json.loads(next(tmp_path.glob("*/result.json")).read_text())
    # From its beginning, or from a resume on.
    for steps, flags, tested in (("2", [], True), ("3", ["--no-test"], False), ("4", [], False)):
        capsys.readouterr()
        assert main(["train", "--resume", "--steps", steps, "--json", *flags, *out]) == 0
        assert ("test" in json.loads(capsys.readouterr().out)) == tested
    assert main(["train", *UNTESTED, "--steps", "1", *out, "--name", "new"]) == 0
    assert main(["train", "--resume", "--steps", "2", *out]) == 0
    assert "test" not in json.loads((tmp_path / "new" / "result.json").read_text())
