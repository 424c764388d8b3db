from collections.abc import Callable

import pytest
import torch

from thumbnet.runs.checkpoint import Checkpoint


@pytest.fixture
def make_checkpoint() -> Callable[..., Checkpoint]:
    def make(step: int = 7, *, average: bool = True, info: dict | None = None) -> Checkpoint:
        generator = torch.Generator().manual_seed(step)
        weights = {
            name: torch.randn(shape, generator=generator)
            for name, shape in {"a.weight": (3, 2), "a.bias": (3,)}.items()
        }
        return Checkpoint(
            step=step,
            model=weights,
            average={name: value / 2 for name, value in weights.items()} if average else None,
            state={"momentum.a.bias": torch.randn(3, generator=generator), "rng": torch.arange(5, dtype=torch.uint8)},
            info={"train_s": step * 0.5} if info is None else info,
        )

    return make
