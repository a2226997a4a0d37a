"""The handler of `<family>.benchmark`: contenders one after the other on the same work, then a report."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from PIL import Image

from calotype import specs
from calotype.datasets import DatasetArchive
from calotype.errors import JobFailed
from worker.benchmark.backbone import EFFICIENTNET_LITE0, Backbone, load_backbone
from worker.benchmark.contenders import PROMPTED, Contender, make_contender
from worker.benchmark.environment import describe_environment
from worker.benchmark.floor import Peak, device_peak
from worker.benchmark.matrix import decision_matrix
from worker.benchmark.measure import Measuring, Plan
from worker.benchmark.quality import Features, features
from worker.benchmark.reference import Prompt, choose_prompts, real_features, sample_seeds, split_half
from worker.benchmark.report import Gallery, render
from worker.benchmark.result import JsonObject, Scoring, caveats, failed_contender, measured_contender
from worker.benchmark.samples import Samples
from worker.benchmark.sheets import contact_sheet
from worker.benchmark.timing import Stopwatch, memory_meter
from worker.context import HandlerResult, JobContext, Output
from worker.failures import classify

log = logging.getLogger(__name__)

#: Failures that say nothing about the contender: the whole job meets them, and may be tried again.
_NOT_ITS_FAULT: Final = frozenset({"timeout", "dependency_down", "disk_full", "dataset_unavailable"})

#: Units of progress: an image made takes about as long as this many images looked at.
_MAKING: Final = 10


@dataclass(kw_only=True)
class _Progress:
    """Images done of all that the job makes and looks at."""

    ctx: JobContext
    total: int
    done: float = 0.0

    def counter(self, stage: str) -> Callable[[int], None]:
        """For a loop that tells how many images it has looked at so far."""
        before = 0

        def at(count: int) -> None:
            nonlocal before
            self.advance(count - before, stage)
            before = count

        return at

    def skip_to(self, units: float) -> None:
        """Count as done what a failed contender will not do any more."""
        self.done = max(self.done, units)

    def advance(self, units: float, stage: str) -> None:
        """So many more units are done. Raises when the job must stop."""
        self.done += units
        self.ctx.progress(min(self.total, int(self.done)), self.total, stage)
        self.ctx.check()


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What all contenders share."""

    ctx: JobContext
    plan: Plan
    scoring: Scoring
    backbone: Backbone
    #: Features of the held-out images; None when no distance was asked for.
    real: Features | None
    progress: _Progress
    #: Units of progress that each contender takes.
    units_each: int
    peaks: dict[torch.dtype, Peak] = field(default_factory=dict)

    def measure(self, contender: Contender) -> tuple[JsonObject, dict[int, Image.Image]]:
        """One contender's entry of the result, and samples to show. Raises what the contender raises."""
        contender.fetch()
        contender.unload()
        samples = Samples(None if self.real is None else self._looker(contender.name))
        measuring = Measuring(
            contender,
            self.plan,
            samples,
            Stopwatch.on(self.ctx.device),
            on_images=lambda images: self.progress.advance(images * _MAKING, f"measuring {contender.name}"),
            judge=lambda exc: classify(exc, self.ctx.settings),
        )
        try:
            measured = measuring.run(memory_meter(self.ctx.device))
        finally:
            contender.unload()
        generated = None if self.real is None else samples.features()
        peak = self._peak(contender.dtype) if self.plan.timed_calls else None
        entry = measured_contender(
            contender.name,
            contender.describe(),
            measured,
            self.scoring,
            peak,
            generated,
            self.real,
            pulse=self.ctx.check,
        )
        return entry, samples.shown

    def _peak(self, dtype: torch.dtype) -> Peak:
        """The same for all contenders of a type, so that their floors can be compared."""
        if dtype not in self.peaks:
            self.peaks[dtype] = device_peak(self.ctx.device, dtype)
        return self.peaks[dtype]

    def _looker(self, name: str) -> Callable[[Sequence[Image.Image]], Features]:
        """Features of some of a contender's samples."""

        def look(images: Sequence[Image.Image]) -> Features:
            counter = self.progress.counter(f"comparing {name} with the real images")
            return features(images, self.backbone, device=self.ctx.device, on_batch=counter)

        return look


def run(ctx: JobContext) -> HandlerResult:
    """Measure every contender; one that fails is recorded with its reason and the others go on.

    Raises JobFailed with the first reason when none could be measured, and `bad_input` when the dataset gives
    no prompts.
    """
    spec = ctx.spec
    if not isinstance(spec, specs.Benchmark):
        raise TypeError(f"a benchmark was given a {type(spec).__name__}")
    request = spec.input
    with ctx.dataset(request.dataset) as archive:
        seed = _complete(request.seed)
        prompted = any(contender.family in PROMPTED for contender in request.contenders)
        prompts = choose_prompts(archive.items, request.num_samples, seed, needed=prompted)
        bench = _prepare(ctx, request, archive, prompts, seed)
        entries, samples = _measure_all(bench, request.contenders)
        result = _result(bench, request, entries, seed, archive)
        gallery = Gallery(prompts=prompts, samples=samples, real=lambda prompt: archive.open_image(prompt.file_name))
        return HandlerResult(_publish(ctx, result, gallery), result)


def _prepare(
    ctx: JobContext, request: specs.BenchmarkInput, archive: DatasetArchive, prompts: Sequence[Prompt], seed: int
) -> _Bench:
    metrics = frozenset(request.metrics)
    distances = bool(metrics & {"fd", "kid"})
    timed_calls = request.timed_batches if metrics & {"latency", "throughput"} else int("memory" in metrics)
    plan = Plan(
        prompts=[prompt.text for prompt in prompts],
        seeds=sample_seeds(len(prompts), seed),
        batch_sizes=request.batch_sizes,
        timed_calls=timed_calls,
        all_samples=distances,
    )
    units_each = plan.images * _MAKING + (len(prompts) if distances else 0)
    total = len(request.contenders) * units_each + (len(archive) if distances else 0)
    progress = _Progress(ctx=ctx, total=total)
    backbone = load_backbone(EFFICIENTNET_LITE0, ctx.device)
    real = None
    if distances:
        real = real_features(archive, backbone, ctx.device, progress.counter("looking at the real images"))
    scoring = Scoring(metrics=metrics, gpu_hour_usd=request.gpu_hour_usd, backbone=backbone.label)
    return _Bench(
        ctx=ctx,
        plan=plan,
        scoring=scoring,
        backbone=backbone,
        real=real,
        progress=progress,
        units_each=units_each,
    )


def _measure_all(
    bench: _Bench, contenders: Sequence[specs.Contender]
) -> tuple[list[JsonObject], dict[str, dict[int, Image.Image]]]:
    """An entry of the result for every contender, and the samples of those that could be measured."""
    entries: list[JsonObject] = []
    samples: dict[str, dict[int, Image.Image]] = {}
    failures: list[JobFailed] = []
    for position, contender in enumerate(contenders):
        name = contender.name or contender.model
        outcome = _attempt(bench, contender, name)
        if isinstance(outcome, JobFailed):
            failures.append(outcome)
            entries.append(failed_contender(name, contender.model_dump(mode="json", exclude={"name"}), outcome))
        else:
            entry, samples[name] = outcome
            entries.append(entry)
        bench.progress.skip_to(bench.progress.total - bench.units_each * (len(contenders) - 1 - position))
    if len(failures) == len(contenders):
        raise failures[0]
    return entries, samples


def _attempt(
    bench: _Bench, contender: specs.Contender, name: str
) -> tuple[JsonObject, dict[int, Image.Image]] | JobFailed:
    """What `measure` gives, or why it failed. Raises what is not the contender's fault."""
    try:
        return bench.measure(make_contender(bench.ctx, contender))
    except Exception as exc:
        verdict = classify(exc, bench.ctx.settings)
        if verdict.fatal or verdict.code in _NOT_ITS_FAULT:
            raise
        log.warning("a contender failed", extra={"contender": name, "code": verdict.code}, exc_info=exc)
        # A new object: the exception's traceback would keep the failed call's tensors through all later contenders.
        return JobFailed(verdict.code, verdict.job_title, verdict.detail, retryable=verdict.retryable)


def _result(
    bench: _Bench, request: specs.BenchmarkInput, entries: list[JsonObject], seed: int, archive: DatasetArchive
) -> JsonObject:
    backbone = bench.backbone
    return {
        "contenders": entries,
        "decision_matrix": decision_matrix(entries, bench.scoring.metrics, backbone.label),
        "dataset": {"id": request.dataset, "images": len(archive)},
        "n": request.num_samples,
        "seed": seed,
        "metrics": list(request.metrics),
        "gpu_hour_usd": request.gpu_hour_usd,
        "backbone": backbone.label,
        "split_half": None if bench.real is None else split_half(bench.real, seed),
        "environment": describe_environment(bench.ctx.device),
        "caveats": caveats(entries, backbone.num_features),
    }


def _publish(ctx: JobContext, result: JsonObject, gallery: Gallery) -> list[Output]:
    """benchmark.json, report.html and a contact sheet a contender."""
    data, page = ctx.workdir / "benchmark.json", ctx.workdir / "report.html"
    data.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    sheets = []
    for name, slug in _slugs(list(gallery.samples)).items():
        sheet = contact_sheet([gallery.samples[name][number] for number in sorted(gallery.samples[name])])
        path = ctx.workdir / f"samples-{slug}.png"
        sheet.save(path)
        sheets.append(Output(path.name, path, "image/png", width=sheet.width, height=sheet.height))
    page.write_text(render(result, gallery), encoding="utf-8")
    return [
        Output(data.name, data, "application/json"),
        Output(page.name, page, "text/html; charset=utf-8"),
        *sheets,
    ]


def _slugs(names: Sequence[str]) -> Mapping[str, str]:
    """A file name part for each name, unique also where only punctuation tells names apart."""
    slugs: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "contender"
        taken = set(slugs.values())
        slugs[name] = next(
            slug for slug in (plain, *(f"{plain}-{n}" for n in range(2, len(names) + 2))) if slug not in taken
        )
    return slugs


def _complete(seed: int | None) -> int:
    if seed is None:
        raise ValueError("the spec is not complete: submission draws the seed")
    return seed
