import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MIB = 2**20


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("scaling")


@pytest.fixture(scope="module")
def report() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("scaling_report")


def link(scaling: ModuleType, latency_s: float = 0.0, bytes_per_s: float = MIB):
    return scaling.Link(latency_s=latency_s, bytes_per_s=bytes_per_s)


def eight_images(scaling: ModuleType, **more):
    """A step of a second an image; two buckets of a MiB, one ready after half of the step, one after three quarters."""
    gradients = (scaling.Gradient(bytes=MIB, ready=0.5), scaling.Gradient(bytes=25 * MIB, ready=0.75))
    return scaling.Work(batch_size=8, seconds=((4, 4.0), (8, 8.0)), gradients=gradients, **more)


def run_ring(values: list[list[float]], latency_s: float, bytes_per_s: float, chunk_bytes: float) -> float:
    """Sum lists of as many chunks as there are replicas by passing chunks round a ring; returns the time."""
    count, seconds = len(values), 0.0
    for turn in range(2 * (count - 1)):
        sent = []
        for rank in range(count):
            chunk = (rank - turn) % count if turn < count - 1 else (rank + 1 - (turn - count + 1)) % count
            sent.append((chunk, values[rank][chunk]))
        for rank in range(count):
            chunk, value = sent[rank - 1]
            values[rank][chunk] = values[rank][chunk] + value if turn < count - 1 else value
        seconds += latency_s + chunk_bytes / bytes_per_s
    return seconds


@pytest.mark.parametrize(
    ("size", "replicas", "latency_s", "bytes_per_s", "expected"),
    [(8, 2, 1.0, 2.0, 6.0), (12, 4, 0.5, 3.0, 9.0), (12, 1, 0.5, 3.0, 0.0), (0, 3, 0.25, 1.0, 1.0)],
)
def test_ring_by_hand(scaling, size, replicas, latency_s, bytes_per_s, expected) -> None:
    assert scaling.ring_s(size, replicas, link(scaling, latency_s, bytes_per_s)) == expected


@pytest.mark.parametrize("replicas", [2, 3, 5, 8])
def test_the_ring_is_the_one_whose_turns_add_everything_up(scaling, replicas) -> None:
    values = [[float(10**rank) for _ in range(replicas)] for rank in range(replicas)]
    seconds = run_ring(values, 0.125, 50.0, 700 / replicas)
    assert all(value == int("1" * replicas) for row in values for value in row)
    assert scaling.ring_s(700, replicas, link(scaling, 0.125, 50.0)) == pytest.approx(seconds)


def test_buckets_by_hand(scaling) -> None:
    sizes = [3, 5, 2, 9, 1]
    gradients = [scaling.Gradient(bytes=size, ready=index / 10) for index, size in enumerate(sizes)]
    found = scaling.fill_buckets(gradients, first=4, others=10)
    assert [(bucket.bytes, bucket.ready) for bucket in found] == [(8, 0.1), (11, 0.3), (1, 0.4)]
    assert scaling.fill_buckets([]) == []


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(4, 100), st.integers(4, 200))
def test_buckets_are_those_of_ddp(numbers, first, others) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        scaling = importlib.import_module("scaling")
    # DDP assigns gradients of parameters without data here: only their sizes matter.
    tensors = [torch.empty(number) for number in numbers]
    theirs, _ = dist._compute_bucket_assignment_by_size(tensors, [first, others], [False] * len(tensors), [])
    ours = scaling.fill_buckets([scaling.Gradient(bytes=4 * n, ready=0.0) for n in numbers], first, others)
    assert [bucket.bytes for bucket in ours] == [4 * sum(numbers[index] for index in bucket) for bucket in theirs]


@pytest.mark.parametrize(("images", "seconds"), [(4, 5.0), (6, 7.0), (8, 9.0), (2, 3.0), (1, 2.0)])
def test_time_of_a_step_between_and_before_measured_points(scaling, images, seconds) -> None:
    work = scaling.Work(batch_size=8, seconds=((4, 5.0), (8, 9.0)), gradients=())
    assert work.step_s(images) == pytest.approx(seconds)


def test_a_step_measured_slower_with_fewer_images_is_not_extended_upwards(scaling) -> None:
    work = scaling.Work(batch_size=8, seconds=((4, 5.0), (6, 4.5), (8, 9.0)), gradients=())
    assert work.step_s(1) == 5.0


def test_one_replica_sends_nothing(scaling) -> None:
    step = scaling.simulate(eight_images(scaling, processor_s_per_byte=1.0), 1, link(scaling, 9.0))
    assert (step.compute, step.processor, step.exposed, step.total) == (8.0, 0.0, 0.0, 8.0)


def test_overlap_by_hand(scaling) -> None:
    # Two replicas, four images each: four seconds; buckets are ready at 2 and 3 s and take 1 and 25 s at a MiB/s.
    slow = scaling.simulate(eight_images(scaling), 2, link(scaling))
    assert (slow.compute, slow.exposed) == (4.0, 25.0)  # 2-3, then 3-28; backward ended at 3
    # A hundred times faster: the first is sent long before the second is ready, whose time is all that shows.
    fast = scaling.simulate(eight_images(scaling), 2, link(scaling, bytes_per_s=100 * MIB))
    assert fast.exposed == pytest.approx(0.25)
    # A tenth: the second waits for the first until 2 + 10, and ends at 12 + 250.
    slower = scaling.simulate(eight_images(scaling), 2, link(scaling, bytes_per_s=MIB / 10))
    assert slower.exposed == pytest.approx(2 + 10 + 250 - 3)


def test_the_processors_work_delays_backward(scaling) -> None:
    # 26 MiB are sent once by each of two replicas: one second of work; buckets are ready at 2.5 and 3.75 of 5 s.
    work = eight_images(scaling, processor_s_per_byte=1 / (26 * MIB))
    step = scaling.simulate(work, 2, link(scaling, bytes_per_s=100 * MIB))
    assert (step.compute, step.processor) == (4.0, pytest.approx(1.0))
    assert step.exposed == pytest.approx(0.25)
    assert step.total == pytest.approx(5.25)


def test_a_part_that_is_not_whole_is_that_of_the_fullest_replica(scaling) -> None:
    work = scaling.Work(batch_size=8, seconds=((1, 1.0), (8, 8.0)), gradients=eight_images(scaling).gradients)
    assert scaling.simulate(work, 3, link(scaling)).compute == 3.0
    assert scaling.simulate(work, 3, link(scaling), images=8).compute == 8.0


@pytest.mark.parametrize(
    ("totals", "expected"),
    [([8, 4, 4, 4, 4], 4), ([8, 9], 1), ([8], 1), ([8, 4, 3, 2], 4), ([8, 9, 1], 1)],
)
def test_half_efficient_by_hand(scaling, totals, expected) -> None:
    assert scaling.half_efficient(totals) == expected


@given(st.integers(2, 8), st.floats(0, 1), st.floats(1e3, 1e12), st.floats(0, 1e-6))
def test_a_step_takes_no_less_than_computing_and_no_more_than_everything_in_turn(
    replicas, latency, speed, work
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        scaling = importlib.import_module("scaling")
    network = link(scaling, latency, speed)
    step = scaling.simulate(eight_images(scaling, processor_s_per_byte=work), replicas, network)
    everything = sum(scaling.ring_s(size * MIB, replicas, network) for size in (1, 25))
    assert step.compute <= step.total <= (step.compute + step.processor + everything) * (1 + 1e-9)


def test_strong_scaling_of_a_free_network_is_that_of_computing(scaling) -> None:
    work = scaling.Work(batch_size=8, seconds=((1, 1.0), (8, 8.0)), gradients=eight_images(scaling).gradients)
    found = scaling.strong_scaling(work, link(scaling, bytes_per_s=1e30))
    assert (found["half_efficient_replicas"], found["fastest_replicas"]) == (8, 8)
    assert {step["replicas"]: step["images_per_second"] for step in found["steps"]} == {1: 1, 2: 2, 4: 4, 8: 8}


def test_gpus_with_two_images_each_are_held_up_by_the_launches(scaling) -> None:
    rows = {row["gpus"]: row for row in scaling.gpu_rows()}
    alone = rows[1]["same_batch"]
    assert alone["images_per_second"] == pytest.approx(154_440, rel=1e-3)  # 400,000 images in 2.59 s
    thousand = rows[1000]["same_batch"]
    assert thousand["images_each"] == 2
    assert thousand["step_ms"] >= 3.0
    assert rows[1000]["grown_batch"]["batch_size"] == 2_000_000


def test_failures_by_hand(scaling) -> None:
    inputs = {"checkpoint": {"seconds": 0.5}}
    gpus = [{"gpus": 1000, "grown_batch": {"images_per_second": 10**8}}]
    (row,) = scaling.billion_rows(gpus, inputs)
    assert row["failures_per_day"] == pytest.approx(0.474, abs=1e-3)  # 419 / 54 / 16,384 a GPU and day
    assert row["best_checkpoint_interval_s"] == pytest.approx((2 * 0.5 * 86_400 / 0.47357) ** 0.5, abs=1)
    assert row["epoch_hours"] == pytest.approx(10 / 3600, abs=1e-3)
    assert row["read_gb_per_s"] == 307.3


def small_inputs() -> dict:
    """Results files of a machine that nobody has."""
    messages = [{"bytes": 1024, "seconds": 2e-4, "processor_s": 1e-4}, {"bytes": 10**9, "seconds": 2, "processor_s": 1}]
    gradients = [{"name": "a", "bytes": 4 * MIB, "ready": 0.5}, {"name": "b", "bytes": MIB, "ready": 0.9}]
    steps = [{"images": images, "processor_s": images / 100} for images in (64, 32, 16)]
    return {
        "presets": {"classic": {"batch_size": 64, "steps": steps, "gradients": gradients}},
        "all_reduce": {
            "loopback": [{"replicas": 2, "messages": messages}, {"replicas": 3, "messages": messages}],
            "links": [{"replicas": 3, "link_mbit": 100, "messages": [{"bytes": MIB, "seconds": 0.12}]}],
        },
        "checkpoint": {"seconds": 0.1},
        "epoch": {"draw_bytes_per_example": 11, "order_bytes_per_example": 8, "processor_us_per_example": 0.4},
    }


def test_measured_parts_are_scaled_to_the_measured_speed(scaling, monkeypatch) -> None:
    monkeypatch.setattr(scaling, "throughput", lambda preset: 32.0)
    work = scaling.measured_work("classic", small_inputs())
    assert work.step_s(64) == pytest.approx(2.0)  # 64 images at 32 a second
    assert work.step_s(16) == pytest.approx(0.5)
    networks = scaling.links(small_inputs())
    assert networks["1 Gbit/s"].latency_s == pytest.approx(1e-4 + 20e-6)
    assert networks["1 Gbit/s"].bytes_per_s == pytest.approx(119.55e6, rel=1e-3)
    assert networks["10 Gbit/s"].bytes_per_s == pytest.approx(1e9)  # one core moves a GB a second


def test_the_check_fits_nothing(scaling) -> None:
    (row,) = scaling.check_ring(small_inputs())
    # Four turns of a third of a MiB at 100 Mbit/s, of which 1448/1514 is payload.
    assert row["model_s"] == pytest.approx(4 * (1e-4 + MIB / 3 / (12.5e6 * 1448 / 1514)), abs=1e-6)
    assert row["measured_to_model"] == pytest.approx(0.12 / row["model_s"], abs=1e-3)


def test_the_command_writes_results_plot_and_tables(scaling, report, monkeypatch, tmp_path, capsys) -> None:
    files = {
        "scaling_inputs.json": small_inputs(),
        "classic_system.json": {"summaries": {"images_per_second_with": {"median": 32.0}}},
        "large_file.json": {"cpu_us_per_image": 12.0},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    doc = tmp_path / "scaling.md"
    doc.write_text(f"before\n{report.BEGIN}stale\n{report.END}after\n", encoding="utf-8")
    monkeypatch.setattr(scaling, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["scaling.py", "--out", str(tmp_path), "--doc", str(doc)])
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        assert scaling.main() == 0
    assert capsys.readouterr().out == f"{tmp_path / 'scaling.json'}\n"
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    assert result["inputs"]["presets"]["classic"]["file"] == "classic_system.json"
    text = doc.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "| classic | 32 images/s (`classic_system.json`) | 64 | 5.24 MB in 2 buckets |" in text


def test_the_document_says_what_the_results_say(scaling, report) -> None:
    text = (BENCHMARKS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    result = json.loads((BENCHMARKS / "results" / "scaling.json").read_text(encoding="utf-8"))
    assert report.with_tables(text, result) == text, "run `python benchmarks/scaling.py`"
    # The speeds that it begins with are those of today's results.
    for preset, part in result["inputs"]["presets"].items():
        assert part["images_per_second"] == pytest.approx(scaling.throughput(preset), abs=1), (
            "run `python benchmarks/scaling.py`"
        )
    for part in result["inputs"]["presets"].values():
        assert (BENCHMARKS / "results" / part["file"]).is_file()
