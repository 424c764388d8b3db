"""What the other tests here rely on: the pretended device notices what a real one would make the program wait for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from thumbnet import engine

Make = Callable[[], Tensor]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: float(x[0]),
        lambda x: bool(x[0] > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(force=True),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.zeros(3).to(x.device),
    ],
)
def test_notices_what_waits(accelerator: Any, read: Callable[[Tensor], object]) -> None:
    x = torch.ones(3, device=engine.device())
    assert accelerator.waits == []
    read(x)
    assert len(accelerator.waits) == 1


def test_lets_pass_what_does_not(accelerator: Any) -> None:
    x = torch.ones(3, device=engine.device(), requires_grad=True)
    (x * 2 + torch.tensor(1.0)).square().sum().backward()
    with torch.no_grad():
        torch._foreach_add_([x], [x.grad])
        x.masked_fill_(x > 20, 0)
        x[torch.arange(2, device=x.device)]
    assert accelerator.waits == []
    assert x.tolist() == [13.0, 13.0, 13.0]


def test_refuses_what_devices_refuse(accelerator: Any) -> None:
    x = torch.ones(3, device=engine.device())
    with pytest.raises(TypeError, match="float64"):
        x.double()
    with pytest.raises(AssertionError, match="two devices"):
        x + torch.ones(3)


def test_is_gone_afterwards() -> None:
    assert engine.device().type == "cpu"
