"""What the tests of several kernels share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def insist_same_bits() -> Callable[[Callable[[], list[Tensor]], int], None]:
    """What computes tensors on one thread and on several, which must be the same to the bit."""

    def insist(compute: Callable[[], list[Tensor]], threads: int) -> None:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            alone = compute()
            torch.set_num_threads(threads)
            assert all(map(torch.equal, alone, compute()))
        finally:
            torch.set_num_threads(before)

    return insist
