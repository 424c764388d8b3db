import errno
import json
import math
import random
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from thumbnet.errors import CheckpointError
from thumbnet.runs.checkpoint import (
    Checkpoint,
    fit_state,
    load_checkpoint,
    load_weights,
    missing_files,
    read_manifest,
    save_checkpoint,
    tidy_folder,
)


def read_safetensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Parse the published format by hand: 8 bytes of length, a JSON header, the data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {name: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for name, e in header.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_what_is_saved_comes_back(tmp_path, make_checkpoint):
    saved = make_checkpoint(12)
    path = save_checkpoint(tmp_path / "new" / "folder", saved, metric=0.5)
    assert path == tmp_path / "new" / "folder" / "step-00000012"
    assert sorted(entry.name for entry in path.iterdir()) == [
        "average.safetensors",
        "manifest.json",
        "model.safetensors",
        "state.safetensors",
    ]
    loaded = load_checkpoint(path)
    assert loaded.step == 12
    assert same(loaded.model, saved.model)
    assert same(loaded.average, saved.average)
    assert same(loaded.state, saved.state)
    assert loaded.info == saved.info
    assert read_manifest(path).metric == 0.5
    assert same(load_weights(path, "average"), saved.average)
    assert same(load_weights(path, "raw"), saved.model)


def test_no_average(tmp_path, make_checkpoint):
    path = save_checkpoint(tmp_path, make_checkpoint(average=False))
    assert not (path / "average.safetensors").exists()
    assert load_checkpoint(path).average is None
    with pytest.raises(CheckpointError, match=r"keeps no average.*--weights raw"):
        load_weights(path, "average")


def test_the_model_file_is_plain_safetensors(tmp_path, make_checkpoint):
    saved = make_checkpoint()
    found = read_safetensors(save_checkpoint(tmp_path, saved) / "model.safetensors")
    expected = {name: ("F32", list(value.shape), value.numpy().tobytes()) for name, value in saved.model.items()}
    assert found == expected


def test_equal_tensors_give_equal_bytes(tmp_path):
    names = [f"layer{index}.weight" for index in range(20)]
    tensors = {name: torch.full((2, 3), float(index)) for index, name in enumerate(names)}
    contents = set()
    for attempt in range(5):
        random.Random(attempt).shuffle(names)
        shuffled = {name: tensors[name].clone() for name in names}
        checkpoint = Checkpoint(step=attempt, model=shuffled, average=None, state={}, info={"attempt": attempt})
        contents.add((save_checkpoint(tmp_path, checkpoint) / "model.safetensors").read_bytes())
    assert len(contents) == 1


def test_tensors_of_any_layout(tmp_path):
    base = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    tensors = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base[0, 0].T,
        "strided": base[:, ::2, 1:3],
        "shared": base,
        "shared.part": base[1],
        "expanded": torch.tensor([3.0]).expand(4),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
        "bf16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "int64": torch.tensor([-(2**62)]),
        "bool": torch.tensor([True, False]),
    }
    path = save_checkpoint(tmp_path, Checkpoint(step=0, model=tensors, average=tensors, state=tensors, info={}))
    loaded = load_checkpoint(path)
    for part in (loaded.model, loaded.average, loaded.state):
        assert same(part, tensors)
        assert all(value.is_contiguous() for value in part.values())
        part["shared"].zero_()  # memory of its own: the other views do not change
        assert part["shared.part"].any()


def test_saving_leaves_the_tensors_alone(tmp_path, make_checkpoint):
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    checkpoint = Checkpoint(step=0, model={"w": weight}, average=None, state={}, info={})
    save_checkpoint(tmp_path, checkpoint)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.requires_grad


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text().filter(lambda k: k != "$float"), inner, max_size=4)
    ),
    max_leaves=10,
)


def alike(left: object, right: object) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.copysign(1, left) == math.copysign(1, right) and (
            left == right or (math.isnan(left) and math.isnan(right))
        )
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(alike, left, right))
    return type(left) is type(right) and left == right


@settings(max_examples=40)
@given(info=st.dictionaries(st.text().filter(lambda k: k != "$float"), plain, max_size=5))
def test_any_info_comes_back(tmp_path_factory, info):
    info = json.loads(json.dumps(info), parse_constant=lambda name: abs(float(name)) if name == "NaN" else float(name))
    folder = tmp_path_factory.mktemp("info")
    path = save_checkpoint(folder, Checkpoint(step=1, model={}, average=None, state={}, info=info))
    text = (path / "manifest.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert alike(load_checkpoint(path).info, info)


@pytest.mark.parametrize("value", [torch.tensor(1.0), {1: 2}, {"$float": 1}, {1, 2}, b"x"])
def test_info_that_json_would_lose_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match=r"info\.inner"):
        save_checkpoint(tmp_path, Checkpoint(step=1, model={}, average=None, state={}, info={"inner": value}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["model", "average"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, make_checkpoint, bad, part):
    good = save_checkpoint(tmp_path, make_checkpoint(1))
    checkpoint = make_checkpoint(2)
    getattr(checkpoint, part)["a.bias"][1] = bad
    with pytest.raises(CheckpointError, match=r"tensor 'a\.bias' holds NaN or infinity"):
        save_checkpoint(tmp_path, checkpoint)
    assert list(tmp_path.iterdir()) == [good]


def test_the_same_step_is_replaced(tmp_path, make_checkpoint):
    save_checkpoint(tmp_path, make_checkpoint(3, info={"take": 1}))
    path = save_checkpoint(tmp_path, make_checkpoint(3, info={"take": 2}))
    assert load_checkpoint(path).info == {"take": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_tidy_puts_back_what_a_kill_left_in_between(tmp_path, make_checkpoint):
    path = save_checkpoint(tmp_path, make_checkpoint(3))
    path.rename(tmp_path / ".replaced-step-00000003")
    for name in (".tmp-step-00000004", ".deleted-step-00000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    tidy_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path).step == 3
    tidy_folder(tmp_path / "not there")


def test_tidy_deletes_nothing_that_it_cannot_put_back(tmp_path, make_checkpoint, monkeypatch):
    replaced = tmp_path / ".replaced-step-00000003"
    save_checkpoint(tmp_path, make_checkpoint(3)).rename(replaced)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        tidy_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [replaced]
    tidy_folder(tmp_path)
    assert load_checkpoint(tmp_path / "step-00000003").step == 3


def test_missing_files(tmp_path, make_checkpoint):
    path = save_checkpoint(tmp_path, make_checkpoint())
    assert missing_files(path) == []
    (path / "average.safetensors").unlink()
    assert missing_files(path) == ["average.safetensors"]
    (path / "manifest.json").unlink()
    assert missing_files(path) == ["manifest.json"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5)
        self.norm = nn.BatchNorm2d(4)


def test_fit_state_loads_all(make_checkpoint):
    source, target = Net(), Net().to(memory_format=torch.channels_last)
    source.norm.running_mean += 3
    fit_state(target, source.state_dict(), "here")
    assert same(target.state_dict(), source.state_dict())
    assert target.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv1.bias"), r"tensor 'conv1\.bias': expected float32 \[4\], found none"),
        (lambda s: s.update(extra=torch.ones(2, 3)), r"tensor 'extra': expected none, found float32 \[2, 3\]"),
        (
            lambda s: s.update({"conv1.weight": torch.ones(4, 3, 3, 3)}),
            r"tensor 'conv1\.weight': expected float32 \[4, 3, 5, 5\], found float32 \[4, 3, 3, 3\]",
        ),
        (
            lambda s: s.update({"conv1.bias": torch.ones(4, dtype=torch.float64)}),
            r"tensor 'conv1\.bias': expected float32 \[4\], found float64 \[4\]",
        ),
        (lambda s: s.clear(), r"found none \(and \d+ more"),
    ],
)
def test_fit_state_that_does_not_fit_changes_nothing(change, message):
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = {name: torch.ones_like(value) for name, value in before.items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=message) as error:
        fit_state(module, tensors, "runs/x/checkpoints/step-00000001")
    assert str(error.value).startswith("runs/x/checkpoints/step-00000001: ")
    assert len(str(error.value).splitlines()) <= 3
    assert same(module.state_dict(), before)


def test_another_architecture_is_refused():
    with pytest.raises(CheckpointError, match="does not fit the network"):
        fit_state(Net(), nn.Linear(3, 4).state_dict(), "here")
