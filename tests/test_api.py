"""The public functions, and the examples of docs/python.md as they stand."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import thumbnet
from thumbnet.config import load_preset
from thumbnet.data.dataset import Splits
from thumbnet.runs.run import Run

DOCS = Path(__file__).parents[1] / "docs" / "python.md"
SMALL = {"distort.crop": 12, "train.summary_every": 0, "train.precision": "fp32"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder, a cache of its own, one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thumbnet.data.cache_dir", lambda data_dir: data_dir or tmp_path / "cache")
    monkeypatch.setattr("thumbnet.engine.usable_cores", lambda *_: 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_pictures(root: Path, count: int = 12) -> Path:
    """Two classes that differ in colour, `count` pictures of each."""
    rng = np.random.default_rng(0)
    for name, colour in (("daisy", (230, 220, 40)), ("tulip", (200, 20, 60))):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.array(colour) + rng.integers(-25, 25, (40 + number, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps on the shapes, made once."""
    overrides = {**SMALL, "train.checkpoint_every_steps": 2, "data.validation": 100, "input.batch_size": 20}
    recipe = load_preset("classic", {**overrides, "train.steps": 4, "data.name": "shapes"})
    out = tmp_path_factory.mktemp("shapes")
    return thumbnet.train(recipe, out=out, name="one", threads=1, quiet=True).run


def test_importing_is_cheap_and_lists_its_names():
    script = (
        "import sys, thumbnet\n"
        "heavy = {'torch', 'numpy', 'PIL', 'thumbnet.api'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "assert {'train', 'evaluate', 'load', 'load_dataset', 'DataError'} <= set(dir(thumbnet))\n"
        "thumbnet.DataError; assert 'torch' not in sys.modules\n"
        "thumbnet.load; assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        thumbnet.trian  # noqa: B018


def test_the_examples_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("thumbnet.data.shapes.TRAIN_COUNT", 1000)  # as they stand, but for a smaller data set
    monkeypatch.setattr("thumbnet.data.shapes.TEST_COUNT", 100)
    narrow = {"model.options.widths": [32, 32, 32]}
    monkeypatch.setattr(
        "thumbnet.api.load_preset",
        lambda name, changes: load_preset(name, changes | (narrow if name == "quick" else {})),
    )
    make_pictures(tmp_path / "flowers")
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
    output = capsys.readouterr()
    assert output.out.splitlines()[0].startswith("test accuracy, average weights:")
    assert "unknown preset 'quik' - did you mean 'quick'?" in output.out
    assert "\r" not in output.err
    assert "22 images to train on do not fill a batch of 500: batches of 16" in output.err


def test_what_the_documentation_names_exists():
    named = set(re.findall(r"thumbnet\.([A-Za-z_]+)\b", DOCS.read_text()))
    assert named <= {*thumbnet.__all__, "config", "input", "models"}


def test_the_figures_are_those_that_the_run_keeps(shapes: Path, capsys: pytest.CaptureFixture[str]):
    figures = json.loads((shapes / "result.json").read_text())["test"]
    assert thumbnet.evaluate(shapes, quiet=True).accuracy == figures["average"]["accuracy"]
    assert thumbnet.evaluate(str(shapes), weights="raw", quiet=True).loss == pytest.approx(figures["raw"]["loss"])
    assert thumbnet.evaluate("one", out=shapes.parent, limit=7, quiet=True).examples == 7
    named = thumbnet.evaluate(shapes / "checkpoints" / "step-00000002", limit=50, quiet=True)
    assert named.loss == thumbnet.evaluate(Run.open(shapes), checkpoint=2, limit=50, quiet=True).loss
    assert capsys.readouterr() == ("", "")


def test_a_data_set_that_is_loaded_is_not_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_pictures(tmp_path / "flowers")
    data = thumbnet.load_dataset("flowers", validation=4, image_size=16, quiet=True)
    assert repr(data.train) == "<ImageDataset flowers: 18 images 16x16x3, 2 classes>"
    monkeypatch.setattr("thumbnet.training.whole.load_splits", None)
    result = thumbnet.train("classic", data, steps=1, batch_size=4, overrides=SMALL, test=False, quiet=True)
    recipe = Run.open(result.run).recipe
    assert recipe.data.name == str(tmp_path / "flowers")
    assert (recipe.data.validation, recipe.data.image_size) == (4, 16)
    assert result.metrics == {}
    assert result.accuracy is None
    assert "test accuracy" not in str(result)


def test_a_run_remembers_the_cache_that_its_data_set_was_loaded_from(tmp_path: Path):
    make_pictures(tmp_path / "flowers")
    data = thumbnet.load_dataset("flowers", image_size=16, data_dir=tmp_path / "cache", quiet=True)
    result = thumbnet.train(
        "classic", data, steps=1, batch_size=4, overrides=SMALL, resume=None, test=False, quiet=True
    )
    assert Run.open(result.run).data_dir == tmp_path / "cache"
    other = thumbnet.train(
        "classic", data, steps=1, batch_size=4, overrides=SMALL, data_dir=tmp_path, test=False, quiet=True
    )
    assert Run.open(other.run).data_dir == tmp_path


def test_pictures_loaded_otherwise_than_the_recipe_says_are_refused(tmp_path: Path):
    make_pictures(tmp_path / "flowers")
    recipe = load_preset("classic", {**SMALL, "data.validation": 4, "train.steps": 1, "input.batch_size": 4})
    data = thumbnet.load_dataset("flowers", image_size=16, quiet=True)
    for resume in (False, None):
        with pytest.raises(thumbnet.UsageError, match=r"data.validation is 4.* in the recipe.* was loaded with 0"):
            thumbnet.train(recipe, data, resume=resume, quiet=True)
    assert not list(tmp_path.glob("runs/*"))
    by_path = thumbnet.train(recipe, "flowers", test=False, quiet=True)
    changed = thumbnet.train(recipe, data, validation=5, test=False, quiet=True)
    runs = [Run.open(result.run).recipe.data for result in (by_path, changed)]
    assert [(run.validation, run.image_size) for run in runs] == [(4, 32), (5, 16)]


def test_a_recipe_and_its_file_are_the_same():
    recipe = load_preset("classic", {**SMALL, "data.name": "shapes", "train.steps": 1, "input.batch_size": 8})
    first = thumbnet.train(recipe, name="first", test=False, quiet=True)
    again = thumbnet.train(first.run / "recipe.toml", name="again", test=False, quiet=True)
    other = thumbnet.train(str(first.run / "recipe.toml"), seed=1, name="other", test=False, quiet=True)
    recipes = [Run.open(result.run).recipe for result in (first, again, other)]
    assert recipes[0] == recipes[1]
    assert (recipes[2].seed, recipes[0].seed) == (1, 0)


def test_pictures_that_were_moved(tmp_path: Path):
    make_pictures(tmp_path / "flowers")
    run = thumbnet.train("classic", "flowers", steps=2, batch_size=4, validation=4, overrides=SMALL, quiet=True).run
    before = thumbnet.evaluate(run, quiet=True)
    (tmp_path / "flowers").rename(tmp_path / "blossoms")
    with pytest.raises(thumbnet.DataError, match="no such folder"):
        thumbnet.train(resume=run, steps=3, quiet=True)
    make_pictures(tmp_path / "fakes", count=13)
    recipe = (run / "recipe.toml").read_bytes()
    with pytest.raises(thumbnet.DataError, match="'train' was 18 and is 20"):
        thumbnet.train(resume=run, steps=3, data="fakes", quiet=True)
    assert (run / "recipe.toml").read_bytes() == recipe
    assert thumbnet.evaluate(run, data="blossoms", quiet=True).loss == before.loss
    assert thumbnet.evaluate(run, data=tmp_path / "fakes", quiet=True).examples == before.examples
    assert thumbnet.train(resume=run, steps=3, data="blossoms", quiet=True).figures["steps"] == 3
    assert Run.open(run).recipe.data.name == str(tmp_path / "blossoms")
    assert thumbnet.evaluate(run, split="val", quiet=True).examples == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "quik"}, "unknown preset 'quik' - did you mean 'quick'"),
        ({"recipe": "nothing.toml"}, "nothing.toml: cannot read this recipe"),
        ({"data": "shapse"}, "unknown data set 'shapse' - did you mean 'shapes'"),
        ({"data": "shapes", "steps": 1, "epochs": 1}, "steps and epochs: give one of the two"),
        ({"data": "shapes", "steps": 0}, "steps is 0: it must be above 0"),
        ({"data": "shapes", "epochs": float("nan")}, "epochs is nan: it must be above 0"),
        ({"data": "shapes", "seed": -1}, "seed is -1: it must be at least 0"),
        ({"data": "shapes", "batch_size": 5001}, "larger than the training set"),
        ({"data": "shapes", "overrides": {"optimizer.rate": 1}}, "unknown key 'optimizer.rate'"),
        ({"data": "shapes", "model": "clasic"}, "did you mean 'classic'"),
        ({"data": "shapes", "validation": 0.5, "name": "a b"}, "--name 'a b': use"),
        ({"resume": True}, "there is no run here"),
        ({"resume": "some", "name": "other"}, "a resumed run keeps its own"),
    ],
)
def test_what_cannot_be_trained_is_told_and_leaves_nothing(arguments: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(thumbnet.UsageError, match=re.escape(message)):
        thumbnet.train(**arguments, quiet=True)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("runs/*"))


def test_data_made_by_hand_cannot_be_found_again():
    train = thumbnet.load_dataset("shapes", quiet=True).train
    with pytest.raises(thumbnet.UsageError, match="must find its pictures again"):
        thumbnet.train("quick", Splits(train=train, validation=None, test=None), quiet=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "nothing/"}, thumbnet.DataError, "no such folder"),
        ({"name": "shapes", "validation": -1}, thumbnet.UsageError, "data.validation is -1"),
        ({"name": "shapes", "validation": 5000}, thumbnet.UsageError, "must be from 1 to 4,999"),
        ({"name": "shapes", "image_size": 64}, thumbnet.UsageError, "the pictures of shapes are 32x32"),
    ],
)
def test_data_that_cannot_be_had(arguments: dict[str, object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        thumbnet.load_dataset(**arguments, quiet=True)  # type: ignore[arg-type]


def test_runs_and_checkpoints_that_are_not_there(shapes: Path):
    with pytest.raises(thumbnet.UsageError, match=r"no run 'on' in .* did you mean 'one'"):
        thumbnet.load("on", out=shapes.parent)
    with pytest.raises(thumbnet.CheckpointError, match="no checkpoint of step 3"):
        thumbnet.load(shapes, checkpoint=3)
    with pytest.raises(thumbnet.UsageError, match="is one checkpoint"):
        thumbnet.evaluate(shapes / "checkpoints" / "step-00000002", checkpoint="best")
    assert thumbnet.load(shapes, checkpoint="best").step in (2, 4)
    assert thumbnet.load(shapes / "checkpoints" / "step-00000002", weights="raw").step == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "avrage"}, "weights is 'avrage' - did you mean 'average'?"),
        ({"split": "tset"}, "split is 'tset' - did you mean 'test'?"),
        ({"threads": 0}, "threads is 0: it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1: it must be at least 1"),
        ({"limit": 0}, "limit is 0: it must be at least 1"),
        ({"precision": "fp61"}, "precision is 'fp61' - did you mean 'fp16'?"),
        ({"checkpoint": "2"}, "checkpoint is '2': give 'latest', 'best' or the number of a step"),
        ({"checkpoint": None}, "checkpoint is None"),
    ],
)
def test_what_cannot_be_evaluated_is_told(arguments: dict[str, object], message: str, shapes: Path):
    with pytest.raises(thumbnet.UsageError, match=re.escape(message)):
        thumbnet.evaluate(shapes, **arguments)  # type: ignore[arg-type]


def test_unknown_weights_are_not_loaded(shapes: Path):
    with pytest.raises(thumbnet.UsageError, match="weights is 'avg' - "):
        thumbnet.load(shapes, weights="avg")  # type: ignore[arg-type]


def press_stop(run: Path) -> threading.Thread:
    """Send SIGINT to this process once the run has told of a step, as a notebook's stop button does."""

    def press() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path):
    before = signal.getsignal(signal.SIGINT)  # which a shell's background job has ignored
    thread = press_stop(tmp_path / "runs" / "long")
    message = r"stopped at step \d+, saved; to go on: thumbnet.train\(resume="
    with pytest.raises(KeyboardInterrupt, match=message) as stop:
        thumbnet.train("classic", "shapes", steps=100_000, batch_size=8, overrides=SMALL, name="long", quiet=True)
    thread.join()
    resume = str(Path("runs") / "long")
    assert repr(resume) in str(stop.value)
    steps = Run.open(Path(resume)).checkpoints.steps()[-1] + 1
    assert thumbnet.train(resume=resume, steps=steps, test=False, quiet=True).figures["steps"] == steps
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_it_trains_without_touching_signals():
    runs: list[Path] = []

    def work() -> None:
        result = thumbnet.train("classic", "shapes", steps=1, batch_size=8, overrides=SMALL, test=False, quiet=True)
        runs.append(result.run)

    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(runs) == 1
    assert signal.getsignal(signal.SIGINT) is handler
