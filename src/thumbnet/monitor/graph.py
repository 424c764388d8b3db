"""The network as TensorBoard's graph page shows it: a node for each named layer, with shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thumbnet.models.modes import evaluation_mode

ACTIVATION_FUNCTIONS = (nn.ReLU, nn.GELU)


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One call of a layer in a forward pass."""

    name: str
    """Dotted name of the module."""
    module: nn.Module
    sources: tuple[str, ...]
    """Names of the layers, or `input`, whose outputs this call's input was computed from."""
    shape: tuple[int, ...]
    """Shape of the output."""


def trace_layers(model: nn.Module, example: Tensor) -> list[LayerCall]:
    """Run a forward pass and record each call of a module without children, in order; `logits` is the last entry.

    What connects the layers is read from autograd's record of the pass, so that sums and branches between layers are
    followed whatever the network's own `forward` does. The network is left as it was, its mode included.

    Args:
        model: from images to one tensor.
        example: images of any batch size, [N, C, H, W].
    """
    calls: list[LayerCall] = []
    producers: dict[Any, str] = {}

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if isinstance(output, Tensor):
            tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
            calls.append(
                LayerCall(name=name, module=module, sources=_sources(tensors, producers), shape=tuple(output.shape))
            )
            if output.grad_fn is not None:
                producers[output.grad_fn] = name

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: record(name, module, inputs, output))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        # Evaluation mode keeps batch statistics untouched.
        with evaluation_mode(model), torch.enable_grad():
            # The product makes a grad_fn that stands for the input.
            images = example.detach().clone().requires_grad_() * 1
            producers[images.grad_fn] = "input"
            logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    sources = _sources([logits], producers)
    return [*calls, LayerCall(name="logits", module=nn.Identity(), sources=sources, shape=tuple(logits.shape))]


def _sources(tensors: list[Tensor], producers: Mapping[Any, str]) -> tuple[str, ...]:
    """Return the nearest known producers upstream of some tensors, each once."""
    found: dict[str, None] = {}
    seen: set[Any] = set()
    queue = [tensor.grad_fn for tensor in tensors]
    while queue:
        function = queue.pop(0)
        if function is None or function in seen:
            continue
        seen.add(function)
        if function in producers:
            found[producers[function]] = None
        else:
            queue.extend(parent for parent, _ in function.next_functions)
    return tuple(found)


def graph_def(model: nn.Module, example: Tensor) -> bytes:
    """Return the network as a serialized GraphDef.

    A layer is a group that opens to its operation and parameters; an activation function is the operation alone. The
    batch dimension is left open.
    """
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = GraphDef()
    outputs = {"input": "input"}
    used: Counter[str] = Counter()
    _add_node(graph, "input", "Placeholder", [], (-1, *example.shape[1:]))
    for call in trace_layers(model, example):
        scope, kind = call.name.replace(".", "/"), type(call.module).__name__
        parameters = {f"{scope}/{name}": parameter for name, parameter in call.module.named_parameters()}
        node = scope if isinstance(call.module, (*ACTIVATION_FUNCTIONS, nn.Identity)) else f"{scope}/{kind}"
        if not used[node]:
            for name, parameter in parameters.items():
                _add_node(graph, name, "Variable", [], tuple(parameter.shape))
        used[node] += 1
        if used[node] > 1:
            node = f"{node}_{used[node] - 1}"
        inputs = [*(outputs[source] for source in call.sources), *parameters]
        outputs[call.name] = node
        details = {"module": call.module.extra_repr()}
        if parameters:
            details["parameters"] = f"{sum(parameter.numel() for parameter in parameters.values()):,}"
        _add_node(graph, node, kind, inputs, (-1, *call.shape[1:]), details)
    serialized: bytes = graph.SerializeToString()
    return serialized


def _add_node(
    graph: Any,
    name: str,
    kind: str,
    inputs: list[str],
    shape: tuple[int, ...],
    details: Mapping[str, str] | None = None,
) -> None:
    """Add a node whose outgoing edge is labelled with `shape` (-1 for any)."""
    node = graph.node.add(name=name, op=kind, input=inputs)
    dims = node.attr["_output_shapes"].list.shape.add().dim
    for size in shape:
        dims.add(size=size)
    for key, text in (details or {}).items():
        if text:
            node.attr[key].s = text.encode()
