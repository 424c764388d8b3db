"""What the pictures are and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.config import DataConfig
from thumbnet.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from thumbnet.data.dataset import Splits
    from thumbnet.data.description import RecordSet


def record_sets() -> dict[str, RecordSet]:
    """Return the data sets that are fetched, by name."""
    from thumbnet.data.cifar import CIFAR10, CIFAR100

    return {dataset.name: dataset for dataset in (CIFAR10, CIFAR100)}


def cache_dir(data_dir: Path | None) -> Path:
    """Return the folder data sets are kept in: the one given, else the user's cache folder."""
    if data_dir is not None:
        return data_dir.expanduser()
    import platformdirs

    return platformdirs.user_cache_path("thumbnet")


def load_splits(
    config: DataConfig,
    *,
    data_dir: Path | None = None,
    offline: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Splits:
    """Return the examples of a data set, fetched at first use.

    Args:
        config: which data set, and how many validation images to carve from its training images.
        data_dir: the cache; None for the user's cache folder.
        offline: never touch the network.
        note: gets lines for the user, such as the source that served.

    Raises:
        UsageError: the data set is unknown, or too small for that many validation images.
        DataError: a file is damaged, or no source has it.
    """
    from thumbnet.data.dataset import Splits, open_records, split_validation
    from thumbnet.data.shapes import draw_shapes
    from thumbnet.data.sources import find_or_fetch

    known = record_sets()
    if config.name == "shapes":
        train, test = draw_shapes()
    elif config.name in known:
        dataset = known[config.name]
        folder = find_or_fetch(dataset, cache_dir(data_dir), offline=offline, note=note)
        train, test = (
            open_records(dataset.name, dataset.class_names, dataset.layout, [folder / file.name for file in files])
            for files in (dataset.train, dataset.test)
        )
    else:
        raise UsageError(f"unknown data set '{config.name}'{did_you_mean(config.name, [*known, 'shapes'])}")
    validation = None
    if config.validation:
        train, validation = split_validation(train, config.validation)
    return Splits(train=train, validation=validation, test=test)
