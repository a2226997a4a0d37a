"""Options of `calotype submit` that only the GAN family knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import typer

_MIXING = re.compile(r"(\d+)(?::(\d+)-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class GanImageOptions:
    """What images of a GAN may be asked to be."""

    truncation_psi: Annotated[
        float | None, typer.Option(help="GAN: 1 is all its variety, less is more typical.", show_default=False)
    ] = None
    label: Annotated[str | None, typer.Option(help="GAN: the class to show.")] = None
    mix_styles: Annotated[
        str | None,
        typer.Option(metavar="SEED[:FIRST-LAST]", help="GAN: take the style of these layers from another seed."),
    ] = None
    interpolate: Annotated[
        int | None, typer.Option(metavar="FRAMES", help="GAN: animate, with so many frames from image to image.")
    ] = None

    def asked(self) -> dict[str, Any]:
        """As the spec's input has them; what was not given is None."""
        return {
            "truncation_psi": self.truncation_psi,
            "label": self.label,
            "style_mixing": _mixing(self.mix_styles) if self.mix_styles is not None else None,
            "interpolation": {"frames": self.interpolate} if self.interpolate is not None else None,
        }


@dataclass(frozen=True, kw_only=True)
class GanTrainOptions:
    """How a GAN is trained."""

    kimg: Annotated[float | None, typer.Option(help="GAN: how many thousand images to train on.")] = None
    architecture: Annotated[str | None, typer.Option(help="GAN: stylegan3-t, stylegan3-r or r3gan.")] = None
    channel_base: Annotated[
        int | None, typer.Option(help="GAN: width of the networks; the papers' when not given, on a CPU take 2048.")
    ] = None
    channel_max: Annotated[int | None, typer.Option(help="GAN: most feature maps of a layer; on a CPU take 64.")] = None
    conditional: Annotated[bool | None, typer.Option(help="GAN: learn the dataset's labels as classes.")] = None
    resize: Annotated[str | None, typer.Option(help="GAN: pad, crop or stretch what is no square.")] = None
    augment: Annotated[str | None, typer.Option(help="GAN: ada, fixed or none.")] = None
    r1_gamma: Annotated[float | None, typer.Option(help="GAN: strength of the gradient penalty.")] = None
    on_collapse: Annotated[
        str | None, typer.Option(help="GAN: warn, stop or raise_augmentation when it makes the same few images.")
    ] = None

    def asked(self) -> dict[str, Any]:
        """As the spec's input has them; what was not given is None."""
        return {
            "kimg": self.kimg,
            "architecture": self.architecture,
            "channel_base": self.channel_base,
            "channel_max": self.channel_max,
            "conditional": self.conditional,
            "resize": self.resize,
            "augment": self.augment,
            "r1_gamma": self.r1_gamma,
            "mode_collapse": {"action": self.on_collapse} if self.on_collapse is not None else None,
        }


def _mixing(text: str) -> dict[str, int]:
    found = _MIXING.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not SEED or SEED:FIRST-LAST", param_hint="--mix-styles")
    seed, first, last = found.groups()
    layers = {} if first is None else {"first_layer": int(first), "last_layer": int(last)}
    return {"seed": int(seed), **layers}
