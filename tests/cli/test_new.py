"""A project as a user makes it and runs it."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from thumbnet.cli.main import main
from thumbnet.config import load_preset, load_recipe


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "my flowers"
    assert main(["new", str(folder)]) == 0
    assert f"cd '{folder}'" in capsys.readouterr().out
    return folder


@pytest.fixture
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, a cache of its own, few shapes."""
    monkeypatch.setattr("thumbnet.data.cache_dir", lambda data_dir: data_dir or tmp_path / "cache")
    monkeypatch.setattr("thumbnet.engine.usable_cores", lambda *_: 1)
    monkeypatch.setattr("thumbnet.data.shapes.TRAIN_COUNT", 100)
    monkeypatch.setattr("thumbnet.data.shapes.TEST_COUNT", 50)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_script(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Run the project's script; returns what it printed."""

    def run(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        runpy.run_path(str(project / "train.py"), run_name="__main__")
        return capsys.readouterr()

    return run


def narrow(recipe: Path) -> None:
    """Make the network narrower, and a training shorter."""
    text = recipe.read_text()
    assert "widths = [64, 128, 128]" in text
    recipe.write_text(text.replace("widths = [64, 128, 128]", "widths = [32, 32, 32]"))


def test_what_is_written(project: Path):
    files = {str(path.relative_to(project)) for path in project.rglob("*")}
    assert files == {"train.py", "recipe.toml", "README.md", ".gitignore", "pictures", "pictures/.gitkeep"}
    assert (project / "README.md").read_text().startswith("# my flowers\n")
    assert len((project / "train.py").read_text().splitlines()) < 60


def test_the_recipe_is_quick_with_smaller_batches(project: Path):
    recipe, quick = load_recipe(project / "recipe.toml"), load_preset("quick")
    assert (recipe.model, recipe.distort, recipe.schedule) == (quick.model, quick.distort, quick.schedule)
    share = recipe.input.batch_size / quick.input.batch_size
    for layer, rate in quick.optimizer.rates.items():
        assert recipe.optimizer.rates[layer] == pytest.approx(rate * share, rel=0.01)


@pytest.mark.usefixtures("_small")
def test_it_runs_as_written_on_pictures(project: Path, run_script: Callable[..., Any]):
    rng = np.random.default_rng(0)
    for name, colour in (("daisy", (230, 220, 40)), ("tulip", (200, 20, 60))):
        (project / "pictures" / name).mkdir()
        for number in range(20):
            pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (40, 36 + number, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(project / "pictures" / name / f"{number}.jpg")
    narrow(project / "recipe.toml")
    output = run_script()
    assert "test accuracy, average weights:  100.00 %" in output.out
    assert "daisy            precision 100%, recall 100%, 2 pictures" in output.out
    assert "tulip: looks like tulip" in output.out
    assert "batches of 16, 200 steps" in output.err
    (run,) = (project / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["steps"] == 200


@pytest.mark.usefixtures("_small")
def test_splits_of_ones_own_and_the_size_in_the_recipe(
    project: Path, run_script: Callable[..., Any], capsys: pytest.CaptureFixture[str]
):
    rng = np.random.default_rng(0)
    for split, count in (("train", 50), ("val", 30), ("test", 10)):
        for name, brightest in (("dark", 100), ("bright", 255)):
            (project / "pictures" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(rng.integers(0, brightest, (60, 50, 3), np.uint8))
                picture.save(project / "pictures" / split / name / f"{number}.png")
    recipe = project / "recipe.toml"
    text = recipe.read_text().replace("image_size = 32", "image_size = 48").replace("crop = 32", "crop = 42")
    recipe.write_text(text.replace("epochs = 20", "epochs = 2"))
    narrow(recipe)
    output = run_script()
    assert "100 images to train on, 60 for validation" in output.err
    assert "dark             precision" in output.out
    assert "network speed" in output.err
    assert "input 32x32, then 42x42" in output.err
    # The command takes the same recipe and folder.
    arguments = ["--recipe", str(recipe), "--data", str(project / "pictures"), "--steps", "1", "--no-test"]
    assert main(["train", *arguments, "--out", str(project / "runs")]) == 0
    assert "100 images to train on, 60 for validation" in capsys.readouterr().err


@pytest.mark.usefixtures("_small")
def test_it_runs_on_the_shapes(project: Path, run_script: Callable[..., Any]):
    recipe = project / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("epochs = 20", "epochs = 2"))
    narrow(recipe)
    output = run_script("shapes")
    assert "test accuracy, raw weights:" in output.out
    assert output.out.count("looks like") == 5


def test_without_pictures_the_script_says_where_they_go(
    project: Path, run_script: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir("/")
    with pytest.raises(SystemExit) as stop:
        run_script()
    assert stop.value.code == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {project}/pictures: no pictures in it")
    assert "one folder per class" in error


def test_an_empty_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert main(["new", ".", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0] == "train.py"
    assert (tmp_path / "README.md").read_text().startswith(f"# {tmp_path.name}\n")


def test_nothing_is_overwritten(project: Path, capsys: pytest.CaptureFixture[str]):
    (project / "train.py").write_text("mine")
    assert main(["new", str(project)]) == 2
    assert "is not empty, and nothing is overwritten" in capsys.readouterr().err
    assert (project / "train.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["-x", ".hidden", " ", "a\nb", "tab\t", "a\0b"])
def test_names_that_are_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "--", name]) == 2
    assert "not a name for a project" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_places_where_nothing_can_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert main(["new", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["new", str(tmp_path / "file" / "below")]) == 2
    assert "cannot write a project there: Not a directory" in capsys.readouterr().err
    assert main(["new"]) == 2
    assert main(["new", "a", "b"]) == 2


def test_the_home_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "~no-such-user/project"]) == 2
    assert "there is no user whose home is ~no-such-user" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
