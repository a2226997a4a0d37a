"""`calotype submit` for the GAN family: which spec the options become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from calotype import specs
from calotype.cli import submit

Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def invoke() -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(submit.app, list(arguments))


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., Result]) -> Spec:
    """The spec that a command would submit, held against the product's own rules."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(submit.Submission, "submit", lambda submission, spec: sent.append(spec))

    def of(*arguments: str) -> dict[str, Any]:
        ended = invoke(*arguments)
        assert ended.exit_code == 0, ended.output
        made = sent.pop()
        specs.parse(made)
        return made

    return of


def test_a_gan_needs_no_prompt(spec: Spec) -> None:
    assert spec("generate", "--family", "gan", "--model", "mine", "-n", "4", "--seed", "7") == {
        "kind": "generate",
        "family": "gan",
        "model": "mine",
        "input": {"num_images": 4, "seed": 7},
    }


def test_without_a_name_the_gan_that_ships_is_meant(spec: Spec) -> None:
    assert spec("generate", "--family", "gan")["model"] == "starter-gan"


def test_options_of_a_gan_become_its_input(spec: Spec) -> None:
    options = ("--truncation-psi", "0.7", "--label", "red", "--mix-styles", "5:2-9", "--interpolate", "12")
    made = spec("generate", "--family", "gan", "--model", "mine@2", "-n", "2", *options)
    assert (made["model"], made["input"]) == (
        "mine@2",
        {
            "num_images": 2,
            "truncation_psi": 0.7,
            "label": "red",
            "style_mixing": {"seed": 5, "first_layer": 2, "last_layer": 9},
            "interpolation": {"frames": 12},
        },
    )
    short = spec("generate", "--family", "gan", "--model", "mine", "--mix-styles", "5")
    assert short["input"]["style_mixing"] == {"seed": 5}


@pytest.mark.parametrize("text", ["", "x", "5:", "5:2", "5:2-", "-5"])
def test_styles_are_mixed_by_a_seed_and_perhaps_layers(invoke: Callable[..., Result], text: str) -> None:
    ended = invoke("generate", "--family", "gan", "--model", "mine", f"--mix-styles={text}")
    assert ended.exit_code == 2
    assert "is not SEED or SEED:FIRST-LAST" in ended.output


def test_a_diffusion_model_still_needs_its_prompt_and_steps(invoke: Callable[..., Result], spec: Spec) -> None:
    assert "a diffusion model needs one" in invoke("generate").output
    assert "needs it" in invoke("train", "--dataset", "d", "--output-model", "m").output
    assert spec("generate", "-p", "a bird")["model"] == "starter-diffusion"
    trained = spec("train", "--dataset", "d", "--output-model", "m", "--steps", "3")
    assert trained["model"] == "starter-diffusion"


def test_a_gan_is_trained_from_random_weights_unless_a_model_is_named(spec: Spec) -> None:
    options = ("--kimg", "50", "--architecture", "r3gan", "--resolution", "64", "--resize", "pad", "--conditional")
    made = spec(
        "train", "--family", "gan", "--dataset", "d", "--output-model", "m", *options, "--augment", "none",
        "--r1-gamma", "2", "--on-collapse", "stop", "--channel-base", "2048", "--channel-max", "64",
    )  # fmt: skip
    assert "model" not in made
    assert made["input"] == {
        "dataset": "d", "output_model": "m", "kimg": 50, "architecture": "r3gan", "resolution": 64, "resize": "pad",
        "conditional": True, "augment": "none", "r1_gamma": 2, "mode_collapse": {"action": "stop"},
        "channel_base": 2048, "channel_max": 64,
    }  # fmt: skip
    again = spec("train", "--family", "gan", "--model", "m", "--dataset", "d", "--output-model", "m", "--kimg", "1")
    assert again["model"] == "m"


def test_contenders_of_two_families_stand_in_one_benchmark(spec: Spec) -> None:
    contenders = ("--contender", "starter-diffusion+brand:0.5", "--contender", "gan:mine")
    made = spec("benchmark", "--dataset", "d", *contenders)
    assert made["input"]["contenders"] == [
        {
            "family": "diffusion",
            "model": "starter-diffusion",
            "name": "starter-diffusion+brand:0.5",
            "adapters": [{"model": "brand", "scale": 0.5}],
        },
        {"family": "gan", "model": "mine"},
    ]
    alone = spec("benchmark", "--family", "gan", "--dataset", "d", "--contender", "mine")
    assert alone["input"]["contenders"] == [{"family": "gan", "model": "mine"}]
