import re
import sys
from pathlib import Path

import pytest

from thumbnet.errors import UsageError
from thumbnet.extras import import_extra


def test_a_package_that_is_there() -> None:
    assert import_extra("colorsys", "colours", "colours") is sys.modules["colorsys"]


def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    told = "servers need the package no_such_thing, which is not installed\n"
    with pytest.raises(UsageError, match=re.escape(told) + r"install the extra: .*'\.\[serve\]'"):
        import_extra("no_such_thing", "serve", "servers")


@pytest.mark.parametrize("content", ["import no_such_thing", "raise RuntimeError('no such thing')"])
def test_a_package_that_does_not_load_is_told_from_a_missing_one(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_thing.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"broken_thing is installed, but cannot be imported: .*no.such.thing"):
        import_extra("broken_thing", "serve", "servers")
