"""What a run was trained on, in a file of the run: enough to name its classes, and to notice that the data changed.

runs/NAME/data.json
  name, class_names, image_shape, train, validation, test (numbers of examples), fingerprint
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thumbnet.data import known_class_names
from thumbnet.data.dataset import Splits
from thumbnet.errors import CheckpointError, DataError
from thumbnet.files import read_regular_file, replace_file, write_error

DATA_FILE = "data.json"
_LIMIT_BYTES = 64 * 2**20  # 8,192 classes with names of thousands of letters


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a data set was."""

    name: str
    """What messages call it."""
    class_names: tuple[str, ...]
    """One per label, in label order."""
    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    train: int
    """Examples to train on."""
    validation: int
    """Examples for validation."""
    test: int
    """Examples for the test."""
    fingerprint: str
    """Of data of one's own, see `Splits.fingerprint`; else empty."""


def facts_of(splits: Splits) -> DataFacts:
    """Return the facts of a data set."""
    train = splits.train
    return DataFacts(
        name=train.name,
        class_names=train.class_names,
        image_shape=train.image_shape,
        train=len(train),
        validation=len(splits.validation) if splits.validation is not None else 0,
        test=len(splits.test) if splits.test is not None else 0,
        fingerprint=splits.fingerprint,
    )


def write_facts(run: Path, splits: Splits) -> None:
    """Write what a run is trained on into its folder.

    Raises:
        ThumbnetError: the disk is full or refuses.
    """
    text = json.dumps(dataclasses.asdict(facts_of(splits)), indent=2) + "\n"
    try:
        replace_file(run / DATA_FILE, [text.encode()])
    except OSError as error:
        raise write_error(run / DATA_FILE, error) from error


def read_facts(run: Path) -> DataFacts | None:
    """Return what a run was trained on, None for a run that does not say.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run / DATA_FILE
    if not path.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(read_regular_file(path, _LIMIT_BYTES))
        height, width, channels = map(int, values["image_shape"])
        facts = DataFacts(
            name=str(values["name"]),
            class_names=tuple(map(str, values["class_names"])),
            image_shape=(height, width, channels),
            train=int(values["train"]),
            validation=int(values["validation"]),
            test=int(values["test"]),
            fingerprint=str(values["fingerprint"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}): restore it from a backup") from error
    if len(facts.class_names) < 2 or min(facts.image_shape) < 1:
        raise CheckpointError(f"{path}: damaged: fewer than two classes, or pictures of no size")
    return facts


def class_names_of(run: Path, data_name: str) -> tuple[str, ...]:
    """Return the classes of a run, in label order; `data_name` is the name of the data set in its recipe.

    Raises:
        CheckpointError: the run does not say, or its file is damaged.
    """
    facts = read_facts(run)
    names = facts.class_names if facts else known_class_names(data_name)
    if names is None:
        raise CheckpointError(f"{run}: does not say what its classes are called: train it again")
    return names


def check_facts(run: Path, splits: Splits) -> None:
    """Compare a data set with what a run was trained on: its files may have changed since.

    Pictures of one's own are the same ones wherever they lie, and whatever their folder is called.

    Raises:
        DataError: it is another one; says what differs.
        CheckpointError: the run's file is damaged.
    """
    before = read_facts(run)
    now = facts_of(splits)
    if before is None or is_same_data(before, now):
        return
    raise DataError(
        f"{now.name}: {_difference(before, now)} since the run {run} began\n"
        "put the pictures back as they were, or train a new run on them as they are"
    )


def is_same_data(before: DataFacts, now: DataFacts) -> bool:
    """Return whether two data sets hold the same examples, by name, or by fingerprint if they have one."""
    return before == (dataclasses.replace(now, name=before.name) if now.fingerprint else now)


def check_classes(run: Path, splits: Splits) -> None:
    """Compare only what must be the same for an evaluation to mean anything: the classes and the size of the pictures.

    Raises:
        DataError: they are others; a label would mean another class than it did.
        CheckpointError: the run's file is damaged.
    """
    before, train = read_facts(run), splits.train
    if before is None or (before.class_names, before.image_shape) == (train.class_names, train.image_shape):
        return
    raise DataError(
        f"{train.name}: {_difference(before, facts_of(splits))} since the run {run} began\n"
        "put the classes back as they were, or train a new run on them as they are"
    )


def _difference(before: DataFacts, now: DataFacts) -> str:
    """Return how two data sets differ."""
    if before.class_names != now.class_names:
        gone = [name for name in before.class_names if name not in now.class_names]
        new = [name for name in now.class_names if name not in before.class_names]
        changes = [f"gone: {', '.join(gone[:5])}"] * bool(gone) + [f"new: {', '.join(new[:5])}"] * bool(new)
        return f"the classes have changed ({'; '.join(changes) or 'another order'})"
    for what in ("image_shape", "train", "validation", "test"):
        old, new_value = getattr(before, what), getattr(now, what)
        if old != new_value:
            return f"'{what}' was {old} and is {new_value}: pictures have changed"
    if not (before.fingerprint and now.fingerprint) and before.name != now.name:
        return f"the data was {before.name} and is {now.name}"
    return "pictures have changed, though there are as many"
