"""Registering a GAN: its folder describes itself, and a licence that allows no commercial use is accepted first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from calotype.artifacts import ObjectStore
from calotype.errors import FieldError, Invalid
from calotype.gan_description import (
    FILE,
    GENERATOR,
    MAX_BYTES,
    GanDescription,
    UnreadableDescription,
    licence_mistake,
)
from calotype.registry import ModelFile


def read_description(
    store: ObjectStore, files: Sequence[ModelFile], architecture: str, loc: tuple[str, ...]
) -> GanDescription:
    """What the folder's `model.json` says; ``loc`` is the field of the request that names the folder.

    Raises:
        Invalid: it is missing, says nothing that makes a GAN, or says another architecture than the request.
        DependencyDown: the store cannot be read.
    """
    by_name = {file.path: file for file in files}
    for name in (FILE, GENERATOR):
        if name not in by_name:
            raise _wrong(loc, f"holds no {name}; upload the folder of a GAN as training or import made it")
    if by_name[FILE].bytes > MAX_BYTES:
        raise _wrong(loc, f"holds a {FILE} of more than {MAX_BYTES:,} bytes")
    try:
        description = GanDescription.read(store.get_bytes(by_name[FILE].object_key))
    except UnreadableDescription as exc:
        raise _wrong(loc, f"holds a {FILE} that describes no GAN: {exc}") from exc
    if description.architecture != architecture:
        raise _wrong(("architecture",), f"the folder's {FILE} says {description.architecture}, not {architecture}")
    return description


def accepted_licence(
    description: GanDescription, licence: str, accepted: str | None, key_id: UUID
) -> Mapping[str, Any]:
    """What the registry keeps of the acceptance; nothing where none was needed.

    Raises:
        Invalid: the folder is under another licence than the request says, or under one that has to be accepted.
    """
    mistake = licence_mistake(description, licence, accepted)
    if mistake is not None:
        field, msg = mistake
        raise _wrong((field,), msg)
    if accepted is None:
        return {}
    return {"accepted_licence": {"id": accepted, "key_id": str(key_id), "at": _now()}}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _wrong(loc: tuple[str, ...], msg: str) -> Invalid:
    return Invalid(errors=[FieldError(loc=loc, msg=msg)])
