"""Trainings of GANs through the real queue, store and registry."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sqlalchemy as sa
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
from calotype.registry import ModelVersion
from calotype.settings import Settings
from calotype.tenants import Tenant

#: Each trains on the real services; the default is for a machine that does nothing else.
pytestmark = pytest.mark.timeout(300)

QUEUES = ("gan.train",)
COLOURS = ("blue", "gold", "green", "red")
#: Networks so small that a step takes tens of milliseconds.
SMALL = {"channel_base": 128, "channel_max": 16, "layers": 4}


def import_images(
    engine: Engine,
    store: ObjectStore,
    tenant: Tenant,
    settings: Settings,
    path: Path,
    images: list[Image.Image],
    name: str,
) -> Dataset:
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for number, image in enumerate(images):
            file = io.BytesIO()
            image.save(file, "PNG")
            archive.writestr(f"{number}.png", file.getvalue())
            rows.append({"file_name": f"{number}.png", "label": COLOURS[number % 4]})
        archive.writestr("metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    return import_archive(engine, store, tenant.id, path, name, DatasetLimits.of(settings))


def pictures(sizes: Callable[[int], tuple[int, int]] = lambda number: (16, 16), count: int = 20) -> list[Image.Image]:
    """Noise over a colour: every one its own."""
    made = []
    for number in range(count):
        width, height = sizes(number)
        noise = np.random.default_rng(number).integers(0, 90, (height, width, 3))
        base = np.asarray(Image.new("RGB", (width, height), COLOURS[number % 4])) * 0.6
        made.append(Image.fromarray((base + noise).clip(0, 255).astype(np.uint8)))
    return made


@pytest.fixture
def dataset(engine: Engine, store: ObjectStore, tenant: Tenant, settings: Settings, tmp_path: Path) -> Dataset:
    return import_images(engine, store, tenant, settings, tmp_path / "images.zip", pictures(), "squares")


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

    def submit(self, request: dict[str, Any]) -> Job:
        with transaction(self.engine) as conn:
            return queue.submit(conn, submission.prepare(conn, self.tenant.id, specs.parse(request)))

    def work(self, job: Job, shutdown: threading.Event | None = None) -> Job:
        """Claim the next job, which must be `job`, run it, and return it as it is then."""
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
        claimant = queue.Claimant(worker_id=self.worker, queues=QUEUES, lease_seconds=self.settings.lease_seconds)
        with transaction(self.engine) as conn:
            claimed = queue.claim_batch(conn, claimant).jobs
        assert [one.id for one in claimed] == [job.id]
        executor.execute(claimed)
        return self.get(job)

    def run(self, request: dict[str, Any]) -> tuple[Job, dict[str, Any]]:
        job = self.work(self.submit(request))
        assert job.state is State.SUCCEEDED, job.error
        assert job.result is not None
        return job, job.result

    def get(self, job: Job) -> Job:
        with transaction(self.engine) as conn:
            return lookup.get(conn, job.tenant_id, job.id)

    def artifacts(self, job: Job) -> dict[str, Artifact]:
        with transaction(self.engine) as conn:
            found = lookup.artifacts_of(conn, [job.id]).get(job.id, [])
        return {artifact.name: artifact for artifact in found}

    def step_of(self, job: Job) -> int:
        progress = self.get(job).progress
        return progress.step if progress is not None and progress.stage == "training" else 0

    def version(self, ref: str) -> ModelVersion:
        with transaction(self.engine) as conn:
            return registry.find_version(conn, self.tenant.id, ref)

    def weights(self, ref: str, name: str = "generator") -> dict[str, torch.Tensor]:
        (file,) = (one for one in self.version(ref).files if one.path == f"{name}.safetensors")
        return safetensors.torch.load(self.store.get_bytes(file.object_key))

    def checkpoint_files(self, job: Job, step: int) -> dict[str, bytes]:
        """What the store holds of a checkpoint, whatever epoch wrote it; not how long it took."""
        keys = [item.key for item in self.store.list_keys(f"tenants/{job.tenant_id}/jobs/{job.id}/")]
        at = f"/checkpoints/{step}-"
        found = {key.partition(at)[2].partition("/")[2]: self.store.get_bytes(key) for key in keys if at in key}
        assert {"state/trainer.json", "state/trainer.safetensors", "course.json", "clock.json"} <= found.keys()
        return {name: content for name, content in found.items() if name != "clock.json"}

    def events(self, job: Job, kind: str) -> list[dict[str, Any]]:
        table = tables.events
        statement = sa.select(table.c.data).where(table.c.job_id == job.id, table.c.type == kind).order_by(table.c.seq)
        with transaction(self.engine) as conn:
            return list(conn.execute(statement).scalars())


@pytest.fixture
def runner(
    settings: Settings, engine: Engine, store: ObjectStore, tenant: Tenant, make_worker: Callable[..., Any]
) -> Iterator[Runner]:
    made = Runner(settings, engine, store, tenant, make_worker(QUEUES))
    yield made
    made.close()


def train(dataset: Dataset, model: str | None = None, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dataset": dataset.id,
        "kimg": 0.048,
        "batch_size": 8,
        "seed": 3,
        "output_model": "mine",
        "checkpoint_every": 4,
        "snapshot_every": 3,
        "frechet_samples": 16,
        "mode_collapse": {"every_steps": 3, "samples": 16},
        "r1_every": 4,
    }
    if model is None:
        values |= {"resolution": 16, "architecture": "stylegan3-t", **SMALL}
    return {"kind": "train", "family": "gan", "model": model, "input": values | changes}


def test_a_generator_is_trained_watched_and_registered(
    runner: Runner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.families.gan import reporting, stored

    monkeypatch.setattr(reporting, "EVERY_SECONDS", 0.0)
    job, result = runner.run(train(dataset, conditional=True))
    version = runner.version("mine")
    assert (version.family, version.architecture, version.base) == ("gan", "stylegan3-t", None)
    assert version.job_id == job.id
    assert version.parameters["labels"] == list(COLOURS)
    assert {name: version.parameters[name] for name in ("resolution", "default_width", "default_truncation_psi")} == {
        "resolution": 16,
        "default_width": 16,
        "default_truncation_psi": 0.7,
    }
    folder = runner.models.directory(version)
    loaded = stored.load_generator(folder, torch.device("cpu"))
    assert (loaded.labels, loaded.resolution) == (list(COLOURS), 16)

    assert (result["steps"], result["samples"], result["stopped"], result["resumed_from"]) == (6, 20, None, None)
    curve = result["frechet"]["curve"]
    assert [one["step"] for one in curve] == [3, 6]
    assert all(one["value"] > 0 for one in curve)
    assert result["frechet"]["best"] == min(one["value"] for one in curve)
    assert result["frechet"]["metric"] == "FD-EfficientNet-lite0"
    assert any("biased upwards" in caveat for caveat in result["frechet"]["caveats"])
    assert version.source["steps"] == result["frechet"]["best_step"]
    assert [check["step"] for check in result["mode_collapse"]["checks"]] == [3, 6]
    assert [point["step"] for point in result["loss"]] == [1, 2, 3, 4, 5, 6]
    assert result["peak_memory_bytes"] > 0 and result["gpu_seconds"] == 0.0 and result["train_seconds"] > 0

    artifacts = runner.artifacts(job)
    assert set(artifacts) == {
        "snapshot-step-0000003.png",
        "snapshot-step-0000006.png",
        "frechet.png",
        "mode-collapse.png",
    }
    grid = artifacts["snapshot-step-0000006.png"]
    assert (grid.width, grid.height) == (4 * 18 + 2, 4 * 18 + 2)

    metrics = runner.events(job, "metrics")
    assert [line["step"] for line in metrics if "generator_loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in metrics if "collapse_vendi" in line] == [3, 6]
    assert [line["frechet_distance"] for line in metrics if "frechet_distance" in line] == [
        one["value"] for one in curve
    ]
    assert [line["step"] for line in runner.events(job, "checkpoint")] == [4]
    assert "training a stylegan3-t of 16 pixels on 20 images of 4 classes" in [
        line["message"] for line in runner.events(job, "log")
    ]


def test_a_tracked_training_publishes_its_losses_the_watchs_findings_and_its_snapshots(
    runner: Runner, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from worker.families.gan import reporting

    monkeypatch.setattr(reporting, "EVERY_SECONDS", 0.0)
    runner.settings = dataclasses.replace(runner.settings, tracker="tensorboard")
    job, _ = runner.run(train(dataset))
    content = runner.store.get_bytes(runner.artifacts(job)["events.out.tfevents"].object_key)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.out.tfevents").write_bytes(content)
    run = EventAccumulator(str(tmp_path / "run")).Reload()
    told = runner.events(job, "metrics")
    for name in ("generator_loss", "discriminator_learning_rate", "augment_p", "collapse_vendi", "frechet_distance"):
        expected = [(line["step"], pytest.approx(line[name], rel=1e-5)) for line in told if name in line]
        assert expected and [(one.step, one.value) for one in run.Scalars(name)] == expected, name
    assert [image.step for image in run.Images("snapshot/0")] == [3, 6]


def test_training_goes_on_from_a_version_with_both_networks(runner: Runner, dataset: Dataset) -> None:
    runner.run(train(dataset, architecture="r3gan", channel_base=256, layers=1))
    _, result = runner.run(train(dataset, "mine", kimg=0.008, generator_lr=1e-9, discriminator_lr=1e-9))
    assert (result["started_from"], result["architecture"], result["steps"]) == ("mine@1", "r3gan", 1)
    assert result["model"] == runner.version("mine").ref == "mine@2"
    for name in ("generator_live", "discriminator"):
        before, after = runner.weights("mine@1", name), runner.weights("mine@2", name)
        assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_images_of_mixed_sizes_need_a_rule(
    runner: Runner, engine: Engine, store: ObjectStore, tenant: Tenant, settings: Settings, tmp_path: Path
) -> None:
    mixed = pictures(lambda number: (16, 16 + number % 3))
    dataset = import_images(engine, store, tenant, settings, tmp_path / "mixed.zip", mixed, "mixed")
    job = runner.work(runner.submit(train(dataset)))
    assert job.state is State.FAILED and job.error is not None
    assert (job.error.code, job.error.retryable) == ("bad_input", False)
    assert "16×16, 16×17, 16×18" in job.error.detail and "resize" in job.error.detail
    _, result = runner.run(train(dataset, resize="crop"))
    assert result["samples"] == 20


#: Looks every second step, and acts on the second suspicion.
ATTENTIVE = {"every_steps": 2, "samples": 16, "patience": 2, "warmup_steps": 0, "action": "stop"}
#: A generator that learns a hundred times too fast runs into a corner: it makes one image within a few steps.
COLLAPSING: dict[str, Any] = {"kimg": 0.8, "generator_lr": 0.25, "mode_collapse": ATTENTIVE}


def test_a_collapsing_training_stops_itself_with_the_reason_and_keeps_the_best_from_before(
    runner: Runner, dataset: Dataset
) -> None:
    job, result = runner.run(train(dataset, **COLLAPSING, snapshot_every=1))
    stopped, watch = result["stopped"], result["mode_collapse"]
    assert stopped["reason"] == "mode_collapse" and result["steps"] == stopped["step"] < 100
    assert "for 2 checks in a row, the generator looks collapsed" in stopped["detail"]
    assert watch["acted_at"] == [stopped["step"]]
    *_, first, last = watch["checks"]
    assert [first["strikes"], last["strikes"]] == [1, 2]
    assert last["duplicates"] > 0.3 > last["real_duplicates"] and last["vendi"] < 0.6 * last["real_vendi"]
    # What was made since the first suspicion does not count, whatever its distance.
    assert result["frechet"]["best_step"] < first["step"] < len(result["frechet"]["curve"])
    assert runner.version("mine").source["steps"] == result["frechet"]["best_step"]
    assert "mode-collapse.png" in runner.artifacts(job)
    said = [line["message"] for line in runner.events(job, "log")]
    assert any(line.startswith(f"stopped at step {stopped['step']}: ") for line in said)
    looks = [line for line in runner.events(job, "metrics") if "collapse_strikes" in line]
    assert [line["step"] for line in looks] == [check["step"] for check in watch["checks"]]


def test_a_collapse_before_the_first_snapshot_fails_the_job_with_the_reason(runner: Runner, dataset: Dataset) -> None:
    job = runner.work(runner.submit(train(dataset, **COLLAPSING, snapshot_every=50)))
    assert job.state is State.FAILED and job.error is not None
    assert (job.error.code, job.error.title, job.error.retryable) == (
        "mode_collapse",
        "The generator collapsed",
        False,
    )
    assert "the generator looks collapsed" in job.error.detail
    assert runner.artifacts(job) == {}


def test_a_training_whose_numbers_cease_to_be_any_keeps_the_last_good_snapshot_and_says_so(
    runner: Runner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.families.gan.trainer import Trainer

    step = Trainer.step

    def step_then_break(trainer: Trainer) -> Any:
        made = step(trainer)
        if trainer.step_count == 4:
            with torch.no_grad():
                next(trainer.discriminator.parameters()).fill_(float("nan"))
        return made

    monkeypatch.setattr(Trainer, "step", step_then_break)
    job, result = runner.run(train(dataset))
    assert (result["stopped"]["reason"], result["stopped"]["step"], result["steps"]) == ("numerical_error", 4, 4)
    assert "at step 5" in result["stopped"]["detail"]
    assert (result["frechet"]["best_step"], runner.version("mine").source["steps"]) == (3, 3)
    for name in ("generator", "generator_live", "discriminator"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in runner.weights("mine", name).values())
    assert any(line["message"].startswith("stopped at step 4: ") for line in runner.events(job, "log"))


def test_the_same_training_at_the_usual_rate_is_left_alone(runner: Runner, dataset: Dataset) -> None:
    _, result = runner.run(train(dataset, **(COLLAPSING | {"generator_lr": 0.0025, "kimg": 0.16}), snapshot_every=20))
    assert (result["stopped"], result["steps"], result["mode_collapse"]["acted_at"]) == (None, 20, [])


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As if the machine had two GPUs: trainings have a helper. Gives the teams that there were."""
    from worker.families.gan import team

    teams: list[Any] = []
    gathered = team.gathered

    @contextlib.contextmanager
    def noted(*arguments: Any) -> Iterator[Any]:
        with gathered(*arguments) as together:
            teams.append(together)
            yield together

    monkeypatch.setattr(team, "devices", lambda device, groups, most: 2)
    monkeypatch.setattr(team, "gathered", noted)
    return teams


def test_two_processes_train_what_one_trains(
    runner: Runner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    _, alone = runner.run(train(dataset, output_model="alone"))
    environment = dict(os.environ)
    teams = request.getfixturevalue("two_processes")
    for number in (1, 2):
        _, both = runner.run(train(dataset, output_model="both"))
        assert (both["devices"], both["micro_batch_size"], alone["micro_batch_size"]) == (2, 4, 8)
        ours, theirs = runner.weights("both"), runner.weights("alone")
        for name, expected in theirs.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-3, atol=1e-4, msg=name)
        ((helper,),) = [one.helpers for one in teams[number - 1 : number]]
        assert helper.exit_code is not None
    assert dict(os.environ) == environment


def test_a_helper_that_ends_ends_the_attempt(
    runner: Runner, dataset: Dataset, two_processes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.families.gan.trainer import Trainer

    step = Trainer.step

    def step_then_lose(trainer: Trainer) -> Any:
        made = step(trainer)
        if trainer.step_count == 2:
            (helper,) = two_processes[0].helpers
            helper.signal(signal.SIGKILL)
            helper.wait(30.0)
        return made

    monkeypatch.setattr(Trainer, "step", step_then_lose)
    job = runner.work(runner.submit(train(dataset) | {"max_attempts": 1}))
    assert job.error is not None
    assert job.error.code == "internal_error"
    assert "helper 1 of the training ended with -9" in job.error.detail


@pytest.mark.parametrize("stop_at", [5, 6], ids=["while training", "before the last snapshot"])
def test_a_training_that_is_shut_down_goes_on_elsewhere_to_the_bitwise_same_model(
    runner: Runner, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    from worker.cache import ModelCache
    from worker.families.gan.trainer import Trainer

    _, whole = runner.run(train(dataset, output_model="whole"))
    shutdown, step = threading.Event(), Trainer.step

    def step_then_shut_down(trainer: Trainer) -> Any:
        made = step(trainer)
        if trainer.step_count == stop_at:
            shutdown.set()
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step_then_shut_down)
        job = runner.work(runner.submit(train(dataset)), shutdown)
    assert (job.state, job.attempt) == (State.QUEUED, 0)
    assert job.checkpoint is not None and job.checkpoint["step"] == stop_at
    runner.models = ModelCache(runner.settings, runner.store)
    job = runner.work(job)
    assert job.state is State.SUCCEEDED, job.error
    assert job.result is not None
    assert job.result["resumed_from"] == stop_at
    for name in ("loss", "frechet", "mode_collapse", "augment_p"):
        assert job.result[name] == whole[name], name
    for name in ("generator", "generator_live", "discriminator"):
        ours, theirs = runner.weights("mine", name), runner.weights("whole", name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.timeout(900)
def test_a_training_whose_worker_is_killed_goes_on_in_another_process_bitwise_equal(
    runner: Runner,
    dataset: Dataset,
    start_python: Callable[..., subprocess.Popen[bytes]],
    eventually: Callable[..., Any],
) -> None:
    watch = {"every_steps": 20, "samples": 16, "warmup_steps": 0, "action": "raise_augmentation", "patience": 1}
    plan: dict[str, Any] = {"kimg": 0.48, "checkpoint_every": 25, "snapshot_every": 20, "mode_collapse": watch}
    whole = runner.submit(train(dataset, **plan, output_model="whole"))
    worker = ("-m", "worker", "--queues", "gan.train")
    calm = {"settings": runner.settings, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    first = start_python("first", *worker, **calm)
    eventually(lambda: runner.get(whole).state is State.SUCCEEDED, 300.0)
    broken = runner.submit(train(dataset, **plan))
    eventually(lambda: runner.step_of(broken) >= 28, 300.0)
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=60)
    checkpoint = runner.get(broken).checkpoint
    # The second where it was stored between the look and the signal.
    assert checkpoint is not None and checkpoint["step"] in (25, 50)

    def reaped() -> bool:
        with transaction(runner.engine) as conn:
            queue.reap(conn)
        return runner.get(broken).state is State.QUEUED

    eventually(reaped, 60.0)
    start_python("second", *worker, **calm)
    eventually(lambda: runner.get(broken).state is State.SUCCEEDED, 300.0)
    ours, theirs = runner.get(broken).result, runner.get(whole).result
    assert ours is not None and theirs is not None
    assert (ours["resumed_from"], theirs["resumed_from"]) == (checkpoint["step"], None)
    # Weights, average, optimizers, augmentation, random states, position in the data, losses, snapshots, the watch.
    assert runner.checkpoint_files(broken, 50) == runner.checkpoint_files(whole, 50)
    for name in ("loss", "frechet", "mode_collapse", "augment_p", "stopped"):
        assert ours[name] == theirs[name], name
    for name in ("generator", "generator_live", "discriminator"):
        resumed, expected = runner.weights("mine", name), runner.weights("whole", name)
        assert all(torch.equal(resumed[key], expected[key]) for key in expected)
