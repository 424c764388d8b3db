"""What holds for all tests."""

import os

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # OpenMP's threads spin while they wait, and would keep the other workers from the cores that they share.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes by far the longest, beside which other workers can do the rest."""
    items.sort(key=lambda item: item.path.stem != "test_machines")
