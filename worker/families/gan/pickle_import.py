"""From an official StyleGAN3 `.pkl` to safetensors and a configuration, without running what the file carries.

    python -m worker.families.gan.pickle_import network.pkl OUT_DIR

The file is read as data (`pickle_machine`, `pickle_names`); what comes out of it is written only when all of it was
read. `model.json` carries the configuration, where the file came from and the licence: official weights are for
non-commercial use, and stay so in another format.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from calotype.gan_description import DISCRIMINATOR, FILE, GENERATOR, LIVE_GENERATOR
from worker.families.gan.networks.discriminator import Discriminator, DiscriminatorConfig
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config
from worker.families.gan.pickle_machine import PickleRefused, read
from worker.families.gan.pickle_names import BUILDERS, ArrayRecord, ModuleRecord, TensorRecord

#: The largest file that is read; an official one has up to 0.4 GB.
MAX_FILE_BYTES: Final = 4 << 30
#: Modules of one network, and how deep they lie; an official one has about 100, four deep.
MAX_MODULES: Final = 10_000
MAX_DEPTH: Final = 16
#: Values of one network's configuration, and bytes of one text.
MAX_VALUES: Final = 1_000
MAX_TEXT: Final = 1_000

LICENCE: Final = "nvidia-source-code-licence"
_LICENCE_NOTE: Final = (
    "Official StyleGAN3 networks are under the NVIDIA Source Code Licence: research and evaluation only, "
    "no commercial use. Converting them to another format does not change that."
)

#: Networks of a snapshot and the files their weights go to. The first is needed, the others serve further training.
_NETWORKS: Final = {"G_ema": GENERATOR, "G": LIVE_GENERATOR, "D": DISCRIMINATOR}

#: Official names of a generator's settings that this project calls otherwise.
_RENAMED: Final = {
    "img_resolution": "resolution",
    "img_channels": "image_channels",
    "c_dim": "num_classes",
    "margin_size": "margin",
    "use_radial_filters": "radial_filters",
    "conv_clamp": "clamp",
}
#: What only a StyleGAN3 generator has.
_FOURIER_FEATURES: Final = "synthesis.input.freqs"


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network of a snapshot."""

    class_name: str
    #: Its keyword arguments as the file has them, JSON-able.
    configuration: dict[str, Any]
    #: As `state_dict` gives it: names with dots, contiguous tensors, nothing shared.
    state: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What an official `.pkl` holds, as far as it is of use."""

    networks: dict[str, Network]
    #: Hexadecimal, of the file.
    sha256: str
    bytes: int

    @property
    def generator(self) -> Network:
        """The one to sample from: the mean over the last training steps."""
        return self.networks["G_ema"]


def read_snapshot(path: Path) -> Snapshot:
    """Reads the networks of an official `.pkl`.

    Raises PickleRefused with what the file tried to load, or what is wrong with it; nothing of it has run.
    """
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise PickleRefused(f"has {size:,} bytes: between 1 and {MAX_FILE_BYTES:,} are read")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        digest = hashlib.sha256(mapped).hexdigest()
        content = read(mapped, BUILDERS)
    if type(content) is not dict or type(content.get("G_ema")) is not ModuleRecord:
        raise PickleRefused("holds no network under the name G_ema: it is no snapshot of StyleGAN3")
    found = {name: content[name] for name in _NETWORKS if type(content.get(name)) is ModuleRecord}
    networks = {name: _network(module, _Budget(size)) for name, module in found.items()}
    if _FOURIER_FEATURES not in networks["G_ema"].state:
        raise PickleRefused("holds a generator without Fourier features: it is not of the StyleGAN3 kind")
    return Snapshot(networks=networks, sha256=digest, bytes=size)


def convert(path: Path, target: Path) -> dict[str, Any]:
    """Reads `path` and writes the folder `target`: safetensors, and `model.json`, which is given back.

    Raises PickleRefused for the file, and FileExistsError for a target that is there; then nothing is written.
    """
    if target.exists():
        raise FileExistsError(f"{target} is there already: name another folder, or remove it")
    snapshot = read_snapshot(path)
    description = describe(snapshot, path.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        whole = Path(folder, "whole")
        whole.mkdir()
        for name, network in snapshot.networks.items():
            save_file(network.state, whole / _NETWORKS[name], metadata={"format": "pt"})
        (whole / FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        whole.rename(target)
    return description


def describe(snapshot: Snapshot, file_name: str) -> dict[str, Any]:
    """What `model.json` says. Raises PickleRefused for settings of which no generator can be built."""
    generator = _settings(snapshot.generator)
    return {
        "architecture": "stylegan3-r" if generator["radial_filters"] else "stylegan3-t",
        # An official file knows its classes by number only.
        "labels": [str(number) for number in range(generator["num_classes"])] or None,
        "generator": generator,
        "discriminator": _discriminator_settings(snapshot.networks.get("D")),
        "networks": {
            name: {
                "file": _NETWORKS[name],
                "class_name": network.class_name,
                "tensors": len(network.state),
                "configuration": network.configuration,
            }
            for name, network in snapshot.networks.items()
        },
        "licence": {"id": LICENCE, "commercial_use": False, "note": _LICENCE_NOTE},
        "source": {"type": "stylegan3-pkl", "file_name": file_name, "sha256": snapshot.sha256, "bytes": snapshot.bytes},
    }


def _settings(generator: Network) -> dict[str, Any]:
    """Those of StyleGAN3Config, checked by it; what it does not know, such as mixed precision, is left out."""
    official = dict(generator.configuration)
    mapping = official.pop("mapping_kwargs", None)
    known = {field.name for field in fields(StyleGAN3Config)}
    given = {_RENAMED.get(name, name): value for name, value in official.items()}
    given = {name: value for name, value in given.items() if name in known}
    if isinstance(mapping, Mapping) and "num_layers" in mapping:
        given["mapping_layers"] = mapping["num_layers"]
    for name, value in given.items():
        if not isinstance(value, int | float):
            raise PickleRefused(f"describes a generator whose {name} is no number")
    try:
        config = StyleGAN3Config(**given)
    except (TypeError, ValueError) as exc:
        raise PickleRefused(f"describes a generator that cannot be built: {exc}") from exc
    return {name: getattr(config, name) for name in sorted(known)}


def _discriminator_settings(network: Network | None) -> dict[str, Any] | None:
    """Those of DiscriminatorConfig; None where there is no discriminator, or one that this project cannot build:
    training from the generator then begins with a new one."""
    if network is None:
        return None
    official = dict(network.configuration)
    given = {_RENAMED.get(name, name): value for name, value in official.items()}
    for group, setting, name in (
        ("mapping_kwargs", "num_layers", "mapping_layers"),
        ("epilogue_kwargs", "mbstd_group_size", "group_size"),
    ):
        inner = official.get(group)
        if isinstance(inner, Mapping) and setting in inner:
            given[name] = inner[setting]
    known = {field.name for field in fields(DiscriminatorConfig)}
    try:
        config = DiscriminatorConfig(**{name: value for name, value in given.items() if name in known})
        if config.mapping_layers > len(network.state):
            return None
        with torch.device("meta"):
            own = Discriminator(config).state_dict()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    shapes = {name: tensor.shape for name, tensor in network.state.items()}
    return asdict(config) if shapes == {name: tensor.shape for name, tensor in own.items()} else None


class _Budget:
    """How many bytes of tensors a network may have: as many as the file, since a network's own share none."""

    def __init__(self, allowed: int) -> None:
        self._left = allowed

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise PickleRefused("would unpack to more than it holds")


def _network(module: ModuleRecord, budget: _Budget) -> Network:
    state = {}
    for name, tensor in _tensors(module, "", _Counter(MAX_MODULES, "modules")):
        budget.spend(tensor.bytes)
        state[name] = tensor.tensor()
    arguments = module.state.get("_init_kwargs", {})
    configuration = _plain(arguments, 0, _Counter(MAX_VALUES, "settings"))
    if type(configuration) is not dict:
        raise PickleRefused("has a network whose settings are no mapping")
    return Network(class_name=module.class_name, configuration=configuration, state=state)


class _Counter:
    """Ends a walk that would not end: a few records that name each other can be endlessly many paths."""

    def __init__(self, most: int, what: str) -> None:
        self._left = most
        self._message = f"has a network of more than {most:,} {what}, or {what} within themselves"

    def one(self, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise PickleRefused(self._message)


def _tensors(module: ModuleRecord, prefix: str, count: _Counter) -> Iterator[tuple[str, TensorRecord]]:
    """Parameters and persistent buffers, by the names that `state_dict` gives them."""
    count.one(prefix.count("."))
    transient = module.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, value in _members(module, kind):
            if value is None or (kind == "_buffers" and name in transient):
                continue
            if type(value) is not TensorRecord:
                raise PickleRefused(
                    f"has a value of type {type(value).__name__} where the tensor {prefix}{name} should be"
                )
            yield f"{prefix}{name}", value
    for name, child in _members(module, "_modules"):
        if child is None:
            continue
        if type(child) is not ModuleRecord:
            raise PickleRefused(f"has a value of type {type(child).__name__} where the module {prefix}{name} should be")
        yield from _tensors(child, f"{prefix}{name}.", count)


def _members(module: ModuleRecord, kind: str) -> Iterator[tuple[str, Any]]:
    members = module.state.get(kind, {})
    if type(members) is not dict:
        raise PickleRefused(f"has a module whose {kind} are no mapping")
    for name, value in members.items():
        if type(name) is not str or not name.isidentifier():
            raise PickleRefused("has a parameter, buffer or module without a proper name")
        yield name, value


def _plain(value: Any, depth: int, count: _Counter) -> Any:
    """A setting as JSON has it."""
    count.one(depth)
    if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 1 << 63):
        return value
    if type(value) is str and len(value) <= MAX_TEXT:
        return value
    if type(value) is dict:
        return {str(name): _plain(inner, depth + 1, count) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return [_plain(inner, depth + 1, count) for inner in value]
    if type(value) is ArrayRecord and value.values.size <= MAX_VALUES:
        return value.values.tolist()
    raise PickleRefused(f"has a setting of type {type(value).__name__} that is too large, or that JSON does not have")


def main() -> int:
    """Converts one file; 0, or 2 with one line of what was refused on stderr."""
    parser = argparse.ArgumentParser(prog="worker.families.gan.pickle_import", description=__doc__)
    parser.add_argument("file", type=Path, help="an official StyleGAN3 .pkl")
    parser.add_argument("folder", type=Path, help="to write; must not be there yet")
    options = parser.parse_args()
    try:
        description = convert(options.file, options.folder)
    except PickleRefused as exc:
        sys.stderr.write(f"{options.file.name} {exc}.\n")
        return 2
    except OSError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    sys.stdout.write(json.dumps(description) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
