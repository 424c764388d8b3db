import re

import numpy as np
import pytest

from thumbnet.data import record_sets
from thumbnet.data.cifar import CIFAR10, CIFAR100, CIFAR100_COARSE


def test_cifar10_is_what_was_published():
    assert CIFAR10.class_names[0] == "airplane"
    assert CIFAR10.class_names[6] == "frog"
    assert len(CIFAR10.class_names) == 10
    assert [file.name for file in CIFAR10.train] == [f"data_batch_{number}.bin" for number in range(1, 6)]
    assert [file.name for file in CIFAR10.test] == ["test_batch.bin"]
    assert {CIFAR10.size_bytes(file) for file in CIFAR10.files} == {30_730_000}


def test_cifar100_is_what_was_published():
    assert len(CIFAR100.class_names) == 100
    assert list(CIFAR100.class_names) == sorted(CIFAR100.class_names)
    assert [CIFAR100.size_bytes(file) for file in CIFAR100.files] == [153_700_000, 30_740_000]


def test_the_coarse_labels_are_the_first_byte_of_the_same_files():
    assert len(CIFAR100_COARSE.class_names) == 20
    assert list(CIFAR100_COARSE.class_names) == sorted(CIFAR100_COARSE.class_names)
    assert (CIFAR100_COARSE.files, CIFAR100_COARSE.folder) == (CIFAR100.files, CIFAR100.folder)
    # The first training picture, as published: cattle (fine 19) of the large omnivores and herbivores (coarse 11).
    record = np.array([[11, 19, *bytes(3072)]], np.uint8)
    fine, coarse = (dataset.layout.labels(record)[0] for dataset in (CIFAR100, CIFAR100_COARSE))
    assert CIFAR100.class_names[fine] == "cattle"
    assert CIFAR100_COARSE.class_names[coarse] == "large_omnivores_and_herbivores"


@pytest.mark.parametrize("dataset", record_sets().values(), ids=lambda dataset: dataset.name)
def test_everything_has_a_hash_of_the_right_length(dataset):
    digests = [file.digest for file in dataset.files] + [dataset.archive.digest]
    digests += [dataset.package.digest] if dataset.package else []
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", digest) for digest in digests)
    assert len(set(digests)) == len(digests)
    if dataset.package:
        names = {file.name for file in dataset.files}
        assert set(dataset.package.pictures) == set(dataset.package.labels) == names
