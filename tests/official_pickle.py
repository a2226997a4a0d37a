"""Pickles laid out like those of official StyleGAN3 networks, made of this project's own networks.

A persistent object is pickled as a call of `torch_utils.persistence._reconstruct_persistent_obj` with its class by
name, the source of its module and its attributes. Neither that package nor `dnnlib` is there: stand-ins of the same
names, which only pickling looks at, are put in their places while a pickle is written.
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

#: What an official file carries and what must never run.
MODULE_SRC = "raise SystemExit('the source in a pickle was run')"


def _reconstruct_persistent_obj(meta: object) -> object:
    raise AssertionError("a pickle was unpickled")


class EasyDict(dict[str, Any]):
    """Is pickled as an instance of a class, as `dnnlib.util.EasyDict` is."""


class Persistent:
    """A persistent object."""

    def __init__(self, class_name: str, state: Mapping[str, Any], **meta: Any) -> None:
        values = {"type": "class", "version": 6, "module_src": MODULE_SRC, "class_name": class_name}
        self._meta = EasyDict({**values, "state": dict(state), **meta})

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self._meta,)


def persistent(module: nn.Module, class_name: str | None = None, **settings: Any) -> Persistent:
    """A network as a persistent object, with the keyword arguments that it was made with."""
    own = vars(module)
    children = OrderedDict((name, child and persistent(child)) for name, child in own["_modules"].items())
    state = {
        "training": module.training,
        "_parameters": OrderedDict(own["_parameters"]),
        "_buffers": OrderedDict(own["_buffers"]),
        "_non_persistent_buffers_set": set(own["_non_persistent_buffers_set"]),
        "_backward_hooks": OrderedDict(),
        "_modules": children,
        "_init_args": (),
        "_init_kwargs": EasyDict(settings),
    }
    return Persistent(class_name or type(module).__name__, state)


def dumps(value: object, protocol: int = 4) -> bytes:
    """The pickle of a value that has persistent objects in it."""
    with _stand_ins():
        return pickle.dumps(value, protocol=protocol)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """The names that pickling checks, for a while."""
    made = {name: ModuleType(name) for name in ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence")}
    made["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    made["torch_utils.persistence"]._reconstruct_persistent_obj = (  # type: ignore[attr-defined]
        _reconstruct_persistent_obj
    )
    kept = EasyDict.__module__, _reconstruct_persistent_obj.__module__
    EasyDict.__module__, _reconstruct_persistent_obj.__module__ = "dnnlib.util", "torch_utils.persistence"
    sys.modules.update(made)
    try:
        yield
    finally:
        EasyDict.__module__, _reconstruct_persistent_obj.__module__ = kept
        for name in made:
            del sys.modules[name]
