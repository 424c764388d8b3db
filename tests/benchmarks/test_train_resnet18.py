"""The ResNet-18 that times are compared with."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

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


def test_trains_evaluates_and_writes(
    resnet: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = np.random.default_rng(0).integers(0, 10, (8, 3073), np.uint8)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records.tofile(tmp_path / name)
    monkeypatch.setattr(resnet, "BATCH", 4)
    monkeypatch.setattr(resnet, "TRAINING_IMAGES", 40)
    out = tmp_path / "resnet18.json"
    monkeypatch.setattr(
        sys, "argv", ["train_resnet18.py", "--data", str(tmp_path), "--epochs", "1", "2", "--out", str(out)]
    )
    resnet.main()
    result = json.loads(out.read_text())
    assert [run["epochs"] for run in result["runs"]] == [1, 2]
    for run in result["runs"]:
        assert 0 <= run["accuracy"] <= 1
        assert 0 <= run["view_accuracy"] <= 1
        assert run["train_seconds"] > 0
    told = capsys.readouterr().out
    assert "step 1/10 " in told
    assert "step 1/20 " in told
