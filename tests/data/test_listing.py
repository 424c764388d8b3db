from pathlib import Path

import pytest

from thumbnet.data.listing import MAX_CLASSES, is_own_data, make_listing
from thumbnet.errors import DataError


def test_more_classes_than_a_label_can_tell_are_refused():
    count = MAX_CLASSES + 1
    names = [f"class {number}" for number in range(count)]
    with pytest.raises(DataError, match=r"8,193 classes, at most 8,192"):
        make_listing(Path("x"), Path("x"), names, names, None, [(1, 1)] * count)


def test_names_that_mean_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path)
    assert all(map(is_own_data, ["flowers", "./flowers", "/x", "~/x", "list.CSV", "..", "nothing/here"]))
    assert not any(map(is_own_data, ["cifar10", "flower", "", "x" * 300]))
