import json

import pytest

from thumbnet.cli.main import main
from thumbnet.config import preset_names


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
