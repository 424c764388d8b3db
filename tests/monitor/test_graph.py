import pytest
import torch
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import Tensor, nn

from thumbnet.models.classic import build_classic
from thumbnet.monitor.graph import graph_def, trace_layers


class Residual(nn.Module):
    """A network whose connections are in its `forward`: a sum, a concatenation, a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        total = stem + self.block(self.block(stem))
        return self.head(torch.cat([total, stem], dim=1).mean((2, 3)))


def test_the_classic_network_is_a_chain_of_its_named_layers() -> None:
    calls = trace_layers(build_classic(num_classes=10, crop=24), torch.zeros(2, 3, 24, 24))
    names = [call.name for call in calls]
    assert [name for name in names if not name.startswith(("relu", "flatten"))] == [
        *("conv1", "pool1", "norm1", "conv2", "norm2", "pool2", "local3", "local4", "softmax_linear", "logits")
    ]
    assert [call.sources for call in calls] == [(name,) for name in ["input", *names[:-1]]]
    shapes = {call.name: call.shape for call in calls}
    assert shapes["conv1"] == (2, 64, 24, 24)
    assert shapes["pool2"] == (2, 64, 6, 6)
    assert shapes["logits"] == (2, 10)


def test_sums_and_branches_are_followed() -> None:
    model = Residual()
    calls = trace_layers(model, torch.zeros(2, 3, 5, 5))
    assert [call.name for call in calls] == ["stem", *["block.0", "block.1", "block.2"] * 2, "head", "logits"]
    assert [set(call.sources) for call in calls[:5]] == [{"input"}, {"stem"}, {"block.0"}, {"block.1"}, {"block.2"}]
    assert set(calls[-2].sources) == {"stem", "block.2"}


def test_tracing_leaves_the_network_as_it_was() -> None:
    model = Residual()
    model.block[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        trace_layers(model, torch.ones(2, 3, 5, 5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [model.training, model.block[1].training, model.block[2].training] == [True, True, False]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failing_network_is_left_as_it_was_too() -> None:
    model = Residual()
    with pytest.raises(RuntimeError):
        trace_layers(model, torch.ones(2, 7, 5, 5))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_graph_def_has_a_group_for_each_layer_with_shapes() -> None:
    graph = GraphDef.FromString(graph_def(build_classic(num_classes=10, crop=24), torch.zeros(1, 3, 24, 24)))
    nodes = {node.name: node for node in graph.node}
    assert len(nodes) == len(graph.node)

    def shape(name: str) -> list[int]:
        return [dim.size for dim in nodes[name].attr["_output_shapes"].list.shape[0].dim]

    assert shape("input") == [-1, 3, 24, 24]
    assert shape("conv1/Conv2d") == [-1, 64, 24, 24]
    assert shape("conv1/weight") == [64, 3, 5, 5]
    assert list(nodes["conv1/Conv2d"].input) == ["input", "conv1/weight", "conv1/bias"]
    assert nodes["local3/Linear"].attr["parameters"].s == b"885,120"
    assert list(nodes["logits"].input) == ["softmax_linear/Linear"]
    assert all(source in nodes for node in graph.node for source in node.input)


def test_a_layer_called_twice_is_two_nodes() -> None:
    graph = GraphDef.FromString(graph_def(Residual(), torch.zeros(1, 3, 5, 5)))
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("block/0/Conv2d")] == ["block/0/Conv2d", "block/0/Conv2d_1"]
