"""A benchmark job through the real queue, store and registry, with real pipelines and the real feature network."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import tiny_sd3
from fake_contender import disc
from sqlalchemy import Engine

from calotype import lookup, queue, specs, submission
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, transaction
from calotype.datasets import Dataset, DatasetLimits
from calotype.datasets.importing import import_archive
from calotype.doorbell import Doorbell
from calotype.jobs import Job, State
from calotype.registry import ModelFile, ModelVersion
from calotype.settings import Settings
from calotype.tenants import Tenant

QUEUE = "diffusion.benchmark"
MakeModel = Callable[..., ModelVersion]


@pytest.fixture
def tiny(tiny_folder: Path, store: ObjectStore, make_model: MakeModel) -> ModelVersion:
    files = {
        path.relative_to(tiny_folder).as_posix(): path.read_bytes() for path in tiny_folder.rglob("*") if path.is_file()
    }
    return make_model("tiny", files=stored(store, "tiny", files), parameters=tiny_sd3.PARAMETERS)


@pytest.fixture
def damaged(store: ObjectStore, make_model: MakeModel) -> ModelVersion:
    """A version whose files are whole but no pipeline."""
    files = stored(store, "damaged", {"model_index.json": b"{}"})
    return make_model("damaged", files=files, parameters=tiny_sd3.PARAMETERS)


@pytest.fixture
def dataset(engine: Engine, store: ObjectStore, tenant: Tenant, settings: Settings, tmp_path: Path) -> Dataset:
    path = tmp_path / "heldout.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(8):
            picture = io.BytesIO()
            disc(number).save(picture, "PNG")
            archive.writestr(f"{number}.png", picture.getvalue())
        rows = [json.dumps({"file_name": f"{number}.png", "text": f"disc {number}"}) for number in range(8)]
        archive.writestr("metadata.jsonl", "\n".join(rows))
    return import_archive(engine, store, tenant.id, path, "heldout", DatasetLimits.of(settings))


@pytest.fixture
def work(
    settings: Settings, engine: Engine, store: ObjectStore, tenant: Tenant, make_worker: Callable[..., UUID]
) -> Iterator[Callable[[dict[str, Any]], Job]]:
    """Submits a request, claims it, runs it here and gives the job as it is then."""
    from worker.cache import ModelCache
    from worker.execution import Executor

    worker = make_worker(queues=(QUEUE,))
    lease_engine, doorbell = connect_engine(settings, application_name="lease"), Doorbell(settings)
    executor = Executor(
        engine=engine,
        lease_engine=lease_engine,
        settings=settings,
        store=store,
        models=ModelCache(settings, store),
        doorbell=doorbell,
        shutdown=threading.Event(),
    )

    def run(request: dict[str, Any]) -> Job:
        with transaction(engine) as conn:
            job = queue.submit(conn, submission.prepare(conn, tenant.id, specs.parse(request)))
            claimed = queue.claim(conn, worker, (QUEUE,), settings.lease_seconds)
        assert claimed is not None
        executor.execute([claimed])
        with transaction(engine) as conn:
            return lookup.get(conn, tenant.id, job.id)

    yield run
    doorbell.close()
    lease_engine.dispose()


def stored(store: ObjectStore, name: str, files: dict[str, bytes]) -> list[ModelFile]:
    listed = []
    for path, data in sorted(files.items()):
        key = f"models/{name}/{path}"
        store.put_bytes(key, data)
        digest = hashlib.sha256(data).hexdigest()
        listed.append(ModelFile(path=path, object_key=key, bytes=len(data), sha256=digest))
    return listed


def benchmark(dataset: Dataset, *contenders: dict[str, Any], **changes: Any) -> dict[str, Any]:
    asked = {
        "contenders": [{"family": "diffusion", **contender} for contender in contenders],
        "dataset": dataset.id,
        "num_samples": 6,
        "batch_sizes": [1, 2],
        "timed_batches": 3,
        "seed": 11,
        "gpu_hour_usd": 3.0,
    }
    return {"kind": "benchmark", "input": asked | changes}


def test_two_configurations_are_compared_and_a_damaged_model_does_not_take_them_along(
    work: Callable[[dict[str, Any]], Job],
    tiny: ModelVersion,
    damaged: ModelVersion,
    dataset: Dataset,
    engine: Engine,
    store: ObjectStore,
) -> None:
    job = work(
        benchmark(
            dataset,
            {"model": "tiny", "name": "two steps", "steps": 2},
            {"model": "damaged"},
            {"model": "tiny", "name": "six steps", "steps": 6},
        )
    )
    assert job.state is State.SUCCEEDED, job.error
    result = job.result
    assert result is not None
    two, broken, six = result["contenders"]
    assert (two["status"], broken["status"], six["status"]) == ("succeeded", "failed", "succeeded")
    assert broken["error"]["code"] == "model_unavailable"
    assert two["model"] == "tiny@1"
    # The transformer works at each step, text encoders and decoder once.
    assert two["flops_per_image"] < six["flops_per_image"] < 3 * two["flops_per_image"]
    assert [batch["batch_size"] for batch in two["latency"]] == [1, 2]
    assert all(batch["status"] == "measured" for batch in two["latency"] + six["latency"])
    assert two["fd"]["value"] > 0
    assert two["kid"]["ci_low"] < two["kid"]["value"] < two["kid"]["ci_high"]

    with transaction(engine) as conn:
        artifacts = {artifact.name: artifact for artifact in lookup.artifacts_of(conn, [job.id])[job.id]}
    assert set(artifacts) == {"benchmark.json", "report.html", "samples-two-steps.png", "samples-six-steps.png"}
    assert json.loads(store.get_bytes(artifacts["benchmark.json"].object_key)) == result
    page = store.get_bytes(artifacts["report.html"].object_key).decode()
    assert "Which model for this data?" in page


def test_the_same_seed_gives_the_same_distances(
    work: Callable[[dict[str, Any]], Job], tiny: ModelVersion, dataset: Dataset
) -> None:
    request = benchmark(dataset, {"model": "tiny", "steps": 2}, metrics=["fd", "kid"])
    results = [work(request).result, work(request).result]
    first, second = (result["contenders"][0] for result in results if result is not None)
    assert first["fd"]["value"] == pytest.approx(second["fd"]["value"], rel=1e-4)
    assert first["kid"]["value"] == pytest.approx(second["kid"]["value"], rel=1e-3)


def test_a_job_whose_only_contender_fails_fails_and_says_why(
    work: Callable[[dict[str, Any]], Job], damaged: ModelVersion, dataset: Dataset
) -> None:
    job = work(benchmark(dataset, {"model": "damaged"}, metrics=["latency"]))
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "model_unavailable"
