"""Uploads of models: the files of a GAN go straight into the object store, then it is registered."""

from __future__ import annotations

from typing import Annotated, Self
from uuid import UUID

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue
from pydantic import Field, model_validator

from api import reading, schemas, serialize
from api.auth import principal
from api.calls import Answer, JsonBody, call
from api.examples import MODEL_UPLOAD_EXAMPLE
from api.services import services
from calotype import model_uploads
from calotype.archive import megabytes
from calotype.errors import FieldError, Invalid, NotFound
from calotype.gan_description import FILE, FILES, GENERATOR, MAX_BYTES, FileName
from calotype.tenants import Scope

blueprint = Blueprint("model_uploads", __name__)


class NewModelFile(reading.Body):
    """A file that you will put into the object store yourself."""

    path: FileName
    bytes: Annotated[int, Field(ge=1)]


class NewModelUpload(reading.Body):
    """Announces the folder of a GAN, as training or `calotype models import-stylegan3` made it."""

    files: Annotated[list[NewModelFile], Field(min_length=1, max_length=len(FILES))]

    @model_validator(mode="after")
    def _they_are_a_gan(self) -> Self:
        sizes = {file.path: file.bytes for file in self.files}
        if len(sizes) < len(self.files):
            raise ValueError("a file is there twice")
        for name in (FILE, GENERATOR):
            if name not in sizes:
                raise ValueError(f"there is no {name}, and no GAN is without it")
        if sizes[FILE] > MAX_BYTES:
            raise ValueError(f"{FILE} has more than {MAX_BYTES:,} bytes")
        return self


@blueprint.post("/models/uploads")
@call(
    "Models",
    "Upload a model",
    scope=Scope.JOBS_WRITE,
    description="For a GAN's folder on your disk. Put each file to its URL, then register the model with the upload as "
    "its source. What is not registered within a day is removed.",
    body=JsonBody.of(NewModelUpload, MODEL_UPLOAD_EXAMPLE),
    answers=[Answer(status=202, description="Announced: where to put the files.", model=schemas.ModelUpload)],
)
def create_model_upload(body: NewModelUpload) -> ResponseReturnValue:
    here = services()
    total, most = sum(file.bytes for file in body.files), here.settings.max_upload_bytes
    if total > most:
        msg = f"have {megabytes(total)}; {megabytes(most)} are taken. {GENERATOR} suffices to make images"
        raise Invalid(errors=[FieldError(loc=("files",), msg=msg)])
    upload = model_uploads.create_upload(here.store, principal().tenant_id, [file.path for file in body.files])
    files = [schemas.FileUpload(path=file.path, url=file.url) for file in upload.files]
    return serialize.answer(schemas.ModelUpload(id=upload.id, files=files, url_expires_at=upload.url_expires_at), 202)


@blueprint.delete("/models/uploads/<upload_id>")
@call(
    "Models",
    "Give up an upload",
    scope=Scope.JOBS_WRITE,
    description="Removes what was put there. Refused once a model was registered from it; repeating it is harmless.",
    answers=[Answer(status=204, description="Nothing is there.")],
    codes=["conflict"],
)
def delete_model_upload(upload_id: str) -> ResponseReturnValue:
    here = services()
    model_uploads.remove_upload(here.engine, here.store, principal().tenant_id, _parse(upload_id))
    return Response(status=204)


def _parse(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise NotFound("There is no such upload.") from exc
