"""The course of the demo: submit, follow, fetch, show."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.cli.connect import Target
from calotype.cli.console import err, out
from calotype.cli.demo import plan, report
from calotype.cli.demo.sheets import Picture, contact_sheet
from calotype.cli.follow import JobProgress
from calotype.client import TERMINAL_STATES, Client, ClientError

if TYPE_CHECKING:
    from rich.console import Console

#: Between two looks at the jobs that go on.
POLL_SECONDS = 0.5


class DemoFailedError(ClientError):
    """A job of the demo did not succeed."""


@dataclass
class Demo:
    """What the demo has done so far."""

    client: Client
    output: Path
    sizes: plan.Sizes
    console: Console
    jobs: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    first_image_seconds: float | None = None


def run(target: Target, output: Path, *, quick: bool) -> None:
    """Run the whole demo against one API and leave its results in ``output``."""
    started = time.monotonic()
    sizes = plan.QUICK if quick else plan.FULL
    _clear(output)
    with Client(target.url, target.api_key) as client:
        _check_workers(client)
        demo = Demo(client, output, sizes, err())
        before = _generate_starter(demo)
        of_gan = _generate_with_gan(demo)
        adapter = _train(demo)
        after = _generate_brand(demo, adapter)
        benchmark, details = _benchmark(demo)
    sheets = {name: output / f"{name}.png" for name in ("starter", "gan", "brand")}
    contact_sheet(in_order(before, plan.PROMPTS), sheets["starter"])
    contact_sheet(in_order(of_gan, plan.LABELS), sheets["gan"])
    contact_sheet(before_and_after(before, after), sheets["brand"])
    matrix = benchmark["result"]["decision_matrix"]
    summary = report.summary(demo.jobs, demo.images, matrix, demo.first_image_seconds)
    report.write_summary(summary, output / "summary.json")
    report.write_html(summary, sheets, details, output / "report.html")
    _tell(demo, matrix, time.monotonic() - started)


def _generate_starter(demo: Demo) -> list[Picture]:
    _headline(demo, "1/5  images from the starter diffusion model")
    return _generate(demo, "starter", [plan.generate(prompt, demo.sizes) for prompt in plan.PROMPTS])


def _generate_with_gan(demo: Demo) -> list[Picture]:
    _headline(demo, "2/5  images from the starter GAN")
    return _generate(demo, "gan", [plan.generate_with_gan(label, demo.sizes) for label in plan.LABELS])


def _generate_brand(demo: Demo, adapter: str) -> list[Picture]:
    _headline(demo, "4/5  images from the fine-tuned model")
    return _generate(demo, "brand", [plan.generate(prompt, demo.sizes, adapter) for prompt in plan.BRAND_PROMPTS])


def _generate(demo: Demo, name: str, specs: list[dict[str, Any]]) -> list[Picture]:
    asked_at = time.monotonic()
    pictures: list[Picture] = []

    def fetch(job: dict[str, Any]) -> None:
        paths = demo.client.download(job, demo.output / name / job["id"])
        if demo.first_image_seconds is None:
            demo.first_image_seconds = round(time.monotonic() - asked_at, 2)
        for path, artifact in zip(paths, job["artifacts"], strict=True):
            if artifact["content_type"].startswith("image/"):
                demo.images.append(report.image_entry(job, artifact, path, demo.output))
                pictures.append(Picture(path, plan.words(job["spec"])))

    _run_jobs(demo, specs, on_success=fetch)
    return pictures


def _check_workers(client: Client) -> None:
    """DemoFailedError when a job of the demo would wait for ever."""
    idle = [queue["name"] for queue in client.queues() if queue["workers"] == 0]
    unserved = sorted(set(plan.QUEUES) & set(idle))
    if unserved:
        raise DemoFailedError(f"No worker serves {', '.join(unserved)}; start one with `calotype worker`.")


def in_order(pictures: Iterable[Picture], words: Sequence[str]) -> list[Picture]:
    """The pictures in the order of the prompts or labels that they were made from."""
    return sorted(pictures, key=lambda picture: words.index(picture.caption))


def before_and_after(before: Sequence[Picture], after: Sequence[Picture]) -> list[Picture]:
    """Row by row the same prompt and seeds, without and with the fine-tune."""
    rows = []
    for prompt in plan.BRAND_PROMPTS:
        for pictures, when in ((before, "before"), (after, "after")):
            rows += [Picture(one.path, prompt, when) for one in pictures if one.caption == prompt]
    return rows


def _train(demo: Demo) -> str:
    _headline(demo, "3/5  fine-tuning the diffusion model on a brand with a LoRA")
    job = _run_jobs(demo, [plan.train(demo.sizes)])[0]
    model: str = job["result"]["model"]
    return model


def _benchmark(demo: Demo) -> tuple[dict[str, Any], str | None]:
    """The job, and the HTML report it published."""
    _headline(demo, "5/5  benchmark of diffusion and GAN against logos that neither has seen")
    job = _run_jobs(demo, [plan.benchmark(demo.sizes)])[0]
    paths = demo.client.download(job, demo.output / "benchmark")
    pages = [path for path in paths if path.suffix == ".html"]
    return job, pages[0].read_text(encoding="utf-8") if pages else None


def _run_jobs(demo: Demo, specs: list[dict[str, Any]], on_success: Any = None) -> list[dict[str, Any]]:
    """Submit jobs together and follow them to their end; DemoFailedError when one does not succeed."""
    waiting = {job["id"]: job for job in map(demo.client.submit, specs)}
    ended: list[dict[str, Any]] = []
    with JobProgress(demo.console) as progress:
        while waiting:
            for job_id in list(waiting):
                job = demo.client.get(job_id)
                progress.update(job)
                if job["state"] not in TERMINAL_STATES:
                    continue
                del waiting[job_id]
                if job["state"] != "succeeded":
                    raise DemoFailedError(_why(job))
                ended.append(job)
                demo.jobs.append(report.job_entry(job))
                if on_success is not None:
                    on_success(job)
            time.sleep(POLL_SECONDS if waiting else 0)
    return ended


def _why(job: dict[str, Any]) -> str:
    error = job.get("error") or {}
    return f"The {job['kind']} job {job['id']} is {job['state']}: {error.get('detail', 'no reason was given')}"


def _clear(output: Path) -> None:
    # Only what an earlier demo left: the folder may be anybody's.
    for name in ("starter", "gan", "brand", "benchmark"):
        shutil.rmtree(output / name, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)


def _headline(demo: Demo, text: str) -> None:
    demo.console.print(f"\n[bold]{text}[/]")


def _tell(demo: Demo, matrix: report.Matrix, seconds: float) -> None:
    console = out()
    console.print()
    console.print(report.matrix_table(matrix))
    console.print(f"\n{len(demo.jobs)} jobs, {len(demo.images)} images, {seconds:.0f} s; look at")
    for name, what in (
        ("report.html", "everything on one page"),
        ("starter.png", "images of the diffusion model, by prompt"),
        ("gan.png", "images of the GAN, by colour"),
        ("brand.png", "the brand's prompts before and after fine-tuning"),
        ("summary.json", "the same for programs"),
    ):
        console.print(f"  {demo.output / name}   {what}", markup=False)
