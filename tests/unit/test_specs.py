"""Requests: what is accepted, and how what is not says so."""

from __future__ import annotations

from typing import Any

import pytest

from calotype import specs
from calotype.errors import Invalid
from calotype.jobs import QUEUES, SERVED_QUEUES

GENERATE: dict[str, Any] = {
    "kind": "generate",
    "family": "diffusion",
    "model": "starter-diffusion",
    "input": {"prompt": "blue bird logo"},
}
TRAIN: dict[str, Any] = {
    "kind": "train",
    "family": "diffusion",
    "model": "starter-diffusion",
    "input": {"dataset": "ds_1", "steps": 10, "output_model": "mine"},
}
BENCHMARK: dict[str, Any] = {
    "kind": "benchmark",
    "input": {
        "contenders": [{"family": "diffusion", "model": "a"}, {"family": "diffusion", "model": "b"}],
        "dataset": "d",
    },
}


def _with(request: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**request, "input": {**request["input"], **fields}}


def _refusal(request: object) -> Invalid:
    with pytest.raises(Invalid) as caught:
        specs.parse(request)
    return caught.value


@pytest.mark.parametrize("request_", [GENERATE, TRAIN, BENCHMARK], ids=["generate", "train", "benchmark"])
def test_a_request_with_the_least_fields_is_accepted(request_: dict[str, Any]) -> None:
    parsed = specs.parse(request_)
    assert (parsed.kind, parsed.family, parsed.priority) == (request_["kind"], "diffusion", 5)


@pytest.mark.parametrize(
    "model", [specs.DiffusionGenerate, specs.DiffusionTrain, specs.GanGenerate, specs.GanTrain, specs.Benchmark]
)
def test_every_example_in_the_schema_is_a_valid_request(model: type[specs.Request]) -> None:
    for example in model.model_json_schema()["examples"]:
        assert specs.parse(example).kind == example["kind"]


@pytest.mark.parametrize(
    ("request_", "loc", "remedy"),
    [
        ([], (), "JSON object"),
        ({}, ("kind",), "choose one of train, generate, benchmark"),
        ({"kind": "paint"}, ("kind",), "'paint' is not known"),
        ({"kind": "generate", "family": "vae"}, ("family",), "choose one of diffusion"),
        (_with(GENERATE, promt="x"), ("input", "promt"), "did you mean prompt?"),
        (_with(GENERATE, num_images="4"), ("input", "num_images"), "got '4'"),
        (_with(GENERATE, num_images=0), ("input", "num_images"), "greater than or equal to 1"),
        (_with(GENERATE, seed=2**53), ("input", "seed"), "less than or equal"),
        (_with(GENERATE, strength=0.5), ("input",), "strength needs init_image"),
        (_with(GENERATE, guidance_scale=float("nan")), ("input", "guidance_scale"), "finite"),
        (_with(GENERATE, prompt=""), ("input", "prompt"), "at least 1 character"),
        ({**GENERATE, "webhok": {"url": "https://x"}}, ("webhok",), "did you mean webhook?"),
        ({**GENERATE, "webhook": {}}, ("webhook", "url"), "is required"),
        ({**GENERATE, "webhook": {"url": "https://x", "events": []}}, ("webhook", "events"), "known here: url, secret"),
        ({**GENERATE, "webhook": {"url": "https://u:p@x"}}, ("webhook", "url"), "user or password"),
        ({**GENERATE, "webhook": {"url": "https://x", "secret": "s"}}, ("webhook", "secret"), "whsec_"),
        ({**GENERATE, "priority": 10}, ("priority",), "less than or equal to 9"),
        ({**GENERATE, "model": "No Such"}, ("model",), "pattern"),
        ({**GENERATE, "metadata": {"a": 1}}, ("metadata", "a"), "string"),
        (_with(TRAIN, learning_rate=0), ("input", "learning_rate"), "greater than 0"),
        ({**TRAIN, "input": {"steps": 1}}, ("input", "dataset"), "is required"),
        (_with(BENCHMARK, metrics=["fid"]), ("input", "metrics", 0), "'fd'"),
        (_with(BENCHMARK, contenders=[]), ("input", "contenders"), "at least 1"),
        (_with(BENCHMARK, batch_sizes=[1, 1]), ("input",), "listed twice"),
    ],
)
def test_a_wrong_request_names_the_field_and_the_remedy(
    request_: object, loc: tuple[str | int, ...], remedy: str
) -> None:
    errors = {error.loc: error.msg for error in _refusal(request_).errors}
    assert remedy in errors[loc]


def test_every_mistake_is_named_at_once() -> None:
    refusal = _refusal({**_with(GENERATE, steps=0, width=7), "priority": 99})
    assert {error.loc[-1] for error in refusal.errors} == {"steps", "width", "priority"}


@pytest.mark.parametrize("queue", sorted(set(QUEUES) - set(SERVED_QUEUES)))
def test_what_no_code_serves_is_unavailable_and_not_a_typing_mistake(queue: str) -> None:
    family, kind = queue.split(".")
    contender = {"family": family, "model": "m"}
    body: dict[str, Any] = {"kind": kind, "family": family, "model": "m", "input": {}}
    if kind == "benchmark":
        body = _with(BENCHMARK, contenders=[contender])
    assert _refusal(body).code == "family_unavailable"


def test_a_benchmark_needs_different_names() -> None:
    twice = {"family": "diffusion", "model": "a"}
    assert "a name of its own" in _refusal(_with(BENCHMARK, contenders=[twice, twice])).detail
    assert specs.parse(_with(BENCHMARK, contenders=[twice, {**twice, "name": "again"}]))


@pytest.mark.parametrize(
    "webhook", [{"url": "https://x", "secret": "whsec_mine"}, {"url": "https://mine@x"}, {"url": "mine"}, "mine"]
)
def test_a_mistake_in_a_webhook_is_told_without_what_was_given(webhook: object) -> None:
    refusal = _refusal({**GENERATE, "webhook": webhook})
    assert "mine" not in refusal.detail
    assert "mine" not in str(refusal.__cause__)


def test_a_parsed_webhook_does_not_show_its_secret() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    parsed = specs.parse({**GENERATE, "webhook": {"url": "https://x", "secret": secret}})
    assert parsed.webhook is not None and parsed.webhook.secret is not None
    assert parsed.webhook.secret.get_secret_value() == secret
    for shown in (repr(parsed), parsed.model_dump_json(), str(parsed.model_dump())):
        assert secret not in shown


def test_a_parsed_request_survives_json() -> None:
    parsed = specs.parse(_with(GENERATE, adapters=[{"model": "a@1"}], seed=7))
    assert specs.parse(parsed.model_dump(mode="json")) == parsed
