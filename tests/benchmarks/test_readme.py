import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_what_the_results_say(readme: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.with_results(text) == text, "run `python benchmarks/readme.py`"


def test_what_stands_around_the_results_stays(readme: ModuleType) -> None:
    text = f"before\n{readme.BEGIN}stale figures\n{readme.END}after\n"
    written = readme.with_results(text)
    assert written.startswith(f"before\n{readme.BEGIN}")
    assert written.endswith(f"{readme.END}after\n")
    assert "stale figures" not in written
