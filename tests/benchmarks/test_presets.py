import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from thumbnet.cli.main import main
from thumbnet.config import load_preset
from thumbnet.runs.run import Run
from thumbnet.training import measure

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "presets.py"


def load_script():
    spec = importlib.util.spec_from_file_location("presets_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_spread_of_a_few_values() -> None:
    found = load_script().spread([1.0, 2.0, 6.0])
    of_all = {"mean": 3.0, "deviation": pytest.approx(7**0.5), "n": 3}
    assert found == {**of_all, "median": 2.0, "lowest": 1.0, "highest": 6.0}
    assert load_script().spread([2.0])["deviation"] == 0.0


def test_an_unknown_preset_fails_and_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "fsat"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "did you mean 'fast'" in done.stderr


def pretended_run(seed: int) -> dict:
    """Return what a training would: seed 0 had one thread, the others two."""
    threads = 1 if seed == 0 else 2
    names = ("train_seconds", "start_seconds", "test_seconds", "images_per_second", "memory_mib")
    figures = dict.fromkeys(names, 60.0 / threads)
    return {"seed": seed, "threads": threads, "steps": 10, **figures, "test": {"raw": {"accuracy": 0.9 + seed / 100}}}


@pytest.fixture
def sit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Run the script without training or measuring anything; returns the content of its file.

    `meanwhile`, if given, is called during the first training.
    """
    module = load_script()

    def run(*arguments: str, meanwhile: Callable[[], object] | None = None) -> dict:
        calls = [meanwhile] if meanwhile else []

        def train(_preset: str, seed: int, *_folders: Path | None) -> dict:
            if calls:
                calls.pop()()
            return pretended_run(seed)

        with monkeypatch.context() as patch:
            patch.setattr(module, "train", train)
            patch.setattr(module, "step_apart", lambda *_, **__: {"images_per_second": 5.0, "matmul_tflops": 1.0})
            patch.setattr(sys, "argv", ["presets.py", "svhn", "--out", str(tmp_path), *arguments])
            module.main()
        return json.loads((tmp_path / "preset-svhn.json").read_text())

    return run


def test_seeds_of_a_second_sitting_join_those_of_the_first(sit, capsys: pytest.CaptureFixture[str]) -> None:
    sit("--seeds", "1")
    found = sit("--seeds", "2", "--first-seed", "1", "--add")
    assert [run["seed"] for run in found["runs"]] == [0, 1, 2]
    assert found["accuracy"]["raw"]["mean"] == pytest.approx(0.91)
    assert found["train_seconds"]["highest"] == 30.0, "the one on a single thread is not timed"
    with pytest.raises(SystemExit):
        sit("--first-seed", "2", "--add")
    assert "has seed 2 already" in capsys.readouterr().err


def test_work_is_that_of_training_and_of_all_looks_at_a_picture(sit) -> None:
    recipe = load_preset("svhn")
    macs = measure.multiply_adds(recipe, recipe.distort.crop)
    found = sit("--seeds", "1")
    training = 6 * macs * 10 * recipe.input.batch_size  # ten steps
    assert found["multiply_adds"] == macs
    assert found["pflop"] == pytest.approx((training + 2 * macs * 10_000) / 1e15, abs=1e-4)
    assert found["training_tflops"] == pytest.approx(training / 60 / 1e12, abs=1e-3)


def test_seeds_trained_side_by_side_are_all_kept(sit) -> None:
    found = sit("--add", "--seeds", "1", meanwhile=lambda: sit("--add", "--seeds", "1", "--first-seed", "1"))
    assert [run["seed"] for run in found["runs"]] == [0, 1]


def test_no_seed_measures_the_steps_anew(sit) -> None:
    before = sit("--seeds", "2")
    assert sit("--add", "--seeds", "0") == before
    assert [run["seed"] for run in sit("--seeds", "1")["runs"]] == [0], "without --add the file begins anew"


def test_runs_that_are_kept_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--preset", "book", "--data", "shapes", "--steps", "4", "--seed", "7"]
    assert main(["train", *flags, "--out", str(tmp_path), "--name", "book-7"]) == 0
    run = Run.open(tmp_path / "book-7")
    preset = dataclasses.replace(run.recipe, seed=0, train=dataclasses.replace(run.recipe.train, precision="auto"))
    monkeypatch.setattr("thumbnet.config.load_preset", lambda _: preset)
    train = load_script().train

    finished = train("book", 7, None, tmp_path)
    assert (finished["seed"], finished["threads"], finished["steps"]) == (7, run.threads, 4)
    assert finished["train_seconds"] == json.loads((run.path / "result.json").read_text())["train_seconds"]

    (run.path / "result.json").unlink()
    gone_on = train("book", 7, None, tmp_path)
    assert gone_on["train_seconds"] == finished["train_seconds"], "no step was left to do"
    assert gone_on["test"] == finished["test"]
    assert gone_on["images_per_second"] == finished["images_per_second"] == 4 / finished["train_seconds"]

    run.path.rename(tmp_path / "book-8")
    with pytest.raises(SystemExit, match="book-8: another recipe than that of book today with seed 8"):
        train("book", 8, None, tmp_path)
    shutil.rmtree(tmp_path / "book-8" / "checkpoints")
    with pytest.raises(SystemExit, match="book-8: ended before anything was saved: delete it"):
        train("book", 8, None, tmp_path)


def test_a_step_is_measured_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_script()
    monkeypatch.setattr(module, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(measure, "MATRIX_SIDE", 64)
    found = module.measure_step("quick")
    assert found["images_per_second"] > 0
    assert found["matmul_tflops"] > 0
    assert json.dumps(found)
