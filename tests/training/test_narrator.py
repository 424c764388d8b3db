"""The book's way of training and of telling: one picture at a time, file after file."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thumbnet.config import Recipe, load_preset
from thumbnet.data.dataset import ImageDataset, Splits
from thumbnet.data.records import RecordFormat, RecordPart
from thumbnet.errors import DivergedError
from thumbnet.input.distort import prepare
from thumbnet.models import build_model
from thumbnet.runs.run import Run
from thumbnet.training.loop import Outcome
from thumbnet.training.narrator import table_of
from thumbnet.training.session import resumed_recipe

Train = Callable[..., Outcome]
Bytes = Callable[[Run], dict[str, bytes]]
LAYOUT = RecordFormat()
FILES = {"one.bin": 5, "two.bin": 4, "three.bin": 3}


@pytest.fixture
def splits() -> Splits:
    """Twelve pictures in three files, the first of them a frog."""
    rng = np.random.default_rng(0)
    parts = []
    for name, count in FILES.items():
        labels = rng.integers(0, 10, count)
        labels[0] = 6
        records = LAYOUT.pack(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels)
        parts.append(RecordPart(name=name, where=name, records=records))
    names = [f"class{number}" for number in range(10)]
    return Splits(train=ImageDataset("files", names, LAYOUT, parts), validation=None, test=None)


def book(**overrides: object) -> Recipe:
    return load_preset(
        "book",
        {"data.name": "shapes", "train.log_every": 1, "train.summary_every": 0, "train.precision": "fp32"}
        | {key.replace("__", "."): value for key, value in overrides.items()},
    )


def lines_of(run: Run) -> list[str]:
    return (run.path / "log.txt").read_text().splitlines()


def test_it_is_the_book_s_system() -> None:
    recipe = load_preset("book")
    assert (recipe.input.batch_size, recipe.input.pool, recipe.train.epochs) == (1, 0, 2)
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate, recipe.optimizer.momentum) == ("sgd", 0.001, 0)
    assert (recipe.optimizer.weight_decay, recipe.train.label_smoothing, recipe.average.decay) == ({}, 0, 0)
    assert {factor for _, factor in recipe.schedule.points} == {1.0}
    distort = recipe.distort
    assert (distort.crop, distort.pad, distort.flip, distort.brightness, distort.cutout) == (32, 0, "none", 0, 0)
    assert distort.contrast == (1, 1)
    assert (recipe.train.log_every, recipe.train.log_format) == (1000, "book")
    assert recipe.train.summary_every > 0, "the graph is among the summaries"


def test_a_training_is_gradient_descent_on_one_picture_after_the_other(
    train: Train, splits: Splits, tmp_path: Path
) -> None:
    """Against plain torch on the same initial weights."""
    recipe = book(seed=3)
    run = Run.create(tmp_path, recipe, "run")
    train(run)
    torch.manual_seed(3)
    model = build_model(recipe.model, num_classes=10, crop=32)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    told = []
    for index in [*range(12), *range(12)]:
        image_1HWC, label = splits.train.gather(np.array([index]))
        logits = model(prepare(image_1HWC, recipe.distort))
        told.append((int(label[0]), logits[0].tolist()))
        gradients = torch.autograd.grad(F.cross_entropy(logits, torch.from_numpy(label)), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.001 * gradient
    trained = run.checkpoints.latest().model
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-6)
    lines = [line for line in lines_of(run) if re.match(r"\[\d\]: \[", line)]
    assert len(lines) == 24
    for line, (label, logits) in zip(lines, told, strict=True):
        assert line.startswith(f"[{label}]: [")
        numbers = [float(number) for number in line.partition(": ")[2].strip("[]").split()]
        assert numbers == pytest.approx(logits, abs=2e-4, rel=2e-3)


def test_each_file_is_named_in_each_epoch_where_it_begins(train: Train, tmp_path: Path) -> None:
    run = Run.create(tmp_path, book(), "run")
    train(run)
    lines = [line for line in lines_of(run) if line[0] in "[e"]
    found = {number: line for number, line in enumerate(lines) if line.startswith("epoch")}
    assert list(found.values()) == [f"epoch {epoch}: {name}" for epoch in (1, 2) for name in FILES]
    # Lines of pictures and of files alternate as the files' lengths say.
    assert list(found) == [0, 6, 11, 15, 21, 26]


def test_a_batch_may_begin_several_files(train: Train, tmp_path: Path) -> None:
    run = Run.create(tmp_path, book(input__batch_size=8), "run")
    train(run)
    lines = [line for line in lines_of(run) if line[0] in "[e"]
    assert [line[:1] for line in lines] == list("ee[ee[ee[")
    assert lines[0] == "epoch 1: one.bin"


def test_in_a_shuffled_order_no_file_is_named(train: Train, tmp_path: Path) -> None:
    run = Run.create(tmp_path, book(input__pool=1.0), "run")
    train(run)
    assert not [line for line in lines_of(run) if line.startswith("epoch")]


def test_the_first_picture_is_asked_before_training_and_after_each_epoch(
    train: Train, splits: Splits, tmp_path: Path
) -> None:
    recipe = book(seed=1)
    run = Run.create(tmp_path, recipe, "run")
    train(run)
    rows = [row for row in run.read_metrics() if "first_picture" in row]
    assert [(row["step"], row["epoch"]) for row in rows] == [(0, 0), (12, 1), (24, 2)]
    assert all((row["first_picture"]["key"], row["first_picture"]["label"]) == ("one.bin:0", 6) for row in rows)
    image_1HWC, _ = splits.train.gather(np.zeros(1, np.int64))
    model = build_model(recipe.model, num_classes=10, crop=32)
    model.load_state_dict(run.checkpoints.latest().model)
    with torch.no_grad():
        logits = model(prepare(image_1HWC, recipe.distort))[0].tolist()
    assert rows[-1]["first_picture"]["logits"] == pytest.approx(logits, abs=1e-5)
    lines = lines_of(run)
    head = next(number for number, line in enumerate(lines) if line.startswith("logits of the first picture"))
    assert "one.bin:0, which is 6 (class6)" in lines[head]
    assert lines[head + 1].split() == ["before", "epoch", "1", "epoch", "2"]
    table = [line.replace("*", "").split() for line in lines[head + 2 : head + 12]]
    for number, cells in enumerate(table):
        assert cells[:2] == [str(number), f"class{number}"]
        assert [float(cell) for cell in cells[2:]] == pytest.approx(
            [row["first_picture"]["logits"][number] for row in rows], abs=6e-4
        )
    assert re.fullmatch(r"total duration: 0:00:\d\d", lines[head + 12])


def test_a_table_marks_the_highest_of_each_column() -> None:
    picture = {"key": "a.bin:0", "label": 1}
    rows = [
        {"step": 0, "epoch": 0, "first_picture": picture | {"logits": [0.1, -0.25]}},
        {"step": 5, "loss": 2.0},
        {"step": 9, "epoch": 1, "first_picture": picture | {"logits": [-3.0, 12.5]}},
    ]
    assert table_of(rows, ("cat", "frog")) == [
        "logits of the first picture, a.bin:0, which is 1 (frog); * marks the highest",
        "             before     epoch 1",
        "  0 cat       0.100*     -3.000",
        "  1 frog     -0.250      12.500*",
    ]
    assert table_of(rows[1:2], ("cat", "frog")) == []


def test_what_was_asked_after_the_checkpoint_is_asked_again(train: Train, tmp_path: Path) -> None:
    whole, parts = (Run.create(tmp_path, book(), name) for name in ("whole", "parts"))
    train(whole)
    train(parts, stop_after=5)
    lost = {"key": "one.bin:0", "label": 6, "logits": [0.0] * 10}
    parts.append_metrics({"step": 12, "epoch": 1, "first_picture": lost})  # of a session that was killed
    train(parts, resume=True)
    tables = [table_of(run.read_metrics(), [str(number) for number in range(10)]) for run in (whole, parts)]
    assert tables[0] == tables[1]


def test_a_table_shows_what_was_not_finite() -> None:
    picture = {"key": "a.bin:0", "label": 1}
    rows = [
        {"step": 0, "epoch": 0, "first_picture": picture | {"logits": [None, -0.25]}},
        {"step": 9, "epoch": 1, "first_picture": picture | {"logits": [None, None]}},
    ]
    assert table_of(rows, ("cat", "frog"))[2:] == [
        "  0 cat         nan         nan",
        "  1 frog     -0.250*        nan",
    ]


@pytest.mark.parametrize(
    ("stops", "again"),
    [((5,), []), ((12,), []), ((3, 4, 9), ["epoch 1: one.bin", "epoch 1: two.bin", "epoch 2: one.bin"])],
)
def test_stopped_and_resumed_it_tells_the_same_table(
    train: Train, newest_bytes: Bytes, stops: tuple[int, ...], again: list[str], tmp_path: Path
) -> None:
    whole, parts = (Run.create(tmp_path, book(), name) for name in ("whole", "parts"))
    train(whole)
    for number, steps in enumerate(stops):
        train(parts, resume=number > 0, stop_after=steps)
    train(parts, resume=True)
    assert newest_bytes(parts) == newest_bytes(whole)
    tables = [table_of(run.read_metrics(), [str(number) for number in range(10)]) for run in (whole, parts)]
    assert len(tables[0]) == 12
    assert tables[0] == tables[1]
    # A session that goes on within a file says in which.
    named = [[line for line in lines_of(run) if line.startswith("epoch")] for run in (whole, parts)]
    assert sorted(named[1]) == sorted(named[0] + again)


def test_a_resume_may_tell_in_another_form(train: Train, tmp_path: Path) -> None:
    run = Run.create(tmp_path, book(), "run")
    train(run, stop_after=5)
    run.change_recipe(resumed_recipe(run, {"train.log_format": "default"}))
    train(run, resume=True)
    assert "img/s" in lines_of(run)[-1]


def test_it_stops_on_nan(train: Train, tmp_path: Path) -> None:
    run = Run.create(tmp_path, book(optimizer__learning_rate=1e30), "run")
    with pytest.raises(DivergedError, match=r"Model diverged"):
        train(run)
    assert not [line for line in lines_of(run) if line.startswith("total duration")]
