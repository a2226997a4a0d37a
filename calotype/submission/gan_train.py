"""Jobs that train a GAN, completed: what is null becomes what the architecture, or the model, has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from calotype.datasets import Dataset
from calotype.gan_description import ARCHITECTURES, Architecture
from calotype.references import References
from calotype.registry import ModelVersion
from calotype.specs.gan_train import LEAST_RESOLUTION, MOST_RESOLUTION, GanTrain, GanTrainInput
from calotype.submission.common import (
    check_output_model,
    complete_spec,
    dataset_of,
    given_or_drawn,
    megapixels,
    model_and_base,
    wrong,
)

#: What an architecture is trained with. (StyleGAN3: Karras et al., arXiv 2106.12423, Appendix F; R3GAN: Huang et al.,
#: arXiv 2501.05441, Appendix)
_STYLEGAN3: Final[Mapping[str, Any]] = {
    "r1_every": 16,
    "generator_lr": 0.0025,
    "discriminator_lr": 0.002,
    "augment": "ada",
}
_DEFAULTS: Final[Mapping[Architecture, Mapping[str, Any]]] = {
    "stylegan3-t": _STYLEGAN3,
    "stylegan3-r": _STYLEGAN3,
    "r3gan": {"r1_every": 1, "generator_lr": 2e-4, "discriminator_lr": 2e-4, "augment": "fixed"},
}
#: What new networks are made of; those of a model say it themselves.
_WIDTHS: Final[Mapping[Architecture, Mapping[str, int]]] = {
    "stylegan3-t": {"channel_base": 32768, "channel_max": 512, "layers": 14},
    # Twice the feature maps, since a 1×1 convolution does a ninth of the work. (Karras et al., Section 3.2)
    "stylegan3-r": {"channel_base": 65536, "channel_max": 1024, "layers": 14},
    "r3gan": {"channel_base": 49152, "channel_max": 768, "layers": 2},
}
#: Where augmentation by a course ends.
_FIXED_P: Final = 0.3
#: Share of the training over which ramps go.
_RAMP_SHARE: Final = 0.2
#: Half-life of the running mean at a batch of 32, thousand images.
_EMA_KIMG: Final = 10.0


def train(references: References, request: GanTrain) -> dict[str, Any]:
    """What the job has beside what all jobs have."""
    model = None
    if request.model is not None:
        model, _ = model_and_base(references, request.model, request.family, ("model",))
    shape = _new(request.input) if model is None else _of_model(model, request.input)
    check_output_model(references, request.input.output_model, request.family)
    dataset = dataset_of(references, request.input.dataset)
    _check_dataset(dataset, request.input, shape, model)
    changes = {
        **shape,
        **recipe(shape["architecture"], shape["resolution"], request.input),
        "dataset": dataset.id,
        "seed": given_or_drawn(request.input.seed),
    }
    ref = None if model is None else model.ref
    return {
        "model": ref,
        "spec": complete_spec(request, model=ref, input=changes),
        "model_key": None if model is None else model.key,
        "work": 1000 * request.input.kimg * megapixels(shape["resolution"], shape["resolution"]),
    }


def recipe(architecture: Architecture, resolution: int, given: GanTrainInput) -> dict[str, Any]:
    """Rates, penalty, augmentation and running mean: as given, else as the architecture has them."""
    defaults = {
        **_DEFAULTS[architecture],
        "r1_gamma": default_gamma(architecture, resolution),
        "ramp_kimg": _RAMP_SHARE * given.kimg,
        "ema_kimg": _EMA_KIMG * given.batch_size / 32,
    }
    chosen = _filled(given, defaults)
    return chosen | _filled(given, {"augment_p": _FIXED_P if chosen["augment"] == "fixed" else 0.0})


def default_gamma(architecture: Architecture, resolution: int) -> float:
    """γ of the gradient penalty: a start, and the first thing to tune.

    StyleGAN3's is 0.5 at 128 pixels and grows with their number. R3GAN's is 150 at 256; the third power gives about the
    2 that suits 64.
    """
    if architecture == "r3gan":
        return float(f"{150 * (resolution / 256) ** 3:.4g}")
    return 0.5 * (resolution / 128) ** 2


def _new(given: GanTrainInput) -> dict[str, Any]:
    """What networks with random weights are."""
    if given.resolution is None:
        raise wrong(("input", "resolution"), "is required where training does not start from a model")
    architecture: Architecture = given.architecture or ARCHITECTURES[0]
    return {
        "architecture": architecture,
        "resolution": given.resolution,
        "conditional": bool(given.conditional),
        **_filled(given, _WIDTHS[architecture]),
    }


def _of_model(model: ModelVersion, given: GanTrainInput) -> dict[str, Any]:
    """What the networks of a model are. Raises Invalid where something else is asked for."""
    resolution = int(model.parameters["resolution"])
    own = {
        "architecture": model.architecture,
        "resolution": resolution,
        "conditional": bool(model.parameters.get("labels")),
    }
    for name, value in own.items():
        asked = getattr(given, name)
        if asked is not None and asked != value:
            raise wrong(("input", name), f"{model.ref} has {_json(value)}, not {_json(asked)}; leave it out")
    if not LEAST_RESOLUTION <= resolution <= MOST_RESOLUTION:
        raise wrong(
            ("model",),
            f"{model.ref} makes images of {resolution} pixels a side; models of {LEAST_RESOLUTION} to "
            f"{MOST_RESOLUTION} can be trained on",
        )
    for name in ("channel_base", "channel_max", "layers"):
        if getattr(given, name) is not None:
            raise wrong(("input", name), f"is a matter of {model.ref}, which training starts from; leave it out")
    return own


def _check_dataset(
    dataset: Dataset, given: GanTrainInput, shape: Mapping[str, Any], model: ModelVersion | None
) -> None:
    if dataset.images < given.batch_size:
        raise wrong(
            ("input", "batch_size"),
            f"{dataset.id} has {dataset.images} images, fewer than one batch of {given.batch_size}",
        )
    if not shape["conditional"]:
        return
    if not dataset.labels:
        raise wrong(("input", "conditional"), f"{dataset.id} has no labels; set conditional to false or add labels")
    # In whatever order: training takes the model's.
    if model is not None and set(model.parameters["labels"]) != set(dataset.labels):
        raise wrong(
            ("input", "dataset"),
            f"{dataset.id} has not the labels of {model.ref}; use a dataset that has, or train from the beginning",
        )


def _filled(given: GanTrainInput, defaults: Mapping[str, Any]) -> dict[str, Any]:
    asked = {name: getattr(given, name) for name in defaults}
    return {name: default if asked[name] is None else asked[name] for name, default in defaults.items()}


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
