import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from thumbnet.errors import DataError, DivergedError, UsageError
from thumbnet.evaluation.predict import Predictor
from thumbnet.exporting.read import OnnxClassifier


@pytest.fixture
def changed(exported: Path, tmp_path: Path) -> Callable[[Callable[[Any], object]], Path]:
    """Writes the exported model with a change of one's own."""

    def change(how: Callable[[Any], object]) -> Path:
        model = onnx.load(exported)
        how(model)
        path = tmp_path / "changed.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return change


def facts(model: Any, **changes: object) -> None:
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | changes)


def external(tensor: TensorProto) -> TensorProto:
    """Make a tensor's values those of another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    return tensor


def test_answers_are_those_of_the_run(predictor: Predictor, exported: Path, tmp_path: Path) -> None:
    classifier = OnnxClassifier.open(exported, threads=1)
    assert (classifier.class_names, classifier.image_shape) == (predictor.class_names, (32, 32, 3))
    assert classifier.step == 7
    images = np.random.default_rng(2).integers(0, 256, (3, 50, 41, 3), dtype=np.uint8)  # cut and resized alike
    assert classifier.probabilities(images) == pytest.approx(predictor.probabilities(images), abs=1e-5)
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    mine, theirs = (network.predict(tmp_path / "one.png") for network in (classifier, predictor))
    assert [name for name, _ in mine.top] == [name for name, _ in theirs.top]


def test_no_picture_and_more_than_fit_at_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = OnnxClassifier.open(exported)
    assert classifier.probabilities(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 3)
    images = np.random.default_rng(2).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    whole = classifier.probabilities(images)
    monkeypatch.setattr(classifier, "_at_once", 3)
    assert classifier.probabilities(images) == pytest.approx(whole, abs=1e-6)


def test_what_is_no_model_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.onnx: there is no such file: `thumbnet export` writes one"):
        OnnxClassifier.open(tmp_path / "none.onnx")
    with pytest.raises(DataError, match="cannot be read: not a regular file"):
        OnnxClassifier.open(tmp_path)
    text = tmp_path / "text.onnx"
    text.write_text("what is this?\n")
    with pytest.raises(UsageError, match=r"text\.onnx: not a model of `thumbnet export`: no ONNX file"):
        OnnxClassifier.open(text)
    text.write_bytes(b"")
    with pytest.raises(UsageError, match="not a model of `thumbnet export`"):
        OnnxClassifier.open(text)


def test_a_file_that_was_cut(exported: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(exported.read_bytes()[:-1000])
    with pytest.raises((UsageError, DataError), match=r"cut\.onnx: "):
        OnnxClassifier.open(cut)


def test_weights_in_other_files_are_refused(changed: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="refers to other files for its weights"):
        OnnxClassifier.open(changed(lambda model: external(model.graph.initializer[0])))


def test_weights_in_other_files_are_refused_wherever_they_are(changed: Callable[..., Path]) -> None:
    def hide(model: Any) -> None:
        inner = helper.make_graph([], "inner", [], [], [external(TensorProto(name="w", dims=[1], data_type=1))])
        model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner))

    with pytest.raises(DataError, match="refers to other files for its weights"):
        OnnxClassifier.open(changed(hide))


def test_a_graph_that_does_not_run(changed: Callable[..., Path]) -> None:
    def spoil(model: Any) -> None:
        model.graph.node[2].op_type = "NoSuchOperation"

    with pytest.raises(DataError, match=r"changed\.onnx: damaged: .*NoSuchOperation"):
        OnnxClassifier.open(changed(spoil))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.ClearField("metadata_props"), "not a model of `thumbnet export`: it has no metadata"),
        (lambda model: facts(model, format=2), "format 2, which a newer thumbnet has written"),
        (lambda model: facts(model, classes=[]), "damaged: its metadata"),
        (lambda model: facts(model, classes=[1, 2, 3]), "damaged: its metadata"),
        (lambda model: facts(model, image_shape=[32, 32]), "damaged: its metadata"),
        (lambda model: facts(model, image_shape=[32, -1, 3]), "damaged: its metadata"),
        (lambda model: facts(model, step="7"), "damaged: its metadata"),
        (lambda model: facts(model, image_shape=[10**6, 10**6, 3]), "damaged: its metadata"),
        (lambda model: facts(model, image_shape=[32, 32, 1]), "damaged: its metadata"),
        (lambda model: facts(model, image_shape=[16, 16, 3]), "metadata 'thumbnet' do not fit its network"),
        (lambda model: facts(model, classes=["one"]), "metadata 'thumbnet' do not fit its network"),
        (lambda model: facts(model, classes=["a"] * 20), "metadata 'thumbnet' do not fit its network"),
        (lambda model: facts(model, run=None), "damaged: its metadata"),
        (lambda model: facts(model, format="\x1b[2J"), r"format \\x1b\[2J, which a newer"),
        (lambda model: setattr(model.metadata_props[0], "value", "{"), "damaged: its metadata"),
        (lambda model: setattr(model.metadata_props[0], "value", "[]"), "damaged: its metadata"),
        (lambda model: setattr(model.metadata_props[0], "value", "[" * 100_000), "damaged: its metadata"),
    ],
)
def test_metadata_that_cannot_be_used(
    change: Callable[[Any], object], message: str, changed: Callable[..., Path]
) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        OnnxClassifier.open(changed(change))


def test_what_was_looked_at_is_what_runs(exported: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "disguised.onnx"
    # A producer's name whose letters are where onnxruntime looks for the mark of its own format.
    disguised.write_bytes(b"\x12\x06abORTM" + exported.read_bytes())
    images = np.zeros((1, 32, 32, 3), np.uint8)
    expected = OnnxClassifier.open(exported).probabilities(images)
    assert OnnxClassifier.open(disguised).probabilities(images) == pytest.approx(expected)


def test_a_network_that_fails_when_it_is_asked(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError("no \x1b[2J memory\nmore")

    classifier = OnnxClassifier.open(exported)
    monkeypatch.setattr(classifier, "_session", Failing())
    with pytest.raises(DataError, match=r"model\.onnx: damaged: no \\x1b\[2J memory$"):
        classifier.probabilities(np.zeros((1, 32, 32, 3), np.uint8))


def test_an_answer_that_is_not_finite_is_told(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverged:
        def run(self, *_: object) -> list[np.ndarray]:
            return [np.full((1, 3), np.nan, np.float32)]

    classifier = OnnxClassifier.open(exported)
    monkeypatch.setattr(classifier, "_session", Diverged())
    with pytest.raises(DivergedError):
        classifier.probabilities(np.zeros((1, 32, 32, 3), np.uint8))
