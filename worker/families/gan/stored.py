"""A GAN version as a folder: weights as safetensors, and `model.json`, which says of what networks.

`calotype.gan_description` has the names of the files and what the description may say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calotype.gan_description import (
    DISCRIMINATOR,
    FILE,
    GENERATOR,
    LIVE_GENERATOR,
    MAX_BYTES,
    GanDescription,
    NetworkSettings,
    UnreadableDescription,
)
from worker.families.gan.networks.discriminator import Discriminator, DiscriminatorConfig
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from worker.families.gan.networks.r3gan_config import R3GANConfig
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config

Generator = StyleGAN3Generator | R3GANGenerator
AnyDiscriminator = Discriminator | R3GANDiscriminator

#: Architecture → its generator and the settings of that, its discriminator and the settings of that.
_NETWORKS: Final[dict[str, tuple[Any, Any, Any, Any]]] = {
    "stylegan3-t": (StyleGAN3Generator, StyleGAN3Config, Discriminator, DiscriminatorConfig),
    "stylegan3-r": (StyleGAN3Generator, StyleGAN3Config, Discriminator, DiscriminatorConfig),
    "r3gan": (R3GANGenerator, R3GANConfig, R3GANDiscriminator, R3GANConfig),
}


class UnreadableVersion(ValueError):
    """The folder holds no GAN that can be run; the message says which file is wrong, and how."""


@dataclass(frozen=True, kw_only=True)
class StoredGenerator:
    """A generator to make images with, in fp32 on its device, and what was stored with it."""

    generator: Generator
    description: GanDescription

    @property
    def architecture(self) -> str:
        return self.description.architecture

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes in the order of the one-hot labels; None where there are none."""
        return self.description.labels

    @property
    def resolution(self) -> int:
        """Pixels a side."""
        return self.description.resolution

    @property
    def bytes(self) -> int:
        """Of its weights in memory."""
        return sum(t.numel() * t.element_size() for t in self.generator.state_dict().values())


def save_version(
    directory: Path,
    generator: Generator,
    *,
    labels: Sequence[str] | None,
    provenance: Mapping[str, Any],
    licence: Mapping[str, Any] | None = None,
    live_generator: Generator | None = None,
    discriminator: AnyDiscriminator | None = None,
) -> GanDescription:
    """Write a version to `directory`: the averaged generator and what training can go on from.

    `provenance` (JSON-able) becomes the description's `source`; `licence` is that of the version it was made from.
    Raises UnreadableDescription, before anything is written, for what could not be read again.
    """
    content = {
        "architecture": architecture_of(generator),
        "labels": None if labels is None else list(labels),
        "generator": asdict(generator.config),
        "discriminator": asdict(discriminator.config) if discriminator is not None else None,
        "licence": None if licence is None else dict(licence),
        "source": dict(provenance),
    }
    text = json.dumps(content, indent=2) + "\n"
    description = GanDescription.read(text)
    directory.mkdir(parents=True, exist_ok=True)
    networks = {GENERATOR: generator, LIVE_GENERATOR: live_generator, DISCRIMINATOR: discriminator}
    for name, network in networks.items():
        if network is not None:
            _save(network, directory / name)
    # Last: a folder that has it is whole.
    (directory / FILE).write_text(text, encoding="utf-8")
    return description


def load_generator(directory: Path, device: torch.device) -> StoredGenerator:
    """The averaged generator of a version, to make images with. Raises UnreadableVersion."""
    description = read_description(directory)
    generator: Generator = build_generator(description)
    load_weights(generator, directory / GENERATOR)
    return StoredGenerator(generator=generator.to(device).eval().requires_grad_(False), description=description)


def read_description(directory: Path) -> GanDescription:
    """What a version's `model.json` says. Raises UnreadableVersion."""
    path = directory / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UnreadableVersion(f"{FILE} has more than {MAX_BYTES:,} bytes")
        return GanDescription.read(path.read_bytes())
    except OSError as exc:
        raise UnreadableVersion(f"{FILE} cannot be read: {exc.strerror}") from exc
    except UnreadableDescription as exc:
        raise UnreadableVersion(f"{FILE} describes no GAN: {exc}") from exc


def build_generator(description: GanDescription) -> Generator:
    """A generator of that shape, freshly drawn. Raises UnreadableVersion for settings that give none."""
    network, config, _, _ = _NETWORKS[description.architecture]
    settings = _config(config, description.generator, f"a {description.architecture} generator")
    generator: Generator = network(settings)
    if architecture_of(generator) != description.architecture:
        raise UnreadableVersion(
            f"{FILE} says {description.architecture}, but its settings are of {architecture_of(generator)}"
        )
    return generator


def build_discriminator(description: GanDescription) -> AnyDiscriminator | None:
    """A discriminator of that shape, freshly drawn; None where none was stored. Raises UnreadableVersion."""
    if description.discriminator is None:
        return None
    _, _, network, config = _NETWORKS[description.architecture]
    discriminator: AnyDiscriminator = network(
        _config(config, description.discriminator, f"a discriminator for {description.architecture}")
    )
    return discriminator


def load_weights(network: nn.Module, path: Path) -> None:
    """Put stored weights into a network. Raises UnreadableVersion unless names and shapes are exactly its own."""
    try:
        tensors = load_file(path)
    except FileNotFoundError as exc:
        raise UnreadableVersion(f"{path.name} is missing") from exc
    except (OSError, SafetensorError) as exc:
        raise UnreadableVersion(f"{path.name} is no safetensors file that can be read: {exc}") from exc
    _check_fit(path.name, tensors, network.state_dict())
    network.load_state_dict(tensors)


def architecture_of(generator: Generator) -> str:
    """`stylegan3-r` has radial filters; `stylegan3-t` has not."""
    if isinstance(generator, R3GANGenerator):
        return "r3gan"
    return "stylegan3-r" if generator.config.radial_filters else "stylegan3-t"


def _save(network: nn.Module, path: Path) -> None:
    # Buffers such as filters may be shared between layers, which safetensors refuses.
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})


def _config(config: Any, settings: NetworkSettings, what: str) -> Any:
    known = {field.name for field in fields(config)}
    if unknown := sorted(set(settings) - known):
        raise UnreadableVersion(f"{FILE} has a setting {unknown[0]!r}, which {what} does not have")
    try:
        return config(**settings)
    except (TypeError, ValueError) as exc:
        raise UnreadableVersion(f"{FILE} describes {what} that cannot be built: {exc}") from exc


def _check_fit(name: str, stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if missing := sorted(set(own) - set(stored)):
        raise UnreadableVersion(f"{name} lacks {_listed(missing)}: it is of another network than {FILE} says")
    if surplus := sorted(set(stored) - set(own)):
        raise UnreadableVersion(f"{name} has {_listed(surplus)} too much: it is of another network than {FILE} says")
    for key, tensor in own.items():
        if stored[key].shape != tensor.shape:
            raise UnreadableVersion(
                f"{name} has {key} with the shape {list(stored[key].shape)}; by {FILE} it is {list(tensor.shape)}"
            )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
