"""A pretended accelerator: a device of its own in torch's eyes, whose tensors are held and computed by the processor.

PyTorch lets one back end be written in Python. Its tensors say that they are on the device `pretend`, so that what
would mix them up with tensors of the host fails as on a GPU. Every operation passes through `Accelerator.run`, which
takes down whatever would make the program wait for a real device, and refuses float64, which MPS lacks.
"""

import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
aten = torch.ops.aten


class Pretended(torch.Tensor):
    """A tensor on the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Pretended":
        if held.dtype == torch.float64:
            raise TypeError("this device has no float64")
        self: Pretended = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device(NAME, 0)
        )
        self.held = held
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held})"

    # What torch refuses for a tensor with a type of its own.

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        assert force
        return self.detach().cpu().numpy()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return ACCELERATOR.run(func, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """The device, to be entered."""

    def __init__(self) -> None:
        super().__init__()
        self.present = False
        """Whether torch finds it."""
        self.waits: list[str] = []
        """What the program would have waited for: the operation, and the line of thumbnet that asked for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Do an operation on what the tensors hold; its results are on the device if its operands are."""
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        device = kwargs.get("device")
        there = device.type == NAME if device else any(isinstance(operand, Pretended) for operand in operands)
        self._take_down_waiting(func, operands, there=there)
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func._schema.is_mutable:
            # What was changed in place is returned as the same tensor; operations on lists return nothing.
            return None if out is None else args[0]
        return tree_map(lambda x: Pretended(x) if isinstance(x, torch.Tensor) else x, out) if there else out

    def _take_down_waiting(self, func: Any, operands: list[torch.Tensor], *, there: bool) -> None:
        on_device = [isinstance(operand, Pretended) for operand in operands]
        copies = func in (aten._to_copy.default, aten.copy_.default)
        if copies:
            waits = there not in on_device if func is aten._to_copy.default else len(set(on_device)) == 2
        else:
            # The size of these results depends on values; `index` and `index_put` with a mask count what it holds.
            masked = "index" in func.__name__ and any(operand.dtype == torch.bool for operand in operands[1:])
            waits = any(on_device) and (
                masked or func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
            )
            scalars_aside = [operand for operand in operands if operand.dim()]
            assert len({isinstance(operand, Pretended) for operand in scalars_aside}) < 2, f"{func}: on two devices"
        if waits:
            lines = [frame for frame in traceback.extract_stack() if "/thumbnet/" in frame.filename]
            self.waits.append(f"{func} in {lines[-1].name}: {lines[-1].line}" if lines else str(func))


def _held(x: Any) -> Any:
    if isinstance(x, Pretended):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    def is_available(self) -> bool:
        return ACCELERATOR.present

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


ACCELERATOR = Accelerator()


def pytest_collection_finish() -> None:
    """Register the device before any test: the first backward pass of a process fixes which devices torch has."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    """The device, there until the test ends."""
    # Tensors with a type of their own cannot be those of inference mode, nor be put into a parameter that is there.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    ACCELERATOR.present, ACCELERATOR.waits = True, []
    with ACCELERATOR:
        yield ACCELERATOR
    ACCELERATOR.present = False
    torch.__future__.set_swap_module_params_on_conversion(before)
