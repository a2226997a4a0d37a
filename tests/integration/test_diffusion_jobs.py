"""Generate and train jobs through the real queue, store and registry, run by a real executor in this process."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import signal
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sqlalchemy as sa
import tiny_sd3
import torch
from PIL import Image
from sqlalchemy import Engine

from calotype import lookup, queue, registry, specs, submission, tables
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, transaction
from calotype.datasets import Dataset, DatasetLimits
from calotype.datasets.importing import import_archive
from calotype.doorbell import Doorbell
from calotype.jobs import Artifact, Job, State
from calotype.registry import ModelFile, ModelVersion
from calotype.settings import Settings
from calotype.tenants import Tenant

QUEUES = ("diffusion.generate", "diffusion.train")
COLOURS = ("red", "green", "blue", "gold")


@pytest.fixture
def model(tiny_folder: Path, store: ObjectStore, make_model: Callable[..., ModelVersion]) -> ModelVersion:
    files = []
    for file in sorted(path for path in tiny_folder.rglob("*") if path.is_file()):
        name = file.relative_to(tiny_folder).as_posix()
        store.put_file(f"models/tiny/{name}", file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        files.append(ModelFile(path=name, object_key=f"models/tiny/{name}", bytes=file.stat().st_size, sha256=digest))
    return make_model("tiny", files=files, parameters=tiny_sd3.PARAMETERS)


@pytest.fixture
def dataset(engine: Engine, store: ObjectStore, tenant: Tenant, settings: Settings, tmp_path: Path) -> Dataset:
    """Twelve images of four colours, captioned and labelled by colour."""
    path = tmp_path / "images.zip"
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(12):
            colour, name = COLOURS[number % 4], f"{number}.png"
            file = io.BytesIO()
            Image.new("RGB", (32, 20 + number), colour).save(file, "PNG")
            archive.writestr(name, file.getvalue())
            rows.append({"file_name": name, "text": f"a {colour} one", "label": colour})
        archive.writestr("metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    return import_archive(engine, store, tenant.id, path, "colours", DatasetLimits.of(settings))


class Runner:
    """Submits jobs of a tenant and runs them here and now."""

    def __init__(self, settings: Settings, engine: Engine, store: ObjectStore, tenant: Tenant, worker: Any) -> None:
        from worker.cache import ModelCache

        self.settings, self.engine, self.store, self.tenant, self.worker = settings, engine, store, tenant, worker
        self.lease_engine = connect_engine(settings, application_name="lease")
        self.doorbell = Doorbell(settings)
        self.models = ModelCache(settings, store)

    def close(self) -> None:
        self.doorbell.close()
        self.lease_engine.dispose()

    def submit(self, request: dict[str, Any], tenant: Tenant | None = None) -> Job:
        with transaction(self.engine) as conn:
            prepared = submission.prepare(conn, (tenant or self.tenant).id, specs.parse(request))
            return queue.submit(conn, prepared)

    def work(self, job: Job, shutdown: threading.Event | None = None) -> Job:
        """Claim the next job, which must be `job`, run it, and return it as it is then."""
        return self.work_together([job], shutdown)[0]

    def work_together(self, jobs: list[Job], shutdown: threading.Event | None = None) -> list[Job]:
        """Claim what comes next, which must be these jobs, run them in one batch, and return them as they are then."""
        from worker.execution import Executor

        executor = Executor(
            engine=self.engine,
            lease_engine=self.lease_engine,
            settings=self.settings,
            store=self.store,
            models=self.models,
            doorbell=self.doorbell,
            shutdown=shutdown or threading.Event(),
        )
        claimant = queue.Claimant(
            worker_id=self.worker, queues=QUEUES, lease_seconds=self.settings.lease_seconds, most_units=16
        )
        with transaction(self.engine) as conn:
            claimed = queue.claim_batch(conn, claimant).jobs
        assert {job.id for job in claimed} == {job.id for job in jobs}
        executor.execute(claimed)
        with transaction(self.engine) as conn:
            return [lookup.get(conn, job.tenant_id, job.id) for job in jobs]

    def run(self, request: dict[str, Any]) -> tuple[Job, dict[str, Any]]:
        job = self.work(self.submit(request))
        assert job.state is State.SUCCEEDED, job.error
        assert job.result is not None
        return job, job.result

    def artifacts(self, job: Job) -> list[Artifact]:
        with transaction(self.engine) as conn:
            return lookup.artifacts_of(conn, [job.id]).get(job.id, [])

    def images(self, job: Job) -> list[np.ndarray[Any, Any]]:
        files = [self.store.get_bytes(artifact.object_key) for artifact in self.artifacts(job)]
        return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]

    def get(self, job: Job) -> Job:
        with transaction(self.engine) as conn:
            return lookup.get(conn, job.tenant_id, job.id)

    def step_of(self, job: Job) -> int:
        """How many steps a training has done."""
        progress = self.get(job).progress
        return progress.step if progress is not None and progress.stage == "training" else 0

    def checkpoint_files(self, job: Job, step: int) -> dict[str, bytes]:
        """What the store holds of a checkpoint, whatever epoch wrote it."""
        keys = [item.key for item in self.store.list_keys(f"tenants/{job.tenant_id}/jobs/{job.id}/")]
        found = {key.rpartition("/")[2]: self.store.get_bytes(key) for key in keys if f"/checkpoints/{step}-" in key}
        assert {"trainer.json", "trainer.safetensors"} <= found.keys()
        return found

    def events(self, job: Job, kind: str) -> list[dict[str, Any]]:
        table = tables.events
        statement = sa.select(table.c.data).where(table.c.job_id == job.id, table.c.type == kind).order_by(table.c.seq)
        with transaction(self.engine) as conn:
            return list(conn.execute(statement).scalars())

    def weights(self, ref: str) -> dict[str, torch.Tensor]:
        """The tensors of an adapter."""
        (file,) = self.version(ref).files
        return safetensors.torch.load(self.store.get_bytes(file.object_key))

    def version(self, ref: str) -> ModelVersion:
        with transaction(self.engine) as conn:
            return registry.find_version(conn, self.tenant.id, ref)


@pytest.fixture
def runner(
    settings: Settings,
    engine: Engine,
    store: ObjectStore,
    tenant: Tenant,
    make_worker: Callable[..., Any],
    model: ModelVersion,
) -> Iterator[Runner]:
    made = Runner(settings, engine, store, tenant, make_worker(QUEUES))
    yield made
    made.close()


def generate(model: str = "tiny", **changes: Any) -> dict[str, Any]:
    values = {"prompt": "a red one", "num_images": 1, "seed": 5, "guidance_scale": 2.0} | changes
    # Every one of these is to be made, not to be found.
    return {"kind": "generate", "family": "diffusion", "model": model, "input": values, "cache": "bypass"}


def train(dataset: Dataset, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dataset": dataset.id,
        "rank": 4,
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 0.01,
        "resolution": 32,
        "seed": 3,
        "output_model": "mine",
        "checkpoint_every": 2,
    }
    return {"kind": "train", "family": "diffusion", "model": "tiny", "input": values | changes}


def test_images_are_published_with_their_size_and_seed(runner: Runner) -> None:
    job, result = runner.run(generate(num_images=3, width=32, height=48))
    artifacts = runner.artifacts(job)
    assert [artifact.seed for artifact in artifacts] == [5, 6, 7]
    assert {(artifact.width, artifact.height, artifact.content_type) for artifact in artifacts} == {
        (32, 48, "image/png")
    }
    assert [image.shape for image in runner.images(job)] == [(48, 32, 3)] * 3
    assert result["model"] == "tiny@1"
    assert result["steps"] == tiny_sd3.PARAMETERS["default_steps"]
    assert result["batch_size"] == 3
    assert result["device"] == "cpu"
    assert result["peak_memory_bytes"] > 0
    assert result["seconds_per_image"] == pytest.approx(result["seconds"] / 3, abs=1e-3)


def test_the_same_seed_gives_the_same_image_alone_and_among_others(runner: Runner) -> None:
    together, again, alone = (
        runner.images(runner.run(generate(**changes))[0])
        for changes in ({"num_images": 3}, {"num_images": 3}, {"seed": 6})
    )
    for left, right in zip(together, again, strict=True):
        assert np.array_equal(left, right)
    assert np.abs(together[1] - alone[0]).max() <= 1


def test_jobs_of_two_tenants_share_a_call_and_get_the_images_that_they_get_alone(
    runner: Runner, make_tenant: Callable[..., Tenant], dataset: Dataset
) -> None:
    other = make_tenant()
    requests = [generate(num_images=2), generate(prompt="a blue one", negative_prompt="a red one", seed=9)]
    together = [runner.submit(requests[0]), runner.submit(requests[1], other)]
    shared = runner.work_together(together)
    alone = [runner.run(request | {"priority": 9})[0] for request in requests]
    for one, whole, position in zip(shared, alone, (0, 2), strict=True):
        assert one.state is State.SUCCEEDED, one.error
        assert one.result is not None
        assert (one.result["batch_size"], one.result["batch_position"]) == (3, position)
        for left, right in zip(runner.images(one), runner.images(whole), strict=True):
            assert np.abs(left - right).max() <= 1


def test_of_jobs_that_share_a_call_the_one_without_its_image_to_start_from_fails_alone(
    runner: Runner, make_tenant: Callable[..., Tenant], dataset: Dataset
) -> None:
    nonsense = f"data:image/png;base64,{base64.b64encode(b'no image').decode()}"
    good = runner.submit(generate(init_image=f"{dataset.id}/0.png"))
    bad = runner.submit(generate(init_image=nonsense), make_tenant())
    worked, failed = runner.work_together([good, bad])
    assert worked.state is State.SUCCEEDED, worked.error
    assert failed.error is not None
    assert failed.error.code == "bad_input"
    assert failed.attempt == 1


def test_an_image_may_start_from_a_dataset_from_another_job_or_from_the_request(
    runner: Runner, dataset: Dataset
) -> None:
    first, _ = runner.run(generate())
    artifact = runner.artifacts(first)[0]
    inline = base64.b64encode(runner.store.get_bytes(artifact.object_key)).decode()
    pictures = [
        runner.images(runner.run(generate(init_image=source, strength=0.4))[0])[0]
        for source in (
            f"{first.id}/{artifact.name}",
            f"data:image/png;base64,{inline}",
            f"{dataset.id}/0.png",
        )
    ]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_an_init_image_that_is_none_fails_as_bad_input(runner: Runner, dataset: Dataset) -> None:
    nonsense = base64.b64encode(b"no image").decode()
    for source in (f"data:image/png;base64,{nonsense}", f"{dataset.id}/none.png"):
        job = runner.work(runner.submit(generate(init_image=source)))
        assert job.state is State.FAILED
        assert job.error is not None
        assert job.error.code == "bad_input"
        assert not job.error.retryable
        assert runner.artifacts(job) == []


def test_a_lora_is_trained_registered_and_used(runner: Runner, dataset: Dataset) -> None:
    job, result = runner.run(train(dataset, validation_prompts=["a red one", "a blue one"]))
    version = runner.version("mine")
    assert (version.architecture, version.base, version.ref) == ("lora", "tiny@1", "mine@1")
    assert version.job_id == job.id
    assert version.parameters["rank"] == 4
    assert [file.path for file in version.files] == ["pytorch_lora_weights.safetensors"]
    assert [point["step"] for point in result["loss"]] == [1, 2, 3, 4, 5, 6]
    assert result["samples"] == 12
    names = [artifact.name for artifact in runner.artifacts(job)]
    assert "validation-step-0000006-00.png" in names
    assert len(names) == 2 * len({name.rpartition("-")[0] for name in names})
    base, as_model, as_adapter, off = (
        runner.images(runner.run(generate(**changes))[0])[0]
        for changes in (
            {},
            {"model": "mine"},
            {"adapters": [{"model": "mine"}]},
            {"adapters": [{"model": "mine", "scale": 0.0}]},
        )
    )
    # What the worker says it has loaded is what the list of workers looks for.
    assert runner.models.loaded() == [runner.version("tiny").key]
    assert np.array_equal(as_model, as_adapter)
    assert not np.array_equal(base, as_model)
    assert np.abs(base - off).max() <= 1


def test_a_training_says_how_it_goes_while_it_runs(
    runner: Runner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.families.diffusion import reporting

    monkeypatch.setattr(reporting, "EVERY_SECONDS", 0.0)
    job, result = runner.run(train(dataset, validation_prompts=["a red one"]))
    metrics = runner.events(job, "metrics")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in metrics] == [point["loss"] for point in result["loss"]]
    assert all(line["learning_rate"] == 0.01 and line["steps_per_second"] > 0 for line in metrics)
    said = [line["message"] for line in runner.events(job, "log")]
    assert said[0] == "training on 12 images, from step 0 to 6"
    assert "made 1 validation images at step 6" in said
    assert [line["step"] for line in runner.events(job, "checkpoint")] == [2, 4]


def tracked_losses(runner: Runner, job: Job) -> dict[int, float]:
    """What TensorBoard reads in the file that the job has published."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (one for one in runner.artifacts(job) if one.name == "events.out.tfevents")
    folder = runner.settings.data_dir / str(job.id)
    folder.mkdir(parents=True)
    (folder / file.name).write_bytes(runner.store.get_bytes(file.object_key))
    run = EventAccumulator(str(folder)).Reload()
    assert run.Images("validation/0")[-1].step == 6
    return {event.step: event.value for event in run.Scalars("loss")}


@pytest.mark.timeout(300)
def test_a_tracked_training_publishes_its_losses_as_one_run_though_it_was_shut_down(
    runner: Runner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.families.diffusion import reporting
    from worker.families.diffusion.trainer import Trainer

    monkeypatch.setattr(reporting, "EVERY_SECONDS", 0.0)
    runner.settings = dataclasses.replace(runner.settings, tracker="tensorboard")
    shutdown, save = threading.Event(), Trainer.save

    def save_then_shut_down(trainer: Trainer, directory: Path) -> None:
        save(trainer, directory)
        shutdown.set()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save_then_shut_down)
        job = runner.work(runner.submit(train(dataset, validation_prompts=["a red one"])), shutdown)
    assert job.state is State.QUEUED
    job = runner.work(job)
    assert job.state is State.SUCCEEDED and job.result is not None
    assert job.result["resumed_from"] is not None
    expected = {point["step"]: pytest.approx(point["loss"], abs=1e-5) for point in job.result["loss"]}
    assert tracked_losses(runner, job) == expected


@pytest.mark.timeout(300)
def test_a_training_whose_tracker_cannot_be_reached_succeeds_all_the_same(
    runner: Runner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from worker import tracking

    monkeypatch.setattr(tracking, "_BEGIN_SECONDS", 1.0)
    runner.settings = dataclasses.replace(
        runner.settings, tracker="wandb", tracker_key="k" * 40, tracker_url=f"http://127.0.0.1:{unused_port()}"
    )
    job, result = runner.run(train(dataset))
    assert result["steps"] == 6
    for thread in threading.enumerate():
        if thread.name == f"tracking {job.id}":
            thread.join(120)
    warnings = [record for record in caplog.records if record.name == "worker.tracking"]
    assert [record.message for record in warnings] == ["tracking given up, the job goes on without"]
    assert "k" * 40 not in caplog.text


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_full_training_makes_a_complete_model_of_its_own(runner: Runner, dataset: Dataset) -> None:
    _, result = runner.run(
        train(dataset, method="full", label="red", ema_decay=0.5, mixed_precision="bf16", caption_dropout=0.0)
    )
    version = runner.version("mine")
    assert (version.architecture, version.base) == ("sd3", None)
    assert result["samples"] == 3
    base_files = {file.path: file.sha256 for file in runner.version("tiny").files}
    changed = {file.path for file in version.files if file.sha256 != base_files[file.path]}
    assert changed == {"transformer/diffusion_pytorch_model.safetensors"}
    ours, theirs = (runner.images(runner.run(generate(model))[0])[0] for model in ("mine", "tiny"))
    assert not np.array_equal(ours, theirs)


@pytest.mark.parametrize("stop_at", [3, 6], ids=["while training", "while making the last images"])
def test_a_training_that_is_shut_down_goes_on_elsewhere_to_the_bitwise_same_model(
    runner: Runner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    from worker.cache import ModelCache
    from worker.families.diffusion.trainer import Trainer

    runner.run(train(dataset, output_model="whole"))
    shutdown = threading.Event()
    step = Trainer.step

    def step_then_shut_down(trainer: Trainer) -> float:
        loss = step(trainer)
        if trainer.step_count == stop_at:
            shutdown.set()
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_then_shut_down)
        job = runner.work(runner.submit(train(dataset, validation_prompts=["a red one"])), shutdown)
    assert job.state is State.QUEUED
    assert job.attempt == 0
    assert job.checkpoint is not None
    assert job.checkpoint["step"] == stop_at
    runner.models = ModelCache(runner.settings, runner.store)
    job = runner.work(job)
    assert job.state is State.SUCCEEDED, job.error
    assert job.result is not None
    assert job.result["resumed_from"] == stop_at
    assert len(job.result["loss"]) == 6
    resumed, whole = runner.weights("mine"), runner.weights("whole")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.fixture
def start_worker(settings: Settings, start_python: Callable[..., Any]) -> Callable[[str], Any]:
    """`start_worker(name)`: a worker process for trainings; its log is `<name>.log`."""

    def start(name: str) -> Any:
        arguments = ("-m", "worker", "--queues", "diffusion.train")
        return start_python(name, *arguments, settings=settings, OMP_WAIT_POLICY="passive")

    return start


@pytest.mark.timeout(900)
def test_a_training_whose_worker_is_told_to_stop_goes_on_in_another_process_bitwise_equal(
    runner: Runner,
    dataset: Dataset,
    start_worker: Callable[[str], Any],
    eventually: Callable[..., Any],
) -> None:
    plan: dict[str, Any] = {"steps": 240, "checkpoint_every": 200, "rank": 2, "ema_decay": 0.9, "lr_schedule": "cosine"}
    whole = runner.submit(train(dataset, **plan, output_model="whole"))
    first = start_worker("first")
    eventually(lambda: runner.get(whole).state is State.SUCCEEDED, 300.0)
    broken = runner.submit(train(dataset, **plan))
    eventually(lambda: runner.step_of(broken) >= 10, 300.0)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
    released = runner.get(broken)
    assert (released.state, released.attempt) == (State.QUEUED, 0)
    assert released.checkpoint is not None
    start_worker("second")
    eventually(lambda: runner.get(broken).state is State.SUCCEEDED, 300.0)
    done = runner.get(broken)
    assert done.result is not None
    assert done.result["resumed_from"] == released.checkpoint["step"] < 200
    # Weights, average, optimizer, random states, position in the data, losses.
    assert runner.checkpoint_files(broken, 200) == runner.checkpoint_files(whole, 200)
    resumed, expected = runner.weights("mine"), runner.weights("whole")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_an_adapter_of_another_model_is_refused_when_it_runs(
    runner: Runner, model: ModelVersion, make_model: Callable[..., ModelVersion]
) -> None:
    make_model("other", files=model.files, parameters=tiny_sd3.PARAMETERS)
    make_model("foreign", architecture="lora", base="other@1", files=model.files)
    request = generate(adapters=[{"model": "foreign"}])
    with transaction(runner.engine) as conn:
        prepared = submission.prepare(conn, runner.tenant.id, specs.parse(generate()))
        spec = {**prepared.spec, "input": {**prepared.spec["input"], **request["input"]}}
        spec["input"] |= {"width": 32, "height": 32, "steps": 3}
        job = queue.submit(conn, queue.NewJob(**{**prepared.__dict__, "spec": spec}))
    job = runner.work(job)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "bad_input"
