"""The order of the packages that CONTRIBUTING states: each imports only what stands before it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "thumbnet"
ENTRIES = {"__init__", "__main__", "project"}
"""Outside the order: what people start or copy, and the version."""
UPWARDS = {("distributed/worker.py", "cli")}
"""A replica is the command once more, in a process of its own."""


def stated_order() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (chain,) = re.findall(r"`\w+`(?:\s*->\s*`\w+`)+", text)
    return re.findall(r"\w+", chain)


def imported_packages(path: Path) -> Iterator[str]:
    """Yield the packages of thumbnet that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "thumbnet":
            names = [f"thumbnet.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("thumbnet."))


def test_the_order_names_every_package() -> None:
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(stated_order()) == sorted(there - ENTRIES)


def test_a_package_imports_only_what_stands_before_it() -> None:
    place = {name: number for number, name in enumerate(stated_order())}
    wrong = set()
    for path in SOURCE.rglob("*.py"):
        file = path.relative_to(SOURCE)
        own = file.parts[0].removesuffix(".py")
        if own not in ENTRIES:
            wrong |= {
                (file.as_posix(), other) for other in imported_packages(path) if place.get(other, -1) > place[own]
            }
    assert wrong == UPWARDS
