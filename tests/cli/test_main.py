import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from thumbnet import __version__
from thumbnet.cli.main import COMMANDS, build_parser, main


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_needs_nothing_heavy(arguments: list[str]) -> None:
    """Help answers at once because torch, numpy and matplotlib are not imported for it."""
    program = (
        "import sys\nfrom thumbnet.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'tensorboard', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: thumbnet" in done.stdout


def test_the_package_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "thumbnet", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("thumbnet ")


def test_closed_streams_are_no_error(tmp_path: Path) -> None:
    """As `thumbnet <&- >&- 2>&-`; a file that is opened later must not be taken for one of them."""
    picture = tmp_path / "p.png"
    Image.new("RGB", (32, 32)).save(picture)
    train = "train --data shapes --preset svhn --batch-size 20 --steps 1 --threads 1 --no-test --out r --name one"
    for words in ("info", train, f"predict {picture} --out r", "data verify"):
        words = f"'{sys.executable}' -m thumbnet {words} <&- >&- 2>&-"
        done = subprocess.run(words, shell=True, cwd=tmp_path, check=False, env={**os.environ, "HOME": str(tmp_path)})
        assert done.returncode == (3 if "verify" in words else 0), words
    assert (tmp_path / "r" / "one" / "result.json").exists()


def test_a_full_disk_behind_stdout_is_told() -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m thumbnet info > /dev/full", shell=True, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "thumbnet: error: cannot write: No space left on device\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "COMMAND"),
        (["trian"], "did you mean 'train'"),
        (["train", "--stpes", "3"], "did you mean '--steps'"),
        (["train", "--steps", "0"], "not a whole number of 1 or more"),
        (["train", "--steps", "many"], "not a whole number of 1 or more"),
        (["train", "--time", "soon"], "not a duration"),
        (["train", "--set", "seed"], "not KEY=VALUE"),
        (["train", "--set", "sede=3"], "did you mean 'seed'"),
        (["train", "--preset", "quikc"], "did you mean 'quick'"),
        (["train", "--preset", "quick", "--recipe", "x.toml"], "give one of the two"),
        (["train", "--recipe", "missing.toml"], "missing.toml"),
        (["train", "--data", "cifar"], "cifar10"),
        (["train", "--data", ""], "unknown data set ''"),
        (["train", "--lr", "nan"], "optimizer.learning_rate is nan"),
        (["train", "--batch-size", "-5"], "not a whole number of 1 or more"),
        (["train", "--checkpoint-every", "often"], "neither steps such as 500"),
        (["train", "--precision", "fp61"], "did you mean"),
        (["train", "--precision", "fp16"], "needs a GPU"),
        (["train", "--resume", "--preset", "quick"], "keeps its own"),
        (["train", "--resume", "nothing"], "no run 'nothing'"),
        (["train", "--resume"], "there is no run here"),
        (["info", "--model", "clasic"], "did you mean 'classic'"),
        (["data", "shwo"], "unknown 'shwo' - did you mean 'show'"),
        (["bench", "inptu"], "unknown 'inptu' - did you mean 'input'"),
        (["eval", "--weights", "mean"], "unknown 'mean' - known: average, both, raw"),
        (["info", "--model", "classic", "--preset", "quick"], "give one of"),
        (["info", "nothing"], "no run 'nothing'"),
        (["train", "--use_fp16", "maybe"], "neither true nor false"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_few_lines(
    arguments: list[str],
    expected: str,
    tmp_path: os.PathLike[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert expected in output.err
    assert output.err.startswith("thumbnet: error: ")
    assert len(output.err.splitlines()) <= 3
    assert not os.listdir(tmp_path), "nothing was made"  # noqa: PTH208


@pytest.mark.parametrize(
    "arguments", [["train", "--preset", "none", "--debug"], ["--debug", "train", "--preset", "none"]]
)
def test_debug_shows_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "unknown preset 'none'" in error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_step_leaves_no_run(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(number)
        raise AssertionError("the signal should have ended the command")

    monkeypatch.setattr("thumbnet.training.whole.load_splits", interrupted)
    # A test run in the background has SIGINT ignored from its start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["train", "--data", "shapes", "--out", str(tmp_path)]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())


TUTORIAL_TRAIN = (
    "train --data_dir /d --train_dir /t --max_steps 5 --batch_size 64 --num_gpus 2 --log_frequency 10 "
    "--use_fp16 --log_device_placement=False"
)
TUTORIAL_EVAL = (
    "eval --eval_dir /e --eval_data train_eval --checkpoint_dir /c --eval_interval_secs 60 --num_examples 100 "
    "--run_once False --use_fp16"
)


def test_the_tutorials_commands_still_parse() -> None:
    parsed = build_parser().parse_args(TUTORIAL_TRAIN.split())
    assert (str(parsed.data_dir), str(parsed.out)) == ("/d", "/t")
    assert (getattr(parsed, "train.steps"), getattr(parsed, "input.batch_size"), parsed.devices) == (5, 64, 2)
    assert (parsed.use_fp16, parsed.log_device_placement) == (True, False)
    parsed = build_parser().parse_args(TUTORIAL_EVAL.split())
    assert (parsed.run_once, parsed.use_fp16) == (False, True)
    assert (parsed.every, parsed.limit) == (60, 100)


def test_a_reader_that_goes_away_is_no_crash() -> None:
    program = "import sys\nfrom thumbnet.cli.main import main\nsys.exit(main(['info', '--model', 'classic']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
