"""Jobs that make images with a GAN, as submission completes them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from calotype.errors import Invalid
from calotype.jobs import Family
from calotype.registry import ModelVersion
from calotype.specs import GanGenerate
from calotype.submission.gan import generate

MODEL = ModelVersion(
    id=UUID(int=1),
    name="mine",
    version=1,
    tenant_id=None,
    family=Family.GAN,
    architecture="stylegan3-t",
    base=None,
    digest="",
    files=(),
    source={},
    licence=None,
    parameters={"resolution": 64, "labels": None, "style_layers": 16, "default_truncation_psi": 0.7},
    job_id=None,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


class Known:
    """References to one model."""

    def __init__(self, side: int = 64) -> None:
        self._model = replace(MODEL, parameters={**MODEL.parameters, "resolution": side})

    def version(self, ref: str) -> ModelVersion:
        return self._model


def completed(side: int = 64, **wishes: Any) -> dict[str, Any]:
    request = GanGenerate.model_validate({"kind": "generate", "family": "gan", "model": "mine", "input": wishes})
    return generate(Known(side), request)  # type: ignore[arg-type]


def test_frames_are_work_but_no_images_that_are_counted() -> None:
    still, film = completed(num_images=3), completed(num_images=3, interpolation={"frames": 10})
    assert (still["units"], film["units"]) == (3, 3)
    assert film["work"] == pytest.approx(10 * still["work"])


def test_an_animation_shares_no_call() -> None:
    assert completed(num_images=3)["batch_key"] == completed(num_images=2, truncation_psi=0.5)["batch_key"] is not None
    assert completed(num_images=3, interpolation={"frames": 10})["batch_key"] is None


def test_images_are_limited_by_their_pixels_as_frames_are() -> None:
    assert completed(8192, num_images=4)["units"] == 4
    with pytest.raises(Invalid) as refused:
        completed(8192, num_images=5)
    (error,) = refused.value.errors
    assert (error.loc, error.msg) == (("input", "num_images"), "at 8192 x 8192 pixels 4 at most are made, got 5")
    completed(1024, num_images=4, interpolation={"frames": 64})
    with pytest.raises(Invalid) as refused:
        completed(1024, num_images=4, interpolation={"frames": 65})
    assert refused.value.errors[0].loc == ("input", "interpolation")
