"""The Python client against a real stack."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from calotype.client import ApiError, Client, ConnectionFailedError, JobTimeoutError

if TYPE_CHECKING:
    from tests.conftest import RunningUp


@pytest.fixture
def client(stack: RunningUp) -> Iterator[Client]:
    with Client(stack.url, stack.api_key) as made:
        yield made


@pytest.fixture
def spec(tiny_model: str) -> Callable[..., dict[str, Any]]:
    def make(**asked: Any) -> dict[str, Any]:
        return {
            "kind": "generate",
            "family": "diffusion",
            "model": tiny_model,
            "input": {"prompt": "a bird", **asked},
        }

    return make


def test_wait_reports_progress_and_returns_the_ended_job(client: Client, spec: Callable[..., Any]) -> None:
    seen: list[str] = []

    job = client.wait(
        client.submit(spec(num_images=2))["id"], timeout=60, on_progress=lambda now: seen.append(now["state"])
    )

    assert job["state"] == "succeeded"
    assert seen[-1] == "succeeded"
    assert len(job["artifacts"]) == 2


def test_the_same_seed_gives_the_same_image(client: Client, spec: Callable[..., Any]) -> None:
    anew = {**spec(seed=11), "cache": "bypass"}
    jobs = [client.wait(client.submit(anew)["id"], timeout=60) for _ in range(2)]

    assert jobs[0]["artifacts"][0]["sha256"] == jobs[1]["artifacts"][0]["sha256"]


def test_wait_raises_with_the_last_state_when_time_runs_out(client: Client, spec: Callable[..., Any]) -> None:
    job = client.submit(spec(num_images=64, steps=50))

    with pytest.raises(JobTimeoutError) as caught:
        client.wait(job["id"], timeout=0.1)

    assert caught.value.job["id"] == job["id"]
    client.cancel(job["id"])


def test_an_error_carries_code_detail_and_fields(client: Client, spec: Callable[..., Any]) -> None:
    with pytest.raises(ApiError) as caught:
        client.submit(spec(num_images=0, steps=0))

    assert caught.value.status == 422
    assert caught.value.code == "invalid_request"
    assert {tuple(error["loc"])[-1] for error in caught.value.errors} == {"num_images", "steps"}
    assert caught.value.request_id


def test_download_keeps_what_is_there_and_replaces_what_is_damaged(
    client: Client, spec: Callable[..., Any], tmp_path: Path
) -> None:
    job = client.wait(client.submit(spec(num_images=2))["id"], timeout=60)
    first, second = client.download(job, tmp_path)
    untouched = first.stat().st_mtime_ns
    whole = second.read_bytes()
    second.write_bytes(whole[:100])

    client.download(job["id"], str(tmp_path))

    assert first.stat().st_mtime_ns == untouched
    assert second.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]


def test_jobs_come_newest_first_over_all_pages(
    client: Client, spec: Callable[..., Any], requests_of: Callable[[Client], list[str]]
) -> None:
    made = [client.submit(spec())["id"] for _ in range(3)]
    asked = requests_of(client)

    listed = [job["id"] for job in client.jobs(limit=3, page_size=2)]

    assert listed == made[::-1]
    assert len(asked) == 2


def test_a_large_dataset_goes_straight_into_the_object_store(
    client: Client,
    stack: RunningUp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    requests_of: Callable[[Client], list[str]],
) -> None:
    monkeypatch.setattr("calotype.client.assets.DIRECT_UPLOAD_BYTES", 0)
    Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / "one.png")
    archive = tmp_path / "large.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.write(tmp_path / "one.png", "one.png")

    asked = requests_of(client)
    dataset = client.upload_dataset(archive)

    announced, put, completed = asked
    assert announced == f"POST {stack.url}/v1/datasets"
    assert put.startswith("PUT ") and stack.url not in put
    assert completed == f"POST {stack.url}/v1/datasets/{dataset['id']}/complete"
    assert dataset["name"] == "large"
    assert dataset["images"] == 1
    assert client.dataset(dataset["id"])["id"] == dataset["id"]


def test_another_tenants_job_is_not_there(client: Client, stack: RunningUp, spec: Callable[..., Any]) -> None:
    job = client.submit(spec())
    client.create_tenant("stranger")
    key = client.create_key("stranger")["key"]

    with Client(stack.url, key) as stranger, pytest.raises(ApiError) as caught:
        stranger.get(job["id"])

    assert caught.value.status == 404


def test_nothing_at_the_address_is_told_with_what_to_do() -> None:
    with Client("http://127.0.0.1:9", "cal_x", retries=0) as nobody:
        assert not nobody.ready()
        with pytest.raises(ConnectionFailedError, match="calotype up"):
            nobody.queues()
