"""Jobs of the GAN family that make images, completed."""

from __future__ import annotations

from typing import Any

from calotype import keys
from calotype.references import References
from calotype.registry import ModelVersion
from calotype.specs import GanGenerate, GanGenerateInput, StyleMixing
from calotype.submission.common import (
    Loc,
    cache_columns,
    complete_spec,
    given_or_drawn,
    megapixels,
    model_and_base,
    wrong,
)

#: Of all images and frames of a job together: they are kept in memory until they are written.
FRAME_PIXELS = 1 << 28


def generate(references: References, request: GanGenerate) -> dict[str, Any]:
    """What the job has beside what all jobs have."""
    model, _ = model_and_base(references, request.model, request.family, ("model",))
    given = request.input
    side = int(model.parameters["resolution"])
    check_label(model, given.label, ("input", "label"))
    _check_pixels(given, side)
    changes: dict[str, Any] = {
        "seed": given_or_drawn(given.seed),
        "truncation_psi": truncation_of(model, given.truncation_psi, ("input",)),
        "style_mixing": _mixing(model, given.style_mixing),
    }
    spec = complete_spec(request, model=model.ref, input=changes)
    return {
        "model": model.ref,
        "spec": spec,
        "model_key": model.key,
        # Frames are no images that anybody counts or is billed for, but they fill calls: an animation has its own.
        "batch_key": None if given.interpolation is not None else keys.gan_batch_key(model),
        "units": given.num_images,
        "batch_limit": keys.batch_limit(side, side),
        "work": given.num_made * megapixels(side, side),
        **cache_columns(request.cache, given.seed, *keys.cache_keys(model, [], spec["input"])),
    }


def truncation_of(model: ModelVersion, psi: float | None, loc: Loc) -> float:
    """ψ, the model's own where none is given. Raises Invalid for a model that cannot truncate."""
    if psi is None:
        return float(model.parameters["default_truncation_psi"])
    if psi != 1 and not model.parameters["style_layers"]:
        raise wrong(
            (*loc, "truncation_psi"),
            f"{model.ref} is a {model.architecture} model, which has no truncation; leave it out, or set it to 1",
        )
    return psi


def check_label(model: ModelVersion, label: str | None, loc: Loc) -> None:
    """Raises Invalid, naming the labels, for one that the model does not have."""
    known: list[str] = model.parameters["labels"] or []
    if label is None or label in known:
        return
    if not known:
        raise wrong(loc, f"{model.ref} knows no labels; leave label out")
    listed = ", ".join(known[:50]) + (f" and {len(known) - 50} more" if len(known) > 50 else "")
    raise wrong(loc, f"{model.ref} has no label {label!r}; it has: {listed}")


def _mixing(model: ModelVersion, mixing: StyleMixing | None) -> dict[str, Any] | None:
    if mixing is None:
        return None
    here: Loc = ("input", "style_mixing")
    layers = int(model.parameters["style_layers"])
    if not layers:
        raise wrong(here, f"{model.ref} is a {model.architecture} model, which has no styles; leave style_mixing out")
    last = layers - 1 if mixing.last_layer is None else mixing.last_layer
    first = min(layers // 2, last) if mixing.first_layer is None else mixing.first_layer
    for name, layer in (("first_layer", first), ("last_layer", last)):
        if layer >= layers:
            raise wrong((*here, name), f"{model.ref} has the style layers 0 to {layers - 1}, got {layer}")
    return {"seed": mixing.seed, "first_layer": first, "last_layer": last}


def _check_pixels(given: GanGenerateInput, side: int) -> None:
    most = FRAME_PIXELS // side**2
    if given.num_made <= most:
        return
    if given.interpolation is None:
        raise wrong(("input", "num_images"), f"at {side} x {side} pixels {most} at most are made, got {given.num_made}")
    raise wrong(
        ("input", "interpolation"),
        f"it has {given.num_made} frames; at {side} x {side} pixels {most} at most are made. "
        "Ask for fewer images or fewer frames",
    )
