"""A training's state as bytes, from replica 0 to the others: only it reads the run's folder."""

from __future__ import annotations

import json

import safetensors.torch
from torch import Tensor

from thumbnet.runs.checkpoint import Checkpoint

_LENGTH_BYTES = 8


def pack_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as bytes: the length of a JSON text, that text, and tensors in the safetensors format."""
    groups = {"model": checkpoint.model, "average": checkpoint.average or {}, "state": checkpoint.state}
    # Each with memory of its own in the default layout, as the format wants it.
    tensors = {
        f"{group}/{name}": value.detach().cpu().contiguous().clone()
        for group, values in groups.items()
        for name, value in values.items()
    }
    head = json.dumps({"step": checkpoint.step, "info": checkpoint.info, "averages": checkpoint.average is not None})
    encoded = head.encode()
    return len(encoded).to_bytes(_LENGTH_BYTES) + encoded + safetensors.torch.save(tensors)


def unpack_checkpoint(content: bytes) -> Checkpoint:
    """Return the checkpoint that `pack_checkpoint` was given."""
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES])
    head = json.loads(content[_LENGTH_BYTES:end])
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "state": {}}
    for full_name, value in safetensors.torch.load(content[end:]).items():
        group, _, name = full_name.partition("/")
        groups[group][name] = value
    return Checkpoint(
        step=head["step"],
        model=groups["model"],
        average=groups["average"] if head["averages"] else None,
        state=groups["state"],
        info=head["info"],
    )
