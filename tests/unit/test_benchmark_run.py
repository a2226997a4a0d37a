"""The handler with made-up contenders: isolation of failures, what is published, the report."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fake_contender import SIZE, FakeContender, disc
from PIL import Image

from calotype import specs
from calotype.datasets import DatasetImage
from calotype.errors import JobFailed
from calotype.settings import Settings
from worker.benchmark import run as benchmark
from worker.benchmark.backbone import Backbone
from worker.benchmark.floor import DATA_SHEET, Peak
from worker.benchmark.reference import choose_prompts, sample_seeds
from worker.benchmark.report import render
from worker.context import CancelRequested, HandlerResult, JobContext

DATASET = "ds_" + "0" * 32


class Thumbnails(Backbone):
    """Stands in for the network: 4 × 4 mean colours."""

    label, num_features = "Thumbnails", 48

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255.0, 4).flatten(1)


class Archive:
    """Ten held-out discs."""

    def __init__(self, items: list[DatasetImage] | None = None) -> None:
        self.items = [item(number) for number in range(10)] if items is None else items

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __len__(self) -> int:
        return len(self.items)

    def open_image(self, file_name: str) -> Image.Image:
        return disc(int(Path(file_name).stem))


@dataclass
class Context:
    """As much of a JobContext as a benchmark touches."""

    spec: specs.JobRequest
    workdir: Path
    archive: Archive = field(default_factory=Archive)
    settings: Settings = field(default_factory=Settings)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fractions: list[float] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    def dataset(self, ref: str) -> Archive:
        assert ref == DATASET
        return self.archive

    def check(self) -> None:
        self.stop()

    def progress(self, step: int, total: int, stage: str) -> None:
        assert stage
        self.fractions.append(step / total)


def item(number: int, text: str | None = "a disc", label: str | None = None) -> DatasetImage:
    words = f"{text} {number}" if text else None
    return DatasetImage(file_name=f"{number}.png", text=words, label=label, width=SIZE, height=SIZE, sha256=str(number))


def spec(*names: str, **changes: Any) -> specs.JobRequest:
    contenders = [{"family": "diffusion", "model": "m@1", "name": name} for name in names]
    asked = {
        "contenders": contenders,
        "dataset": DATASET,
        "num_samples": 12,
        "batch_sizes": [1, 4],
        "timed_batches": 3,
        "seed": 5,
        "gpu_hour_usd": 2.0,
        **changes,
    }
    return specs.parse({"kind": "benchmark", "input": asked})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "load_backbone", lambda name, device: Thumbnails())
    monkeypatch.setattr(benchmark, "render", lambda result, gallery: "<html>")
    monkeypatch.setattr(benchmark, "device_peak", lambda device, dtype: Peak(flops=1e15, source=DATA_SHEET))


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real report; other tests do without the half second that it takes to draw."""
    monkeypatch.setattr(benchmark, "render", render)


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeContender | Exception]:
    """Name → the contender that takes part under it, or the error of making it."""
    known: dict[str, FakeContender | Exception] = {}

    def make(ctx: JobContext, contender: specs.Contender) -> FakeContender:
        found = known[str(contender.name)]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(benchmark, "make_contender", make)
    return known


def run(context: Context) -> HandlerResult:
    return benchmark.run(cast(JobContext, context))


def gone() -> JobFailed:
    return JobFailed("model_unavailable", "The model is gone", "No model m@1 <any> more.", retryable=False)


def test_a_failed_contender_is_recorded_with_its_reason_and_the_others_go_on(
    contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    def fail(seeds: object) -> None:
        raise ValueError("bad weights")

    contenders |= {"gone": gone(), "late": FakeContender("late", fail=fail), "good": FakeContender("good")}
    result = run(Context(spec("gone", "late", "good"), tmp_path)).result
    first, second, third = result["contenders"]
    assert (first["status"], first["error"]["code"]) == ("failed", "model_unavailable")
    assert (second["status"], second["error"]["code"]) == ("failed", "internal_error")
    assert "bad weights" in second["error"]["detail"]
    assert third["status"] == "succeeded"
    assert third["fd"]["n_generated"] == 12
    failed = result["decision_matrix"]["columns"][0]["values"]
    assert set(failed.values()) == {None}


def test_when_no_contender_can_be_measured_the_job_fails_with_the_first_reason(
    contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    contenders |= {"one": gone(), "two": ValueError("other")}
    with pytest.raises(JobFailed) as failure:
        run(Context(spec("one", "two"), tmp_path))
    assert failure.value.code == "model_unavailable"


def test_a_failed_contender_leaves_no_tensors_to_the_next_one(
    contenders: dict[str, FakeContender | Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def fail(seeds: object) -> None:
        latents = torch.ones(4)
        held.append(weakref.ref(latents))
        raise JobFailed("numerical_error", "The model gave no numbers", "Not finite.", retryable=False)

    def look(seeds: object) -> None:
        assert held[0]() is None

    # pytest keeps log records, and those keep the traceback.
    monkeypatch.setattr(benchmark.log, "disabled", True)
    contenders |= {"bad": FakeContender("bad", fail=fail), "good": FakeContender("good", fail=look)}
    made = run(Context(spec("bad", "good", metrics=["latency"]), tmp_path))
    assert [contender["status"] for contender in made.result["contenders"]] == ["failed", "succeeded"]


@pytest.mark.parametrize("code", ["timeout", "dependency_down", "disk_full"])
def test_what_is_not_the_contenders_fault_ends_the_job(
    code: str, contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    contenders |= {"one": JobFailed(code, "t", "d", retryable=True), "two": FakeContender("two")}
    with pytest.raises(JobFailed) as failure:
        run(Context(spec("one", "two"), tmp_path))
    assert failure.value.code == code


def test_a_cancel_request_stops_it_within_a_step(
    contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    contender = FakeContender("one")
    contenders["one"] = contender
    context = Context(spec("one", metrics=["latency"]), tmp_path)

    def stop() -> None:
        if contender.calls:
            raise CancelRequested

    context.stop = stop
    with pytest.raises(CancelRequested):
        run(context)
    assert len(contender.calls) == 1
    assert contender.events[-1] == "unload"


def test_contenders_are_loaded_cold_and_leave_nothing_behind(
    contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    contender = FakeContender("one")
    contenders["one"] = contender
    run(Context(spec("one"), tmp_path))
    assert contender.events == ["fetch", "unload", "load", "unload"]


def test_progress_only_grows_and_arrives(contenders: dict[str, FakeContender | Exception], tmp_path: Path) -> None:
    contenders |= {"one": FakeContender("one"), "bad": gone(), "two": FakeContender("two")}
    context = Context(spec("one", "bad", "two", num_samples=40), tmp_path)
    run(context)
    assert context.fractions == sorted(context.fractions)
    assert context.fractions[-1] > 0.99


def test_every_contender_gets_the_same_prompts_and_seeds(
    contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    one, two = FakeContender("one"), FakeContender("two")
    contenders |= {"one": one, "two": two}
    run(Context(spec("one", "two"), tmp_path))
    assert one.calls == two.calls
    assert {seed for _, seeds in one.calls for seed in seeds} == set(range(5, 17))


@pytest.mark.usefixtures("report")
def test_the_report_is_complete_and_needs_nothing_from_outside(
    contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    contenders |= {"good <one>": FakeContender("good <one>"), "gone": gone()}
    run(Context(spec("good <one>", "gone"), tmp_path))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "PICTURE", page)
    links = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)""", rest)
    assert set(links) == {"PICTURE"}
    assert not re.search(r"//|url\(|@import|<script|<link|<iframe", rest, re.IGNORECASE)
    assert "good &lt;one&gt;" in page
    assert "good <one>" not in page
    for text in ("Decision matrix", "FD-Thumbnails", "KID-Thumbnails", "No model m@1 &lt;any&gt; more.", "↓ lower"):
        assert text in page
    assert not re.search(r"\bFID-|\bFID:", page)


def test_it_publishes_numbers_report_and_a_contact_sheet_a_contender(
    contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    contenders |= {"A model": FakeContender("A model"), "a-model": FakeContender("a-model"), "gone": gone()}
    made = run(Context(spec("A model", "a-model", "gone"), tmp_path))
    names = [output.name for output in made.outputs]
    assert names == ["benchmark.json", "report.html", "samples-a-model.png", "samples-a-model-2.png"]
    assert json.loads((tmp_path / "benchmark.json").read_text()) == made.result
    with Image.open(tmp_path / "samples-a-model.png") as sheet:
        assert sheet.size == (made.outputs[2].width, made.outputs[2].height)
    assert {"decision_matrix", "dataset", "n", "backbone", "environment", "caveats"} <= set(made.result)
    assert {"device", "threads", "versions"} <= set(made.result["environment"])


@pytest.mark.parametrize("metrics", [["latency"], ["throughput"], ["memory"], ["fd"], ["kid"]])
@pytest.mark.usefixtures("report")
def test_any_metric_can_be_asked_for_alone(
    metrics: list[str], contenders: dict[str, FakeContender | Exception], tmp_path: Path
) -> None:
    contenders["one"] = FakeContender("one")
    made = run(Context(spec("one", metrics=metrics), tmp_path))
    assert made.result["decision_matrix"]["rows"]
    assert (tmp_path / "report.html").stat().st_size > 5_000


def test_a_dataset_without_words_is_refused(tmp_path: Path) -> None:
    silent = Archive([item(number, text=None) for number in range(3)])
    with pytest.raises(JobFailed, match="captions or labels") as failure:
        run(Context(spec("one"), tmp_path, silent))
    assert failure.value.code == "bad_input"


def test_labels_stand_in_for_captions_and_prompts_repeat_in_a_fixed_order() -> None:
    items = [item(0), item(1, text=None, label="blue"), item(2, text=None)]
    prompts = [prompt.text for prompt in choose_prompts(items, 5, seed=1)]
    assert set(prompts) == {"a disc 0", "blue"}
    assert prompts == [prompt.text for prompt in choose_prompts(list(reversed(items)), 5, seed=1)]
    assert prompts[2] == prompts[0]


def test_seeds_count_up_from_the_jobs_seed_and_stay_in_range() -> None:
    assert sample_seeds(3, 7) == [7, 8, 9]
    assert sample_seeds(2, specs.MAX_SEED) == [specs.MAX_SEED, 0]
