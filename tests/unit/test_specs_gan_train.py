"""What a GAN's training may be asked for, and how submission completes it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from api.examples import JOB_EXAMPLES
from calotype.datasets import Dataset
from calotype.errors import Invalid, NotFound
from calotype.jobs import Family
from calotype.registry import ModelVersion
from calotype.specs.gan_train import GanTrain, GanTrainInput
from calotype.submission.gan_train import train

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DATASET = Dataset(
    id="ds_1",
    tenant_id=None,
    name="logos",
    digest="",
    object_key="",
    bytes=1,
    images=100,
    captions=False,
    labels=("blue", "red"),
    created_at=NOW,
)
MODEL = ModelVersion(
    id=UUID(int=1),
    name="old",
    version=3,
    tenant_id=None,
    family=Family.GAN,
    architecture="r3gan",
    base=None,
    digest="",
    files=(),
    source={},
    licence=None,
    parameters={"resolution": 64, "labels": ["blue", "red"]},
    job_id=None,
    created_at=NOW,
)


class Known:
    """References to one dataset and one model."""

    def __init__(self, dataset: Dataset = DATASET, model: ModelVersion = MODEL, taken: bool = False) -> None:
        self._dataset, self._model, self._taken = dataset, model, taken

    def version(self, ref: str) -> ModelVersion:
        if ref.partition("@")[0] != self._model.name:
            raise NotFound(f"There is no model {ref!r}.")
        return self._model

    def dataset(self, ref: str) -> Dataset:
        if ref not in ("logos", "ds_1"):
            raise NotFound(f"There is no dataset {ref!r}.")
        return self._dataset

    def init_image(self, text: str) -> str:
        raise NotImplementedError

    def is_taken(self, name: str, family: Family) -> bool:
        return self._taken


def request(model: str | None = None, **changes: Any) -> GanTrain:
    values: dict[str, Any] = {"dataset": "logos", "kimg": 100.0, "output_model": "mine"}
    if model is None:
        values["resolution"] = 64
    body = {"kind": "train", "family": "gan", "model": model, "input": values | changes}
    return GanTrain.model_validate(body)


def refused(asked: GanTrain, known: Known | None = None) -> tuple[tuple[str | int, ...], str]:
    with pytest.raises(Invalid) as caught:
        train(known or Known(), asked)
    (error,) = caught.value.errors
    return tuple(error.loc), error.msg


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 48}, "power of two; nearest: 32 or 64"),
        ({"resolution": 8}, "greater than or equal to 16"),
        ({"kimg": 0.0}, "greater than 0"),
        ({"architecture": "stylegan2"}, "stylegan3-t"),
        ({"augmentations": ["scale", "scale"]}, "listed twice"),
        ({"augmentations": []}, "at least 1"),
        ({"augment": "none", "augment_p": 0.5}, "augment_p has no use"),
        ({"mode_collapse": {"action": "panic"}}, "warn"),
        ({"mode_collapse": {"samples": 8}}, "greater than or equal to 16"),
        ({"r1_gama": 1.0}, "Extra inputs"),
        ({"frechet_samples": 1}, "greater than or equal to 2"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], words: str) -> None:
    values = {"dataset": "logos", "resolution": 64, "kimg": 1.0, "output_model": "mine"}
    with pytest.raises(ValidationError, match=words):
        GanTrainInput(**(values | changes))


def examples() -> dict[str, Any]:
    (of_the_schema,) = GanTrain.model_json_schema()["examples"]
    (of_the_api,) = (example.value for example in JOB_EXAMPLES if example.name == "train_gan")
    page = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    (of_the_page,) = re.findall(
        r"-d '(\{\s*\"kind\": \"train\", \"family\": \"gan\".*?\})'$", page, re.MULTILINE | re.DOTALL
    )
    return {"schema": of_the_schema, "api": of_the_api, "page": json.loads(of_the_page)}


@pytest.mark.parametrize("where", ["schema", "api", "page"])
def test_the_examples_can_be_sent_to_a_machine_without_a_gpu(where: str) -> None:
    given = GanTrain.model_validate(examples()[where]).input
    assert given.kimg <= 2 and given.frechet_samples <= 200
    assert given.channel_base is not None and given.channel_base <= 2048
    assert given.channel_max is not None and given.channel_max <= 64


@pytest.mark.parametrize("where", ["schema", "api", "page"])
def test_what_the_examples_show_happens_in_so_short_a_training(where: str) -> None:
    given = GanTrain.model_validate(examples()[where]).input
    steps = 1000 * given.kimg / given.batch_size
    assert given.mode_collapse is not None and given.mode_collapse.every_steps < steps / 2
    assert given.snapshot_every is not None and given.snapshot_every < steps / 2


def test_the_watch_can_be_turned_off() -> None:
    assert request(mode_collapse=None).input.mode_collapse is None


def test_a_completed_spec_leaves_nothing_open_and_is_completed_to_itself() -> None:
    job = train(Known(), request())
    whole = job["spec"]["input"]
    assert (job["model"], job["model_key"]) == (None, None)
    assert job["work"] == pytest.approx(100_000 * 64 * 64 / 1e6)
    assert whole["dataset"] == "ds_1"
    expected = {
        "architecture": "stylegan3-t",
        "resolution": 64,
        "conditional": False,
        "r1_gamma": 0.125,
        "r1_every": 16,
        "generator_lr": 0.0025,
        "discriminator_lr": 0.002,
        "ramp_kimg": 20.0,
        "ema_kimg": 10.0,
        "augment": "ada",
        "augment_p": 0.0,
        "channel_base": 32768,
        "channel_max": 512,
        "layers": 14,
    }
    assert {name: whole[name] for name in expected} == expected
    # What may stay open: a rule that no image may need, and an interval that follows from the rest.
    assert {name for name, value in whole.items() if value is None} == {"resize", "snapshot_every"}
    again = train(Known(), GanTrain.model_validate(job["spec"]))
    assert again["spec"] == job["spec"]


def test_what_is_given_stays() -> None:
    given = {
        "architecture": "r3gan",
        "conditional": True,
        "r1_gamma": 2.0,
        "r1_every": 4,
        "generator_lr": 1e-3,
        "augment": "fixed",
        "augment_p": 0.1,
        "ema_kimg": 5.0,
        "ramp_kimg": 3.0,
        "channel_base": 4096,
        "layers": 1,
        "seed": 11,
    }
    whole = train(Known(), request(**given))["spec"]["input"]
    assert {name: whole[name] for name in given} == given
    assert (whole["discriminator_lr"], whole["channel_max"]) == (2e-4, 768)


def test_r3gan_is_augmented_by_a_course_if_nobody_says_otherwise() -> None:
    whole = train(Known(), request(architecture="r3gan"))["spec"]["input"]
    assert (whole["augment"], whole["augment_p"], whole["r1_every"]) == ("fixed", 0.3, 1)


def test_from_a_model_its_shape_is_taken() -> None:
    job = train(Known(), request("old"))
    whole = job["spec"]["input"]
    assert (job["model"], job["model_key"], job["spec"]["model"]) == ("old@3", MODEL.key, "old@3")
    assert (whole["architecture"], whole["resolution"], whole["conditional"]) == ("r3gan", 64, True)
    assert (whole["channel_base"], whole["layers"]) == (None, None)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"architecture": "stylegan3-t"}, "architecture", "old@3 has r3gan, not stylegan3-t"),
        ({"resolution": 128}, "resolution", "old@3 has 64, not 128"),
        ({"conditional": False}, "conditional", "old@3 has true, not false"),
        ({"channel_base": 1024}, "channel_base", "matter of old@3"),
        ({"layers": 3}, "layers", "matter of old@3"),
    ],
)
def test_a_model_of_another_shape_is_refused(changes: dict[str, Any], field: str, words: str) -> None:
    loc, message = refused(request("old", **changes))
    assert loc == ("input", field)
    assert words in message


@pytest.mark.parametrize("resolution", [8, 4096])
def test_a_model_of_a_size_that_nothing_is_trained_at_is_refused(resolution: int) -> None:
    model = replace(MODEL, parameters=MODEL.parameters | {"resolution": resolution})
    loc, message = refused(request("old", resolution=None), Known(model=model))
    assert loc == ("model",)
    assert f"old@3 makes images of {resolution} pixels a side; models of 16 to 2048" in message


def test_a_model_of_other_labels_is_refused() -> None:
    loc, message = refused(request("old"), Known(replace(DATASET, labels=("blue", "green"))))
    assert loc == ("input", "dataset")
    assert "has not the labels of old@3" in message


def test_without_a_model_a_resolution_is_needed() -> None:
    loc, message = refused(request(resolution=None))
    assert (loc, message) == (("input", "resolution"), "is required where training does not start from a model")


def test_fewer_images_than_a_batch_are_refused() -> None:
    loc, message = refused(request(batch_size=101))
    assert loc == ("input", "batch_size")
    assert "has 100 images, fewer than one batch of 101" in message


def test_labels_that_are_missing_are_refused() -> None:
    loc, message = refused(request(conditional=True), Known(replace(DATASET, labels=())))
    assert loc == ("input", "conditional")
    assert "ds_1 has no labels" in message


def test_a_name_that_is_taken_and_a_dataset_that_is_unknown_are_refused() -> None:
    assert refused(request(), Known(taken=True))[0] == ("input", "output_model")
    assert refused(request(dataset="none"))[0] == ("input", "dataset")
    assert refused(request("new"))[0] == ("model",)
    assert "diffusion model" in refused(request("old"), Known(model=replace(MODEL, family=Family.DIFFUSION)))[1]
