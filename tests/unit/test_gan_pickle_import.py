"""Official StyleGAN3 pickles: everything of use comes out, and nothing in them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_pickle import Persistent, dumps, persistent
from safetensors.torch import load_file
from torch import nn

from worker.families.gan import pickle_machine
from worker.families.gan.networks.discriminator import Discriminator as OwnDiscriminator
from worker.families.gan.networks.discriminator import DiscriminatorConfig
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config, stylegan3_r, stylegan3_t
from worker.families.gan.pickle_import import Snapshot, convert, main, read_snapshot
from worker.families.gan.pickle_machine import PickleRefused
from worker.families.gan.stored import (
    build_discriminator,
    build_generator,
    load_generator,
    load_weights,
    read_description,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"z_dim": 16, "w_dim": 16, "channel_base": 256, "channel_max": 8}
OFFICIAL = {
    "z_dim": 16, "w_dim": 16, "mapping_kwargs": {"num_layers": 2}, "channel_base": 256, "channel_max": 8,
    "magnitude_ema_beta": 0.9988, "c_dim": 3, "img_resolution": 32, "img_channels": 3, "num_fp16_res": 4,
}  # fmt: skip


class Discriminator(nn.Module):
    """Stands for one: an import keeps its weights under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.b4 = nn.Linear(3, 2)
        self.absent = None
        self.register_module("skip", None)
        self.register_buffer("resample_filter", torch.ones(4, 4))
        self.register_buffer("scratch", torch.ones(5), persistent=False)
        self.register_parameter("bias", None)


@pytest.fixture(scope="module")
def generator() -> StyleGAN3Generator:
    torch.manual_seed(0)
    return StyleGAN3Generator(stylegan3_t(32, num_classes=3, magnitude_ema_beta=0.9988, **SMALL))


@pytest.fixture
def save(tmp_path: Path) -> Callable[[object], Path]:
    def write(value: object) -> Path:
        path = tmp_path / "network.pkl"
        path.write_bytes(value if isinstance(value, bytes) else dumps(value))
        return path

    return write


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def snapshot_of(generator: nn.Module, **others: Any) -> dict[str, Any]:
    return {
        "training_set_kwargs": {},
        "G": None,
        "D": None,
        "G_ema": persistent(generator, "Generator", **OFFICIAL),
    } | (others)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == sorted(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("protocol", [4, 5])
def test_every_tensor_comes_out_bit_by_bit(
    generator: StyleGAN3Generator, save: Callable[[object], Path], tmp_path: Path, protocol: int
) -> None:
    discriminator = Discriminator()
    networks = {"G": persistent(generator, "Generator", **OFFICIAL), "D": persistent(discriminator, c_dim=3)}
    convert(save(dumps(snapshot_of(generator, **networks), protocol)), tmp_path / "out")
    for name in ("generator", "generator_live"):
        assert_equal(load_file(tmp_path / "out" / f"{name}.safetensors"), generator.state_dict())
    found = load_file(tmp_path / "out" / "discriminator.safetensors")
    assert_equal(found, discriminator.state_dict())
    assert "scratch" not in found


def test_the_configuration_and_the_weights_fit_this_projects_generator(
    generator: StyleGAN3Generator, save: Callable[[object], Path], tmp_path: Path
) -> None:
    convert(save(snapshot_of(generator)), tmp_path / "out")
    description = json.loads((tmp_path / "out" / "model.json").read_text())
    config = StyleGAN3Config(**description["generator"])
    assert config == generator.config
    again = StyleGAN3Generator(config)
    again.load_state_dict(load_file(tmp_path / "out" / "generator.safetensors"), strict=True)
    z, labels = torch.randn(1, 16), torch.eye(3)[:1]
    assert torch.equal(again(z, labels), generator(z, labels))


@pytest.mark.parametrize("name", ["stylegan3-t-cond3", "stylegan3-r-uncond"])
def test_the_reference_networks_give_their_images_after_an_import(
    name: str, save: Callable[[object], Path], tmp_path: Path
) -> None:
    settings = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    content = {"G_ema": nested(load_file(GOLDEN / f"{name}.state.safetensors"), settings)}
    description = convert(save(content), tmp_path / "out")
    network = StyleGAN3Generator(StyleGAN3Config(**description["generator"]))
    network.load_state_dict(load_file(tmp_path / "out" / "generator.safetensors"), strict=True)
    expected = load_file(GOLDEN / f"{name}.golden.safetensors")
    with torch.no_grad():
        images = network(expected["z"], expected["c"] if settings["c_dim"] else None)
    scale = float(expected["image"].abs().max())
    torch.testing.assert_close(images, expected["image"], rtol=0.0, atol=1e-4 * scale)


def test_a_discriminator_that_training_can_go_on_from_is_described(
    generator: StyleGAN3Generator, save: Callable[[object], Path], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = DiscriminatorConfig(resolution=32, num_classes=3, channel_base=128, channel_max=8, mapping_layers=2)
    official = {
        "c_dim": 3, "img_resolution": 32, "img_channels": 3, "architecture": "resnet", "channel_base": 128,
        "channel_max": 8, "num_fp16_res": 4, "conv_clamp": 256, "block_kwargs": {"freeze_layers": 0},
        "mapping_kwargs": {"num_layers": 2}, "epilogue_kwargs": {"mbstd_group_size": 4},
    }  # fmt: skip
    networks = {"G": persistent(generator, **OFFICIAL), "D": persistent(OwnDiscriminator(config), **official)}
    convert(save(snapshot_of(generator, **networks)), tmp_path / "out")
    description = read_description(tmp_path / "out")
    assert description.labels == ["0", "1", "2"]
    again = build_discriminator(description)
    assert isinstance(again, OwnDiscriminator)
    assert again.config == config
    load_weights(again, tmp_path / "out" / "discriminator.safetensors")
    load_weights(build_generator(description), tmp_path / "out" / "generator_live.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"img_resolution": 48},
        {"img_resolution": "32"},
        {"channel_base": 2**62, "channel_max": 2**62},
        {"mapping_kwargs": {"num_layers": 2**62}},
    ],
)
def test_a_discriminator_of_another_kind_is_kept_and_not_described(
    generator: StyleGAN3Generator, save: Callable[[object], Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    other = persistent(Discriminator(), **{"c_dim": 3, "img_resolution": 32, "img_channels": 3} | settings)
    convert(save(snapshot_of(generator, D=other)), tmp_path / "out")
    assert (tmp_path / "out" / "discriminator.safetensors").exists()
    assert read_description(tmp_path / "out").discriminator is None


def test_an_imported_folder_is_loaded_as_any_other(
    generator: StyleGAN3Generator, save: Callable[[object], Path], tmp_path: Path
) -> None:
    convert(save(snapshot_of(generator)), tmp_path / "out")
    stored = load_generator(tmp_path / "out", torch.device("cpu"))
    z, labels = torch.randn(2, 16), torch.eye(3)[:2]
    assert torch.equal(stored.generator(z, labels), generator(z, labels))
    licence = stored.description.licence
    assert licence is not None
    assert (licence.id, licence.commercial_use) == ("nvidia-source-code-licence", False)


def nested(state: dict[str, torch.Tensor], settings: dict[str, Any]) -> Persistent:
    """Modules within modules, of tensors by their names with dots."""
    own = {name: tensor for name, tensor in state.items() if "." not in name}
    below: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        first, dot, rest = name.partition(".")
        if dot:
            below.setdefault(first, {})[rest] = tensor
    children = {name: nested(tensors, {}) for name, tensors in below.items()}
    return Persistent("Generator", {"_parameters": {}, "_buffers": own, "_modules": children, "_init_kwargs": settings})


def test_the_licence_and_the_origin_travel_with_the_weights(
    generator: StyleGAN3Generator, save: Callable[[object], Path], tmp_path: Path
) -> None:
    path = save(snapshot_of(generator))
    description = convert(path, tmp_path / "out")
    assert description == json.loads((tmp_path / "out" / "model.json").read_text())
    assert description["architecture"] == "stylegan3-t"
    assert description["licence"]["id"] == "nvidia-source-code-licence"
    assert description["licence"]["commercial_use"] is False
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    size = path.stat().st_size
    origin = {"type": "stylegan3-pkl", "file_name": "network.pkl", "sha256": digest, "bytes": size}
    assert description["source"] == origin
    (network,) = description["networks"].values()
    assert network["configuration"] == OFFICIAL
    assert network["class_name"] == "Generator"
    assert network["tensors"] == len(generator.state_dict())


def test_a_rotation_equivariant_generator_is_told_by_its_filters(
    save: Callable[[object], Path], tmp_path: Path
) -> None:
    own = StyleGAN3Generator(stylegan3_r(32, **SMALL))
    settings = {**OFFICIAL, "c_dim": 0, "conv_kernel": 1, "use_radial_filters": True}
    found = convert(save({"G_ema": persistent(own, "Generator", **settings)}), tmp_path / "out")
    assert found["architecture"] == "stylegan3-r"
    assert (found["generator"]["radial_filters"], found["generator"]["conv_kernel"]) == (True, 1)


def test_a_view_of_a_larger_storage_comes_out_as_what_it_shows(
    generator: nn.Module, save: Callable[[object], Path]
) -> None:
    transposed = torch.arange(12.0).reshape(3, 4).t()[1:, ::2]
    half = torch.arange(6, dtype=torch.bfloat16)[2:]
    extra = plain_module({"a": nn.Parameter(transposed), "b": half, "c": torch.tensor(3)})
    state = read_snapshot(save(snapshot_of(generator, D=extra))).networks["D"].state
    assert torch.equal(state["a"], transposed)
    assert torch.equal(state["b"], half)
    assert torch.equal(state["c"], torch.tensor(3))
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_numpy_values_in_a_configuration_become_json(generator: nn.Module, save: Callable[[object], Path]) -> None:
    given = {"psi": np.float32(0.5), "count": np.int64(3), "flags": np.array([[True, False]])}
    given |= {"big": np.arange(3, dtype=">i4"), "columns": np.asfortranarray(np.arange(4.0).reshape(2, 2))}
    extra = plain_module({}, _init_kwargs=given)
    found = read_snapshot(save(snapshot_of(generator, D=extra))).networks["D"].configuration
    assert found == {
        "psi": 0.5, "count": 3, "flags": [[True, False]], "big": [0, 1, 2], "columns": [[0.0, 1.0], [2.0, 3.0]],
    }  # fmt: skip


def plain_module(tensors: dict[str, Any], **state: Any) -> Persistent:
    return Persistent("Plain", {"_parameters": tensors, "_buffers": {}, "_modules": {}, **state})


# --- What must not come through. ---


class Calls:
    """Is pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def refusal(path: Path, target: Path) -> str:
    """The reason why the file is not read; nothing is left of the attempt."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(PickleRefused) as caught:
        convert(path, target)
    assert sorted(path.parent.iterdir()) == before
    return str(caught.value)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


#: Pickles that would run `touch CANARY`, and what they must be refused for.
HOSTILE: dict[str, tuple[Callable[[str], object], str]] = {
    "a shell": (lambda command: Calls(os.system, command), f"{os.system.__module__}.system"),
    "eval": (lambda command: Calls(eval, f"__import__('os').system({command!r})"), "builtins.eval"),
    "exec": (lambda command: Calls(exec, f"import os; os.system({command!r})"), "builtins.exec"),
    "a process": (lambda command: Calls(subprocess.Popen, command.split()), "subprocess.Popen"),
    "an import": (lambda command: Calls(__import__, "antigravity"), "builtins.__import__"),
    "a getattr": (lambda command: Calls(getattr, Calls(__import__, "os"), "system"), "builtins.getattr"),
    "another reader": (lambda command: Calls(pickle.loads, pickle.dumps(Calls(os.system, command))), "_pickle.loads"),
    "torch's reader": (lambda command: Calls(torch.load, "file"), "torch.serialization.load"),
    "INST": (lambda command: b"(V" + command.encode() + b"\nios\nsystem\n.", "os.system"),
    "OBJ": (lambda command: b"(cos\nsystem\n" + text(command) + b"o.", "os.system"),
    "NEWOBJ": (lambda command: b"\x80\x02csubprocess\nPopen\n" + text(command) + b"\x85\x81.", "subprocess.Popen"),
    "names from the memo": (
        lambda command: text("os") + text("system") + b"q\xff0h\xff\x93" + text(command) + b"\x85R.",
        "os.system",
    ),
    "dots after an allowed module": (
        lambda command: text("torch") + text("storage._load_from_bytes.__globals__") + b"\x93.",
        "torch.storage._load_from_bytes.__globals__",
    ),
    "dots after an allowed name": (
        lambda command: text("collections") + text("OrderedDict.__reduce__") + b"\x93.",
        "collections.OrderedDict.__reduce__",
    ),
    "a name with a line break": (lambda command: text("os\nos") + text("system") + b"\x93.", "os\\nos.system"),
    "numpy that writes a file": (lambda command: text("numpy") + text("ndarray.tofile") + b"\x93.", "ndarray.tofile"),
    "an extension": (lambda command: b"\x82\x01.", "EXT1"),
    "a persistent id": (lambda command: text(command) + b"Q.", "BINPERSID"),
    "attributes of a function": (
        lambda command: b"ccollections\nOrderedDict\n" + b"N}" + text("__call__") + b"K\x01s\x86b.",
        "a state for a Mark",
    ),
    "a call of an allowed class": (lambda command: b"cnumpy\nndarray\n)R.", "numpy.ndarray"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("place", ["alone", "inside"])
def test_a_hostile_pickle_is_refused_by_name_and_nothing_of_it_runs(
    kind: str, place: str, generator: nn.Module, save: Callable[[object], Path], tmp_path: Path, canary: Path
) -> None:
    make, named = HOSTILE[kind]
    evil = make(f"touch {canary}")
    if isinstance(evil, bytes):
        # Behind a whole snapshot: a reader that looks only at the front would be content.
        whole = dumps(snapshot_of(generator))
        evil = evil if place == "alone" else whole[:-1] + evil
    elif place == "inside":
        evil = snapshot_of(generator, D=plain_module({"weight": evil}))
    assert named in refusal(save(evil), tmp_path / "out")
    assert not canary.exists()


def test_hostile_pickles_of_this_test_would_run_if_they_were_unpickled(tmp_path: Path, canary: Path) -> None:
    make, _ = HOSTILE["names from the memo"]
    data = make(f"touch {canary}")
    assert isinstance(data, bytes)
    pickle.loads(data)  # noqa: S301 - that is the point
    assert canary.exists()


def test_the_source_in_an_official_file_is_not_looked_at(
    generator: nn.Module, save: Callable[[object], Path], canary: Path
) -> None:
    source = f"open({str(canary)!r}, 'w')"
    extra = Persistent("Plain", {"_parameters": {}, "_buffers": {}, "_modules": {}}, module_src=source)
    assert isinstance(read_snapshot(save(snapshot_of(generator, D=extra))), Snapshot)
    assert not canary.exists()
    assert not any("Plain" in name for name in sys.modules)


# --- Storages: bytes that torch would read. ---


def floats(*values: float) -> torch.storage.TypedStorage:
    """A storage as official files hold it; `tensor.storage()` makes it too, with a warning."""
    raw = torch.tensor(values).untyped_storage()
    return torch.storage.TypedStorage(wrap_storage=raw, dtype=torch.float32, _internal=True)


def stored() -> bytes:
    """Three numbers as a storage is pickled."""
    function, (data,) = floats(1.0, 2.0, 3.0).__reduce__()
    assert function is torch.storage._load_from_bytes
    return bytes(data)


def with_storage(data: object) -> bytes:
    """A pickle that has torch read these bytes."""
    return dumps(plain_module({"weight": Calls(torch.storage._load_from_bytes, data)}))


def untyped() -> bytes:
    data = io.BytesIO()
    torch.save(torch.zeros(3).untyped_storage(), data, _use_new_zipfile_serialization=False)
    return data.getvalue()


def zipped() -> bytes:
    data = io.BytesIO()
    torch.save(torch.zeros(3).untyped_storage(), data)
    return data.getvalue()


def deflated(size: int) -> bytes:
    """What unpacks to a thousand times its size."""
    small, large = io.BytesIO(zipped()), io.BytesIO()
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(large, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, bytes(size) if "/data/" in name else source.read(name))
    return large.getvalue()


def claiming(count: int) -> bytes:
    """A storage of three numbers that says it has `count`."""
    honest, few = stored(), b"K\x03"
    assert honest.count(few) == 1
    return honest.replace(few, b"\x8a\x08" + struct.pack("<q", count))


def calling(command: str) -> bytes:
    """A storage that calls a shell on the way."""
    honest = stored()
    evil = b"cos\nsystem\n" + b"X" + struct.pack("<I", len(command)) + command.encode() + b"\x85R0("
    assert honest.count(b"(X\x07\x00\x00\x00storage") == 1
    return honest.replace(b"(X\x07\x00\x00\x00storage", evil + b"X\x07\x00\x00\x00storage")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped(), "another format"),
        (deflated(1 << 20), "another format"),
        (b"no pickle", "another format"),
        (b"", "another format"),
        (claiming(1 << 40), "claims more than it brings"),
        (claiming(4), "does not read as plain weights"),
        (stored()[:-4], "does not read as plain weights"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"N" * 1000 + b".", "no pickled storage"),
        (untyped(), "does not read as plain weights"),
        ("text", "no bytes"),
    ],
)
def test_a_storage_that_is_none_is_refused(
    data: object, said: str, save: Callable[[object], Path], tmp_path: Path
) -> None:
    assert said in refusal(save(with_storage(data)), tmp_path / "out")


def test_a_call_hidden_in_a_storage_does_not_run(save: Callable[[object], Path], tmp_path: Path, canary: Path) -> None:
    path = save(with_storage(calling(f"touch {canary}")))
    assert "does not read as plain weights" in refusal(path, tmp_path / "out")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "said"),
    [
        (0, (1 << 30,), (0,), "reaches beyond"),
        (0, (4,), (0,), "reaches beyond"),
        (1, (3,), (1,), "reaches beyond"),
        (0, (2, 2), (2, 1), "reaches beyond"),
        (-1, (1,), (1,), "impossible dimensions"),
        (0, (3,), (-1,), "impossible dimensions"),
        (0, (1 << 70, 0), (1, 1), "impossible dimensions"),
        (0, (3,), (1, 1), "impossible dimensions"),
        (0, (1,) * 9, (1,) * 9, "impossible dimensions"),
        (0, (True,), (1,), "impossible dimensions"),
        (0, "three", (1,), "unknown form"),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(
    offset: int, size: Any, stride: Any, said: str, save: Callable[[object], Path], tmp_path: Path
) -> None:
    tensor = Calls(torch._utils._rebuild_tensor_v2, floats(1.0, 2.0, 3.0), offset, size, stride, False, OrderedDict())
    assert said in refusal(save(plain_module({"weight": tensor})), tmp_path / "out")


# --- What would take all memory, or all time. ---


def test_many_tensors_over_one_storage_do_not_multiply_it(
    generator: nn.Module, save: Callable[[object], Path], tmp_path: Path
) -> None:
    one = torch.zeros(200_000)
    module = plain_module({f"w{number}": one for number in range(50)})
    assert "unpack to more than it holds" in refusal(save(snapshot_of(generator, D=module)), tmp_path / "out")


def test_modules_within_themselves_end(generator: nn.Module, save: Callable[[object], Path], tmp_path: Path) -> None:
    module = plain_module({})
    for _ in range(40):
        module = Persistent("Fork", {"_modules": {"left": module, "right": module}})
    assert "modules within themselves" in refusal(save(snapshot_of(generator, D=module)), tmp_path / "out")


def test_settings_within_themselves_end(generator: nn.Module, save: Callable[[object], Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {}
    settings["again"] = settings
    module = plain_module({}, _init_kwargs=settings)
    assert "settings within themselves" in refusal(save(snapshot_of(generator, D=module)), tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.", "no pickle that can be read"),
        (b"\x80\x04\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x.", "no pickle that can be read"),
        (b"\x80\x02" + b"(" * 1000 + b"t" * 1000 + b"}" + b"2K\x01s.", "no pickle that can be read"),
        (b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.", "a tuple as a key"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "no network under the name G_ema"),
        (b"\x80\x02" + b"N0" * 20 + b"}.", "more than 30 instructions"),
        (b"\x80\x02}", "no pickle that can be read"),
        (b".", "no pickle that can be read"),
        (b"\x80\x02(.", "no pickle that can be read"),
        (b"hello", "no pickle that can be read"),
        (b"", "has 0 bytes"),
    ],
)
def test_a_pickle_that_lies_about_itself_is_refused(
    data: bytes, said: str, save: Callable[[object], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "instructions" in said:
        monkeypatch.setattr(pickle_machine, "MAX_INSTRUCTIONS", 30)
    assert said in refusal(save(data), tmp_path / "out")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([None, "x"], dtype=object), "other things than numbers"),
        (np.array(["text"]), "other things than numbers"),
        (np.zeros(2, dtype=[("a", "f4")]), "other things than numbers"),
    ],
)
def test_numpy_arrays_of_other_things_are_refused(
    array: Any, said: str, save: Callable[[object], Path], tmp_path: Path
) -> None:
    assert said in refusal(save({"G_ema": array}), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weights": 1}, "no network under the name G_ema"),
        ({"G_ema": plain_module({"weight": torch.zeros(2)})}, "not of the StyleGAN3 kind"),
        ({"G_ema": plain_module({"weight": 5})}, "has a value of type int where the tensor weight should be"),
        (
            {"G_ema": Persistent("Plain", {"_modules": {"a": 5}})},
            "has a value of type int where the module a should be",
        ),
        ({"G_ema": Persistent("Plain", {"_modules": 5})}, "no mapping"),
        ({"G_ema": plain_module({"../evil": torch.zeros(2)})}, "without a proper name"),
        ({"G_ema": plain_module({}, _init_kwargs={"a": {1, 2}})}, "setting of type set"),
        ({"G_ema": plain_module({}, _init_kwargs={"a": 1 << 64})}, "setting of type int"),
        ({"G_ema": Persistent("Plain", {}, type="function")}, "unknown form"),
    ],
)
def test_what_is_no_snapshot_of_stylegan3_is_refused(
    content: object, said: str, save: Callable[[object], Path], tmp_path: Path
) -> None:
    assert said in refusal(save(content), tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"img_resolution": 33}, "power of two"), ({"z_dim": "many"}, "z_dim is no number"), ({"z_dim": 0}, "at least 1")],
)
def test_settings_of_which_no_generator_can_be_built_are_refused(
    wrong: dict[str, Any], said: str, generator: nn.Module, save: Callable[[object], Path], tmp_path: Path
) -> None:
    content = {"G_ema": persistent(generator, "Generator", **{**OFFICIAL, **wrong})}
    assert said in refusal(save(content), tmp_path / "out")


def test_a_folder_that_is_there_is_not_written_into(
    generator: nn.Module, save: Callable[[object], Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        convert(save(snapshot_of(generator)), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_program_says_in_one_line_what_was_refused(
    save: Callable[[object], Path],
    tmp_path: Path,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save(Calls(os.system, f"touch {canary}"))
    monkeypatch.setattr(sys, "argv", ["pickle_import", str(path), str(tmp_path / "out")])
    assert main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    name = f"{os.system.__module__}.system"
    assert said.err == f"network.pkl tries to load {name}, which is no part of a model: it was not loaded.\n"
    assert not canary.exists()
