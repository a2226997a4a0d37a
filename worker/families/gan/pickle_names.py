"""The names that the pickle of an official StyleGAN3 network may ask for, and what each becomes: plain data.

Tensors are not made while reading. A record remembers which part of which storage one is, so that what they take
together is known before it is taken.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from worker.families.gan.pickle_machine import Buildable, Builder, Mark, Name, PickleRefused

#: What a safetensors file holds and a network is made of.
DTYPES: Final = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool}
)  # fmt: skip

_MOST_DIMENSIONS: Final = 8
#: Numbers and truth values; never objects, which hold pickles of their own.
_NUMPY_CODE: Final = re.compile(r"[iuf][1248]|b1")
_MOST_NUMBERS: Final = 1 << 40
#: Of a pickle that describes one storage; there are about 30.
_STORAGE_INSTRUCTIONS: Final = 200
#: What torch's reader raises for bytes that are no storage; it meets them unguarded.
_TORCH_ERRORS: Final = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, OSError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError),
)
#: The number at the front of what `torch.save` wrote before it wrote zips.
_TORCH_MAGIC: Final = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """What is left of a persistent object: its class by name, its attributes; its source is dropped unread."""

    class_name: str
    state: dict[str | int, Any]


@dataclass(frozen=True, slots=True)
class StorageRecord:
    """Numbers in a row."""

    #: 1-d, of one of DTYPES.
    values: Tensor


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A part of a storage, as `torch.as_strided` takes it; checked to lie within it."""

    storage: StorageRecord
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.size) * self.storage.values.element_size()

    def tensor(self) -> Tensor:
        """A contiguous copy."""
        view = torch.as_strided(self.storage.values, self.size, self.stride, self.offset)
        return view.clone(memory_format=torch.contiguous_format)


@dataclass(slots=True)
class DtypeRecord(Buildable):
    """A numpy dtype: its code without the byte order, which comes as a state."""

    code: str
    order: str = "="

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise PickleRefused("has a numpy dtype with an unknown byte order")
        self.order = state[1]

    def values(self, data: Any) -> np.ndarray[Any, Any]:
        """The numbers in those bytes, 1-d."""
        if type(data) is not bytes:
            raise PickleRefused("has a numpy array whose values are no bytes")
        return np.frombuffer(data, np.dtype(self.order.replace("|", "=") + self.code))


@dataclass(slots=True)
class ArrayRecord(Buildable):
    """A numpy array; empty until its state comes."""

    values: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0))

    def build(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        if type(dtype) is not DtypeRecord or type(shape) is not tuple:
            raise PickleRefused("has a numpy array of an unknown form")
        self.values = dtype.values(data).reshape(shape, order="F" if by_column else "C")


def _mapping() -> dict[str | int, Any]:
    return {}


def _module(meta: Any) -> ModuleRecord:
    if type(meta) is not dict or meta.get("type") != "class":
        raise PickleRefused("has a persistent object of an unknown form")
    class_name, state = meta.get("class_name"), meta.get("state")
    if type(class_name) is not str or type(state) is not dict:
        raise PickleRefused("has a persistent object without class or state")
    return ModuleRecord(class_name, state)


def _storage(data: Any) -> StorageRecord:
    """`torch.storage._load_from_bytes`: by torch's own reader of plain weights, after a look at what it would take."""
    if type(data) is not bytes:
        raise PickleRefused("has a storage that is no bytes")
    _check_storage(data)
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _TORCH_ERRORS as exc:
        raise PickleRefused("has a storage that torch does not read as plain weights") from exc
    if not isinstance(loaded, torch.storage.TypedStorage) or loaded.dtype not in DTYPES:
        raise PickleRefused("has a storage of a kind that no network is made of")
    # The public way to the bytes warns that typed storages will go; it is them that official files hold.
    return StorageRecord(torch.empty(0, dtype=loaded.dtype).set_(loaded._untyped_storage))  # noqa: SLF001


def _check_storage(data: bytes) -> None:
    """One storage, no larger than the bytes it comes in, uncompressed: the same amount read by `torch.load`.

    Such a storage is five pickles (a magic number, the protocol, the machine, the storage, its keys) and the numbers.
    """
    stream = io.BytesIO(data)
    magic, _, _, storage, keys = (_instructions(stream) for _ in range(5))
    if ("LONG1", _TORCH_MAGIC) not in magic:
        raise PickleRefused("has a storage in another format than official networks")
    counts = [argument for _, argument in storage if type(argument) is int]
    listed = [argument for _, argument in keys if type(argument) is str]
    if max(counts, default=0) > len(data) or [name for name, _ in storage].count("BINPERSID") != 1 or len(listed) != 1:
        raise PickleRefused("has a storage that claims more than it brings")


def _instructions(stream: io.BytesIO) -> list[tuple[str, Any]]:
    """Of one of the five small pickles, with their arguments; the stream is left behind it."""
    found = []
    try:
        for code, argument, _ in pickletools.genops(stream):
            found.append((code.name, argument))
            if len(found) > _STORAGE_INSTRUCTIONS:
                break
        else:
            return found
    except ValueError as exc:
        raise PickleRefused("has a storage in another format than official networks") from exc
    raise PickleRefused("has a storage that is no pickled storage")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRecord:
    """`torch._utils._rebuild_tensor_v2`; whether it needs gradients, and its hooks, are left out."""
    if type(storage) is not StorageRecord or type(size) is not tuple or type(stride) is not tuple:
        raise PickleRefused("has a tensor of an unknown form")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise PickleRefused("has a tensor of impossible dimensions")
    if any(type(number) is not int or not 0 <= number <= _MOST_NUMBERS for number in (offset, *size, *stride)):
        raise PickleRefused("has a tensor of impossible dimensions")
    held, count = storage.values.numel(), math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A stride of 0 repeats numbers: a few bytes would become a tensor of any size.
    if count > held or offset > held or (count > 0 and last >= held):
        raise PickleRefused("has a tensor that reaches beyond its storage")
    return TensorRecord(storage, offset, size, stride)


def _parameter(tensor: Any, *_: Any) -> TensorRecord:
    """`torch._utils._rebuild_parameter`."""
    if type(tensor) is not TensorRecord:
        raise PickleRefused("has a parameter that is no tensor")
    return tensor


def _dtype(code: Any, *_: Any) -> DtypeRecord:
    if type(code) is not str or _NUMPY_CODE.fullmatch(code) is None:
        raise PickleRefused("has a numpy array of other things than numbers")
    return DtypeRecord(code)


def _array(kind: Any, *_: Any) -> ArrayRecord:
    if kind != Mark(("numpy", "ndarray")):
        raise PickleRefused("has a numpy array of another class")
    return ArrayRecord()


def _scalar(dtype: Any, data: Any) -> bool | int | float:
    if type(dtype) is not DtypeRecord:
        raise PickleRefused("has a numpy number without a dtype")
    (value,) = dtype.values(data).tolist()
    found: bool | int | float = value
    return found


def _never(*_: Any) -> Any:
    """`numpy.ndarray` is named, to say what `_reconstruct` should make, and not called."""
    raise PickleRefused("calls numpy.ndarray, which an array does not need")


_NUMPY: Final[Mapping[str, Builder]] = {"_reconstruct": _array, "scalar": _scalar}

#: Everything that may be named. All else is refused.
BUILDERS: Final[Mapping[Name, Builder]] = {
    ("collections", "OrderedDict"): _mapping,
    ("dnnlib.util", "EasyDict"): _mapping,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _never,
    **{("numpy.core.multiarray", name): builder for name, builder in _NUMPY.items()},
    **{("numpy._core.multiarray", name): builder for name, builder in _NUMPY.items()},
}
