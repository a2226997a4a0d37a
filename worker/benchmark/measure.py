"""One contender's measurement: load, first image, timed calls at each batch size, samples.

Every image that a timed call makes is kept as a sample: sample i is made from prompt i and seed i whichever call
makes it, so that speed and quality are measured on the same work and nothing is made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from calotype.errors import JobFailed
from worker.benchmark.contenders import Contender
from worker.benchmark.floor import count_flops
from worker.benchmark.samples import Samples
from worker.benchmark.timing import WARMUP_CALLS, Latency, MemoryMeter, Stopwatch, summarize
from worker.families.diffusion.memory import free_memory

#: Called with a number of images (or the share of one) newly made; may raise to stop.
OnImages = Callable[[float], None]
#: The verdict on an exception of a contender; raises what is not its fault.
Judge = Callable[[Exception], JobFailed]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is made of each contender. The same for all of them."""

    #: One of each a sample.
    prompts: Sequence[str]
    seeds: Sequence[int]
    batch_sizes: Sequence[int]
    #: Timed calls at each batch size; 0: speed and memory are not asked for.
    timed_calls: int
    #: Whether every sample is needed (for distances) or only those that timing makes.
    all_samples: bool

    @property
    def images(self) -> int:
        """How many images a contender makes: the first, the timed, the missing samples, one to count operations."""
        if not self.timed_calls:
            return max(1, len(self.prompts)) if self.all_samples else 1
        timed = (self.timed_calls + WARMUP_CALLS) * sum(self.batch_sizes)
        return 2 + timed + (max(0, len(self.prompts) - timed) if self.all_samples else 0)


@dataclass(kw_only=True)
class BatchRun:
    """What happened at one batch size."""

    batch_size: int
    #: Of each timed call.
    seconds: list[float] = field(default_factory=list)
    #: The most memory in use, above the level before loading; None when nothing ran.
    peak_bytes: int | None = None
    #: Why this batch size gave no numbers.
    failure: JobFailed | None = None

    @property
    def latency(self) -> Latency | None:
        """The summary of the timed calls."""
        return summarize(self.batch_size, self.seconds) if self.seconds and self.failure is None else None


@dataclass(kw_only=True)
class Measurement:
    """All that was measured of one contender."""

    load_seconds: float
    #: The first call after loading, one image: what a cold worker's first user waits for beside loading.
    first_image_seconds: float
    #: Operations of one image; None when speed was not asked for.
    flops_per_image: int | None
    batches: list[BatchRun]
    #: The most memory while loading and making the first image, above the level before.
    load_peak_bytes: int | None
    memory_kind: str

    @property
    def peak_bytes(self) -> int | None:
        """The most memory at any time."""
        peaks = [self.load_peak_bytes, *(run.peak_bytes for run in self.batches)]
        return max((peak for peak in peaks if peak is not None), default=None)


class Measuring:
    """The measurement of one contender while it goes on; its images go into `samples`."""

    def __init__(
        self,
        contender: Contender,
        plan: Plan,
        samples: Samples,
        stopwatch: Stopwatch,
        on_images: OnImages,
        judge: Judge,
    ) -> None:
        self._contender, self._plan, self._samples = contender, plan, samples
        self._stopwatch, self._on_images, self._judge = stopwatch, on_images, judge
        self._next = 0

    def run(self, meter: MemoryMeter) -> Measurement:
        """Measure. `meter` was made just before, with no model loaded. Raises whatever the contender raises."""
        meter.reset()
        _, load_seconds = self._stopwatch.time(self._contender.load)
        first_seconds = self._timed([0])
        load_peak = meter.peak() if self._plan.timed_calls else None
        batches = [self._at(size, meter) for size in sorted(self._plan.batch_sizes)]
        if all(batch.failure is not None for batch in batches) and batches[0].failure is not None:
            raise batches[0].failure
        flops = count_flops(lambda: self._make([0])) if self._plan.timed_calls else None
        if self._plan.all_samples:
            self._make_missing(batches)
        return Measurement(
            load_seconds=load_seconds,
            first_image_seconds=first_seconds,
            flops_per_image=flops,
            load_peak_bytes=load_peak,
            batches=batches,
            memory_kind=meter.kind,
        )

    def _at(self, size: int, meter: MemoryMeter) -> BatchRun:
        """Warm up, then time, at one batch size; out of memory ends this batch size only."""
        run = BatchRun(batch_size=size)
        meter.reset()
        try:
            for _ in range(WARMUP_CALLS if self._plan.timed_calls else 0):
                self._timed(self._upcoming(size))
            for _ in range(self._plan.timed_calls):
                run.seconds.append(self._timed(self._upcoming(size)))
        except Exception as exc:
            run.failure = self._judge(exc)
            if run.failure.code != "out_of_memory":
                raise
        if run.failure is not None:
            # Not within the except block: until it ends, the exception keeps the failed call's tensors alive.
            free_memory()
        elif self._plan.timed_calls:
            run.peak_bytes = meter.peak()
        self._samples.settle()
        return run

    def _make_missing(self, batches: Sequence[BatchRun]) -> None:
        """The samples that timing did not make, at the largest batch size that fits; timed as well when full."""
        fitting = sorted((run for run in batches if run.failure is None), key=lambda run: -run.batch_size)
        for position, run in enumerate(fitting):
            try:
                self._fill(run)
                return
            except Exception as exc:
                failure = self._judge(exc)
                if failure.code != "out_of_memory" or position + 1 == len(fitting):
                    raise
            free_memory()

    def _fill(self, run: BatchRun) -> None:
        missing = [number for number in range(len(self._plan.prompts)) if number not in self._samples]
        undisturbed = False
        for start in range(0, len(missing), run.batch_size):
            numbers = missing[start : start + run.batch_size]
            seconds = self._timed(numbers)
            if self._plan.timed_calls and undisturbed and len(numbers) == run.batch_size:
                run.seconds.append(seconds)
            # The call after a look at the samples finds caches and clocks of the device changed: not for the record.
            undisturbed = not self._samples.crowded
            if self._samples.crowded:
                self._samples.settle()

    def _timed(self, numbers: Sequence[int]) -> float:
        """The seconds of one call; its images become samples where there are none yet."""
        images, seconds = self._stopwatch.time(lambda: self._make(numbers))
        for number, image in zip(numbers, images, strict=True):
            self._samples.add(number, image)
        return seconds

    def _make(self, numbers: Sequence[int]) -> list[Image.Image]:
        done = 0.0

        def on_progress(share: float) -> None:
            nonlocal done
            self._on_images((share - done) * len(numbers))
            done = share

        images = self._contender.generate(
            [self._plan.prompts[n] for n in numbers], [self._plan.seeds[n] for n in numbers], on_progress
        )
        on_progress(1.0)
        return images

    def _upcoming(self, size: int) -> list[int]:
        """The next sample numbers; after the last one it begins again, so that calls always are full."""
        total = len(self._plan.prompts)
        numbers = [(self._next + offset) % total for offset in range(size)]
        self._next = (self._next + size) % total
        return numbers
