"""Training on one's own pictures and predicting, as a user runs them."""

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thumbnet.cli.main import main

COLOURS = {"blue": (20, 30, 220), "green": (20, 200, 40), "red": (210, 30, 20)}
QUICK = ["--preset", "svhn", "--image-size", "28", "--batch-size", "30", "--threads", "1", "--precision", "fp32"]


def put(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    noise = np.random.default_rng(seed).integers(-20, 20, (20 + seed % 30, 30, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures `colours`, one of them bad, and `runs` with a run on them."""
    root = tmp_path_factory.mktemp("trained")
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(40):
            put(root / "colours" / name / f"{number}.{('jpg', 'png')[number % 2]}", colour, 100 * label + number)
    (root / "colours" / "red" / "bad.jpg").write_bytes(b"<html>not found</html>")
    data = ["--data", str(root / "colours"), "--data-dir", str(root / "cache"), "--validation", "0.1"]
    out = ["--out", str(root / "runs"), "--name", "colours", "--json", "--summary-every", "0"]
    assert main(["train", *data, *QUICK, "--steps", "25", "--skip-bad", *out]) == 0
    return root


def test_the_run_keeps_what_it_was_trained_on(trained: Path):
    facts = json.loads((trained / "runs" / "colours" / "data.json").read_text())
    assert facts["class_names"] == list(COLOURS)
    assert facts["image_shape"] == [28, 28, 3]
    assert (facts["train"], facts["validation"], facts["test"]) == (97, 11, 12)
    assert json.loads((trained / "runs" / "colours" / "result.json").read_text())["test"]["raw"]["accuracy"] > 0.9


def test_a_table_for_a_person(trained: Path, capsys: pytest.CaptureFixture[str]):
    files = [str(trained / "colours" / name / "0.jpg") for name in COLOURS]
    assert main(["predict", *files, "--out", str(trained / "runs"), "--top", "2"]) == 0
    output = capsys.readouterr()
    assert "colours, step 25, averaged weights, 3 classes" in output.err
    for line, file, name in zip(output.out.splitlines(), files, COLOURS, strict=True):
        assert line.split()[:2] == [file, name]
        assert line.count("%") == 2


def test_json_is_one_object(trained: Path, capsys: pytest.CaptureFixture[str]):
    pictures = str(trained / "colours" / "green")
    assert main(["predict", pictures, "--run", str(trained / "runs" / "colours"), "--json", "--top", "9"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["step"], result["weights"], result["unreadable"]) == (25, "average", [])
    assert len(result["predictions"]) == 40
    for prediction in result["predictions"]:
        assert prediction["class"] == prediction["top"][0]["class"] == "green"
        assert prediction["probability"] == prediction["top"][0]["probability"]
        assert sum(entry["probability"] for entry in prediction["top"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("flags", "which"),
    [
        (["--checkpoint", "best"], "step 25, averaged weights"),
        (["--checkpoint", "25", "--weights", "raw"], "step 25, raw weights"),
    ],
)
def test_a_checkpoint_and_weights_of_ones_choice(
    trained: Path, flags: list[str], which: str, capsys: pytest.CaptureFixture[str]
):
    picture = str(trained / "colours" / "red" / "0.jpg")
    assert main(["predict", picture, "--out", str(trained / "runs"), *flags]) == 0
    output = capsys.readouterr()
    assert which in output.err
    assert output.out.split()[1] == "red"


def test_checkpoints_that_there_are_not(trained: Path, capsys: pytest.CaptureFixture[str]):
    picture = str(trained / "colours" / "red" / "0.jpg")
    assert main(["predict", picture, "--out", str(trained / "runs"), "--checkpoint", "7"]) == 1
    assert "step 7" in capsys.readouterr().err
    assert main(["predict", picture, "--checkpoint", "newest"]) == 2
    assert "'newest' is neither latest nor best" in capsys.readouterr().err
    one = str(trained / "runs" / "colours" / "checkpoints" / "step-00000025")
    assert main(["predict", picture, "--run", one, "--checkpoint", "best"]) == 2
    assert "is one checkpoint: name its run" in capsys.readouterr().err


def test_csv_is_a_table(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    strange = tmp_path / 'a,"b".png'
    put(strange, COLOURS["red"], 7)
    assert main(["predict", str(strange), "--out", str(trained / "runs"), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["file"] == str(strange)
    assert row["class"] == "red"
    assert list(row) == ["file", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert sum(float(row[f"probability{which}"]) for which in ("", "_2", "_3")) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_bad_files_are_named_and_passed_over(
    form: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = str(trained / "colours" / "red" / "1.png")
    files = [str(trained / "colours" / "red" / "bad.jpg"), good, str(tmp_path / "nothing.png")]
    assert main(["predict", *files, "--out", str(trained / "runs"), *form]) == 3
    output = capsys.readouterr()
    assert f"{files[0]}: HTML, SVG or other markup, not a JPEG, PNG, WebP or BMP" in output.err
    assert f"{files[2]}: there is no such file" in output.err
    assert output.err.splitlines()[-1] == "thumbnet: error: 2 of 3 pictures could not be read; they are named above"
    assert good in output.out
    if form == ["--json"]:
        result = json.loads(output.out)
        assert [entry["file"] for entry in result["unreadable"]] == [files[0], files[2]]
        assert len(result["predictions"]) == 1


def test_names_that_are_no_text(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = os.fsencode(tmp_path) + b"/b\xe4r\n.png"
    shutil.copy(trained / "colours" / "red" / "1.png", file)
    for form in ([], ["--json"], ["--csv"]):
        assert main(["predict", os.fsdecode(file), "--out", str(trained / "runs"), *form]) == 0
        assert "red" in capsys.readouterr().out


def test_standard_input(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    data = (trained / "colours" / "blue" / "2.jpg").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["predict", "-", "--out", str(trained / "runs"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["class"] == "blue"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "IMAGE"),
        (["x.png", "--top", "0"], 2, "'0' is not a whole number of 1 or more"),
        (["x.png", "--json", "--csv"], 2, "not allowed with argument"),
        (["x.png", "--run", "colour"], 2, "there is no run 'colour'"),
        (["x.png", "--rnu", "colours"], 2, "did you mean '--run'"),
    ],
)
def test_bad_arguments(
    arguments: list[str], code: int, message: str, trained: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["predict", *arguments, "--out", str(trained / "runs")]) == code
    assert message in capsys.readouterr().err


def test_no_run_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", "x.png", "--out", str(tmp_path)]) == 2
    assert "there is no run here" in capsys.readouterr().err


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The pictures and the run once more, to be changed."""
    shutil.copytree(trained / "colours", tmp_path / "colours")
    shutil.copytree(trained / "runs", tmp_path / "runs")
    recipe = tmp_path / "runs" / "colours" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path


def again(copy: Path, *arguments: str) -> int:
    return main([*arguments, "--data-dir", str(copy / "cache"), "--threads", "1"])


def test_an_evaluation_wants_the_same_classes(copy: Path, capsys: pytest.CaptureFixture[str]):
    run = str(copy / "runs" / "colours")
    assert again(copy, "eval", run, "--no-plots", "--json") == 0
    (copy / "colours" / "red").rename(copy / "colours" / "a-red")
    capsys.readouterr()
    assert again(copy, "eval", run, "--no-plots") == 3
    assert "the classes have changed (gone: red; new: a-red)" in capsys.readouterr().err


def test_a_training_goes_on_with_the_same_pictures_and_no_others(copy: Path, capsys: pytest.CaptureFixture[str]):
    out = ["--out", str(copy / "new"), "--summary-every", "0"]
    assert again(copy, "train", "--data", str(copy / "colours"), "--skip-bad", *QUICK, "--steps", "1", *out) == 0
    resume = ["train", "--resume", *out[:2], "--steps"]
    assert again(copy, *resume, "2") == 0
    put(copy / "colours" / "red" / "0.jpg", COLOURS["red"], 999)
    capsys.readouterr()
    assert again(copy, *resume, "3") == 3
    error = capsys.readouterr().err
    assert "pictures have changed" in error
    assert error.splitlines()[-1] == "put the pictures back as they were, or train a new run on them as they are"


def test_an_evaluation_goes_on_without_bad_pictures_where_asked(copy: Path, capsys: pytest.CaptureFixture[str]):
    run = copy / "runs" / "colours"
    recipe = (run / "recipe.toml").read_text()
    assert "skip_bad = true" in recipe
    (run / "recipe.toml").write_text(recipe.replace("skip_bad = true", "skip_bad = false"))
    assert again(copy, "eval", str(run), "--no-plots") == 3
    assert capsys.readouterr().err.splitlines()[-1].endswith("or go on without them: --skip-bad")
    assert again(copy, "eval", str(run), "--no-plots", "--skip-bad") == 0
    assert "going on without them; the list: " in capsys.readouterr().err


def test_bad_pictures_stop_a_training_before_a_run_is_left(copy: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["train", "--data", str(copy / "colours"), *QUICK, "--steps", "1", "--out", str(copy / "new")]
    assert again(copy, *arguments) == 3
    error = capsys.readouterr().err
    assert "  red/bad.jpg: HTML, SVG or other markup" in error
    assert "1 of 121 pictures cannot be read" in error
    assert "--skip-bad" in error.splitlines()[-1]
    assert not list((copy / "new").iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "no/such/folder"], 3, "no such folder or file"),
        (["--data", "no-such-name"], 2, "unknown data set 'no-such-name'"),
        (
            ["--data", "COLOURS", "--image-size", "16", "--batch-size", "9"],
            2,
            "there is no such square in pictures of 16x16",
        ),
        (["--data", "COLOURS", "--image-size", "3"], 2, "data.image_size is 3: it must be at least 4"),
        (["--data", "COLOURS", "--validation", "1.5"], 2, "whole number of images, or a share below 1"),
        (["--data", "shapes", "--image-size", "64"], 2, "--image-size 64: the pictures of shapes are 32x32"),
    ],
)
def test_impossible_data(
    arguments: list[str], code: int, message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [str(trained / "colours") if word == "COLOURS" else word for word in arguments]
    cache = ["--data-dir", str(trained / "cache"), "--out", str(tmp_path / "runs")]
    assert main(["train", "--skip-bad", "--steps", "1", "--threads", "1", *arguments, *cache]) == code
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))
