"""`model.json`: what a folder with a GAN says of the networks in it.

Training and importing write it; the registry reads it when a model is registered, and a worker when it loads one.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

#: The file's name.
FILE: Final = "model.json"
#: The averaged generator, from which images are made; the one that training moves, and its discriminator, from which
#: training can go on. Only the first is always there.
GENERATOR, LIVE_GENERATOR, DISCRIMINATOR = (
    "generator.safetensors",
    "generator_live.safetensors",
    "discriminator.safetensors",
)
#: Every file that such a folder may have.
FileName = Literal["model.json", "generator.safetensors", "generator_live.safetensors", "discriminator.safetensors"]
FILES: tuple[FileName, ...] = get_args(FileName)
#: An official network's configuration has a few kilobytes; this is room for a thousand labels of 200 letters.
MAX_BYTES = 1 << 20

Architecture = Literal["stylegan3-t", "stylegan3-r", "r3gan"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
#: Largest values of whole numbers in settings: more than any network has, but no description may ask for memory
#: without end. What is not named here has the last.
_MOST = {
    "z_dim": 8192, "w_dim": 8192, "num_classes": 10_000, "mapping_layers": 64, "channel_base": 1 << 21,
    "channel_max": 16_384, "num_layers": 100, "num_critical": 100, "blocks_per_stage": 64, "expansion": 16,
    "group_width": 1024, "group_size": 4096, "kernel": 15, "conv_kernel": 15, "margin": 256, "filter_size": 64,
    "lrelu_upsampling": 16, "image_channels": 3, "resolution": 8192, "patch": 1024, "palette": 256,
}  # fmt: skip
_MOST_OF_ANY = 1_000_000
#: A network's settings, by the names of its configuration.
NetworkSettings = dict[str, bool | int | float]


class UnreadableDescription(ValueError):
    """It is no description of a GAN; the message says why."""


class GanLicence(BaseModel):
    """Under which licence the weights are."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    #: False: registering it asks for an explicit acceptance.
    commercial_use: bool
    note: str = ""


class GanDescription(BaseModel):
    """The content of `model.json`, checked. What else it says is for people and is left alone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    architecture: Architecture
    #: Settings of the generator: `StyleGAN3Config` or `R3GANConfig`.
    generator: NetworkSettings
    #: Settings of the discriminator, where there is one: `DiscriminatorConfig` or `R3GANConfig`.
    discriminator: NetworkSettings | None = None
    #: Names of the classes, in the order of the one-hot labels; None for an unconditional generator.
    labels: list[Label] | None = Field(default=None, min_length=1, max_length=10_000)
    licence: GanLicence | None = None
    #: Where it came from.
    source: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        self._count("resolution", least=8, most=8192)
        if self.resolution & (self.resolution - 1):
            raise ValueError(f"its resolution is {self.resolution}, which is no power of two")
        self._count("image_channels", least=3, most=3)
        if self.architecture != "r3gan":
            self._count("num_layers", least=1, most=100)
        for part, settings in (("generator", self.generator), ("discriminator", self.discriminator or {})):
            _check_bounds(part, settings)
        classes, names = self._count("num_classes", least=0, most=10_000), self.labels or []
        if len(names) != classes:
            raise ValueError(f"it names {len(names)} labels for a generator of {classes} classes")
        if len(set(names)) != len(names):
            raise ValueError("it names a label twice")
        return self

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """From the file's content. Raises UnreadableDescription."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as exc:
            error = exc.errors()[0]
            place = ".".join(str(part) for part in error["loc"])
            reason = error["msg"].removeprefix("Value error, ")
            raise UnreadableDescription(f"{place}: {reason}" if place else reason) from exc

    @property
    def resolution(self) -> int:
        """Height and width of the images, pixels."""
        return int(self.generator["resolution"])

    @property
    def style_layers(self) -> int:
        """How many layers take a style of their own; 0 for an architecture without styles."""
        return 0 if self.architecture == "r3gan" else int(self.generator["num_layers"]) + 2

    def _count(self, name: str, *, least: int, most: int) -> int:
        value = self.generator.get(name)
        if type(value) is not int or not least <= value <= most:
            expected = str(least) if least == most else f"a whole number from {least} to {most}"
            raise ValueError(f"its generator's {name} is {value!r}, not {expected}")
        return value


def _check_bounds(part: str, settings: NetworkSettings) -> None:
    for name, value in settings.items():
        most = _MOST.get(name, _MOST_OF_ANY)
        if not 0 <= value <= most:
            raise ValueError(f"its {part}'s {name} is {value!r}, not from 0 to {most}")


def registry_parameters(description: GanDescription, default_truncation_psi: float | None = None) -> dict[str, Any]:
    """What the registry says of such a model, for requests to be checked against.

    Without a `default_truncation_psi` nothing is truncated; an architecture without styles never truncates.
    """
    side = description.resolution
    psi = 1.0 if default_truncation_psi is None or not description.style_layers else default_truncation_psi
    sizes = dict.fromkeys(("default_width", "default_height", "min_size", "max_size", "size_multiple"), side)
    return {
        **sizes,
        "resolution": side,
        "labels": description.labels,
        "style_layers": description.style_layers,
        "default_truncation_psi": psi,
    }


def licence_mistake(
    description: GanDescription, licence: str, accepted: str | None
) -> tuple[Literal["licence", "accept_licence"], str] | None:
    """Why such a model cannot be registered under a licence and with what was accepted: the field, and the reason.

    Weights keep the licence that their folder names, and one that allows no commercial use is accepted by its name.
    """
    own = description.licence
    if own is not None and own.id != licence:
        return "licence", f"the folder's {FILE} says {own.id}; weights keep their licence"
    if own is None or own.commercial_use:
        if accepted is not None:
            return "accept_licence", "nothing has to be accepted for these weights; leave it out"
        return None
    return None if accepted == own.id else ("accept_licence", _asked_for(own, accepted))


def _asked_for(licence: GanLicence, accepted: str | None) -> str:
    said = "it was not accepted" if accepted is None else f"{accepted[:100]!r} is another one"
    return (
        f"the weights are under {licence.id}, which allows no commercial use, and {said}. "
        f"When you have read it and keep to it, say so with {licence.id!r}"
    )
