import json
from pathlib import Path
from typing import Any

import pytest

from thumbnet.training.measure_devices import STEP_MARK, read_overlaps


@pytest.mark.parametrize("grain", [0, 16])
def test_the_all_reduce_of_gradients_begins_before_the_backward_pass_ends(
    start: Any, tmp_path: Path, grain: int
) -> None:
    """Not so with grains, whose gradients are exchanged once the last one's are there."""
    trace = tmp_path / "trace.json"
    group = start(2, [str(trace), str(grain)], script=Path(__file__).with_name("tracer.py"))
    assert group.end() == [0, 0], group.errors()
    for output in group.outputs():
        figures = json.loads(output.splitlines()[-1])
        assert figures["images_per_second"] > 0
        assert 0 <= figures["wait_fraction"] <= 1
    overlaps = read_overlaps(trace)
    assert len(overlaps) == 4
    for overlap in overlaps:
        assert (overlap.lead_ms > 0) == (grain == 0)
        assert 0 < overlap.all_reduce_ms < overlap.step_ms
        assert 0 < overlap.backward_ms < overlap.step_ms


def test_what_a_trace_tells(tmp_path: Path) -> None:
    """Times in microseconds: backward from 2,000 to 6,000; two reduces of gradients that overlap, one of figures."""

    def event(name: str, start: float, stop: float, **more: Any) -> dict[str, Any]:
        return {"ph": "X", "name": name, "ts": start, "dur": stop - start, **more}

    backward = "autograd::engine::evaluate_function: ConvolutionBackward0"
    events = [
        {"ph": "M", "name": "process_name"},
        event(STEP_MARK, 1000, 9000, cat="user_annotation"),
        event("gloo:all_reduce", 1500, 5000),
        event(backward, 2000, 4000),
        event(backward, 4000, 6000),
        event("gloo:all_reduce", 3000, 5000),
        event("gloo:all_reduce", 4500, 7500),
        event(STEP_MARK, 10000, 12000, cat="user_annotation"),
        event(backward, 10500, 11500),
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    first, second = read_overlaps(trace)
    assert (first.step_ms, first.backward_ms) == (8, 4)
    assert (first.all_reduce_ms, first.exposed_ms, first.lead_ms) == pytest.approx((4.5, 1.5, 3))
    assert (second.all_reduce_ms, second.exposed_ms, second.lead_ms) == (0, 0, 0)
