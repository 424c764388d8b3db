"""timm's networks by name; where timm is not installed, with one that behaves like it."""

import json
import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from thumbnet.cli.main import main
from thumbnet.config import ModelConfig
from thumbnet.errors import UsageError
from thumbnet.models import build_model, insist_takes_side


class Fixed(nn.Sequential):
    """A network for one size of pictures."""

    def __init__(self, img_size: int, in_chans: int, num_classes: int, width: int = 4) -> None:
        super().__init__(
            nn.Conv2d(in_chans, width, 4, stride=4), nn.Flatten(), nn.Linear(width * (img_size // 4) ** 2, num_classes)
        )


class FixedShapes(nn.Module):
    """One for one size, which its weights do not tell."""

    def __init__(self, img_size: int, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.body = Any(in_chans, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == self.img_size
        logits: torch.Tensor = self.body(images)
        return logits


class Any(nn.Sequential):
    """A network for pictures of 8 pixels and more."""

    def __init__(self, in_chans: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(in_chans, 6, 8),
            nn.BatchNorm2d(6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(drop_rate),
            nn.Linear(6, num_classes),
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands for timm."""
    kinds: dict[str, Callable[..., nn.Module]] = {
        "fixed_224": Fixed,
        "fixed_shapes": FixedShapes,
        "resnet18": Any,
        "two_outputs": nn.Identity,
    }
    module = types.ModuleType("timm")

    def create_model(name: str, *, pretrained: bool, **arguments: object) -> nn.Module:
        assert pretrained is False
        return kinds[name](**arguments)

    module.__version__ = "1.0"  # type: ignore[attr-defined]
    module.list_models = lambda: list(kinds)  # type: ignore[attr-defined]
    module.create_model = create_model  # type: ignore[attr-defined]
    module.get_pretrained_cfg = lambda name: types.SimpleNamespace(  # type: ignore[attr-defined]
        fixed_input_size=name.startswith("fixed")
    )
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def build(name: str, crop: int = 16, channels: int = 3, **options: object) -> nn.Module:
    return build_model(ModelConfig(name=f"timm/{name}", options=options), num_classes=7, crop=crop, channels=channels)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("name", "crop", "channels"), [("fixed_224", 24, 3), ("fixed_224", 32, 1), ("resnet18", 9, 4)])
def test_networks_take_the_size_channels_and_classes_of_the_data(name: str, crop: int, channels: int):
    model = build(name, crop, channels)
    assert model(torch.rand(2, channels, crop, crop)).shape == (2, 7)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.usefixtures("fake")
def test_options_reach_the_builder():
    assert build("fixed_224", width=9)[0].out_channels == 9  # type: ignore[index]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, r"unknown model 'timm/resnet81' - did you mean 'timm/resnet18'\?\ntimm 1\.0 has 4"),
        ("", {}, "unknown model 'timm/'"),
        ("resnet18", {"drop_rat": 0.1}, r"timm/resnet18 with model.options .*'drop_rat': 0.1.* cannot be built"),
        ("resnet18", {"pretrained": True}, r"model\.options\.pretrained: not an option here"),
        ("resnet18", {"checkpoint_path": "x"}, r"model\.options\.checkpoint_path"),
        ("resnet18", {"num_classes": 3}, r"model\.options\.num_classes"),
        ("two_outputs", {}, r"timm/two_outputs cannot be built for 16x16 pixels: it gives \[1, 3, 16, 16\] values"),
    ],
)
def test_what_cannot_be_built_is_told(name: str, options: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message):
        build(name, **options)


@pytest.mark.usefixtures("fake")
def test_pictures_that_are_too_small_are_told():
    with pytest.raises(UsageError, match=r"cannot be built for 7x7 pixels: .*\ntake a larger --set distort\.crop"):
        build("resnet18", crop=7)


@pytest.mark.usefixtures("fake")
def test_smaller_pictures_on_the_way_where_the_network_takes_them():
    insist_takes_side(ModelConfig(name="timm/resnet18"), 16, crop=32)
    insist_takes_side(ModelConfig(name="timm/fixed_shapes"), 32, crop=32)
    for name in ("timm/fixed_224", "timm/fixed_shapes"):
        with pytest.raises(UsageError, match=f"'{name}' does not train on 16x16 on the way to 32x32: it takes"):
            insist_takes_side(ModelConfig(name=name), 16, crop=32)
    with pytest.raises(UsageError, match=r"'timm/resnet18' does not train on 7x7 .*cannot be built for 7x7 pixels"):
        insist_takes_side(ModelConfig(name="timm/resnet18"), 7, crop=32)


def test_without_timm_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["train", "--data", "shapes", "--model", "timm/resnet18", "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert "need the package timm: pip install timm" in error
    assert "Traceback" not in error


def test_a_timm_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(UsageError, match=r"timm is installed, but cannot be imported: operator torchvision::nms"):
        build("resnet18")


def train_resume_evaluate_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    """Train 4 steps, and 2 and 2 more; compare weights; evaluate and predict."""
    common = ["--data", "shapes", "--model", "timm/resnet18", "--batch-size", "8", "--threads", "1", *arguments]
    out = [
        "--out",
        str(tmp_path),
        "--precision",
        "fp32",
        "--summary-every",
        "2",
        "--set",
        "train.epochs=0",
        "--no-test",
    ]
    shape = ["--set", "schedule.points=[[0.0, 1.0], [1.0, 1.0]]", "--set", "distort.crop=16"]
    for name, steps in (("whole", "4"), ("parts", "2")):
        assert main(["train", *common, *out, *shape, "--steps", steps, "--name", name]) == 0
    assert main(["train", "--resume", str(tmp_path / "parts"), "--steps", "4", "--no-test"]) == 0
    whole, parts = (
        (tmp_path / name / "checkpoints" / "step-00000004" / "average.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert main(["eval", str(tmp_path / "parts"), "--limit", "20", "--json", "--no-plots"]) == 0
    capsys.readouterr()
    picture = tmp_path / "one.png"
    Image.new("RGB", (50, 40), "red").save(picture)
    assert main(["predict", str(picture), "--run", str(tmp_path / "parts"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["top"]) == 3


@pytest.mark.usefixtures("fake")
def test_a_network_of_that_kind_trains_resumes_evaluates_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train_resume_evaluate_predict(tmp_path, capsys, "--set", "model.options.drop_rate=0.1")


def test_the_real_one_does_too_and_touches_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    timm = pytest.importorskip("timm", exc_type=ImportError)

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    train_resume_evaluate_predict(tmp_path, capsys, "--set", "model.options.drop_rate=0.1")
    for name in ("vit_tiny_patch16_224", "mixer_s16_224", "mobilenetv3_small_050"):
        assert name in timm.list_models()
        assert build(name, 32)(torch.rand(2, 3, 32, 32)).shape == (2, 7)
