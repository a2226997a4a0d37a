"""Makes the example trace that ships: two days of a small team on two devices.

A web shop and a design studio ask for single images through the day, a research tenant trains now and then, and one
evening a catalogue tenant submits 1,500 images at once. ``python -m calotype.simulation.example`` writes the file; a
test compares it with what is shipped.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from calotype.simulation.trace import EXAMPLE

SEED = 20_260_101
HOUR = 3600.0
DAY = 24 * HOUR
GENERATE, TRAIN, BENCHMARK = "diffusion.generate", "diffusion.train", "diffusion.benchmark"

Line = dict[str, Any]
Draw = Callable[[], float]


def lines() -> Iterator[Line]:
    """The lines of the trace, always the same."""
    # Only random(), whose numbers are the same in every release of Python.
    draw = random.Random(SEED).random  # noqa: S311 - not a secret
    yield {"type": "tenant", "name": "shop", "weight": 2.0}
    yield {"type": "tenant", "name": "studio"}
    yield {"type": "tenant", "name": "research", "max_running": 1}
    yield {"type": "tenant", "name": "catalogue"}
    for name in ("gpu-0", "gpu-1"):
        queues = [GENERATE, TRAIN, BENCHMARK]
        yield {"type": "worker", "name": name, "queues": queues, "load_seconds": 14.0, "memory": 2, "batch_cost": 0.55}
    jobs = [*_shop(draw), *_studio(draw), *_research(draw), *_catalogue(draw)]
    yield from sorted(jobs, key=lambda job: (job["t"], job["tenant"]))
    yield {"type": "outage", "t": 1.4 * DAY, "worker": "gpu-1", "seconds": 180.0}


def _shop(draw: Draw) -> Iterator[Line]:
    """Customers wait for these: one image, high priority, more at noon and in the evening."""
    for t in _arrivals(draw, per_hour=55.0):
        seconds = _around(draw, 4.8)
        yield _image("shop", t, "sd3-medium", seconds, priority=7, deadline_seconds=900.0)


def _studio(draw: Draw) -> Iterator[Line]:
    """Designers try things: four images at a time, of two models."""
    for t in _arrivals(draw, per_hour=16.0):
        model = "sd3-medium" if draw() < 0.6 else "sd35-large"
        alone = 4.8 if model == "sd3-medium" else 11.0
        yield _image("studio", t, model, _around(draw, 2.6 * alone), units=4)


def _research(draw: Draw) -> Iterator[Line]:
    """A few trainings a day, and a benchmark in the night."""
    for day in (0, 1):
        for hour in (9.5, 11.0, 14.0, 16.5):
            t = round(day * DAY + (hour + draw()) * HOUR, 1)
            steps = 2000 * (1 + int(3 * draw()))
            job = {"type": "job", "t": t, "tenant": "research", "queue": TRAIN, "model": "sd3-medium"}
            yield {**job, "seconds": round(0.9 * steps, 1), "work": float(steps), "priority": 4}
        t = round(day * DAY + 22.5 * HOUR, 1)
        job = {"type": "job", "t": t, "tenant": "research", "queue": BENCHMARK, "model": "sd35-large"}
        yield {**job, "seconds": 2400.0, "work": 256.0, "priority": 2}


def _catalogue(draw: Draw) -> Iterator[Line]:
    """All at once, in the evening; nobody is waiting for it. A few need a second try."""
    for number in range(1500):
        failures = {"failures": 1} if draw() < 0.004 else {}
        t = round(17.0 * HOUR + 0.02 * number, 2)
        yield {**_image("catalogue", t, "sdxl", _around(draw, 4.6), priority=3), **failures}


def _image(tenant: str, t: float, model: str, seconds: float, *, units: int = 1, **more: Any) -> Line:
    job = {"type": "job", "t": t, "tenant": tenant, "queue": GENERATE, "model": model}
    return {**job, "seconds": seconds, "work": float(units), "units": units, "batch_limit": 8, **more}


def _arrivals(draw: Draw, *, per_hour: float) -> Iterator[float]:
    """A Poisson process over two days whose rate follows the day; by thinning."""
    t = 0.0
    while True:
        t -= math.log(1.0 - draw()) * HOUR / per_hour
        if t >= 2 * DAY:
            return
        if draw() < _daylight(t):
            yield round(t, 2)


def _daylight(t: float) -> float:
    """Little in the night, most in the afternoon; between 0.05 and 1."""
    hour = t % DAY / HOUR
    return 0.05 + 0.95 * max(0.0, math.sin(math.pi * (hour - 7.0) / 15.0)) if 7.0 < hour < 22.0 else 0.05


def _around(draw: Draw, mean: float) -> float:
    return round(mean * (0.85 + 0.3 * draw()), 2)


def text() -> str:
    """The whole file."""
    return "".join(json.dumps(line) + "\n" for line in lines())


if __name__ == "__main__":
    EXAMPLE.write_text(text(), encoding="utf-8")
