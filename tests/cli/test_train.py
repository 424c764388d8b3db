"""The training command as a user runs it, on the built-in shapes."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thumbnet.cli.flags import setting
from thumbnet.cli.main import main
from thumbnet.data.dataset import Splits
from thumbnet.errors import DataError
from thumbnet.training import whole

SMALL = ["--data", "shapes", "--preset", "classic", "--batch-size", "50", "--precision", "fp32", "--threads", "1"]
UNTESTED = [*SMALL, "--no-test"]
"""Without a look at the test set, whose plots take longer than such a training."""


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights_of(run: Path) -> bytes:
    return (max((run / "checkpoints").glob("step-*")) / "model.safetensors").read_bytes()


def test_a_whole_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *SMALL, "--steps", "12", "--validation", "500", "--out", str(tmp_path), "--name", "one"]
    assert main([*arguments, "--json", "--summary-every", "5", "--checkpoint-every", "5"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert {"run", "preset", "steps", "epochs", "start_seconds", "train_seconds", "images_per_second"} <= set(result)
    assert set(result["test"]) == {"average", "raw"}
    assert 0 <= result["test"]["average"]["accuracy"] <= 1
    assert (result["steps"], result["preset"], result["precision"]) == (12, "classic", "fp32")
    assert result["epochs"] == pytest.approx(12 * 50 / 4500)
    run = Path(result["run"])
    assert files_of(run) >= {
        "recipe.toml",
        "run.json",
        "metrics.jsonl",
        "log.txt",
        "result.json",
        "evaluation/training.png",
        "evaluation/step-00000012-test.json",
        "evaluation/step-00000012-test-confusion.png",
        "checkpoints/step-00000012/model.safetensors",
        "checkpoints/step-00000012/average.safetensors",
        "checkpoints/step-00000012/state.safetensors",
        "checkpoints/step-00000012/manifest.json",
    }
    assert list((run / "tensorboard").glob("events*"))
    assert json.loads((run / "result.json").read_text()) == result
    assert "img/s" in output.err
    assert "\r" not in output.err
    assert output.err.count("validation accuracy") == 3
    assert main(["eval", str(run), "--json", "--no-plots"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    for weights in ("average", "raw"):
        assert evaluated[weights]["accuracy"] == result["test"][weights]["accuracy"]


def test_a_run_repeats_from_its_own_recipe(tmp_path: Path) -> None:
    flags = ["--no-test", "--threads", "1", "--out", str(tmp_path)]
    assert main(["train", *SMALL, "--steps", "4", "--seed", "3", *flags, "--name", "first"]) == 0
    recipe = str(tmp_path / "first" / "recipe.toml")
    assert main(["train", "--recipe", recipe, *flags, "--name", "again"]) == 0
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "first")
    assert main(["train", "--recipe", recipe, "--seed", "4", *flags, "--name", "other"]) == 0
    assert weights_of(tmp_path / "other") != weights_of(tmp_path / "first")


def test_runs_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *UNTESTED, "--steps", "2", "--out", str(tmp_path)]
    assert main([*arguments, "--name", "one"]) == 0
    before = weights_of(tmp_path / "one")
    assert main([*arguments, "--name", "one"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert weights_of(tmp_path / "one") == before
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_the_tutorials_step_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--steps", "3", "--out", str(tmp_path), "--log-format", "tutorial", "--log_frequency", "1"]
    assert main(["train", *UNTESTED, *arguments]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "examples/sec" in line]
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"
    pattern = clock + r": step \d+, loss = \d+\.\d\d \(\d+\.\d examples/sec; \d+\.\d{3} sec/batch\)"

    assert len(lines) == 3
    assert all(re.fullmatch(pattern, line) for line in lines), lines
    assert ": step 0, " in lines[0]
    assert "loss = 4.6" in lines[0]


def test_a_training_brings_in_no_compiler(tmp_path: Path) -> None:
    """What torch.compile needs takes a third of the time of all imports, and nothing is compiled by it."""
    words = ["train", "--data", "shapes", "--steps", "2", "--batch-size", "8", "--threads", "1", "--no-test"]
    program = (
        "import sys\nfrom thumbnet.cli.main import main\n"
        f"assert main({[*words, '--out', str(tmp_path)]!r}) == 0\n"
        "assert not {'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_of_2015(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("thumbnet.engine.usable_cores", lambda *_: 1)
    monkeypatch.setattr("thumbnet.data.shapes.TEST_COUNT", 20)  # bf16 takes its time where it is emulated
    arguments = ["train", "--data", "shapes", "--preset", "classic", "--train_dir", str(tmp_path), "--max_steps", "2"]
    assert main([*arguments, "--batch_size", "32", "--num_gpus", "4", "--use_fp16", "--log_device_placement"]) == 0
    output = capsys.readouterr().err
    assert "--devices 4: this machine has 1 core to use" in output
    assert "processor" in output
    assert "bf16" in output


def test_more_images_in_a_batch_than_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--data", "shapes", "--steps", "2", "--batch-size", "5001", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "larger than the training set (5,000 images)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_true_and_false_may_be_written_as_in_python() -> None:
    words = {"true": True, "True": True, "False": False, "0.5": 0.5, "none": "none", "'False'": "False"}
    for word, value in words.items():
        assert setting(f"model.options.residual={word}") == ("model.options.residual", value)


def test_a_home_folder_that_the_shell_has_left_to_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["train", *UNTESTED, "--steps", "1", "--out=~/runs", "--name", "one"]) == 0
    assert (tmp_path / "runs" / "one" / "result.json").exists()


def test_the_log_has_what_was_told_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = whole.load_splits

    def telling(*arguments: Any, note: Callable[[str], None], **keywords: Any) -> Splits:
        note("three pictures twice")
        return load(*arguments, note=note, **keywords)

    monkeypatch.setattr(whole, "load_splits", telling)
    assert main(["train", *UNTESTED, "--steps", "1", "--out", str(tmp_path), "--name", "one"]) == 0
    first, second, *_ = (tmp_path / "one" / "log.txt").read_text().splitlines()
    assert first == "three pictures twice"
    assert second.startswith("run ")


def test_while_its_data_is_fetched_a_run_is_seen_to_be_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def looked_at(*_: Any, **__: Any) -> Splits:
        assert main(["info", "one", "--out", str(tmp_path)]) == 1
        assert "its pictures are still being read" in capsys.readouterr().err
        raise DataError("no more of them")

    monkeypatch.setattr(whole, "load_splits", looked_at)
    (tmp_path / "flowers").mkdir()
    assert main(["train", *UNTESTED, "--data", str(tmp_path / "flowers"), "--out", str(tmp_path), "--name", "one"]) == 3
    assert "no more of them" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "clasic"], "did you mean 'classic'"),
        (["--set", "model.options.widths=3"], "model.options.widths: no such option of 'classic' - known: initial_std"),
        (["--preset", "fast", "--set", "model.options.widths=3"], "takes three whole numbers above 0"),
        (["--preset", "best", "--set", "model.options.residual=no"], "residual is 'no': it must be true or false"),
        (["--set", "model.options.initial_std=0"], "initial_std is 0: it must be a number above 0"),
        (["--set", "optimizer.weight_decay.conv9=0.1"], "optimizer.weight_decay.conv9: no such layer"),
        (["--epochs", "2"], "--steps and --epochs: give one of the two"),
        (["--epochs", "0"], "must be a number above 0, found '0'"),
    ],
)
def test_an_impossible_network_or_length_is_refused_before_anything_is_done(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The data set would have to be fetched: the answer comes before that.
    cache = tmp_path / "cache"
    command = ["train", "--data", "cifar10", "--offline", "--steps", "1", "--data-dir", str(cache)]
    assert main([*command, "--preset", "classic", "--out", str(tmp_path / "runs"), *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) <= 3
    assert not list(tmp_path.iterdir())


def test_interrupted_while_the_network_is_built_a_new_run_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("thumbnet.training.session.new_state", interrupt)
    assert main(["train", *SMALL, "--steps", "1", "--out", str(tmp_path)]) == 130
    assert not list(tmp_path.iterdir())
    capsys.readouterr()


def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("thumbnet.runs.checkpoint.write_new_file", refuse)
    assert main(["train", *SMALL, "--steps", "1", "--out", str(tmp_path)]) == 1
    assert "There is none before it: free some space on that disk, then start again" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["train", *SMALL, "--steps", "2", "--out", str(blocked)]) == 2
    assert str(blocked) in capsys.readouterr().err


def test_divergence_is_exit_1_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--steps", "9", "--lr", "1e20", "--out", str(tmp_path), "--name", "one"]
    assert main(["train", *SMALL, *arguments]) == 1
    error = capsys.readouterr().err
    assert "Model diverged" in error
    assert "Traceback" not in error


def test_the_test_set_can_be_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *SMALL, "--steps", "2", "--validation", "100", "--out", str(tmp_path), "--name", "one"]
    assert main([*arguments, "--no-test", "--json"]) == 0
    output = capsys.readouterr()
    assert "test" not in json.loads(output.out)
    assert "test accuracy" not in output.err
    assert "validation accuracy" in output.err
    assert not list((tmp_path / "one" / "evaluation").glob("*test*"))
