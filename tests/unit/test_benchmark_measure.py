"""What is made of one contender, and in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fake_contender import FakeContender, disc, out_of_memory_beyond
from PIL import Image

from calotype.errors import JobFailed
from calotype.settings import Settings
from worker.benchmark.measure import Measurement, Measuring, Plan
from worker.benchmark.quality import Features
from worker.benchmark.samples import Samples
from worker.benchmark.timing import WARMUP_CALLS, Stopwatch
from worker.failures import classify


class FakeMeter:
    kind = "cuda_allocated"

    def __init__(self) -> None:
        self.peaks = iter(range(100, 10_000, 100))

    def reset(self) -> None:
        pass

    def peak(self) -> int:
        return next(self.peaks)


def plan(samples: int = 10, **changes: Any) -> Plan:
    made = Plan(
        prompts=[f"prompt {number}" for number in range(samples)],
        seeds=[1000 + number for number in range(samples)],
        batch_sizes=(1, 4),
        timed_calls=3,
        all_samples=True,
    )
    return dataclasses.replace(made, **changes)


def ignore(images: float) -> None:
    pass


def measure(
    contender: FakeContender,
    wanted: Plan,
    samples: Samples | None = None,
    on_images: Callable[[float], None] = ignore,
) -> Measurement:
    measuring = Measuring(
        contender,
        wanted,
        Samples(None) if samples is None else samples,
        Stopwatch.on(torch.device("cpu")),
        on_images,
        lambda exc: classify(exc, Settings()),
    )
    return measuring.run(FakeMeter())


def corner_colours(images: Sequence[Image.Image]) -> Features:
    """Features that tell which image they are of."""
    return np.stack([np.asarray(image, dtype=np.float64)[12, :, 0] for image in images])


def test_every_sample_comes_from_its_own_prompt_and_seed_whatever_call_makes_it() -> None:
    contender, samples = FakeContender(), Samples(corner_colours)
    measure(contender, plan(40), samples)
    expected = [disc(1000 + number) for number in range(40)]
    assert [samples.shown[number].tobytes() for number in range(40)] == [image.tobytes() for image in expected]
    np.testing.assert_array_equal(samples.features(), corner_colours(expected))
    assert all([int(p.split()[1]) + 1000 for p in prompts] == seeds for prompts, seeds in contender.calls)


def test_warming_up_is_not_timed() -> None:
    contender = FakeContender()
    measured = measure(contender, plan(all_samples=False))
    first, *calls, counted = [len(seeds) for _, seeds in contender.calls]
    assert calls == [1] * (WARMUP_CALLS + 3) + [4] * (WARMUP_CALLS + 3)
    assert (first, counted) == (1, 1)
    assert [len(run.seconds) for run in measured.batches] == [3, 3]


def test_the_plan_knows_how_many_images_it_makes() -> None:
    for wanted in (plan(100), plan(3), plan(7, all_samples=False), plan(9, timed_calls=0)):
        contender, units = FakeContender(), list[float]()
        measure(contender, wanted, on_images=units.append)
        made = sum(len(seeds) for _, seeds in contender.calls)
        assert sum(units) == pytest.approx(made)
        assert abs(made - wanted.images) <= 1


def test_without_speed_nothing_is_timed_and_nothing_counted() -> None:
    samples = Samples(None)
    measured = measure(FakeContender(), plan(9, timed_calls=0), samples)
    assert [run.seconds for run in measured.batches] == [[], []]
    assert measured.flops_per_image is None
    assert measured.peak_bytes is None
    assert len(samples) == 9


def test_operations_are_those_of_one_image() -> None:
    measured = measure(FakeContender(multiplications=2), plan())
    assert measured.flops_per_image == 4 * 2 * 2 * 32**3


def test_the_peak_is_the_highest_of_loading_and_all_batch_sizes() -> None:
    measured = measure(FakeContender(), plan())
    assert measured.load_peak_bytes == 100
    assert [run.peak_bytes for run in measured.batches] == [200, 300]
    assert measured.peak_bytes == 300


def test_a_batch_size_that_does_not_fit_is_recorded_and_the_others_go_on() -> None:
    samples = Samples(None)
    measured = measure(FakeContender(fail=out_of_memory_beyond(2)), plan(20, batch_sizes=(1, 2, 8)), samples)
    one, two, eight = measured.batches
    assert one.latency is not None
    assert two.latency is not None
    assert eight.latency is None
    assert eight.failure is not None
    assert eight.failure.code == "out_of_memory"
    assert len(samples) == 20


def test_a_contender_that_never_fits_fails_as_a_whole() -> None:
    with pytest.raises((torch.OutOfMemoryError, JobFailed)):
        measure(FakeContender(fail=out_of_memory_beyond(0)), plan())
    with pytest.raises(JobFailed) as failure:
        measure(FakeContender(fail=out_of_memory_beyond(1)), plan(batch_sizes=(2, 4)))
    assert failure.value.code == "out_of_memory"


def test_any_other_error_ends_the_contender() -> None:
    def fail(seeds: object) -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        measure(FakeContender(fail=fail), plan())


def test_an_interruption_passes_through() -> None:
    class Stop(BaseException):
        pass

    def stop(units: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        measure(FakeContender(), plan(), on_images=stop)


def test_samples_are_looked_at_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.benchmark.samples._WAITING", 8)
    monkeypatch.setattr("worker.benchmark.samples.SHOWN", 5)
    looked_at: list[int] = []

    def look(images: Sequence[Image.Image]) -> Features:
        looked_at.append(len(images))
        return corner_colours(images)

    samples = Samples(look)
    measured = measure(FakeContender(), plan(60), samples)
    assert samples.features().shape[0] == 60
    assert len(samples.shown) == 5
    assert max(looked_at[2:]) <= 8  # the first two are what timing made at each batch size
    # Calls right after a look are not for the record: 35 samples in 9 calls after timing, every second one counted.
    assert len(measured.batches[1].seconds) < 3 + 9
