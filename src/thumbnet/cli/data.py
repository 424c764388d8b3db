"""`thumbnet data`: fetch data sets, check them, look at them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from thumbnet.cli.flags import add_data_flags, note, setting, user_path, whole_number


def add_parser(subparsers: Any) -> None:
    """Add the command's parser, with one more for each of download, verify and show."""
    parser = subparsers.add_parser(
        "data",
        help="fetch data sets, check them, look at them",
        description="Fetch data sets, check them, look at them. `thumbnet train` fetches what it needs by itself.",
    )
    parser.set_defaults(parser=parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    download = actions.add_parser(
        "download",
        help="fetch data sets into the cache, or replace damaged files there",
        description="Fetch data sets into the cache: from the official archive, or else from a second source; verified "
        "before they are kept. Files that are there and right are left as they are, damaged ones are replaced.",
    )
    download.add_argument("names", nargs="*", metavar="NAME", help="cifar10, cifar100, svhn, svhn-extra, ... (cifar10)")

    verify = actions.add_parser(
        "verify",
        help="check every byte of the data sets in the cache",
        description="Check size and hash of every file of the data sets in the cache, and name the file, and the "
        "record where that can be told, that is wrong. Exits with 3 if any is.",
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="names as for download (those in the cache)")

    show = actions.add_parser(
        "show",
        help="draw samples, and what the distortions make of them, as one PNG",
        description="Draw one PNG: samples of the training images with their labels, and beside each what the "
        "distortions of a recipe make of it in several epochs.",
    )
    show.add_argument("--data", metavar="NAME", help="as for `thumbnet train` (that of the recipe)")
    show.add_argument(
        "--image-size", type=whole_number, metavar="N", help="side that pictures of a folder are resized to (32)"
    )
    recipe = show.add_mutually_exclusive_group()
    recipe.add_argument("--preset", metavar="NAME", help="whose distortions to show (as for `thumbnet train`, quick)")
    recipe.add_argument("--recipe", type=user_path, metavar="FILE", help="recipe.toml instead, such as that of a run")
    show.add_argument(
        "--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help="any entry of that recipe"
    )
    show.add_argument(
        "--out",
        type=user_path,
        metavar="FILE.png",
        help="the picture to write, replaced if it is there (NAME-mosaic.png)",
    )
    show.add_argument("--count", type=whole_number, default=20, metavar="N", help="samples, up to 200 (20)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="which samples and which distortions (0)")

    for action in (download, verify, show):
        action.set_defaults(parser=action)
        add_data_flags(action)
        action.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run one of download, verify, show; returns the exit code."""
    return {"download": _download, "verify": _verify, "show": _show}[args.action](args)


def _download(args: argparse.Namespace) -> int:
    from thumbnet.data import cache_dir, record_sets
    from thumbnet.data.sources import find_or_fetch
    from thumbnet.data.svhn import digit_sets, find_or_convert

    root = cache_dir(args.data_dir)
    folders = {}
    for name in _named(args.names or ["cifar10"]):
        if name in digit_sets():
            folder = find_or_convert(digit_sets()[name], root, offline=args.offline, note=note, repair=True)
        else:
            folder = find_or_fetch(record_sets()[name], root, offline=args.offline, note=note, repair=True)
        folders[name] = str(folder)
    print(json.dumps(folders) if args.json else "\n".join(folders.values()))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from thumbnet.data import cache_dir, record_sets
    from thumbnet.data.progress import transfer
    from thumbnet.data.sources import folder_of
    from thumbnet.data.svhn import converted_set, digit_sets
    from thumbnet.data.verify import check_files, missing_files
    from thumbnet.errors import DataError

    root = cache_dir(args.data_dir)
    names = _named(args.names)
    found = [converted_set(digits, root) for name, digits in digit_sets().items() if name in names or not names]
    converted = [dataset for dataset in found if dataset is not None]
    datasets = [dataset for name, dataset in record_sets().items() if name in names]
    if not names:
        # Sets that are other labels of the same files are checked once.
        by_folder = {dataset.folder: dataset for dataset in reversed(record_sets().values())}
        datasets = [
            dataset
            for dataset in record_sets().values()
            if dataset is by_folder[dataset.folder]
            and len(missing_files(dataset, folder_of(dataset, root))) < len(dataset.files)
        ]
        # The last of the sets of digits that are there has the files of the others.
        converted = converted[-1:]
    elif None in found:
        raise DataError(f"{root}: not there yet; `thumbnet data download {' '.join(names)}` fetches it")
    datasets += converted
    if not datasets:
        raise DataError(f"{root}: there is no data set to check; `thumbnet data download` fetches one")
    reports = {}
    for dataset in datasets:
        total = sum(map(dataset.size_bytes, dataset.files))
        with transfer(f"checking {dataset.name}", total, note) as tick:
            reports[dataset.name] = check_files(dataset, folder_of(dataset, root), rehash=True, tick=tick)
    if args.json:
        told = {
            name: [{"file": str(file.path), "records": file.records, "problem": file.problem} for file in files]
            for name, files in reports.items()
        }
        print(json.dumps(told))
    else:
        for name, files in reports.items():
            for file in files:
                print(f"{name}: {file.problem or f'{file.path}: right, {file.records:,} records'}")
    bad = [name for name, files in reports.items() if any(file.problem for file in files)]
    if bad:
        count = sum(file.problem is not None for files in reports.values() for file in files)
        raise DataError(
            f"{count} of the files {'is' if count == 1 else 'are'} missing or damaged; "
            f"`thumbnet data download {' '.join(bad)}` fetches intact ones"
        )
    return 0


def _show(args: argparse.Namespace) -> int:
    from thumbnet.config import load_preset, load_recipe
    from thumbnet.training.adapt import DEFAULT_PRESET

    wanted = {"data.name": args.data, "data.image_size": args.image_size}
    given = {key: value for key, value in wanted.items() if value is not None} | dict(args.set)
    preset = args.preset or DEFAULT_PRESET
    recipe = load_recipe(args.recipe, given) if args.recipe else load_preset(preset, given)
    out = _writable(args.out or Path(f"{Path(recipe.data.name).absolute().name}-mosaic.png"))
    from thumbnet.data import load_splits
    from thumbnet.errors import UsageError
    from thumbnet.input.mosaic import draw_mosaic, sample
    from thumbnet.runs.run import kept_data_dir

    if args.count > 200:
        raise UsageError(f"--count is {args.count}: a mosaic holds at most 200 samples")
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed is {args.seed}: it must be from 0 to 2**63 - 1")
    data = dataclasses.replace(recipe.data, skip_bad=True)
    kept = kept_data_dir(args.recipe.parent) if args.recipe else None  # where the run of that recipe had it
    data_dir = args.data_dir or kept
    train = load_splits(data, data_dir=data_dir, offline=args.offline, note=note).train
    chosen = sample(train, args.count, seed=args.seed)
    by = Path(*args.recipe.parts[-2:]) if args.recipe else f"the preset {preset}"  # a run's name and recipe.toml
    changes = "".join(f", {key}={value}" for key, value in args.set)
    title = f"{train.name}: {len(chosen)} of {len(train):,} training images, distorted as by {by}{changes}"
    page = draw_mosaic(train, recipe.distort, chosen, seed=args.seed, title=title)
    try:
        page.save(out, format="PNG")
    except OSError as error:
        raise UsageError(f"{out}: cannot write this picture: {error.strerror or error}; try another --out") from error
    if args.json:
        labels = [train.class_names[label] for label in train.labels[chosen]]
        examples = [{"key": train.key(int(index)), "label": label} for index, label in zip(chosen, labels, strict=True)]
        print(json.dumps({"file": str(out), "data": train.name, "preset": recipe.preset, "examples": examples}))
    else:
        print(out)
    return 0


def _named(names: list[str]) -> list[str]:
    """Return names without repeats; raises `UsageError` for one that is unknown or is not fetched."""
    from thumbnet.data import record_sets
    from thumbnet.data.svhn import digit_sets
    from thumbnet.errors import UsageError, did_you_mean

    known = [*record_sets(), *digit_sets()]
    for name in names:
        if name == "shapes":
            raise UsageError("shapes is drawn by the program: there is nothing to fetch or to check")
        if name not in known:
            raise UsageError(f"unknown data set '{name}'{did_you_mean(name, known)}")
    return list(dict.fromkeys(names))


def _writable(out: Path) -> Path:
    """Return the path if a picture can be written there; raises `UsageError` before any work is done."""
    from thumbnet.errors import UsageError

    if out.suffix.lower() != ".png":
        raise UsageError(f"{out}: the mosaic is a PNG; give --out a name that ends in .png")
    # The methods of a Path raise where a name is too long or a folder above it is closed (before Python 3.14).
    is_folder = os.path.isdir(out)  # noqa: PTH112
    if is_folder or not os.path.isdir(out.parent):  # noqa: PTH112
        raise UsageError(f"{out}: {'is a folder' if is_folder else 'there is no such folder'}; try another --out")
    if not os.access(out if os.path.exists(out) else out.parent, os.W_OK):  # noqa: PTH110
        raise UsageError(f"{out}: cannot be written; try another --out")
    return out
