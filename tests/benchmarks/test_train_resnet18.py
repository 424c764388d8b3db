"""The ResNet-18 that times are compared with."""

import copy
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture
def resnet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PEERS))
    return importlib.import_module("train_resnet18")


def test_a_distorted_image_is_a_window_of_the_reflected_one_or_its_mirror_image(resnet: ModuleType) -> None:
    torch.manual_seed(0)
    images = torch.arange(200 * 3 * 32 * 32, dtype=torch.float32).view(200, 3, 32, 32)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    found = set()
    for image, border in zip(resnet.distort(padded), padded, strict=True):
        windows = {(top, left): border[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)}
        straight = [(*place, False) for place, window in windows.items() if torch.equal(image, window)]
        mirrored = [(*place, True) for place, window in windows.items() if torch.equal(image, window.flip(2))]
        (place,) = straight + mirrored
        found.add(place)
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(9))
    assert {flipped for _, _, flipped in found} == {False, True}


def test_the_network_is_the_usual_one(resnet: ModuleType) -> None:
    network = resnet.build_network()
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.fixture
def train(resnet: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that trains on a few pictures of noise and returns the results file."""
    records = np.random.default_rng(0).integers(0, 10, (8, 3073), np.uint8)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records.tofile(tmp_path / name)
    monkeypatch.setattr(resnet, "BATCH", 4)
    monkeypatch.setattr(resnet, "TRAINING_IMAGES", 40)
    small = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    monkeypatch.setattr(resnet, "build_network", lambda: copy.deepcopy(nn.Sequential(*small)))

    def run(*epochs: str, precision: str = "bf16") -> dict[str, Any]:
        out = tmp_path / "resnet18.json"
        flags = ["--data", str(tmp_path), "--epochs", *epochs, "--out", str(out), "--precision", precision]
        monkeypatch.setattr(sys, "argv", ["train_resnet18.py", *flags])
        resnet.main()
        result: dict[str, Any] = json.loads(out.read_text())
        return result

    return run


def test_trains_evaluates_and_writes(train: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    result = train("1", "2")
    assert [run["epochs"] for run in result["runs"]] == [1, 2]
    for run in result["runs"]:
        assert 0 <= run["accuracy"] <= 1
        assert 0 <= run["view_accuracy"] <= 1
        assert run["train_seconds"] > 0
    told = capsys.readouterr().out
    assert "step 1/10 " in told
    assert "step 1/20 " in told


def test_keeps_the_lengths_that_are_there_unless_they_are_trained_again(
    train: Callable[..., dict[str, Any]], resnet: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (long,) = train("2")["runs"]
    (short,) = train("1")["runs"][:1]
    again = train("1")["runs"]
    assert again[1] == long
    assert again[0]["epochs"] == 1
    assert again[0]["train_seconds"] != short["train_seconds"]
    refusal = r"resnet18\.json is of other versions, arithmetic, processor or number of threads"
    with pytest.raises(SystemExit, match=refusal):
        train("1", precision="fp32")
    for owner, name in ((resnet.platform, "python_version"), (resnet, "cpu_name")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda: "another")
            with pytest.raises(SystemExit, match=refusal):
                train("1")
