import json
from pathlib import Path

import pytest

from thumbnet.cli.main import main
from thumbnet.config import load_preset, preset_names
from thumbnet.runs.run import Run


def test_the_classic_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", "classic"]) == 0
    table = capsys.readouterr().out
    assert "1,068,298" in table
    assert "64x12x12" in table
    assert main(["info", "--model", "classic", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["model"], info["parameters"], info["multiply_adds"]) == ("classic", 1_068_298, 18_470_784)
    assert [layer["name"] for layer in info["layers"] if layer["parameters"]] == [
        "conv1",
        "conv2",
        "local3",
        "local4",
        "softmax_linear",
    ]
    assert set(info["layers"][0]) == {"name", "kind", "output_shape", "parameters", "multiply_adds"}


@pytest.mark.parametrize(("model", "crop"), [("classic", 24), ("speed", 32), ("cuda-convnet", 32)])
def test_a_network_is_shown_for_the_input_of_its_preset(
    model: str, crop: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--model", model]) == 0
    assert capsys.readouterr().out.startswith(f"{model}, input 3x{crop}x{crop}\n")


def test_a_run_says_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_preset("classic", {"data.name": "shapes", "train.steps": 5})
    run = Run.create(tmp_path, recipe, "mine")
    assert main(["info", "mine", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"run {run.path}: preset classic, data shapes, begun {run.created[:16]} UTC\n")
    assert "\nended before anything was saved: start a new run\n" in shown
    assert "classic, input 3x24x24" in shown
    with run.lock():
        assert main(["info", "mine", "--out", str(tmp_path)]) == 0
    assert "training now, nothing saved yet" in capsys.readouterr().out

    figures = {"accuracy": 0.5, "top5": 0.75, "loss": 1.25}
    run.finish({"steps": 5, "epochs": 1.5, "train_seconds": 84.0, "test": {"raw": figures}})
    assert main(["info", "mine", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "trained 5 steps (1.5 epochs) in 1m24s" in shown
    assert "test accuracy, raw weights:      50.00 %" in shown
    assert main(["info", "mine", "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "classic"
    assert told["run"]["result"]["test"]["raw"] == figures
    assert told["run"] | {"result": None} == {
        "path": str(run.path),
        "preset": "classic",
        "data": "shapes",
        "created": run.created,
        "training": False,
        "saved_step": None,
        "result": None,
    }
    (run.path / "result.json").write_text("{")
    assert main(["info", "mine", "--out", str(tmp_path)]) == 1
    assert "result.json: cannot be read" in capsys.readouterr().err


def test_other_sizes_and_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", "classic", "--crop", "32", "--classes", "100", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["layers"][-1]["output_shape"] == [100]
    assert info["parameters"] == 1_068_298 + (64 - 36) * 64 * 384 + 90 * 193


def test_a_preset_has_its_own_size_and_classes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--preset", "quick", "--crop", "24"], ["--classes", "5"]):
        assert main(["info", *arguments]) == 2
        assert "go with --model" in capsys.readouterr().err


@pytest.mark.parametrize("name", preset_names())
def test_every_preset(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "timm":
        pytest.importorskip("timm", exc_type=ImportError)
    assert main(["info", "--preset", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] > 0


def test_presets_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    listing = capsys.readouterr().out
    assert all(
        any(line.startswith(name) and len(line) > len(name) + 20 for line in listing.splitlines())
        for name in preset_names()
    )
    assert main(["info", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(preset_names())
