"""Times, memory, operations and precision of one GAN, in the process that this runs in.

Memory comes first: what is needed to measure the rest would count, and operations that are watched take more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from unittest import mock

import torch
import torch.nn.functional as functional
from torch import Tensor

from benchmarks.gan_case import Case, Found
from benchmarks.gan_counting import DoublePrecision, MachineSpeed, count_flops
from worker.benchmark.timing import WARMUP_CALLS, MemoryMeter, Stopwatch, memory_meter
from worker.families.gan.data import TrainingImages
from worker.families.gan.networks import synthesis_layer
from worker.families.gan.networks.filtered_lrelu import leaky_relu
from worker.families.gan.recipe import build_trainer, fresh_networks
from worker.families.gan.replicas import Alone
from worker.families.gan.sampling import Sampler, make_sampler, to_images
from worker.families.gan.trainer import Trainer

CPU = torch.device("cpu")
#: Images that a training draws its batches from.
DATASET = 32

Call = Callable[[], object]


def measure(case: Case) -> Found:
    """Raises AssertionError where a network gives no numbers."""
    meter = memory_meter(CPU)
    return _training(case, meter) if case.what == "training" else _sampling(case, meter)


def _sampling(case: Case, meter: MemoryMeter) -> Found:
    generator = fresh_networks(case.spec(), 0).generator.eval().requires_grad_(False)
    sampler = make_sampler(generator)
    calls = {batch: _sampling_call(sampler, batch) for batch in case.batches}
    _repeat(calls, WARMUP_CALLS)
    peak = meter.peak()
    flops, doubles = _count(calls)
    bare = {} if case.architecture == "r3gan" else {-batch: _without_filters(call) for batch, call in calls.items()}
    _repeat(bare, WARMUP_CALLS)
    seconds, machine = _in_turn({**calls, **bare}, case.rounds)
    return Found(
        seconds={batch: seconds[batch] / batch for batch in calls},
        unfiltered={-batch: seconds[batch] / -batch for batch in bare},
        flops=flops[case.batches[0]] / case.batches[0],
        machine=machine,
        peak=peak,
        doubles=doubles,
        threads=torch.get_num_threads(),
    )


def _sampling_call(sampler: Sampler, batch: int) -> Call:
    """From seeds to RGB images."""

    def call() -> None:
        if None in to_images(sampler.images(sampler.points(range(batch), None, 1.0))):
            raise AssertionError("the generator gave no numbers")

    return call


def _training(case: Case, meter: MemoryMeter) -> Found:
    """Whole steps of the trainer that jobs use, everything in them included. The lazy penalty is due in the first of
    so many steps: its cost is spread over them."""
    trainer = build_trainer(case.spec(), _images(case.resolution), None, device=CPU, replicas=Alone())
    every, batch = trainer.settings.penalty_every, trainer.settings.batch_size
    calls: dict[int, Call] = {1: _penalised_step(trainer)} | ({} if every == 1 else {0: trainer.step})
    _repeat(calls, 1)
    peak = meter.peak()
    flops, doubles = _count(calls, batch)
    seconds, machine = _in_turn(calls, case.rounds)
    return Found(
        seconds={batch: spread(seconds, every) / batch},
        unfiltered={},
        flops=spread(flops, every) / batch,
        machine=machine,
        peak=peak,
        doubles=doubles,
        threads=torch.get_num_threads(),
    )


def _penalised_step(trainer: Trainer) -> Call:
    def step() -> None:
        every = trainer.settings.penalty_every
        trainer.step_count = -(-trainer.step_count // every) * every
        trainer.step()

    return step


def spread(kinds: Mapping[int, float], every: int) -> float:
    """The mean of a step with the penalty (1) and so many without (0)."""
    return (kinds[1] + (every - 1) * kinds.get(0, 0.0)) / every


def _images(resolution: int) -> TrainingImages:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (DATASET, 3, resolution, resolution), generator=random, dtype=torch.uint8)
    return TrainingImages(pixels=pixels, labels=(), classes=torch.zeros(DATASET, dtype=torch.int64))


def _in_turn(calls: Mapping[int, Call], rounds: int) -> tuple[dict[int, float], float]:
    """Median seconds of each call, all taken in turns, and the machine's own speed meanwhile."""
    watch, machine = Stopwatch.on(CPU), MachineSpeed()
    taken: dict[int, list[float]] = {kind: [] for kind in calls}
    for _ in range(rounds):
        for kind, call in calls.items():
            machine.sample()
            taken[kind].append(watch.time(call)[1])
    return {kind: statistics.median(seconds) for kind, seconds in taken.items()}, machine.flops_per_second()


def _count(calls: Mapping[int, Call], batch: int | None = None) -> tuple[dict[int, float], tuple[str, ...]]:
    """Operations of each call, and those in double precision of all; calls are of `batch` images, or of as many as
    their key says."""
    flops, doubles = {}, []
    for kind, call in calls.items():
        with DoublePrecision(batch or kind) as precision:
            flops[kind] = float(count_flops(call))
        doubles += precision.accidental
    return flops, tuple(doubles)


def _repeat(calls: Mapping[int, Call], times: int) -> None:
    for call in calls.values():
        for _ in range(times):
            call()


def _without_filters(call: Call) -> Call:
    """The same call with nonlinearities at the rate of the pixels they act on: the images alias."""

    def bare() -> None:
        with mock.patch.object(synthesis_layer, "filtered_lrelu", _plain_lrelu):
            call()

    return bare


def _plain_lrelu(
    x: Tensor,
    up_filter: Tensor | None,
    down_filter: Tensor | None,
    bias: Tensor,
    *,
    up: int,
    down: int,
    padding: tuple[int, int, int, int],
    gain: float,
    slope: float,
    clamp: float | None,
) -> Tensor:
    """A leaky ReLU, and pixels repeated or left out until there are as many as the filters would leave."""
    x = leaky_relu(x + bias[None, :, None, None], slope=slope, gain=gain, clamp=clamp)
    taps = sum(1 if f is None else f.shape[-1] for f in (up_filter, down_filter))
    side = (x.shape[2] * up + padding[2] + padding[3] - taps + 1) // down + 1
    return functional.interpolate(x, size=side, mode="nearest")
