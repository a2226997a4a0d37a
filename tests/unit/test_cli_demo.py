"""What the demo leaves behind, from jobs that are given."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import starter
from calotype import specs
from calotype.cli.demo import plan, report
from calotype.cli.demo.sheets import Picture, contact_sheet

MATRIX: dict[str, Any] = {
    "rows": [
        {"key": "fd", "label": "FD-EfficientNet-lite0", "unit": "", "better": "lower"},
        {"key": "images_per_second", "label": "Throughput", "unit": "images/s", "better": "higher"},
    ],
    "columns": [
        {"name": "starter", "values": {"fd": 98.76543, "images_per_second": 4.5}, "notes": {}},
        {"name": "tuned <b>", "values": {"fd": None, "images_per_second": 4.25}, "notes": {}},
    ],
}
JOB: dict[str, Any] = {
    "id": "01890000-0000-7000-8000-000000000000",
    "kind": "generate",
    "family": "diffusion",
    "model": "starter-diffusion@1",
    "state": "succeeded",
    "started_at": "2026-01-01T10:00:00.000000Z",
    "finished_at": "2026-01-01T10:00:02.500000Z",
    "spec": {"input": {"prompt": "blue bird logo"}},
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "one.png"
    Image.new("RGB", (64, 32), "red").save(path)
    return path


@pytest.mark.parametrize("sizes", [plan.FULL, plan.QUICK])
def test_every_job_of_the_plan_is_a_valid_request(sizes: plan.Sizes) -> None:
    specs.parse(plan.generate(plan.PROMPTS[0], sizes))
    specs.parse(plan.generate(plan.PROMPTS[0], sizes, "demo-brand@1"))
    specs.parse(plan.generate_with_gan(plan.LABELS[0], sizes))
    specs.parse(plan.train(sizes))
    specs.parse(plan.benchmark(sizes))


def test_either_family_makes_sixteen_images() -> None:
    for asked in (plan.PROMPTS, plan.LABELS):
        assert len(set(asked)) * plan.FULL.images_per_prompt == 16


def test_the_gan_is_asked_for_colours_that_it_knows() -> None:
    assert set(plan.LABELS) <= set(starter.GAN_LABELS)
    first = [prompt.split()[0] for prompt in plan.PROMPTS]
    assert plan.LABELS[:6] == tuple(first[:6])


def test_the_benchmark_compares_diffusion_with_gan_on_logos_that_neither_has_seen() -> None:
    asked = plan.benchmark(plan.FULL)["input"]
    assert [(one["family"], one["model"]) for one in asked["contenders"]] == [
        ("diffusion", starter.DIFFUSION_MODEL),
        ("gan", starter.GAN_MODEL),
    ]
    assert asked["dataset"] == starter.HELDOUT_DATASET


def test_every_job_of_the_plan_waits_in_a_queue_that_is_looked_at() -> None:
    jobs = [
        plan.generate(plan.PROMPTS[0], plan.FULL),
        plan.generate_with_gan(plan.LABELS[0], plan.FULL),
        plan.train(plan.FULL),
        plan.benchmark(plan.FULL),
    ]
    parsed = [specs.parse(job) for job in jobs]
    assert {f"{one.family}.{one.kind}" for one in parsed} == set(plan.QUEUES)


def test_a_job_goes_by_its_prompt_or_by_its_label() -> None:
    assert plan.words(plan.generate("blue bird logo", plan.QUICK)) == "blue bird logo"
    assert plan.words(plan.generate_with_gan("blue", plan.QUICK)) == "blue"


def test_a_contact_sheet_has_a_tile_for_every_picture(image: Path, tmp_path: Path) -> None:
    pictures = [Picture(image, "a very long caption that cannot fit under so small a picture")] * 5

    contact_sheet(pictures, tmp_path / "sheet.png", columns=4)

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 172 + 12, 2 * 212 + 12)
        assert sheet.getpixel((12 + 80, 12 + 80)) == (255, 0, 0)
        assert sheet.getpixel((12 + 80, 12 + 2)) == (255, 255, 255)


def test_the_summary_names_jobs_images_and_matrix(image: Path, tmp_path: Path) -> None:
    artifact = {"width": 64, "height": 32, "seed": 7}

    summary = report.summary(
        [report.job_entry(JOB)], [report.image_entry(JOB, artifact, image, tmp_path)], MATRIX, 3.21
    )

    assert summary["jobs"][0]["seconds"] == 2.5
    assert summary["images"][0]["path"] == "one.png"
    assert (summary["images"][0]["prompt"], summary["images"][0]["label"]) == ("blue bird logo", None)
    assert summary["images"][0]["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert summary["decision_matrix"] == MATRIX
    assert summary["starter_first_image_seconds"] == 3.21
    assert json.loads(json.dumps(summary)) == summary


def test_the_matrix_has_a_column_a_contender_and_shows_what_was_not_measured() -> None:
    assert report.matrix_heads(MATRIX)[1:] == ["starter", "tuned <b>"]
    assert report.matrix_rows(MATRIX) == [
        ["FD-EfficientNet-lite0 ↓", "98.77", "–"],
        ["Throughput (images/s) ↑", "4.5", "4.25"],
    ]


def test_the_page_needs_nothing_beside_itself_and_escapes_names(image: Path, tmp_path: Path) -> None:
    summary = report.summary([report.job_entry(JOB)], [], MATRIX, 1.0)
    page = tmp_path / "report.html"

    report.write_html(summary, {"starter": image, "gan": image, "brand": image}, "<p class='x'>plots</p>", page)

    html = page.read_text()
    assert re.findall(r"\b(?:src|href)=(\S{11})", html) == ['"data:image'] * 3
    assert "tuned &lt;b&gt;" in html
    assert 'srcdoc="&lt;p class=&#x27;x&#x27;&gt;plots' in html
