"""A GAN version as a folder: what was saved comes back, and what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calotype.gan_description import GanDescription, UnreadableDescription, registry_parameters
from worker.families.gan.networks.discriminator import Discriminator, DiscriminatorConfig
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from worker.families.gan.networks.r3gan_config import R3GANConfig
from worker.families.gan.networks.stylegan3_config import stylegan3_r, stylegan3_t
from worker.families.gan.stored import (
    AnyDiscriminator,
    Generator,
    UnreadableVersion,
    build_discriminator,
    build_generator,
    load_generator,
    load_weights,
    read_description,
    save_version,
)

CPU = torch.device("cpu")
STYLE: dict[str, Any] = {"z_dim": 8, "w_dim": 8, "channel_base": 128, "channel_max": 8, "num_layers": 4}
LABELS = ["red", "blue"]
R3 = R3GANConfig(resolution=16, z_dim=8, num_classes=2, channel_base=256, channel_max=16, blocks_per_stage=1)


def made(architecture: str) -> tuple[Generator, AnyDiscriminator]:
    if architecture == "r3gan":
        return R3GANGenerator(R3), R3GANDiscriminator(R3)
    config = {"stylegan3-t": stylegan3_t, "stylegan3-r": stylegan3_r}[architecture](16, num_classes=2, **STYLE)
    other = DiscriminatorConfig(resolution=16, num_classes=2, channel_base=128, channel_max=8)
    return StyleGAN3Generator(config), Discriminator(other)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator, _ = made("stylegan3-t")
    save_version(tmp_path, generator, labels=LABELS, provenance={"type": "train"})
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize("architecture", ["stylegan3-t", "stylegan3-r", "r3gan"])
def test_a_saved_generator_makes_the_same_images(architecture: str, tmp_path: Path) -> None:
    generator, _ = made(architecture)
    save_version(tmp_path / "v", generator, labels=LABELS, provenance={"type": "train", "kimg": 3})
    stored = load_generator(tmp_path / "v", CPU)
    z, labels = torch.randn(3, 8), torch.eye(2)[[0, 1, 1]]
    assert torch.equal(stored.generator(z, labels), generator.eval()(z, labels))
    assert (stored.architecture, stored.labels, stored.resolution) == (architecture, LABELS, 16)
    assert stored.description.source == {"type": "train", "kimg": 3}
    assert not stored.generator.training
    assert not any(parameter.requires_grad for parameter in stored.generator.parameters())
    assert stored.bytes == sum(tensor.nbytes for tensor in stored.generator.state_dict().values())


@pytest.mark.parametrize("architecture", ["stylegan3-t", "r3gan"])
def test_what_training_goes_on_from_comes_back(architecture: str, tmp_path: Path) -> None:
    averaged, discriminator = made(architecture)
    live, _ = made(architecture)
    description = save_version(
        tmp_path, averaged, labels=LABELS, provenance={}, live_generator=live, discriminator=discriminator
    )
    assert read_description(tmp_path) == description
    again, other = build_generator(description), build_discriminator(description)
    assert other is not None
    load_weights(again, tmp_path / "generator_live.safetensors")
    load_weights(other, tmp_path / "discriminator.safetensors")
    for network, expected in ((again, live), (other, discriminator)):
        state = expected.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_a_version_for_making_images_alone_has_no_discriminator(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["generator.safetensors", "model.json"]
    assert build_discriminator(read_description(folder)) is None


def test_weights_of_another_network_are_told_by_the_first_name(folder: Path) -> None:
    change(folder, architecture="r3gan", generator=R3.__dict__)
    with pytest.raises(UnreadableVersion, match=r"lacks basis.basis and \d+ more: it is of another network"):
        load_generator(folder, CPU)


def test_weights_too_many_are_named(folder: Path) -> None:
    state = load_file(folder / "generator.safetensors")
    save_file(state | {"extra.weight": torch.ones(1)}, folder / "generator.safetensors")
    with pytest.raises(UnreadableVersion, match=r"generator.safetensors has extra.weight too much"):
        load_generator(folder, CPU)


def test_a_weight_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    state = load_file(folder / "generator.safetensors")
    save_file(state | {"mapping.fc0.bias": torch.ones(9)}, folder / "generator.safetensors")
    with pytest.raises(UnreadableVersion, match=r"mapping.fc0.bias with the shape \[9\]; by model.json it is \[8\]"):
        load_generator(folder, CPU)


def test_files_that_are_missing_or_damaged_are_named(folder: Path) -> None:
    (folder / "generator.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UnreadableVersion, match=r"generator.safetensors is no safetensors file"):
        load_generator(folder, CPU)
    (folder / "generator.safetensors").unlink()
    with pytest.raises(UnreadableVersion, match=r"generator.safetensors is missing"):
        load_generator(folder, CPU)
    (folder / "model.json").unlink()
    with pytest.raises(UnreadableVersion, match=r"model.json cannot be read: No such file"):
        load_generator(folder, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "stylegan2"}, "architecture: Input should be 'stylegan3-t', 'stylegan3-r' or 'r3gan'"),
        ({"architecture": "stylegan3-r"}, "says stylegan3-r, but its settings are of stylegan3-t"),
        ({"labels": ["red"]}, "names 1 labels for a generator of 2 classes"),
        ({"labels": None}, "names 0 labels for a generator of 2 classes"),
        ({"labels": ["red", "red"]}, "names a label twice"),
        ({"generator": {"resolution": 16}}, "image_channels is None, not 3"),
    ],
)
def test_descriptions_that_do_not_hold_together_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change(folder, **changes)
    with pytest.raises(UnreadableVersion, match=message):
        load_generator(folder, CPU)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"resolution": 48}, "its resolution is 48, which is no power of two"),
        ({"resolution": "16"}, "generator.resolution"),
        ({"depth": 3}, "has a setting 'depth', which a stylegan3-t generator does not have"),
        ({"conv_kernel": 2}, "a stylegan3-t generator that cannot be built: conv_kernel is odd"),
        ({"image_channels": 1}, "image_channels is 1, not 3"),
        ({"mapping_layers": 65}, "its generator's mapping_layers is 65, not from 0 to 64"),
        ({"w_dim": 10**9}, "its generator's w_dim is 1000000000, not from 0 to 8192"),
        ({"channel_max": 10**6}, "its generator's channel_max is 1000000, not from 0 to 16384"),
        ({"clamp": 1e30}, "its generator's clamp is 1e\\+30, not from 0 to 1000000"),
        ({"margin": -1}, "its generator's margin is -1, not from 0 to 256"),
        ({"num_layers": 0}, "num_layers is 0, not a whole number from 1 to 100"),
    ],
)
def test_settings_that_give_no_generator_are_refused(folder: Path, setting: dict[str, Any], message: str) -> None:
    content = json.loads((folder / "model.json").read_text())
    change(folder, generator=content["generator"] | setting)
    with pytest.raises(UnreadableVersion, match=message):
        load_generator(folder, CPU)


def test_nothing_is_written_of_what_could_not_be_read_again(tmp_path: Path) -> None:
    generator, _ = made("stylegan3-t")
    with pytest.raises(UnreadableDescription, match="names 3 labels for a generator of 2 classes"):
        save_version(tmp_path / "v", generator, labels=[*LABELS, "green"], provenance={})
    assert not (tmp_path / "v").exists()


def test_what_is_no_json_object_is_no_description() -> None:
    for text in ("", "[]", "{", "null"):
        with pytest.raises(UnreadableDescription):
            GanDescription.read(text)


def test_the_registry_is_told_the_only_size_the_labels_and_the_truncation(folder: Path) -> None:
    parameters = registry_parameters(read_description(folder), 0.7)
    assert parameters == {
        "default_width": 16, "default_height": 16, "min_size": 16, "max_size": 16, "size_multiple": 16,
        "resolution": 16, "labels": LABELS, "style_layers": 6, "default_truncation_psi": 0.7,
    }  # fmt: skip


def test_an_architecture_without_styles_never_truncates(tmp_path: Path) -> None:
    generator, _ = made("r3gan")
    description = save_version(tmp_path, generator, labels=LABELS, provenance={})
    parameters = registry_parameters(description, 0.7)
    assert (parameters["style_layers"], parameters["default_truncation_psi"]) == (0, 1.0)
