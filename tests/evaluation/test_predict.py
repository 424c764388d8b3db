import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thumbnet.config import DataConfig, load_preset
from thumbnet.data import load_splits
from thumbnet.data.dataset import Splits
from thumbnet.data.shapes import CLASS_NAMES as SHAPES
from thumbnet.engine import resolve_precision
from thumbnet.errors import CheckpointError, DataError, DivergedError, UsageError
from thumbnet.evaluation import predict
from thumbnet.evaluation.classifier import MAX_STDIN_BYTES, Prediction
from thumbnet.evaluation.evaluate import predict_logits
from thumbnet.evaluation.predict import Predictor, find_pictures
from thumbnet.models import build_model
from thumbnet.runs.checkpoint import Checkpoint
from thumbnet.runs.facts import write_facts
from thumbnet.runs.run import Run

SIDE, CROP = 20, 16
CLASSES = ("ant", "bee", "cow", "dog", "emu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (30 + 5 * number, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{('png', 'jpg')[number % 2]}")
    return root


@pytest.fixture(scope="module")
def splits(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return load_splits(DataConfig(name=str(folder), image_size=SIDE), data_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def make_run(tmp_path: Path, splits: Splits, folder: Path) -> Callable[..., Run]:
    def make(**changes: object) -> Run:
        settings = {
            "data.name": str(folder),
            "data.image_size": SIDE,
            "distort.crop": CROP,
            "train.precision": "fp32",
        }
        run = Run.create(tmp_path / "runs", load_preset("classic", settings | changes))
        write_facts(run.path, splits)
        for step in (10, 20):
            save(run, step)
        return run

    return make


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


@pytest.fixture
def plain(make_run: Callable[..., Run]) -> Run:
    """A run that keeps no average of its weights."""
    return make_run(**{"average.decay": 0.0})


def weights_of(run: Run, seed: int, classes: int = len(CLASSES)) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = build_model(run.recipe.model, num_classes=classes, crop=run.recipe.distort.crop)
    with torch.no_grad():
        model.get_submodule("softmax_linear").weight.mul_(100)  # so that the classes are not all as likely
    return model.state_dict()


def save(run: Run, step: int, *, classes: int = len(CLASSES)) -> None:
    averaged = weights_of(run, step + 1, classes) if run.recipe.average.decay else None
    run.checkpoints.save(
        Checkpoint(step=step, model=weights_of(run, step, classes), average=averaged, state={}, info={})
    )


def model_of(run: Run, seed: int) -> torch.nn.Module:
    model = build_model(run.recipe.model, num_classes=len(CLASSES), crop=run.recipe.distort.crop)
    model.load_state_dict(weights_of(run, seed))
    return model


def keys_and_paths(splits: Splits, folder: Path) -> list[str]:
    return [str(folder / splits.train.key(index)) for index in range(len(splits.train))]


def test_files_are_seen_as_the_evaluation_sees_their_records(run: Run, splits: Splits, folder: Path):
    predictor = Predictor(run)
    assert (predictor.step, predictor.weights, predictor.class_names) == (20, "average", CLASSES)
    logits, _ = predict_logits(model_of(run, 21), splits.train, run.recipe.distort, precision=resolve_precision("fp32"))
    expected = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    predictions = list(predictor.predict_files(keys_and_paths(splits, folder), top=5))
    for prediction, probabilities in zip(predictions, expected, strict=True):
        assert prediction.problem is None
        told = dict(prediction.top)
        assert [told[name] for name in CLASSES] == pytest.approx(probabilities, rel=1e-6)
        assert [probability for _, probability in prediction.top] == sorted(told.values(), reverse=True)
        assert sum(told.values()) == pytest.approx(1)
    assert len({prediction.top[0][0] for prediction in predictions}) > 1


def test_one_checkpoint_by_its_step(run: Run):
    assert Predictor(run, checkpoint=10).step == 10
    with pytest.raises(CheckpointError, match="no checkpoint of step 15"):
        Predictor(run, checkpoint=15)


def test_a_run_of_a_gpu_in_fp16_can_be_asked_on_a_processor(make_run: Callable[..., Run]):
    predictor = Predictor(make_run(**{"train.precision": "fp16"}))
    assert predictor.precision.name == "fp32"
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        Predictor(predictor.run, precision="fp16")


def test_raw_weights_where_there_is_no_average(plain: Run, splits: Splits):
    predictor = Predictor(plain)
    assert (predictor.step, predictor.weights) == (20, "raw")
    images, _ = splits.train.gather(np.arange(3))
    logits, _ = predict_logits(
        model_of(plain, 20), splits.train.take(np.arange(3)), plain.recipe.distort, precision=resolve_precision("fp32")
    )
    expected = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    assert predictor.probabilities(images) == pytest.approx(expected, rel=1e-6)


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_used(run: Run):
    path = run.checkpoints.path("latest") / "average.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    notes: list[str] = []
    assert Predictor(run, note=notes.append).step == 10
    assert len(notes) == 1


def test_damage_to_weights_that_are_not_asked_for_does_not_matter(run: Run):
    for name in ("model.safetensors", "state.safetensors"):
        (run.checkpoints.path("latest") / name).write_bytes(b"")
    for checkpoint in ("latest", 20):
        assert Predictor(run, checkpoint=checkpoint, note=pytest.fail).step == 20


def test_weights_of_another_network_are_refused(run: Run):
    save(run, 30, classes=4)
    with pytest.raises(CheckpointError, match="step 30, average weights"):
        Predictor(run)


def test_the_data_are_not_needed(run: Run, folder: Path, tmp_path: Path):
    copy = tmp_path / "one.png"
    shutil.copy(folder / "ant" / "0.png", copy)
    (run.path / "recipe.toml").write_text((run.path / "recipe.toml").read_text().replace(str(folder), "/gone"))
    (prediction,) = Predictor(Run.open(run.path)).predict_files([str(copy)], top=1)
    assert prediction.top[0][0] in CLASSES


def test_a_run_without_facts_on_a_known_data_set(tmp_path: Path):
    run = Run.create(tmp_path, load_preset("classic", {"data.name": "shapes", "train.precision": "fp32"}), "old")
    save(run, 1, classes=10)
    predictor = Predictor(run)
    assert predictor.class_names == SHAPES
    assert predictor.probabilities(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 10)


def test_a_run_that_does_not_tell_its_classes_is_refused(run: Run):
    (run.path / "data.json").unlink()
    with pytest.raises(CheckpointError, match="does not say what its classes are called"):
        Predictor(run)


def test_a_network_that_says_nothing_is_refused(run: Run, folder: Path):
    predictor = Predictor(run)
    with torch.no_grad():
        predictor.network.get_submodule("softmax_linear").bias[1] = float("inf")
    with pytest.raises(DivergedError, match=r"not finite for 1 of 1 examples(.|\n)*an earlier checkpoint"):
        predictor.predict(folder / "ant" / "0.png")


def test_bad_files_are_told_in_their_places(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predict, "batch_size_for", lambda side: 2)
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((folder / "ant" / "0.png").read_bytes()[:200])
    os.mkfifo(tmp_path / "pipe.png")
    good = str(folder / "bee" / "1.jpg")
    names = ("empty.jpg", "cut.png", "pipe.png", "nothing.png", "x" * 300, "empty.jpg/x.png", "\0", "")
    files = [str(tmp_path / name) if name else "" for name in names]
    predictions = list(Predictor(run).predict_files([files[0], good, good, *files[1:], good], top=2))
    problems = [prediction.problem for prediction in predictions]
    assert problems[0] == "empty, 0 bytes"
    assert problems[1:3] == [None, None]
    assert problems[3] is not None
    assert problems[3].startswith("damaged")
    assert problems[4:] == [
        "not a regular file",
        "there is no such file",
        "File name too long",
        "Not a directory",
        "there is no such file",
        "there is no such file",
        None,
    ]
    for one in (1, 2):
        assert dict(predictions[one].top) == pytest.approx(dict(predictions[-1].top))
    assert all(not prediction.top for prediction in predictions if prediction.problem)


def test_a_file_in_a_closed_folder_is_told_in_its_place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    closed, stat = str(tmp_path / "closed" / "x.png"), os.stat

    def refuse(path, *args, **kwargs):
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    assert find_pictures([closed]) == [closed]
    (prediction,) = Predictor(run).predict_files([closed], top=1)
    assert prediction.problem == "Permission denied"


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "closed").mkdir()

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="closed: cannot be read: Permission denied\nmake it readable"):
        find_pictures([str(tmp_path / "closed")])


def test_no_pictures_give_no_probabilities(run: Run):
    assert Predictor(run).probabilities(np.zeros((0, SIDE, SIDE, 3), np.uint8)).shape == (0, len(CLASSES))


def test_one_picture_in_any_form_shows_the_same(run: Run, folder: Path):
    predictor = Predictor(run)
    path = folder / "bee" / "0.png"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
        forms = [str(path), path, image, Image.fromarray(pixels), pixels, pixels[:, :, ::-1][:, :, ::-1]]
        told = [predictor.predict(form, top=2) for form in forms]
        together = predictor.predict(iter(forms), top=2)
    assert all(isinstance(prediction, Prediction) for prediction in told)
    for prediction, again in zip(told, together, strict=True):
        assert dict(prediction.top) == pytest.approx(dict(told[0].top), rel=1e-5)
        assert dict(again.top) == pytest.approx(dict(told[0].top), rel=1e-5)
    assert (told[0].label, told[0].probability) == told[0].top[0]
    assert [prediction.file for prediction in told] == [str(path), str(path), "", "", "", ""]


def test_a_stack_of_pictures_is_several(run: Run):
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), np.uint8)
    predictor = Predictor(run)
    first, second = predictor.predict(images)
    assert len(first.top) == 3
    assert dict(first.top) != dict(second.top)
    assert predictor.predict([]) == predictor.predict(images[:0]) == []


def test_grey_and_transparent_arrays_are_pictures(run: Run):
    grey = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    probabilities = Predictor(run).probabilities([grey, grey[..., None], opaque[..., :3], opaque])
    assert probabilities.shape == (4, len(CLASSES))
    assert probabilities == pytest.approx(np.tile(probabilities[0], (4, 1)), rel=1e-5)
    assert probabilities.sum(1) == pytest.approx(np.ones(4))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"picture 1 is an array \[8, 8, 3\] of float32: expected uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"array \[3, 8, 8\] of uint8: expected uint8 \(0 to 255\), \[H, W, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), "expected"),
        (7, "picture 1 is of type int: give a path"),
        (None, "picture 1 is of type NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(picture: object, message: str, run: Run):
    with pytest.raises(UsageError, match=message):
        Predictor(run).predict([np.zeros((8, 8, 3), np.uint8), picture])  # type: ignore[list-item]


@pytest.mark.parametrize("picture", ["photo.jpg", Path("photo.jpg"), np.zeros((8, 8, 3), np.uint8)])
def test_probabilities_are_of_several_pictures(picture: object, run: Run):
    with pytest.raises(UsageError, match="takes several pictures: put one into a list, or ask predict"):
        Predictor(run).probabilities(picture)  # type: ignore[arg-type]


@pytest.mark.parametrize("top", [0, -1])
def test_at_least_one_class_is_told(run: Run, top: int):
    with pytest.raises(UsageError, match=f"top is {top}: it must be at least 1"):
        Predictor(run).predict(np.zeros((8, 8, 3), np.uint8), top=top)


def test_a_file_that_cannot_be_read_is_named(run: Run, tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing\.png: there is no such file"):
        Predictor(run).predict(tmp_path / "nothing.png")
    (tmp_path / "a\n.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"a\\n\.png: a GIF, not a JPEG"):
        Predictor(run).predict([tmp_path / "a\n.png"])


def test_either_weights_can_be_asked_for(run: Run, plain: Run):
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    averaged, raw = (Predictor(run, weights=weights) for weights in ("average", "raw"))
    assert (averaged.weights, raw.weights) == ("average", "raw")
    assert not np.allclose(averaged.probabilities(images), raw.probabilities(images))
    with pytest.raises(UsageError, match=r"keeps no average(.|\n)*--weights raw"):
        Predictor(plain, weights="average")


class Zeros(io.RawIOBase):
    """An endless stream."""

    def readinto(self, buffer: bytearray) -> int:
        buffer[:] = bytes(len(buffer))
        return len(buffer)

    def readable(self) -> bool:
        return True


def test_standard_input(run: Run, folder: Path):
    predictor = Predictor(run)
    path = folder / "cow" / "2.png"
    (from_file,) = predictor.predict_files([str(path)], top=3)
    (from_stdin,) = predictor.predict_files(["-"], top=3, stdin=io.BytesIO(path.read_bytes()))
    assert from_stdin.top == from_file.top
    (empty,) = predictor.predict_files(["-"], top=3, stdin=io.BytesIO(b""))
    assert empty.problem == "empty, 0 bytes"
    (endless,) = predictor.predict_files(["-"], top=3, stdin=io.BufferedReader(Zeros()))
    assert endless.problem == f"larger than {MAX_STDIN_BYTES // 2**20} MiB"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/1.jpg", "a/b/2.PNG", "a/notes.txt", "c/3.webp", "[odd].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["a"], ["a/1.jpg", "a/b/2.PNG"]),
        (["a/notes.txt", "-"], ["a/notes.txt", "-"]),
        (["a/*"], ["a/1.jpg", "a/b/2.PNG", "a/notes.txt"]),
        (["**/*.jpg"], ["[odd].jpg", "a/1.jpg"]),
        (["a/**"], ["a/1.jpg", "a/b/2.PNG", "a/notes.txt"]),
        (["[odd].jpg"], ["[odd].jpg"]),
        (["c", "a/1.jpg"], ["c/3.webp", "a/1.jpg"]),
        (["nothing.jpg", "*.gif"], ["nothing.jpg", "*.gif"]),
        (["x" * 300], ["x" * 300]),
    ],
)
def test_files_folders_and_patterns(arguments: list[str], files: list[str], tree: Path):
    assert find_pictures(arguments) == files
    absolute = [name if name == "-" else str(tree / name) for name in arguments]
    assert find_pictures(absolute) == [name if name == "-" else str(tree / name) for name in files]


def test_the_home_folder_in_what_a_shell_has_left_alone(tree: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tree))
    assert find_pictures(["~/a/*.jpg", "~/c"]) == [str(tree / "a/1.jpg"), str(tree / "c/3.webp")]
    with pytest.raises(DataError, match=r"~/nothing\.png: there is no such file"):
        Predictor(run).predict("~/nothing.png")
    with pytest.raises(DataError) as caught:  # it is there, and empty
        Predictor(run).predict("~/a/1.jpg")
    assert "no such file" not in str(caught.value)


def test_links_in_circles_name_no_picture_twice(tree: Path):
    (tree / "a" / "b" / "back").symlink_to(tree / "a")
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / "4.jpg").write_bytes(b"")
    assert find_pictures(["a/**"]) == ["a/1.jpg", "a/b/2.PNG", "a/notes.txt"]
    assert find_pictures(["**/*.jpg", "?/**/*.PNG"]) == ["[odd].jpg", "a/1.jpg", "a/b/2.PNG"]


def test_a_folder_without_pictures_is_kept_to_be_told_of(tree: Path, run: Run):
    (tree / "void").mkdir()
    assert find_pictures(["void"]) == ["void"]
    (prediction,) = Predictor(run).predict_files(["void"], top=1)
    assert prediction.problem == "a folder without pictures"
