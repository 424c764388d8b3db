import os
from pathlib import Path

import numpy as np
import platformdirs
import pytest

import thumbnet.data
from thumbnet.config import DataConfig
from thumbnet.data import cache_dir, lasting_name, load_splits
from thumbnet.errors import DataError, UsageError


@pytest.fixture
def known(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnet.data, "record_sets", lambda: {"tiny": tiny.dataset})


@pytest.mark.usefixtures("known", "no_npm")
def test_a_record_set_is_loaded_from_the_cache(tiny, tmp_path: Path):
    tiny.put_files(tmp_path / "tiny-bin")
    notes: list[str] = []
    splits = load_splits(DataConfig(name="tiny"), data_dir=tmp_path, offline=True, note=notes.append)
    assert (len(splits.train), splits.validation, len(splits.test)) == (40, None, 20)
    images, labels = splits.test.gather(np.arange(20))
    assert np.array_equal(images, tiny.images["test.bin"])
    assert np.array_equal(labels, tiny.labels["test.bin"])
    assert splits.train.key(20) == "two.bin:0"
    assert notes == [f"tiny: from {tmp_path / 'tiny-bin'}"]


@pytest.mark.usefixtures("known", "no_npm")
def test_validation_comes_from_the_training_images_alone(tiny, tmp_path: Path):
    tiny.put_files(tmp_path / "tiny-bin")
    splits = load_splits(DataConfig(name="tiny", validation=8), data_dir=tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (32, 8, 20)
    assert np.bincount(splits.validation.labels).tolist() == [2] * 4
    keys = {splits.validation.key(index) for index in range(8)}
    assert not keys & {splits.train.key(index) for index in range(32)}
    assert all(key.startswith(("one.bin", "two.bin")) for key in keys)


@pytest.mark.usefixtures("known", "no_npm")
def test_missing_data_offline_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"tiny: one\.bin is not in"):
        load_splits(DataConfig(name="tiny"), data_dir=tmp_path, offline=True)


def test_shapes_need_no_folder(tmp_path: Path):
    splits = load_splits(DataConfig(name="shapes", validation=500), data_dir=tmp_path / "nowhere", offline=True)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4500, 500, 1000)
    assert not (tmp_path / "nowhere").exists()


def test_an_unknown_name_is_met_with_the_one_that_was_meant():
    with pytest.raises(UsageError, match="unknown data set 'cifar01' - did you mean 'cifar10'"):
        load_splits(DataConfig(name="cifar01"))


def test_too_many_validation_images_are_refused():
    with pytest.raises(UsageError, match=r"validation is 5,000: shapes has 5,000 training images"):
        load_splits(DataConfig(name="shapes", validation=5000))


def test_the_cache_is_the_users_unless_a_folder_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("THUMBNET_DATA_DIR", raising=False)
    assert cache_dir(None) == platformdirs.user_cache_path("thumbnet")
    assert cache_dir(tmp_path) == tmp_path
    assert cache_dir(Path("~/data")) == Path.home() / "data"


def test_the_environment_may_name_the_cache_and_the_flag_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THUMBNET_DATA_DIR", "~/big/disk")
    assert cache_dir(None) == Path.home() / "big" / "disk"
    assert cache_dir(tmp_path) == tmp_path
    monkeypatch.setenv("THUMBNET_DATA_DIR", "")
    assert cache_dir(None) == platformdirs.user_cache_path("thumbnet")


@pytest.mark.parametrize("name", ["~no-such-user", "~no-such-user/pictures.csv"])
def test_the_home_of_nobody_is_told(name: str):
    with pytest.raises(UsageError, match="there is no user whose home is ~no-such-user"):
        lasting_name(name)
    with pytest.raises(UsageError, match="there is no user whose home is ~no-such-user"):
        cache_dir(Path(name))


def test_a_name_that_no_recipe_can_keep_is_refused(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(UsageError, match=r"/caf\\udce9: this name is not UTF-8: rename it"):
        load_splits(DataConfig(name=str(folder)))
