"""GAN jobs through the real queue, store and registry, run by a real executor in this process."""

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

import numpy as np
import pytest
import small_gan
import tiny_sd3
from fake_contender import disc
from PIL import Image
from sqlalchemy import Engine

from calotype import lookup, queue, specs, submission
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, transaction
from calotype.datasets import Dataset, DatasetLimits
from calotype.datasets.importing import import_archive
from calotype.doorbell import Doorbell
from calotype.errors import Invalid
from calotype.gan_description import registry_parameters
from calotype.jobs import Artifact, Family, Job, State
from calotype.registry import ModelFile, ModelVersion
from calotype.settings import Settings
from calotype.tenants import Tenant

QUEUES = ("gan.generate", "gan.benchmark")
MakeModel = Callable[..., ModelVersion]
Pixels = np.ndarray[Any, Any]


def stored(store: ObjectStore, name: str, folder: Path) -> list[ModelFile]:
    """The files of a folder, put into the store."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        place, data = path.relative_to(folder).as_posix(), path.read_bytes()
        store.put_bytes(f"models/{name}/{place}", data)
        digest = hashlib.sha256(data).hexdigest()
        files.append(ModelFile(path=place, object_key=f"models/{name}/{place}", bytes=len(data), sha256=digest))
    return files


@pytest.fixture
def make_gan(store: ObjectStore, make_model: MakeModel, tmp_path: Path) -> Callable[..., ModelVersion]:
    """``make_gan(name, architecture)`` registers a small one, truncated to 0.7 unless told otherwise."""

    def make(name: str = "tiny-gan", architecture: str = "stylegan3-t", *, seed: int = 0) -> ModelVersion:
        folder = tmp_path / name
        description = small_gan.save_small_gan(folder, architecture, seed=seed)
        return make_model(
            name,
            family=Family.GAN,
            architecture=architecture,
            files=stored(store, name, folder),
            parameters=registry_parameters(description, 0.7),
        )

    return make


class Runner:
    """Submits jobs and runs them here and now."""

    def __init__(self, settings: Settings, engine: Engine, store: ObjectStore, tenant: Tenant, worker: UUID) -> None:
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
            return queue.submit(conn, submission.prepare(conn, (tenant or self.tenant).id, specs.parse(request)))

    def work_together(self, jobs: list[Job]) -> list[Job]:
        """Claim what comes next, which must be these jobs, run them in one batch, and give them as they are then."""
        from worker.execution import Executor

        executor = Executor(
            engine=self.engine,
            lease_engine=self.lease_engine,
            settings=self.settings,
            store=self.store,
            models=self.models,
            doorbell=self.doorbell,
            shutdown=threading.Event(),
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

    def run(self, request: dict[str, Any]) -> Job:
        (job,) = self.work_together([self.submit(request)])
        return job

    def artifacts(self, job: Job) -> list[Artifact]:
        with transaction(self.engine) as conn:
            return lookup.artifacts_of(conn, [job.id]).get(job.id, [])

    def images(self, job: Job) -> list[Pixels]:
        assert job.state is State.SUCCEEDED, job.error
        found = [one for one in self.artifacts(job) if one.content_type == "image/png"]
        files = [self.store.get_bytes(artifact.object_key) for artifact in found]
        return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]


@pytest.fixture
def runner(
    settings: Settings, engine: Engine, store: ObjectStore, tenant: Tenant, make_worker: Callable[..., UUID]
) -> Iterator[Runner]:
    made = Runner(settings, engine, store, tenant, make_worker(queues=QUEUES))
    yield made
    made.close()


def wish(model: str = "tiny-gan", cache: str = "bypass", **wishes: Any) -> dict[str, Any]:
    return {"kind": "generate", "family": "gan", "model": model, "cache": cache, "input": wishes}


def same(pictures: list[Pixels], others: list[Pixels]) -> bool:
    """Equal up to one of 255 levels of rounding."""
    pairs = list(zip(pictures, others, strict=True))
    assert all(float(one.std()) > 1 for one, _ in pairs), "flat images are all alike"
    return all(int(np.abs(one - other).max()) <= 1 for one, other in pairs)


@pytest.mark.parametrize("architecture", ["stylegan3-t", "r3gan"])
def test_images_depend_on_their_seed_only_alone_and_across_tenants_in_one_batch(
    architecture: str, runner: Runner, make_gan: Callable[..., ModelVersion], make_tenant: Callable[..., Tenant]
) -> None:
    make_gan(architecture=architecture)
    other = make_tenant()
    wishes: list[dict[str, Any]] = [{"seed": 3, "num_images": 2}, {"seed": 100}, {"seed": 4, "label": "blue"}]
    jobs = [runner.submit(wish(**one), other if number == 1 else None) for number, one in enumerate(wishes)]
    together = runner.work_together(jobs)
    # The limit of one call is four images here.
    assert [(job.result or {})["batch_size"] for job in together] == [4, 4, 4]
    alone = [runner.run(wish(**one)) for one in wishes]
    assert same(runner.images(together[0]), runner.images(alone[0]))
    assert same(runner.images(together[2]), runner.images(alone[2]))
    first, second = runner.images(alone[0])
    assert not same([first], [second])
    assert [one.seed for one in runner.artifacts(alone[0])] == [3, 4]
    with transaction(runner.engine) as conn:
        found = lookup.artifacts_of(conn, [jobs[1].id])[jobs[1].id]
    assert [one.seed for one in found] == [100]


def test_a_spec_is_completed_with_what_the_model_does(runner: Runner, make_gan: Callable[..., ModelVersion]) -> None:
    make_gan()
    given = runner.submit(wish(style_mixing={"seed": 5})).spec
    assert given["model"] == "tiny-gan@1"
    assert given["input"]["truncation_psi"] == 0.7
    assert given["input"]["style_mixing"] == {"seed": 5, "first_layer": 3, "last_layer": 5}
    assert 0 <= given["input"]["seed"] < 2**32
    assert specs.parse(given).model_dump(mode="json") == given


@pytest.mark.parametrize(
    ("model", "wishes", "loc", "message"),
    [
        ("tiny-gan", {"label": "pink"}, ("input", "label"), "tiny-gan@1 has no label 'pink'; it has: red, green, blue"),
        (
            "tiny-gan",
            {"style_mixing": {"seed": 1, "last_layer": 6}},
            ("input", "style_mixing", "last_layer"),
            "has the style layers 0 to 5, got 6",
        ),
        ("plain", {"truncation_psi": 0.5}, ("input", "truncation_psi"), "plain@1 is a r3gan model, which has no trunc"),
        ("plain", {"style_mixing": {"seed": 1}}, ("input", "style_mixing"), "which has no styles"),
        ("small-model", {}, ("model",), "small-model@1 is a diffusion model"),
        ("nothing", {}, ("model",), "no model 'nothing'"),
    ],
)
def test_what_the_model_cannot_do_is_refused_at_once(
    model: str,
    wishes: dict[str, Any],
    loc: tuple[str, ...],
    message: str,
    runner: Runner,
    make_gan: Callable[..., ModelVersion],
    make_model: MakeModel,
) -> None:
    make_gan()
    make_gan("plain", "r3gan")
    make_model()
    with pytest.raises(Invalid) as refused:
        runner.submit(wish(model, **wishes))
    (error,) = refused.value.errors
    assert error.loc == loc
    assert message in error.msg


def test_an_animation_too_large_for_memory_is_refused_with_what_would_do(runner: Runner, make_model: MakeModel) -> None:
    parameters = {"resolution": 1024, "labels": None, "style_layers": 16, "default_truncation_psi": 1.0}
    make_model("large", family=Family.GAN, architecture="stylegan3-t", parameters=parameters)
    runner.submit(wish("large", num_images=4, interpolation={"frames": 64}))
    with pytest.raises(Invalid, match="it has 260 frames; at 1024 x 1024 pixels 256 at most are made"):
        runner.submit(wish("large", num_images=4, interpolation={"frames": 65}))


def test_an_animation_is_published_beside_the_images(runner: Runner, make_gan: Callable[..., ModelVersion]) -> None:
    make_gan()
    job = runner.run(wish(num_images=2, seed=1, interpolation={"frames": 12}))
    assert job.state is State.SUCCEEDED, job.error
    assert job.result is not None and job.result["frames"] == 24
    *images, film = runner.artifacts(job)
    assert [one.name for one in images] == ["image-000.png", "image-001.png"]
    assert (film.name, film.content_type, film.width, film.seed) == ("interpolation.webp", "image/webp", 16, 1)
    with Image.open(io.BytesIO(runner.store.get_bytes(film.object_key))) as opened:
        assert opened.format == "WEBP"
        assert getattr(opened, "is_animated", False)


def test_an_equal_job_is_answered_without_a_worker_and_a_new_version_is_not_equal(
    runner: Runner, make_gan: Callable[..., ModelVersion]
) -> None:
    make_gan()
    first = runner.run(wish(seed=1, label="red", cache="use"))
    again = runner.submit(wish(seed=1, label="red", cache="use"))
    assert (first.state, again.state) == (State.SUCCEEDED, State.SUCCEEDED)
    assert [one.sha256 for one in runner.artifacts(again)] == [one.sha256 for one in runner.artifacts(first)]
    assert runner.submit(wish(seed=1, label="blue", cache="use")).state is State.QUEUED
    make_gan(seed=1)
    assert runner.submit(wish(seed=1, label="red", cache="use")).state is State.QUEUED


def test_weights_that_do_not_fit_their_description_fail_the_job_with_the_name(
    runner: Runner, make_gan: Callable[..., ModelVersion], store: ObjectStore, make_model: MakeModel
) -> None:
    sound, other = make_gan(), make_gan("other", "r3gan")
    files = [next(f for f in sound.files if f.path == "generator.safetensors")]
    files.append(next(f for f in other.files if f.path == "model.json"))
    make_model("mixed", family=Family.GAN, architecture="r3gan", files=files, parameters=other.parameters)
    job = runner.run(wish("mixed"))
    assert (job.state, job.error and job.error.code) == (State.FAILED, "model_unavailable")
    assert job.error is not None
    assert "mixed@1 cannot be read: generator.safetensors lacks basis.basis" in job.error.detail


@pytest.fixture
def dataset(engine: Engine, store: ObjectStore, tenant: Tenant, settings: Settings, tmp_path: Path) -> Dataset:
    """Eight discs with labels, three quarters of them red."""
    path = tmp_path / "heldout.zip"
    with zipfile.ZipFile(path, "w") as archive:
        rows = []
        for number in range(8):
            picture = io.BytesIO()
            disc(number).save(picture, "PNG")
            archive.writestr(f"{number}.png", picture.getvalue())
            rows.append({"file_name": f"{number}.png", "label": "blue" if number % 4 == 0 else "red"})
        archive.writestr("metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    return import_archive(engine, store, tenant.id, path, "heldout", DatasetLimits.of(settings))


def test_gans_are_measured_beside_a_diffusion_model(
    runner: Runner,
    make_gan: Callable[..., ModelVersion],
    make_model: MakeModel,
    store: ObjectStore,
    dataset: Dataset,
    tmp_path: Path,
) -> None:
    make_gan()
    make_gan("plain", "r3gan")
    tiny_sd3.pipeline().save_pretrained(tmp_path / "tiny")
    make_model("tiny", files=stored(store, "tiny", tmp_path / "tiny"), parameters=tiny_sd3.PARAMETERS)
    contenders = [
        {"family": "gan", "model": "tiny-gan", "name": "half", "truncation_psi": 0.5},
        {"family": "gan", "model": "plain"},
        {"family": "diffusion", "model": "tiny", "steps": 2},
    ]
    asked = {
        "contenders": contenders, "dataset": dataset.id, "num_samples": 6, "batch_sizes": [1, 2], "timed_batches": 3,
        "seed": 11,
    }  # fmt: skip
    job = runner.run({"kind": "benchmark", "input": asked})
    assert job.state is State.SUCCEEDED, job.error
    assert job.queue == "gan.benchmark"
    assert job.result is not None
    half, plain, diffusion = job.result["contenders"]
    assert [one["status"] for one in (half, plain, diffusion)] == ["succeeded"] * 3
    assert [one["name"] for one in job.result["decision_matrix"]["columns"]] == ["half", "plain", "tiny"]
    assert all(one["fd"]["value"] > 0 and one["flops_per_image"] > 0 for one in (half, plain, diffusion))
    assert (half["truncation_psi"], plain["truncation_psi"]) == (0.5, 1.0)
    assert half["labels"] == plain["labels"] == "drawn as often as in the dataset"
    (report,) = [one for one in runner.artifacts(job) if one.name == "report.html"]
    page = runner.store.get_bytes(report.object_key).decode()
    assert '<td class="num">–</td><td class="num">–</td><td class="num">0.5</td>' in page
    assert any(caveat.startswith("half reads no prompts") for caveat in job.result["caveats"])
