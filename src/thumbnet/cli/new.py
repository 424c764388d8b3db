"""`thumbnet new`: a small project of one's own: script, recipe, a place for pictures."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from thumbnet.errors import UsageError
from thumbnet.files import expand_home

# File of the project -> file in the folder `project` of this package.
FILES = {"train.py": "train.py", "recipe.toml": "recipe.toml", "README.md": "README.md", ".gitignore": "gitignore"}


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "new",
        help="write a small project of your own: script, recipe, a place for pictures",
        description="Write a small project of your own into a new folder: a training script on thumbnet's Python API, "
        "its recipe, a README, and a place for your pictures.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("project", metavar="PROJECT", help="folder to make; nothing in one that exists is overwritten")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Write the project and say what to do with it; returns the exit code."""
    folder = expand_home(Path(args.project))
    written = write_project(folder)
    if args.json:
        print(json.dumps({"project": str(folder), "files": [str(path) for path in written]}))
        return 0
    print("\n".join(map(str, written)))
    print(
        f"\nput your pictures into {folder / 'pictures'}, one folder per class, then:\n"
        f"    cd {shlex.quote(str(folder))}\n    python train.py            # or, to try it out: python train.py shapes"
    )
    return 0


def write_project(folder: Path) -> list[Path]:
    """Write a project into a folder that is not there yet, or is empty; returns the files.

    Raises:
        UsageError: the folder holds something, cannot be made or written to, or has an impossible name.
    """
    from importlib import resources

    name = folder.absolute().name if folder.name in ("", ".", "..") else folder.name
    if not name.isprintable() or name != name.strip() or name.startswith(("-", ".")):
        raise UsageError(
            f"{str(folder)!r}: not a name for a project: use letters, digits, '-' and '_', such as my-flowers"
        )
    templates = resources.files("thumbnet") / "project"
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder}: is not empty, and nothing is overwritten: choose another name")
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: is a file: choose another name")
        (folder / "pictures").mkdir(parents=True)
        (folder / "pictures" / ".gitkeep").touch()
        for file, template in FILES.items():
            text = (templates / template).read_text(encoding="utf-8")
            (folder / file).write_text(text.replace("{name}", name) if file == "README.md" else text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: cannot write a project there: {error.strerror or error}") from error
    return [folder / file for file in FILES] + [folder / "pictures"]
