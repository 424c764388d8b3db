"""Three replicas compute what one does: a batch of 11, which they cannot share evenly."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thumbnet.config import InputConfig
from thumbnet.data.shapes import draw_shapes
from thumbnet.distributed.place import Place
from thumbnet.distributed.replicas import ALONE, Replicas
from thumbnet.evaluation.evaluate import predict_logits
from thumbnet.input import pipeline
from thumbnet.input.distort import prepare
from thumbnet.input.pipeline import TrainingInput
from thumbnet.training.state import new_state

COUNT = 3


def replica(rank: int, count: int) -> Replicas:
    return Replicas(Place(rank=rank, count=count, local_rank=rank, address="", port=1))


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    path = Path(__file__).with_name("probe.py")
    spec = importlib.util.spec_from_file_location("probe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(start: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each replica has come to."""
    folder = tmp_path_factory.mktemp("found")
    group = start(COUNT, [str(folder)], script=Path(__file__).with_name("probe.py"))
    assert group.end() == [0] * COUNT, group.errors()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(COUNT)]


@pytest.fixture(scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_replicas_hear_one_another(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["said"] == ["I am 0", "I am 1", "I am 2"]
        assert one["told"] == "from 0"
        assert one["sent"] == bytes(range(256))
        assert one["empty"] == b""
        assert one["sum"] == [3, 0 + 1 + 2]


def test_replicas_on_one_machine_take_different_cores(found: list[dict[str, Any]]) -> None:
    assert [one["sharers"] for one in found] == [COUNT] * COUNT
    every = [core for one in found for core in one["cores"]]
    usable = os.sched_getaffinity(0)
    if len(usable) >= COUNT:
        assert sorted(every) == sorted(usable)
    else:
        assert set(every) == usable


@pytest.mark.parametrize("network", ["classic", "speed"])
def test_all_replicas_have_the_same_state_to_the_bit(network: str, found: list[dict[str, Any]]) -> None:
    for other in found[1:]:
        assert other[network].keys() == found[0][network].keys()
        for name, value in found[0][network].items():
            assert torch.equal(value, other[network][name]), name
        assert other[f"{network} reports"] == found[0][f"{network} reports"]


def test_three_replicas_train_as_one_does(found: list[dict[str, Any]], probe: ModuleType, one_thread: None) -> None:
    dataset = draw_shapes()[0]
    state, reports = probe.train(probe.CLASSIC, dataset, ALONE)
    for name, expected in probe.tensors_of(state).items():
        torch.testing.assert_close(found[0]["classic"][name], expected, rtol=1e-4, atol=1e-6, msg=name)
    # Replica 0's clock counts for all, and reads as it did before the update.
    np.testing.assert_allclose(
        [row[:3] for row in found[0]["classic reports"]], [row[:3] for row in reports], rtol=1e-4
    )
    assert [row[3] for row in found[0]["classic reports"]] == [0, 100, 200, 300]


def test_batch_normalization_is_by_replica_and_its_statistics_are_averaged(
    found: list[dict[str, Any]], probe: ModuleType, one_thread: None
) -> None:
    """The oracle takes the shares one after the other, with weights by their sizes."""
    recipe, dataset = probe.SPEED, draw_shapes()[0]
    images_NHWC, _ = dataset.gather(np.arange(50))
    state = new_state(recipe, num_classes=10, channels=3, examples=lambda _: prepare(images_NHWC, recipe.distort))
    with TrainingInput(dataset, recipe.distort, recipe.input, seed=1) as batches:
        batch = next(batches)
    before = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
    mean, total = {name: torch.zeros_like(buffer) for name, buffer in before.items()}, 0.0
    for share in (slice(0, 3), slice(3, 7), slice(7, 11)):
        for name, buffer in state.model.named_buffers():
            buffer.copy_(before[name])
        weight = (share.stop - share.start) / 11
        loss = F.cross_entropy(state.model(batch.images[share]), batch.labels[share], label_smoothing=0.1) * weight
        loss.backward()
        total += loss.item()
        for name, buffer in state.model.named_buffers():
            mean[name] += weight * buffer
    norm = torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None]).norm().item()
    loss_found, _, norm_found, _ = found[0]["speed reports"][0]
    assert loss_found == pytest.approx(total, rel=1e-5)
    assert norm_found == pytest.approx(norm, rel=1e-4)
    assert any("running_mean" in name for name in mean)


def test_every_example_is_evaluated_exactly_once(
    found: list[dict[str, Any]], probe: ModuleType, one_thread: None
) -> None:
    dataset = draw_shapes()[0]
    model = probe.train(probe.CLASSIC, dataset, ALONE)[0].model
    model.load_state_dict(
        {n.removeprefix("model."): v for n, v in found[0]["classic"].items() if n.startswith("model.")}
    )
    for number, (count, batch_size) in enumerate(probe.EVALUATIONS):
        logits, labels = predict_logits(
            model,
            dataset.take(np.arange(count)),
            probe.CLASSIC.distort,
            precision=probe.FP32,
            batch_size=batch_size,
        )
        for one in found:
            np.testing.assert_array_equal(one["logits"][number][0], logits)
            np.testing.assert_array_equal(one["logits"][number][1], labels)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("total", [1, 7, 128])
def test_shares_cover_everything_once_and_are_about_equal(total: int, count: int) -> None:
    shares = [range(total)[replica(rank, count).share(total)] for rank in range(count)]
    assert [number for share in shares for number in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("pool_mib", [512, 1])
@pytest.mark.parametrize("start_step", [0, 3])
def test_the_shares_of_a_batch_are_the_batch(pool_mib: int, start_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From memory, and through the pool of data that memory has no room for; batches straddle epochs of 60."""
    dataset = draw_shapes()[0].take(np.arange(60))
    monkeypatch.setattr(pipeline, "_budget_examples", lambda dataset, config: 18 * config.pool_mib)
    recipe_distort, config = probe_distort(), InputConfig(batch_size=16, pool=0.3, pool_mib=pool_mib)

    def batches(share: slice) -> list[pipeline.Batch]:
        with TrainingInput(dataset, recipe_distort, config, seed=1, start_step=start_step, share=share) as made:
            return [next(made) for _ in range(9)]

    whole = batches(slice(None))
    parts = [batches(replica(rank, 3).share(16)) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part[step].labels for part in parts]), batch.labels)
        np.testing.assert_array_equal(np.concatenate([part[step].indices for part in parts]), batch.indices)


def probe_distort() -> Any:
    from thumbnet.config import DistortConfig

    return DistortConfig(crop=24, brightness=63.0, contrast=(0.2, 1.8))
