"""Where a model that is registered comes from: files in the object store, or a pinned revision of a hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from api.reading import Body
from calotype.artifacts import ObjectStore, StoredObject
from calotype.errors import FieldError, Invalid
from calotype.registry import ModelFile

#: A pipeline has a few dozen files.
MAX_FILES = 1000
#: Weights that cannot run code, configurations, vocabularies, licences.
SAFE_NAME = re.compile(r".+\.(safetensors|json|txt|model|md)|(.+/)?LICENSE[^/]*", re.IGNORECASE)

#: Each part begins with a letter or digit, so that no path can be made of it.
HUB_REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"


class S3Source(Body):
    """Files that you have put into the object store, below `tenants/<your tenant id>/imports/`."""

    type: Literal["s3"]
    prefix: Annotated[str, StringConstraints(min_length=1, max_length=900)] = Field(
        description="Everything below it is the model; ends with a slash."
    )


class HubSource(Body):
    """A revision of a model hub; workers fetch it where a hub can be reached."""

    type: Literal["hub"]
    repo: Annotated[str, StringConstraints(pattern=HUB_REPO)] = Field(description="`owner/name`")
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] = Field(
        description="A commit: 40 hexadecimal digits. Branches and tags move, so they are refused."
    )


Source = Annotated[S3Source | HubSource, Field(discriminator="type")]


def imports_prefix(tenant_id: UUID) -> str:
    """Where a tenant puts the files of models it registers; nothing else is kept there."""
    return f"tenants/{tenant_id}/imports/"


def files_below(store: ObjectStore, tenant_id: UUID, source: S3Source) -> tuple[ModelFile, ...]:
    """The files of a model, each read once for its digest.

    Raises:
        Invalid: the prefix is not the tenant's, holds nothing, or holds what is no part of a safe model.
        DependencyDown: the store cannot be read.
    """
    own = imports_prefix(tenant_id)
    if not source.prefix.startswith(own) or not source.prefix.endswith("/") or ".." in source.prefix:
        raise _wrong(f"must begin with {own} and end with a slash")
    found: list[StoredObject] = []
    for stored in store.list_keys(source.prefix):
        found.append(stored)
        if len(found) > MAX_FILES:
            raise _wrong(f"holds more than {MAX_FILES} files; give the folder of one model")
    _check_names([stored.key.removeprefix(source.prefix) for stored in found])
    return tuple(_file(store, stored, source.prefix) for stored in found)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise _wrong("holds no files; upload the model first")
    unsafe = [name for name in names if not SAFE_NAME.fullmatch(name) or ".." in name]
    if unsafe:
        raise _wrong(f"holds {unsafe[0]}, which is no part of a safe model: weights must be safetensors; remove it")
    if not any(name.endswith(".safetensors") for name in names):
        raise _wrong("holds no weights; upload *.safetensors files")


def _file(store: ObjectStore, stored: StoredObject, prefix: str) -> ModelFile:
    digest, size = hashlib.sha256(), 0
    with store.open_stream(stored.key) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return ModelFile(path=stored.key.removeprefix(prefix), object_key=stored.key, bytes=size, sha256=digest.hexdigest())


def _wrong(msg: str) -> Invalid:
    return Invalid(errors=[FieldError(loc=("source", "prefix"), msg=msg)])
