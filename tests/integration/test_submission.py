"""A valid request becomes a job that leaves nothing open, or an error that names the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from calotype import queue, specs, submission
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.datasets import find_dataset
from calotype.errors import Invalid
from calotype.jobs import Artifact, Family, Job
from calotype.queue import NewJob
from calotype.registry import ModelVersion
from calotype.tenants import Tenant

GENERATE: dict[str, Any] = {
    "kind": "generate",
    "family": "diffusion",
    "model": "small-model",
    "input": {"prompt": "blue bird logo"},
}


@pytest.fixture
def prepare(
    engine: Engine, store: ObjectStore, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> Callable[..., NewJob]:
    make_model("small-model")

    def run(request: dict[str, Any], **fields: Any) -> NewJob:
        body = {**request, "input": {**request["input"], **fields}}
        with transaction(engine) as conn:
            return submission.prepare(conn, tenant.id, specs.parse(body))

    return run


@pytest.fixture
def dataset(engine: Engine, tenant: Tenant) -> str:
    """The id of a dataset row with two labels."""
    row = (
        "INSERT INTO datasets (id, tenant_id, name, state, digest, object_key, images, labels) "
        "VALUES ('ds_' || repeat('0', 32), :tenant, 'logos', 'ready', 'd', 'k', 2, '{blue,red}') RETURNING id"
    )
    with transaction(engine) as conn:
        return str(conn.execute(text(row), {"tenant": tenant.id}).scalar_one())


def _refusal(action: Callable[[], object]) -> tuple[str, tuple[str | int, ...], str]:
    with pytest.raises(Invalid) as caught:
        action()
    (error,) = caught.value.errors
    return caught.value.code, error.loc, error.msg


def test_what_is_left_out_is_filled_in_from_the_model(prepare: Callable[..., NewJob]) -> None:
    job = prepare(GENERATE)
    given = job.spec["input"]
    assert job.model == job.spec["model"] == "small-model@1"
    assert (given["width"], given["height"], given["steps"], given["guidance_scale"]) == (64, 64, 20, 3.0)
    assert 0 <= given["seed"] < 2**32


def test_what_is_given_stays(prepare: Callable[..., NewJob]) -> None:
    given = prepare(GENERATE, width=96, steps=7, guidance_scale=0.0, seed=0).spec["input"]
    assert (given["width"], given["steps"], given["guidance_scale"], given["seed"]) == (96, 7, 0.0, 0)


def test_a_complete_spec_is_a_valid_request_again(prepare: Callable[..., NewJob]) -> None:
    job = prepare(GENERATE)
    assert specs.parse(job.spec).model_dump(mode="json") == job.spec


def test_a_missing_seed_is_drawn_anew_each_time(prepare: Callable[..., NewJob]) -> None:
    assert prepare(GENERATE).spec["input"]["seed"] != prepare(GENERATE).spec["input"]["seed"]


def test_a_size_the_model_cannot_do_is_refused_with_the_nearest(prepare: Callable[..., NewJob]) -> None:
    code, loc, message = _refusal(lambda: prepare(GENERATE, height=65))
    assert (code, loc) == ("unsupported_size", ("input", "height"))
    assert "nearest: 64 or 72" in message


def test_more_steps_than_the_model_does_are_refused(prepare: Callable[..., NewJob]) -> None:
    _, loc, message = _refusal(lambda: prepare(GENERATE, steps=101))
    assert loc == ("input", "steps") and "at most 100" in message


def test_an_unknown_model_is_named(prepare: Callable[..., NewJob]) -> None:
    code, loc, message = _refusal(lambda: prepare({**GENERATE, "model": "nope"}))
    assert (code, loc) == ("unknown_model", ("model",)) and "'nope'" in message


def test_a_model_of_another_family_is_refused(
    prepare: Callable[..., NewJob], make_model: Callable[..., ModelVersion]
) -> None:
    make_model("a-gan", family=Family.GAN)
    _, loc, message = _refusal(lambda: prepare({**GENERATE, "model": "a-gan"}))
    assert loc == ("model",) and "a-gan@1 is a gan model" in message


def test_an_adapter_counts_as_a_model_with_its_base_sizes(
    prepare: Callable[..., NewJob], make_model: Callable[..., ModelVersion], tenant: Tenant
) -> None:
    make_model("brand", tenant_id=tenant.id, architecture="lora", base="small-model@1", parameters={})
    job = prepare({**GENERATE, "model": "brand"})
    assert job.model == "brand@1" and job.spec["input"]["width"] == 64
    given = prepare(GENERATE, adapters=[{"model": "brand"}]).spec["input"]
    assert given["adapters"] == [{"model": "brand@1", "scale": 1.0}]


def test_an_adapter_must_be_one_and_fit(
    prepare: Callable[..., NewJob], make_model: Callable[..., ModelVersion], tenant: Tenant
) -> None:
    make_model("other", tenant_id=tenant.id)
    make_model("brand", tenant_id=tenant.id, architecture="lora", base="other@1")
    assert "is not an adapter" in _refusal(lambda: prepare(GENERATE, adapters=[{"model": "other"}]))[2]
    assert "fits other@1" in _refusal(lambda: prepare(GENERATE, adapters=[{"model": "brand"}]))[2]


def test_training_pins_dataset_resolution_and_seed(prepare: Callable[..., NewJob], dataset: str) -> None:
    train = {"kind": "train", "family": "diffusion", "model": "small-model", "input": {"dataset": "logos", "steps": 5}}
    job = prepare(train, output_model="mine", label="blue")
    given = job.spec["input"]
    assert (given["dataset"], given["resolution"], given["alpha"]) == (dataset, 64, 16.0)
    assert isinstance(given["seed"], int)
    assert "has no label 'green'" in _refusal(lambda: prepare(train, output_model="mine", label="green"))[2]
    assert _refusal(lambda: prepare(train, output_model="small-model"))[1] == ("input", "output_model")
    assert _refusal(lambda: prepare(train, output_model="mine", dataset="nope"))[0] == "unknown_dataset"


def test_another_tenants_dataset_does_not_exist(
    engine: Engine, make_tenant: Callable[..., Tenant], dataset: str, store: ObjectStore
) -> None:
    stranger = make_tenant()
    body = {
        "kind": "benchmark",
        "input": {"contenders": [{"family": "diffusion", "model": "small-model"}], "dataset": dataset},
    }
    with pytest.raises(Invalid), transaction(engine) as conn:
        submission.prepare(conn, stranger.id, specs.parse(body))
    with transaction(engine) as conn, pytest.raises(Exception, match="no dataset"):
        find_dataset(conn, stranger.id, dataset)


def test_a_benchmark_pins_every_contender(prepare: Callable[..., NewJob], dataset: str) -> None:
    body = {
        "kind": "benchmark",
        "input": {
            "contenders": [
                {"family": "diffusion", "model": "small-model"},
                {"family": "diffusion", "model": "small-model", "name": "fast", "steps": 4},
            ],
            "dataset": "logos",
        },
    }
    job = prepare(body)
    first, second = job.spec["input"]["contenders"]
    assert job.model is None and job.spec["input"]["dataset"] == dataset
    assert (first["model"], first["name"], first["steps"]) == ("small-model@1", "small-model", 20)
    assert (second["name"], second["steps"], second["guidance_scale"]) == ("fast", 4, 3.0)


def test_an_init_image_must_be_one_that_the_tenant_may_use(
    engine: Engine,
    prepare: Callable[..., NewJob],
    dataset: str,
    make_job: Callable[..., Job],
    make_worker: Callable[..., Any],
) -> None:
    made = make_job()
    image = Artifact(name="image-0.png", object_key="k", content_type="image/png", bytes=1, sha256="0" * 64)
    worker = make_worker()
    with transaction(engine) as conn:
        queue.claim(conn, worker, ["diffusion.generate"], 60.0)
        queue.finish(conn, made.id, 1, queue.Outcome(result={}, artifacts=[image]))
    given = prepare(GENERATE, init_image=f"{made.id}/image-0.png").spec["input"]
    assert given["strength"] == 0.6
    assert prepare(GENERATE, init_image="logos/a.png").spec["input"]["init_image"] == f"{dataset}/a.png"
    for wrong in (f"{made.id}/other.png", "nope/a.png", "data:text/html;base64,AA==", "just-a-name"):
        assert _refusal(lambda wrong=wrong: prepare(GENERATE, init_image=wrong))[1] == ("input", "init_image")
