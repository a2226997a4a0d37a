"""From a request to networks and to what the trainer is told."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from calotype.gan_description import DISCRIMINATOR, LIVE_GENERATOR, GanDescription
from calotype.specs.gan_train import GanTrainInput
from worker.families.gan import stored
from worker.families.gan.augment import EVERYTHING, Transforms
from worker.families.gan.data import TrainingImages, bad_input
from worker.families.gan.networks.discriminator import Discriminator, DiscriminatorConfig
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from worker.families.gan.networks.r3gan_config import R3GANConfig
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config, stylegan3_r, stylegan3_t
from worker.families.gan.replicas import Replicas
from worker.families.gan.schedule import Ramp
from worker.families.gan.splitting import Split
from worker.families.gan.stored import AnyDiscriminator, Generator
from worker.families.gan.trainer import Trainer, TrainSettings

#: R3GAN's ramps end at these shares of where they start, and Adam's second beta goes from one to the other. (Huang et
#: al., arXiv 2501.05441, Appendix: rates 2e-4 → 5e-5, γ 150 → 15, β₂ 0.9 → 0.99)
_RATE_END: Final = 0.25
_GAMMA_END: Final = 0.1
_BETA2: Final = (0.9, 0.99)
#: Images of a group in StyleGAN3's discriminator.
_GROUP: Final = 4
#: StyleGAN3's. (Karras et al., arXiv 2106.12423, Appendix F)
_STYLEGAN_BETA2: Final = 0.99
#: Configuration R's blur begins with this many pixels at 256 and more, and is gone after so many thousand images.
#: (Karras et al., arXiv 2106.12423, Appendix F)
_BLUR_SIGMA: Final = 10.0
_BLUR_KIMG: Final = 200.0


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What a training starts from."""

    generator: Generator
    discriminator: AnyDiscriminator
    #: The running mean that a model brings with it; None: a copy of the generator.
    averaged: Generator | None = None
    #: What is worth telling about where they came from.
    remarks: tuple[str, ...] = ()


def fresh_networks(spec: GanTrainInput, classes: int) -> Networks:
    """Networks with random weights, drawn from the seed. Raises JobFailed `bad_input` for settings that give none."""
    try:
        with _seeded(spec):
            return _built(spec, classes)
    except ValueError as exc:
        raise bad_input(f"No {spec.architecture} can be built with these settings: {exc}.") from exc


def transferred_networks(directory: Path, ref: str, spec: GanTrainInput, labels: tuple[str, ...]) -> Networks:
    """The networks of a version. Raises JobFailed `bad_input` for a version of another architecture, resolution or
    labels, and for one that cannot be read."""
    try:
        description = stored.read_description(directory)
        _check_same(description, ref, spec, labels)
        averaged = stored.load_generator(directory, torch.device("cpu")).generator
        generator, remarks = copy.deepcopy(averaged), []
        if (directory / LIVE_GENERATOR).exists():
            stored.load_weights(generator, directory / LIVE_GENERATOR)
        with _seeded(spec):
            discriminator = stored.build_discriminator(description) or _matching_discriminator(generator)
        if (directory / DISCRIMINATOR).exists():
            stored.load_weights(discriminator, directory / DISCRIMINATOR)
        else:
            remarks.append(f"{ref} brings no discriminator: it begins with random weights")
    except stored.UnreadableVersion as exc:
        raise bad_input(f"{ref} cannot be trained on: {exc}.") from exc
    return Networks(generator=generator, discriminator=discriminator, averaged=averaged, remarks=tuple(remarks))


def build_trainer(
    spec: GanTrainInput,
    images: TrainingImages,
    model: tuple[Path, str] | None,
    *,
    device: torch.device,
    replicas: Replicas,
    log: Callable[[str], None] = lambda message: None,
    pulse: Callable[[], None] = lambda: None,
) -> Trainer:
    """A trainer at its first step; `model` is folder and reference of the version that it starts from.

    Raises JobFailed `bad_input` as the networks do.
    """
    if model is None:
        networks = fresh_networks(spec, len(images.labels))
    else:
        networks = transferred_networks(*model, spec, images.labels)
    for remark in networks.remarks:
        log(remark)
    return Trainer(
        networks.generator,
        networks.discriminator,
        images,
        train_settings(spec, transferred=model is not None),
        averaged=networks.averaged,
        device=device,
        replicas=replicas,
        log=log,
        pulse=pulse,
    )


def train_settings(spec: GanTrainInput, *, transferred: bool) -> TrainSettings:
    """A complete request as the trainer understands it."""
    whole, relativistic = given(spec), spec.architecture == "r3gan"
    rate_end, gamma_end = (_RATE_END, _GAMMA_END) if relativistic else (1.0, 1.0)

    def ramp(start: float, end: float) -> Ramp:
        return Ramp(start=start, end=end, kimg=whole["ramp_kimg"])

    p = whole["augment_p"]
    return TrainSettings(
        steps=steps_of(spec),
        batch_size=spec.batch_size,
        seed=whole["seed"],
        relativistic=relativistic,
        generator_lr=ramp(whole["generator_lr"], whole["generator_lr"] * rate_end),
        discriminator_lr=ramp(whole["discriminator_lr"], whole["discriminator_lr"] * rate_end),
        beta2=ramp(*_BETA2) if relativistic else ramp(_STYLEGAN_BETA2, _STYLEGAN_BETA2),
        gamma=ramp(whole["r1_gamma"], whole["r1_gamma"] * gamma_end),
        penalty_every=whole["r1_every"],
        ema_half_life=1000 * whole["ema_kimg"],
        transferred=transferred,
        sigma=_sigma(spec, whole, transferred=transferred),
        augment=whole["augment"],
        augment_p=ramp(0.0, p) if whole["augment"] == "fixed" else Ramp(start=p, end=p, kimg=0.0),
        transforms=_transforms(spec),
        mixed_precision=spec.mixed_precision,
    )


def steps_of(spec: GanTrainInput) -> int:
    """Steps that show the discriminator at least as many images as asked for."""
    return max(1, math.ceil(round(1000 * spec.kimg, 6) / spec.batch_size))


def groups_of(spec: GanTrainInput) -> int:
    """Into how many groups a batch falls, whose images the discriminator looks at together."""
    most = 1 if spec.architecture == "r3gan" else _GROUP
    return Split.of(spec.batch_size, most).groups


def snapshot_interval(spec: GanTrainInput) -> int:
    """Steps between two snapshots: an eighth of the training, if not said otherwise."""
    return spec.snapshot_every or max(1, math.ceil(steps_of(spec) / 8))


def given(spec: GanTrainInput) -> dict[str, Any]:
    """What submission fills in. Raises ValueError where it has not."""
    names = (
        "resolution", "seed", "conditional", "r1_gamma", "r1_every", "generator_lr", "discriminator_lr", "ramp_kimg",
        "ema_kimg", "augment", "augment_p", "architecture",
    )  # fmt: skip
    missing = [name for name in names if getattr(spec, name) is None]
    if missing:
        raise ValueError(f"the spec is not complete: submission fills in {', '.join(missing)}")
    return {name: getattr(spec, name) for name in names}


def _transforms(spec: GanTrainInput) -> Transforms:
    return Transforms(**{name: 1.0 if name in spec.augmentations else 0.0 for name in EVERYTHING.__dict__})


def _sigma(spec: GanTrainInput, whole: dict[str, Any], *, transferred: bool) -> Ramp:
    begins_blurred = spec.architecture == "stylegan3-r" and not transferred
    start = _BLUR_SIGMA * min(1.0, whole["resolution"] / 256) if begins_blurred else 0.0
    return Ramp(start=start, end=0.0, kimg=min(_BLUR_KIMG, whole["ramp_kimg"]), shape="linear")


def _built(spec: GanTrainInput, classes: int) -> Networks:
    resolution = given(spec)["resolution"]
    widths = {"channel_base": spec.channel_base, "channel_max": spec.channel_max}
    known = {name: value for name, value in widths.items() if value is not None}
    layers = spec.layers
    if spec.architecture == "r3gan":
        blocks = {} if layers is None else {"blocks_per_stage": layers}
        shared = R3GANConfig(resolution=resolution, num_classes=classes, **known, **blocks)
        return Networks(generator=R3GANGenerator(shared), discriminator=R3GANDiscriminator(shared))
    configure = stylegan3_r if spec.architecture == "stylegan3-r" else stylegan3_t
    depth = {} if layers is None else {"num_layers": layers}
    generator = StyleGAN3Generator(configure(resolution, num_classes=classes, **known, **depth))
    return Networks(generator=generator, discriminator=_matching_discriminator(generator))


def _matching_discriminator(generator: Generator) -> AnyDiscriminator:
    """One for a generator's images and as wide; configuration R doubles the width of the generator alone."""
    config = generator.config
    if isinstance(config, R3GANConfig):
        return R3GANDiscriminator(config)
    return Discriminator(_discriminator_config(config))


def _discriminator_config(config: StyleGAN3Config) -> DiscriminatorConfig:
    share = 2 if config.radial_filters else 1
    return DiscriminatorConfig(
        resolution=config.resolution,
        num_classes=config.num_classes,
        image_channels=config.image_channels,
        channel_base=config.channel_base // share,
        channel_max=max(1, config.channel_max // share),
    )


def _check_same(description: GanDescription, ref: str, spec: GanTrainInput, labels: tuple[str, ...]) -> None:
    if description.architecture != spec.architecture:
        raise bad_input(
            f"{ref} is a {description.architecture}, not a {spec.architecture}: leave architecture out, or start from "
            "another model."
        )
    if description.resolution != spec.resolution:
        raise bad_input(f"{ref} makes images of {description.resolution} pixels, not {spec.resolution}.")
    own = tuple(description.labels or ())
    if own != labels:
        raise bad_input(
            f"{ref} knows {_listed(own)}, and the training is on {_listed(labels)}: they must be the same. Use a "
            "dataset of the model's labels, or train from the beginning."
        )


def _listed(labels: tuple[str, ...]) -> str:
    if not labels:
        return "no labels"
    shown = ", ".join(repr(label) for label in labels[:5])
    return f"the labels {shown}" + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


@contextmanager
def _seeded(spec: GanTrainInput) -> Iterator[None]:
    """Networks draw their weights from torch's own generator: inside it follows the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(given(spec)["seed"])
        yield
