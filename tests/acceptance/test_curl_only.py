"""A newcomer with curl, the address and the key: everything else is read from answers and `/openapi.json`."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.conftest import RunningUp

pytestmark = pytest.mark.timeout(300)

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Newcomer:
    """Runs curl against one address with one key."""

    url: str
    key: str

    def curl(self, path: str, *arguments: str, body: Json | None = None, with_key: bool = True) -> Answer:
        url = path if path.startswith("http") else self.url + path
        command = ["curl", "--silent", "--show-error", "--include", "--max-time", "90", url, *arguments]
        if with_key:
            command += ["--header", f"Authorization: Bearer {self.key}"]
        if body is not None:
            command += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        output = subprocess.run(command, capture_output=True, check=True).stdout
        head, _, content = output.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return Answer(int(first.split()[1]), headers, content)

    def example(self, kind: str) -> Json:
        """A request body of that kind from `/openapi.json`."""
        document = self.curl("/openapi.json", with_key=False).json
        content = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
        found = [example["value"] for example in content["examples"].values()]
        return next(value for value in found if value["kind"] == kind)

    def run(self, spec: Json, seconds: float = 240) -> Json:
        """Submit a job and poll the address that the answer names until the job has ended."""
        submitted = self.curl("/v1/jobs", body=spec)
        assert submitted.status == 202, submitted.body
        job: Json = submitted.json
        assert submitted.headers["location"] == job["urls"]["self"]
        deadline = time.monotonic() + seconds
        while job["state"] in ("queued", "running") and time.monotonic() < deadline:
            job = self.curl(f"{job['urls']['self']}?wait=20").json
        assert job["state"] == "succeeded", job["error"]
        return job


@pytest.fixture
def newcomer(stack: RunningUp) -> Newcomer:
    return Newcomer(stack.url, stack.api_key)


def test_the_first_images_come_within_a_minute_and_are_what_the_job_says(newcomer: Newcomer, tmp_path: Path) -> None:
    spec = newcomer.example("generate")
    started = time.monotonic()

    job = newcomer.run(spec)

    assert time.monotonic() - started < 60
    assert len(job["artifacts"]) == spec["input"]["num_images"]
    for artifact in job["artifacts"]:
        fetched = newcomer.curl(artifact["url"], with_key=False)
        assert fetched.status == 200
        assert fetched.headers["content-type"] == artifact["content_type"] == "image/png"
        assert hashlib.sha256(fetched.body).hexdigest() == artifact["sha256"]
        (tmp_path / artifact["name"]).write_bytes(fetched.body)
        with Image.open(tmp_path / artifact["name"]) as image:
            assert image.size == (artifact["width"], artifact["height"])


def test_a_train_job_makes_a_model_that_a_generate_job_can_use(newcomer: Newcomer) -> None:
    spec = newcomer.example("train")
    spec["input"] |= {"steps": 4, "checkpoint_every": 2, "output_model": "curl-made"}

    trained = newcomer.run(spec)

    model = trained["result"]["model"]
    registered = newcomer.curl("/v1/models/curl-made").json
    assert registered["ref"] == model
    assert registered["job_id"] == trained["id"]
    request = newcomer.example("generate")
    request["input"] |= {"num_images": 1, "adapters": [{"model": model, "scale": 1.0}]}
    assert len(newcomer.run(request)["artifacts"]) == 1


def test_a_benchmark_job_leaves_a_report_and_a_decision_matrix(newcomer: Newcomer) -> None:
    spec = newcomer.example("benchmark")
    # The small brand set: the point here is the path, not the number.
    spec["input"] |= {"dataset": "starter-brand", "num_samples": 8, "batch_sizes": [1], "timed_batches": 3}

    job = newcomer.run(spec)

    names = {artifact["name"]: artifact for artifact in job["artifacts"]}
    report = newcomer.curl(names["report.html"]["url"], with_key=False)
    assert report.headers["content-type"].startswith("text/html")
    assert b"FD-EfficientNet-lite0" in report.body
    columns = job["result"]["decision_matrix"]["columns"]
    # A diffusion model and a GAN, side by side.
    assert [column["status"] for column in columns] == ["succeeded", "succeeded"]
    assert columns[0]["values"]["fd"] > 0


def test_a_dataset_is_uploaded_as_the_document_says(newcomer: Newcomer, tmp_path: Path) -> None:
    Image.effect_noise((32, 32), 40).convert("RGB").save(tmp_path / "one.png")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "one.png", "one.png")
        archive.writestr("metadata.jsonl", '{"file_name": "one.png", "text": "grey noise"}\n')
    document = newcomer.curl("/openapi.json", with_key=False).json
    form = document["paths"]["/v1/datasets"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    (file_field,) = [name for name, kind in form["properties"].items() if "contentMediaType" in kind]
    (text_field,) = set(form["properties"]) - {file_field}

    made = newcomer.curl(
        *("/v1/datasets", "--form", f"{text_field}=curl-set", "--form", f"{file_field}=@{tmp_path / 'set.zip'}")
    )

    assert made.status == 201, made.body
    assert made.json["images"] == 1
    assert made.json["captions"] is True
    assert newcomer.curl(made.headers["location"]).json["id"] == made.json["id"]
    assert newcomer.curl(made.headers["location"], "--request", "DELETE").status == 204


@pytest.mark.parametrize(
    ("change", "status", "where"),
    [
        ({"model": "no-such-model"}, 422, ["model"]),
        ({"input": {"prompt": "a bird", "width": 65}}, 422, ["input", "width"]),
        ({"input": {"prompt": "a bird", "colour": "blue"}}, 422, ["input", "colour"]),
        ({"family": "hybrid"}, 422, ["family"]),
    ],
)
def test_a_wrong_field_is_named_and_leaves_no_job(
    newcomer: Newcomer, change: Json, status: int, where: list[str]
) -> None:
    newest = _newest_job(newcomer)

    refused = newcomer.curl("/v1/jobs", body={**newcomer.example("generate"), **change})

    assert refused.status == status, refused.body
    assert refused.headers["content-type"].startswith("application/problem+json")
    assert where in [error["loc"] for error in refused.json["errors"]]
    assert _newest_job(newcomer) == newest


def test_without_a_key_the_answer_says_which_header_to_send(newcomer: Newcomer) -> None:
    refused = newcomer.curl("/v1/jobs", with_key=False)

    assert refused.status == 401
    assert "Authorization: Bearer" in refused.json["detail"]
    assert refused.headers["www-authenticate"].startswith("Bearer")


def test_the_documentation_page_loads_nothing_from_elsewhere(newcomer: Newcomer) -> None:
    page = newcomer.curl("/docs", with_key=False)

    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(rb"""(?:src=|@import |url\()["']?([^"') >]+)""", page.body)
    loaded += re.findall(rb"""<link[^>]*href=["']?([^"' >]+)""", page.body)
    assert loaded
    assert [address for address in loaded if b"//" in address] == []


def _newest_job(newcomer: Newcomer) -> str | None:
    found = newcomer.curl("/v1/jobs?limit=1").json["data"]
    return found[0]["id"] if found else None
