"""What the pictures are and where they come from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.config import DataConfig
from thumbnet.errors import UsageError, did_you_mean
from thumbnet.files import expand_home
from thumbnet.printing import printable, silent

if TYPE_CHECKING:
    from thumbnet.data.dataset import Splits
    from thumbnet.data.description import RecordSet


def record_sets() -> dict[str, RecordSet]:
    """Return the data sets that are fetched, by name."""
    from thumbnet.data.cifar import CIFAR10, CIFAR100, CIFAR100_COARSE

    return {dataset.name: dataset for dataset in (CIFAR10, CIFAR100, CIFAR100_COARSE)}


def cache_dir(data_dir: Path | None) -> Path:
    """Return the folder data sets are kept in: the one given, else `THUMBNET_DATA_DIR`, else the user's cache folder.

    Raises:
        UsageError: it begins with `~user`, and there is no such user.
    """
    if data_dir is None and (by_environment := os.environ.get("THUMBNET_DATA_DIR")):
        data_dir = Path(by_environment)
    if data_dir is not None:
        return expand_home(data_dir)
    import platformdirs

    return platformdirs.user_cache_path("thumbnet")


def load_splits(
    config: DataConfig,
    *,
    data_dir: Path | None = None,
    offline: bool = False,
    note: Callable[[str], None] = silent,
) -> Splits:
    """Return the examples of a data set, fetched or decoded at first use.

    Args:
        config: which data set, and how many validation images to carve from its training images.
        data_dir: the cache; None for that of `cache_dir`.
        offline: never touch the network.
        note: gets lines for the user, such as the source that served.

    Raises:
        UsageError: the data set is unknown, or too small for that many validation images.
        DataError: a file is damaged, or no source has it.
    """
    config = dataclasses.replace(config, name=lasting_name(config.name))
    if config.name not in known_names():
        from thumbnet.data.folder import load_own

        splits = load_own(config, cache_dir(data_dir), note)
    else:
        splits = _load_known(config, cache_dir(data_dir), offline=offline, note=note)
    kept = None if data_dir is None else expand_home(data_dir).absolute()
    return dataclasses.replace(splits, config=config, data_dir=kept)


def known_class_names(name: str) -> tuple[str, ...] | None:
    """Return the classes of a data set known by name, in label order; None for any other."""
    from thumbnet.data.shapes import CLASS_NAMES as SHAPES
    from thumbnet.data.svhn import CLASS_NAMES as DIGITS
    from thumbnet.data.svhn import digit_sets

    fetched = {dataset.name: dataset.class_names for dataset in record_sets().values()}
    return (fetched | dict.fromkeys(digit_sets(), DIGITS) | {"shapes": SHAPES}).get(name)


def lasting_name(name: str) -> str:
    """Return the name of a data set so that it means the same in any current folder: a path becomes absolute.

    Raises:
        UsageError: it is neither a known name nor a path, or a path that a recipe cannot keep.
    """
    from thumbnet.data.listing import is_own_data

    known = known_names()
    if name in known:
        return name
    if not is_own_data(name):
        raise UsageError(
            f"unknown data set '{name}'{did_you_mean(name, known)}\n"
            "one's own pictures are named by a folder that exists, or a .csv file"
        )
    path = str(expand_home(Path(name)).absolute())
    try:
        path.encode()
    except UnicodeEncodeError as error:  # a recipe is TOML, which is UTF-8
        raise UsageError(f"{printable(path)}: this name is not UTF-8: rename it, or name a link to it") from error
    return path


def known_names() -> list[str]:
    """Return the names of the data sets known by name."""
    from thumbnet.data.svhn import digit_sets

    return [*record_sets(), *digit_sets(), "shapes"]


def _load_known(config: DataConfig, cache: Path, *, offline: bool, note: Callable[[str], None]) -> Splits:
    """Return the examples of a data set known by name."""
    from thumbnet.data.dataset import Splits, open_records, split_validation
    from thumbnet.data.shapes import draw_shapes
    from thumbnet.data.sources import find_or_fetch
    from thumbnet.data.svhn import digit_sets, load_svhn

    if config.name == "shapes":
        train, test = draw_shapes()
    elif config.name in digit_sets():
        train, test = load_svhn(digit_sets()[config.name], cache, offline=offline, note=note)
    else:
        dataset = record_sets()[config.name]
        folder = find_or_fetch(dataset, cache, offline=offline, note=note)
        train, test = (
            open_records(dataset.name, dataset.class_names, dataset.layout, [folder / file.name for file in files])
            for files in (dataset.train, dataset.test)
        )
    if config.image_size not in (DataConfig.image_size, train.image_shape[0]):
        raise UsageError(
            f"--image-size {config.image_size}: the pictures of {train.name} are "
            f"{train.image_shape[0]}x{train.image_shape[1]}\nonly a folder of one's own pictures has a choice of size"
        )
    validation = None
    if config.validation:
        train, validation = split_validation(train, config.validation_count(len(train)))
    return Splits(train=train, validation=validation, test=test)
