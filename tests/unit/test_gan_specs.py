"""What may be asked of a GAN."""

from __future__ import annotations

from typing import Any

import pytest

from calotype import specs
from calotype.errors import Invalid
from calotype.specs.gan import MAX_FRAMES

FILM = {"frames": 10}


def request(**wishes: Any) -> dict[str, Any]:
    return {"kind": "generate", "family": "gan", "model": "g", "input": wishes}


def refusal(body: dict[str, Any]) -> dict[tuple[str | int, ...], str]:
    with pytest.raises(Invalid) as refused:
        specs.parse(body)
    return {error.loc: error.msg for error in refused.value.errors}


def test_nothing_but_the_model_needs_to_be_said() -> None:
    parsed = specs.parse(request())
    assert isinstance(parsed, specs.GanGenerate)
    assert parsed.input == specs.GanGenerateInput(num_images=1)


@pytest.mark.parametrize(
    ("wishes", "loc", "message"),
    [
        ({"num_images": 0}, ("input", "num_images"), "greater than or equal to 1"),
        ({"num_images": 65}, ("input", "num_images"), "less than or equal to 64"),
        ({"truncation_psi": 2.1}, ("input", "truncation_psi"), "less than or equal to 2"),
        ({"prompt": "a bird"}, ("input", "prompt"), "unknown field; known here: num_images, seed, truncation_psi"),
        ({"truncation": 1}, ("input", "truncation"), "did you mean truncation_psi?"),
        ({"label": ""}, ("input", "label"), "at least 1 character"),
        ({"style_mixing": {}}, ("input", "style_mixing", "seed"), "is required"),
        (
            {"style_mixing": {"seed": 1, "first_layer": 4, "last_layer": 3}},
            ("input", "style_mixing"),
            "first_layer (4) comes after last_layer (3)",
        ),
        ({"interpolation": FILM}, ("input",), "set num_images to 2 or more"),
        (
            {"interpolation": {"frames": 16}, "num_images": 64},
            ("input",),
            f"has 1024 frames, and {MAX_FRAMES} at most are made",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_field(
    wishes: dict[str, Any], loc: tuple[str | int, ...], message: str
) -> None:
    assert message in refusal(request(**wishes))[loc]


@pytest.mark.parametrize(
    ("images", "film", "frames", "made"),
    [
        (4, None, 0, 4),
        (4, {"frames": 10}, 40, 40),
        (4, {"frames": 10, "loop": False}, 31, 31),
        (2, {"frames": 1}, 2, 2),
        (2, {"frames": 1, "loop": False}, 2, 2),
    ],
)
def test_frames_are_counted_without_the_images_twice(
    images: int, film: dict[str, Any] | None, frames: int, made: int
) -> None:
    parsed = specs.parse(request(num_images=images, interpolation=film))
    assert isinstance(parsed, specs.GanGenerate)
    assert (parsed.input.num_frames, parsed.input.num_made) == (frames, made)


@pytest.mark.parametrize(
    ("contender", "field"),
    [
        ({"family": "gan", "steps": 3}, "steps"),
        ({"family": "gan", "guidance_scale": 1.0}, "guidance_scale"),
        ({"family": "gan", "adapters": [{"model": "a"}]}, "adapters"),
        ({"family": "diffusion", "truncation_psi": 0.7}, "truncation_psi"),
    ],
)
def test_a_contender_has_only_what_its_family_knows(contender: dict[str, Any], field: str) -> None:
    body = {"kind": "benchmark", "input": {"dataset": "d", "contenders": [{"model": "m", **contender}]}}
    message = f"{field} has no meaning for the {contender['family']} family; leave it out"
    assert message in refusal(body)[("input", "contenders", 0)]


@pytest.mark.parametrize(("first", "second"), [("gan", "diffusion"), ("diffusion", "gan")])
def test_families_are_compared_in_one_benchmark_which_the_first_ones_workers_run(first: str, second: str) -> None:
    contenders = [{"family": first, "model": "a"}, {"family": second, "model": "b"}]
    parsed = specs.parse({"kind": "benchmark", "input": {"dataset": "d", "contenders": contenders}})
    assert parsed.family == first


def test_a_parsed_request_survives_json() -> None:
    parsed = specs.parse(
        request(num_images=2, seed=7, style_mixing={"seed": 1, "first_layer": 2}, interpolation={"loop": False})
    )
    assert specs.parse(parsed.model_dump(mode="json")) == parsed
