"""From measurements to the job's result: plain JSON, with nothing claimed that was not measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from calotype.errors import JobFailed
from worker.benchmark.floor import DATA_SHEET, Peak, floor_seconds
from worker.benchmark.measure import BatchRun, Measurement
from worker.benchmark.quality import Features, fd_caveats, frechet_distance, kid
from worker.benchmark.timing import P99_CALLS

JsonObject = dict[str, Any]

#: A p95 beyond this multiple of the median is the machine's unrest, not the model's: it does the same work each call.
_SCATTER: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is computed from a measurement."""

    metrics: frozenset[str]
    gpu_hour_usd: float | None
    #: How the backbone is called in "FD-…".
    backbone: str


def failed_contender(name: str, description: JsonObject, failure: JobFailed) -> JsonObject:
    """A contender that could not be measured: no number at all, and the reason."""
    error = {"code": failure.code, "title": failure.job_title, "detail": failure.detail}
    return {"name": name, **description, "status": "failed", "error": error}


def measured_contender(
    name: str,
    description: JsonObject,
    measured: Measurement,
    scoring: Scoring,
    peak: Peak | None,
    generated: Features | None,
    real: Features | None,
    pulse: Callable[[], None] = lambda: None,
) -> JsonObject:
    """One entry of `contenders`. Seconds, bytes, US dollars; null where something was not asked for.

    `peak` is the device's in the contender's type; `pulse` is called while distances are computed.
    """
    timed = bool(scoring.metrics & {"latency", "throughput"})
    latency = [_latency(run, measured.flops_per_image, peak) for run in measured.batches] if timed else []
    entry = {
        "name": name,
        **description,
        "status": "succeeded",
        "error": None,
        "load_seconds": _rounded(measured.load_seconds),
        "first_image_seconds": _rounded(measured.first_image_seconds),
        "flops_per_image": measured.flops_per_image,
        "device_peak": asdict(peak) if peak is not None else None,
        "latency": latency,
        "memory": _memory(measured) if "memory" in scoring.metrics else None,
        "fd": None,
        "kid": None,
        "cost_per_million_usd": _cost(latency, scoring.gpu_hour_usd),
    }
    if generated is not None and real is not None:
        entry |= distances(generated, real, scoring, pulse)
    return entry


def distances(
    generated: Features, real: Features, scoring: Scoring, pulse: Callable[[], None] = lambda: None
) -> JsonObject:
    """`fd` and `kid` of two feature sets, as far as they were asked for, each with its sample counts."""
    counts = {"n_generated": len(generated), "n_real": len(real)}
    found: JsonObject = {"fd": None, "kid": None}
    if "fd" in scoring.metrics:
        value = frechet_distance(generated, real)
        found["fd"] = {"name": f"FD-{scoring.backbone}", "value": _rounded(value), **counts}
    if "kid" in scoring.metrics:
        distance = kid(generated, real, pulse=pulse)
        found["kid"] = {
            "name": f"KID-{scoring.backbone}",
            "value": _rounded(distance.mean),
            "ci_low": _rounded(distance.ci_low),
            "ci_high": _rounded(distance.ci_high),
            "interval": "95 %, delete-one jackknife",
            **counts,
        }
    return found


def caveats(contenders: Sequence[JsonObject], dimensions: int) -> list[str]:
    """What a reader must know before trusting the numbers, as sentences."""
    found: list[str] = []
    for contender in contenders:
        found += _failed_caveats(contender) if contender["status"] == "failed" else _caveats(contender, dimensions)
    return list(dict.fromkeys(found))


def _failed_caveats(contender: JsonObject) -> list[str]:
    return [f"{contender['name']} could not be measured: {contender['error']['detail']}"]


def _caveats(contender: JsonObject, dimensions: int) -> list[str]:
    found = [f"{contender['name']}: {batch['error']}" for batch in contender["latency"] if batch["error"]]
    fd, peak = contender["fd"], contender["device_peak"]
    if contender.get("prompts") == "ignored":
        classes = contender["labels"] and f", and its classes are {contender['labels']}"
        found.append(
            f"{contender['name']} reads no prompts: what it shows is up to its seeds{classes or ''}. Beside a prompt "
            "stands any image of it."
        )
    if fd is not None:
        found += fd_caveats(fd["n_generated"], fd["n_real"], dimensions)
    restless = [batch for batch in contender["latency"] if batch["scattered"]]
    if restless:
        sizes = ", ".join(str(batch["batch_size"]) for batch in restless)
        most = max(float(batch["p95"] / batch["p50"]) for batch in restless)
        found.append(
            f"{contender['name']}: times scatter widely at batch size {sizes} (p95 up to {most:.1f} times the median), "
            "and no winner is named by them. Something else may have used the machine: measure again."
        )
    if any(batch["p99_is_estimate"] for batch in contender["latency"]):
        found.append(
            f"A p99 from fewer than {P99_CALLS} calls is an estimate and is marked as one: it rests on the slowest "
            "few calls."
        )
    if peak is not None and peak["source"] != DATA_SHEET:
        found.append(
            "No data sheet is known for this device: the peak behind the arithmetic floor is twice the best measured "
            "matrix product. Such a floor finds gross errors of measurement only."
        )
    return found


def _latency(run: BatchRun, flops_per_image: int | None, peak: Peak | None) -> JsonObject:
    latency = run.latency
    floor = None
    if flops_per_image is not None and peak is not None:
        floor = floor_seconds(flops_per_image * run.batch_size, peak)
    entry: JsonObject = {
        "batch_size": run.batch_size,
        "status": "measured",
        "error": None,
        "floor_seconds": floor,
        "scattered": False,
        "p99_is_estimate": False,
    }
    if latency is None:
        why = run.failure.detail if run.failure is not None else "no call was timed"
        return entry | {"status": "failed", "error": f"batch size {run.batch_size}: {why}"}
    numbers = {key: _rounded(value) if isinstance(value, float) else value for key, value in asdict(latency).items()}
    entry |= numbers | {
        "images": latency.calls * latency.batch_size,
        "scattered": latency.p95 > _SCATTER * latency.p50,
    }
    if floor is not None and latency.fastest < floor:
        entry["status"] = "below_floor"
        entry["error"] = (
            f"batch size {run.batch_size}: the fastest call took {latency.fastest:.4g} s, less than the {floor:.4g} s "
            "that its arithmetic needs at the device's peak. This is an error of measurement, not speed."
        )
    return entry


def _memory(measured: Measurement) -> JsonObject:
    return {
        "kind": measured.memory_kind,
        "peak_bytes": measured.peak_bytes,
        "load_peak_bytes": measured.load_peak_bytes,
        "by_batch_size": [{"batch_size": run.batch_size, "peak_bytes": run.peak_bytes} for run in measured.batches],
    }


def best_throughput(latency: Sequence[JsonObject]) -> JsonObject | None:
    """The entry with the most images a second among those that can be trusted."""
    trusted = [batch for batch in latency if batch["status"] == "measured"]
    return max(trusted, key=lambda batch: float(batch["images_per_second"]), default=None)


def _cost(latency: Sequence[JsonObject], gpu_hour_usd: float | None) -> float | None:
    best = best_throughput(latency)
    if best is None or gpu_hour_usd is None:
        return None
    return round(1e6 / float(best["images_per_second"]) / 3600.0 * gpu_hour_usd, 2)


def _rounded(value: float) -> float | None:
    """Six significant digits: more would be noise; null for what JSON has no number for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
