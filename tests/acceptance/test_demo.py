"""`calotype demo`: every kind of job through the whole system, and what it leaves for people and programs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from calotype.local.data_dir import DataDir
from calotype.local.modules import module_argv, module_environment

pytestmark = pytest.mark.timeout(300)


def test_the_demo_runs_from_nothing_and_leaves_images_report_and_summary(
    services_dir: Path, tmp_path: Path, command_lines: Callable[[], list[str]]
) -> None:
    """In an empty folder: it starts a stack, runs every kind of job through it, and stops it again."""
    output, data_dir = tmp_path / "demo-output", services_dir / "demo"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CALOTYPE_")}

    ended = subprocess.run(
        module_argv("calotype.cli", "demo", "--quick", "--output", str(output), "--data-dir", str(data_dir)),
        env=module_environment(inherited),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert "FD-EfficientNet-lite0" in ended.stdout
    summary = json.loads((output / "summary.json").read_text())
    assert {job["kind"] for job in summary["jobs"]} == {"generate", "train", "benchmark"}
    assert {job["state"] for job in summary["jobs"]} == {"succeeded"}
    assert Counter(image["model"] for image in summary["images"]) == {
        "starter-diffusion@1": 16 + 8,
        "starter-gan@1": 16,
    }
    for image in summary["images"]:
        path = output / image["path"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == image["sha256"]
        with Image.open(path) as opened:
            assert opened.size == (image["width"], image["height"])
    columns = summary["decision_matrix"]["columns"]
    assert [column["name"] for column in columns] == ["starter-diffusion", "starter-gan"]
    measured = {row["key"] for row in summary["decision_matrix"]["rows"]}
    assert all(set(column["values"]) == measured for column in columns)
    assert summary["starter_first_image_seconds"] < 60
    for sheet in ("starter.png", "gan.png", "brand.png"):
        with Image.open(output / sheet) as opened:
            opened.verify()
    page = (output / "report.html").read_text()
    assert page.count('src="data:image/png') == 3
    assert "<th>starter-diffusion</th><th>starter-gan</th>" in page
    assert not re.search(r"\b(?:src|href)=.?(?:https?:|//)", page)
    assert DataDir(data_dir).running() is None
    assert not [line for line in command_lines() if str(data_dir) in line]
