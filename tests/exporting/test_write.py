import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import thumbnet
from thumbnet.errors import DivergedError, ThumbnetError, UsageError
from thumbnet.evaluation.predict import Predictor
from thumbnet.exporting import write
from thumbnet.exporting.read import OnnxClassifier
from thumbnet.exporting.write import export_onnx

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


def pictures(side: int, count: int = 5) -> np.ndarray:
    """Noise, from hardly any to as much as there can be."""
    noise = np.random.default_rng(1).integers(0, 256, (count, side, side, 3))
    return (noise * np.linspace(0.05, 1, count)[:, None, None, None]).astype(np.uint8)


@pytest.mark.parametrize(
    ("preset", "side", "overrides"),
    [
        ("quick", 32, {"model.options.widths": [8, 16, 16]}),
        ("best", 40, {"model.options.widths": [8, 16, 16], "distort.crop": 32}),
        ("cuda-convnet-11pct", 32, {}),
        ("cuda-convnet-80sec", 32, {}),
        ("book", 28, {}),
    ],
)
def test_another_runtime_answers_as_an_evaluation_does(
    preset: str, side: int, overrides: dict, make_predictor: Callable[..., Predictor], tmp_path: Path
) -> None:
    predictor = make_predictor(preset, side=side, **overrides)
    done = export_onnx(predictor, tmp_path / "model.onnx")
    # Without anything of thumbnet: what another program would do.
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    asked = pictures(side)
    (answers,) = session.run(["probabilities"], {"pictures": asked})
    expected = predictor.probabilities(asked)
    assert answers == pytest.approx(expected, abs=2e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the pictures are told apart"
    assert done.size_bytes == done.path.stat().st_size


def test_the_file_says_what_it_is(predictor: Predictor, exported: Path) -> None:
    model = onnx.load(exported)
    (entry,) = [entry for entry in model.metadata_props if entry.key == "thumbnet"]
    facts = json.loads(entry.value)
    assert facts == {
        "format": 1,
        "thumbnet": thumbnet.__version__,
        "run": "run",
        "preset": "classic",
        "model": "classic",
        "data": "cifar10",
        "step": 7,
        "weights": "raw",
        "image_shape": [32, 32, 3],
        "classes": list(predictor.class_names),
    }
    (source,) = model.graph.input
    assert source.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in source.type.tensor_type.shape.dim] == [0, 32, 32, 3], "any number of pictures"
    assert model.opset_import[0].version == 20
    whole = exported.read_bytes()
    for place in (Path(thumbnet.__file__).parent, sys.prefix, "site-packages", ".py", str(predictor.run.path.parent)):
        assert str(place).encode() not in whole, "no code and no path of the machine it was made on"


def test_the_documented_program_asks_it(
    predictor: Predictor,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    shutil.copy(exported, tmp_path / "flowers.onnx")
    Image.fromarray(pictures(32)[-1]).save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(DOCS), "exec"), {})
    expected = predictor.predict("photo.jpg")  # a square of the right size, which both take as it is
    name, probability = capsys.readouterr().out.split()
    assert name == expected.label
    assert float(probability) == pytest.approx(expected.probability, abs=1e-5)


def test_a_file_that_is_there_is_replaced_and_folders_are_made(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.onnx"
    path.parent.mkdir()
    path.write_text("old")
    export_onnx(predictor, path)
    assert len(onnx.load(path).graph.node) > 5
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    assert export_onnx(predictor, f"{tmp_path}/new/").path == tmp_path / "new" / "model.onnx"


def test_a_form_that_answers_otherwise_is_not_written(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = write.OnnxClassifier.ask
    monkeypatch.setattr(write.OnnxClassifier, "ask", lambda *asked: right(*asked) + 0.001)
    with pytest.raises(ThumbnetError, match=r"differ from PyTorch's by up to 0\.001, and 0\.0001 is allowed"):
        export_onnx(predictor, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_whose_output_is_not_finite(make_predictor: Callable[..., Predictor], tmp_path: Path) -> None:
    predictor = make_predictor("classic")
    with torch.no_grad():
        predictor.network.get_submodule("softmax_linear").bias.fill_(float("nan"))
    with pytest.raises(DivergedError):
        export_onnx(predictor, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_pictures_is_named_without_its_path(
    make_predictor: Callable[..., Predictor], tmp_path: Path
) -> None:
    predictor = make_predictor("classic", **{"data.name": str(tmp_path / "flowers")})
    done = export_onnx(predictor, tmp_path / "model.onnx")
    assert OnnxClassifier.open(done.path).facts["data"] == "flowers"
    assert str(tmp_path).encode() not in done.path.read_bytes()


def test_a_network_that_cannot_be_said_in_onnx(predictor: Predictor, tmp_path: Path) -> None:
    class Stubborn(nn.Linear):
        def forward(self, images_NCHW):
            return torch.linalg.eigvalsh(images_NCHW[:, 0])[:, :3]

    class Asked(Predictor):
        def __init__(self) -> None:
            self.__dict__ |= predictor.__dict__ | {"network": Stubborn(3, 3)}

    with pytest.raises(ThumbnetError, match="network classic: this cannot be said in ONNX: "):
        export_onnx(Asked(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ThumbnetError, match=r"model\.onnx: cannot write.*\n.*--to"):
        export_onnx(predictor, tmp_path / "file" / "model.onnx")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_packages(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"need the package {name}, which is not installed\n.*\[onnx\]"):
        export_onnx(predictor, tmp_path / "model.onnx")
