"""The clock, the memory meter and the arithmetic floor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worker.benchmark.floor import MEASURED, count_flops, device_peak, floor_seconds
from worker.benchmark.timing import ProcessMemory, Stopwatch, memory_meter, summarize


class AsynchronousDevice:
    """A device whose calls return at once and whose work is done when it is waited for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.pending = 0.0
        self.events: list[str] = []

    def work(self, seconds: float) -> str:
        self.events.append("call")
        self.pending += seconds
        return "done"

    def synchronize(self) -> None:
        self.events.append("wait")
        self.seconds += self.pending
        self.pending = 0.0

    def now(self) -> float:
        self.events.append("clock")
        return self.seconds


def test_the_clock_waits_for_the_device_before_it_starts_and_before_it_stops() -> None:
    device = AsynchronousDevice()
    device.work(100.0)  # left over from an earlier call, not to be charged to the next
    device.events.clear()
    value, seconds = Stopwatch(device.synchronize, device.now).time(lambda: device.work(3.0))
    assert (value, seconds) == ("done", 3.0)
    assert device.events == ["wait", "clock", "call", "wait", "clock"]


def test_percentiles_are_interpolated_and_counted() -> None:
    latency = summarize(2, [float(second) for second in range(1, 102)])
    assert (latency.p50, latency.p90, latency.p95, latency.p99) == (51.0, 91.0, 96.0, 100.0)
    assert (latency.calls, latency.fastest) == (101, 1.0)
    assert latency.images_per_second == pytest.approx(2 * 101 / sum(range(1, 102)))


@pytest.mark.parametrize(("calls", "estimate"), [(999, True), (1000, False)])
def test_a_p99_is_claimed_from_a_thousand_calls_on(calls: int, estimate: bool) -> None:
    assert summarize(1, [0.1] * calls).p99_is_estimate is estimate


def test_no_calls_have_no_latency() -> None:
    with pytest.raises(ValueError, match="no call"):
        summarize(1, [])


def test_the_memory_meter_sees_a_peak_that_is_over() -> None:
    meter = memory_meter(torch.device("cpu"))
    block = torch.ones(60_000_000 // 4)
    del block
    if meter.kind != "process_rss":
        pytest.skip("this kernel cannot restart a high-water mark")
    assert 50e6 < meter.peak() < 150e6


def test_a_later_meter_does_not_count_what_an_earlier_contender_left_on_the_heap() -> None:
    block = torch.ones(60_000_000 // 4)
    del block
    meter = memory_meter(torch.device("cpu"))
    again = torch.ones(60_000_000 // 4)
    if meter.kind != "process_rss":
        pytest.skip("this kernel cannot restart a high-water mark")
    assert 50e6 < meter.peak() < 150e6
    assert again.any()


def test_without_a_way_to_restart_the_peak_the_meter_says_so(tmp_path: Path) -> None:
    meter = ProcessMemory(tmp_path / "no-proc-here")
    assert meter.kind == "process_rss_lifetime"
    assert meter.peak() >= 0


def test_operations_are_counted_with_attention() -> None:
    square = torch.ones(16, 16)
    heads = torch.ones(2, 4, 16, 16)
    product = 2 * 16**3
    assert count_flops(lambda: torch.mm(square, square)) == product
    attention = lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)  # noqa: E731
    assert count_flops(attention) == 2 * 4 * 2 * product
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert count_flops(lambda: convolution(torch.ones(1, 3, 8, 8))) == 2 * 3 * 5 * 9 * 64


def test_the_peak_of_an_unknown_device_is_measured_with_headroom() -> None:
    peak = device_peak(torch.device("cpu"), torch.float32)
    assert peak.source == MEASURED
    assert peak.flops > 1e9
    assert floor_seconds(10**9, peak) == pytest.approx(1e9 / peak.flops)


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312.0),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 156.0),
        ("NVIDIA H100 80GB HBM3", torch.float16, 989.5),
        ("NVIDIA L40S", torch.bfloat16, 362.1),
        ("NVIDIA L4", torch.bfloat16, 121.0),
    ],
)
def test_the_peak_of_a_known_gpu_comes_from_its_data_sheet(
    name: str, dtype: torch.dtype, tera: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device_peak(torch.device("cuda"), dtype).flops == pytest.approx(tera * 1e12)
