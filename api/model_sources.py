"""Where a model that is registered comes from: an upload, files in the object store, or a pinned revision of a hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from api.reading import Body
from calotype.archive import megabytes
from calotype.artifacts import ObjectStore, StoredObject, model_upload_prefix
from calotype.errors import FieldError, Invalid
from calotype.registry import ModelFile

#: A pipeline has a few dozen files.
MAX_FILES = 1000
#: Weights that cannot run code, configurations, vocabularies, licences.
SAFE_NAME = re.compile(r".+\.(safetensors|json|txt|model|md)|(.+/)?LICENSE[^/]*", re.IGNORECASE)

#: Each part begins with a letter or digit, so that no path can be made of it.
HUB_REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
UPLOAD_ID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


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


class UploadSource(Body):
    """Files that you have put to the URLs of an upload."""

    type: Literal["upload"]
    id: Annotated[str, StringConstraints(pattern=UPLOAD_ID)] = Field(
        description="As `POST /v1/models/uploads` gave it."
    )


Source = Annotated[S3Source | HubSource | UploadSource, Field(discriminator="type")]
#: Where errors about the files of a source belong.
FILES_LOC = {"s3": ("source", "prefix"), "upload": ("source", "id"), "hub": ("source", "repo")}


def imports_prefix(tenant_id: UUID) -> str:
    """Where a tenant puts the files of models it registers; nothing else is kept there."""
    return f"tenants/{tenant_id}/imports/"


def files_of(store: ObjectStore, tenant_id: UUID, source: Source, most_bytes: int) -> tuple[ModelFile, ...]:
    """The files of a model, each read once for its digest; none of a model that workers fetch from a hub.

    Raises:
        Invalid: the source is not the tenant's, holds nothing, or holds what is no part of a safe model; an upload of
            more than ``most_bytes``.
        DependencyDown: the store cannot be read.
    """
    match source:
        case S3Source():
            return files_below(store, tenant_id, source)
        case UploadSource():
            return files_uploaded(store, tenant_id, source, most_bytes)
        case HubSource():
            return ()


def files_uploaded(store: ObjectStore, tenant_id: UUID, source: UploadSource, most_bytes: int) -> tuple[ModelFile, ...]:
    """What was put to the URLs of an upload, which are for the files of a GAN and for nothing else.

    Raises:
        Invalid: there is more than ``most_bytes``.
        DependencyDown: the store cannot be read.
    """
    prefix = model_upload_prefix(tenant_id, UUID(source.id))
    found = list(store.list_keys(prefix))
    # The URLs take whatever is put there: what was announced binds nobody.
    if sum(stored.bytes for stored in found) > most_bytes:
        msg = f"holds more than the {megabytes(most_bytes)} that are taken; upload a smaller model"
        raise Invalid(errors=[FieldError(loc=FILES_LOC["upload"], msg=msg)])
    return tuple(_file(store, stored, prefix) for stored in found)


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
    return Invalid(errors=[FieldError(loc=FILES_LOC["s3"], msg=msg)])
