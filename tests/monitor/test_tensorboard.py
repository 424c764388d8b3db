import io
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from thumbnet.errors import ThumbnetError
from thumbnet.models.classic import build_classic
from thumbnet.monitor.histograms import BINS
from thumbnet.monitor.tensorboard import ACTIVATION_SAMPLE, Summaries, mosaic, rectified_layers


def read(folder: Path) -> EventAccumulator:
    everything = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    images = torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def classic() -> nn.Module:
    torch.manual_seed(0)
    return build_classic(num_classes=10, crop=24).to(memory_format=torch.channels_last)


def test_scalars_come_back(tmp_path: Path) -> None:
    with Summaries(tmp_path) as summaries:
        for step in (0, 100, 200):
            summaries.scalars(step, {"loss/total": 2.5 - step / 100, "loss/total average": 2.5})
    found = read(tmp_path)
    assert found.Tags()["scalars"] == ["loss/total", "loss/total average"]
    assert [(event.step, event.value) for event in found.Scalars("loss/total")] == [(0, 2.5), (100, 1.5), (200, 0.5)]
    assert summaries.failure is None


def test_activations_are_of_all_forward_passes(tmp_path: Path) -> None:
    """As where a batch is computed grain by grain: one of 3 pictures, and one of 1."""
    model = nn.Sequential(OrderedDict(layer=nn.Identity(), scaled=nn.Hardtanh(-9, 9)))
    model.layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(model.layer.weight)
    with Summaries(tmp_path) as summaries, torch.no_grad(), summaries.activations(0, model):
        model(torch.zeros(3, 1, 2, 2))
        model(torch.full((1, 1, 2, 2), 5.0))
    found = read(tmp_path)
    assert found.Scalars("sparsity/layer")[0].value == 0.75
    counted = found.Histograms("activations/layer")[0].histogram_value
    assert (counted.num, counted.min, counted.max, counted.sum) == (16, 0, 5, 20)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ThumbnetError,
        match="file/tensorboard: cannot write TensorBoard's files here: Not a directory; --summary-every 0 does",
    ):
        Summaries(tmp_path / "file" / "tensorboard")


def test_scalars_are_copied_when_given(tmp_path: Path) -> None:
    values = {"loss/total": 1.0}
    with Summaries(tmp_path) as summaries:
        summaries.scalars(0, values)
        values["loss/total"] = 2.0
    assert read(tmp_path).Scalars("loss/total")[0].value == 1.0


def test_a_resumed_run_hides_what_it_does_again(tmp_path: Path) -> None:
    with Summaries(tmp_path) as summaries:
        for step in range(0, 1000, 100):
            summaries.scalars(step, {"loss/total": 1.0})
    with Summaries(tmp_path, purge_step=500) as summaries:
        for step in range(500, 700, 100):
            summaries.scalars(step, {"loss/total": 2.0})
    found = [(event.step, event.value) for event in read(tmp_path).Scalars("loss/total")]
    assert found == [(step, 1.0) for step in range(0, 500, 100)] + [(500, 2.0), (600, 2.0)]


def test_parameters_have_histograms_of_all_their_values(tmp_path: Path, classic: nn.Module) -> None:
    for parameter in classic.parameters():
        parameter.grad = parameter.detach() * 2
    classic.get_parameter("local3.bias").grad = None
    with Summaries(tmp_path) as summaries:
        summaries.parameters(3, classic)
    found = read(tmp_path)
    layers = ["conv1", "conv2", "local3", "local4", "softmax_linear"]
    names = {name for layer in layers for name in (layer, f"{layer}.bias")}
    gradients = {f"gradients/{name}" for name in names - {"local3.bias"}}
    assert set(found.Tags()["histograms"]) == {f"weights/{name}" for name in names} | gradients
    weight = classic.get_parameter("local3.weight").detach().double().numpy()
    for tag, values in (("weights/local3", weight), ("gradients/local3", 2 * weight)):
        (event,) = found.Histograms(tag)
        proto = event.histogram_value
        assert (event.step, proto.num) == (3, values.size)
        assert (proto.min, proto.max) == (values.min(), values.max())
        assert proto.sum == pytest.approx(values.sum(), rel=1e-3, abs=0.1)
        assert proto.sum_squares == pytest.approx((values**2).sum(), rel=1e-4)
        counts, edges = np.histogram(values, BINS)
        np.testing.assert_allclose(proto.bucket_limit, edges[1:], rtol=1e-6, atol=1e-9)
        # Single precision moves some values over the edge of a bin.
        np.testing.assert_allclose(proto.bucket, counts, atol=max(20, 1e-3 * counts.max()))
        assert sum(proto.bucket) == values.size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_the_classic_network(
    tmp_path: Path, classic: nn.Module, images: torch.Tensor, dtype: torch.dtype
) -> None:
    outputs: dict[str, torch.Tensor] = {}
    x = images
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for name, layer in classic.named_children():
            x = outputs[name] = layer(x)
        with Summaries(tmp_path) as summaries, summaries.activations(7, classic):
            classic(images)
    found = read(tmp_path)
    layers = ["conv1", "pool1", "norm1", "conv2", "norm2", "pool2", "local3", "local4", "softmax_linear"]
    assert found.Tags()["histograms"] == [f"activations/{name}" for name in layers]
    assert found.Tags()["scalars"] == [f"sparsity/{name}" for name in layers]
    for name in layers:
        values = outputs[name].float().numpy()
        if name != "softmax_linear":
            values = np.maximum(values, 0)
        (scalar,) = found.Scalars(f"sparsity/{name}")
        assert (scalar.step, scalar.value) == (7, np.float32((values == 0).mean()))
        proto = found.Histograms(f"activations/{name}")[0].histogram_value
        assert sum(proto.bucket) == proto.num <= ACTIVATION_SAMPLE
        assert proto.num == values.size or proto.num > ACTIVATION_SAMPLE / 4
        assert values.min() <= proto.min <= proto.max <= values.max()
        assert proto.sum / proto.num == pytest.approx(values.mean(), rel=0.1, abs=0.01)


def test_hooks_are_gone_after_the_summary_even_after_a_failure(tmp_path: Path, classic: nn.Module) -> None:
    with Summaries(tmp_path) as summaries:
        with pytest.raises(RuntimeError), summaries.activations(0, classic):
            classic(torch.zeros(1, 5, 24, 24))
        assert not any(module._forward_hooks for module in classic.modules())


def test_layers_that_a_relu_follows() -> None:
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 4, 3),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(4, 4, 3),
            pool2=nn.AvgPool2d(2),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(4, 4, 3),
        )
    )
    assert rectified_layers(model) == {"conv1", "pool1", "pool2"}
    assert {"conv1", "conv2", "local3", "local4"} <= rectified_layers(build_classic(num_classes=10, crop=24))
    assert rectified_layers(nn.Linear(1, 1)) == frozenset()


def test_images_come_back(tmp_path: Path) -> None:
    # The values 0 and 255 stretch each picture to itself.
    pixels = np.random.default_rng(0).integers(0, 256, (11, 3, 5, 7))
    pixels[:, 0, 0, 0], pixels[:, 1, 0, 0] = 0, 255
    with Summaries(tmp_path) as summaries:
        summaries.images(4, torch.from_numpy(pixels).float() / 100 - 1)
    (event,) = read(tmp_path).Images("input/images")
    assert (event.step, event.height, event.width) == (4, 2 * 6 - 1, 8 * 8 - 1)
    sheet = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert sheet.shape == (11, 63, 3)
    for i, image in enumerate(pixels):
        top, left = i // 8 * 6, i % 8 * 8
        np.testing.assert_array_equal(sheet[top : top + 5, left : left + 7], image.transpose(1, 2, 0))


def test_images_are_copied_when_given(tmp_path: Path) -> None:
    images = torch.linspace(0, 1, 75).view(1, 3, 5, 5)
    with Summaries(tmp_path) as summaries:
        summaries.images(0, images)
        images.zero_()
    sheet = Image.open(io.BytesIO(read(tmp_path).Images("input/images")[0].encoded_image_string))
    assert np.asarray(sheet).max() == 255


def test_grey_and_flat_pictures(tmp_path: Path) -> None:
    with Summaries(tmp_path) as summaries:
        summaries.images(0, torch.ones(2, 1, 4, 4), tag="grey")
    (event,) = read(tmp_path).Images("grey")
    assert Image.open(io.BytesIO(event.encoded_image_string)).mode == "L"
    assert mosaic(torch.ones(1, 1, 2, 2), 8)[:2, :2].max() == 0


def test_the_graph_and_the_layout_of_charts(tmp_path: Path, classic: nn.Module, images: torch.Tensor) -> None:
    with Summaries(tmp_path) as summaries:
        summaries.graph(classic, images[:1])
    found = read(tmp_path)
    assert "conv1/Conv2d" in {node.name for node in found.Graph().node}
    layout = layout_pb2.Layout.FromString(found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert "loss, raw and averaged" in {chart.title for chart in layout.category[0].chart}


def test_numbers_that_are_not_finite_are_written(tmp_path: Path) -> None:
    with Summaries(tmp_path) as summaries:
        summaries.scalars(0, {"loss/total": math.nan})
    assert math.isnan(read(tmp_path).Scalars("loss/total")[0].value)
