from collections.abc import Callable

import pytest
import torch

from thumbnet.runs.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[[int], Checkpoint]:
    """Make a checkpoint whose every number is its step, so that a mixture of two shows."""

    def make(step: int) -> Checkpoint:
        weights = {"w": torch.full((4, 3), float(step)), "b": torch.full((5,), float(step))}
        return Checkpoint(
            step=step,
            model=weights,
            average={name: value + 0.5 for name, value in weights.items()},
            state={"momentum.w": torch.full((4, 3), float(step))},
            info={"step": step},
        )

    return make
