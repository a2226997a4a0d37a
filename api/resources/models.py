"""The registry: models, their versions, and registering those that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import sqlalchemy as sa
from flask import Blueprint, Response
from flask.typing import ResponseReturnValue
from pydantic import Field, StringConstraints, model_validator

from api import gan_models, model_sources, paging, reading, schemas, serialize
from api.auth import principal
from api.calls import Answer, JsonBody, call
from api.examples import MODEL_EXAMPLES
from api.model_sources import FILES_LOC, Source, UploadSource
from api.paging import PageQuery
from api.services import Services, services
from calotype import model_uploads, registry
from calotype.database import transaction
from calotype.errors import FieldError, Invalid, NotFound
from calotype.gan_description import ARCHITECTURES, registry_parameters
from calotype.jobs import Family
from calotype.registry import ModelFile, ModelVersion, NewVersion
from calotype.specs.common import ModelName, ModelRef
from calotype.tenants import Scope

blueprint = Blueprint("models", __name__)

MODEL_HEADERS = {"Location": "Path of the model."}
Side = Annotated[int, Field(ge=8, le=8192)]


class ModelListQuery(PageQuery):
    """Which models; by name."""

    family: Family | None = Field(default=None, description="Only models of this family.")


class Parameters(reading.Body):
    """What the model can do; requests are checked against it. Sizes are pixels."""

    default_width: Side
    default_height: Side
    size_multiple: Annotated[int, Field(ge=1, le=256)]
    min_size: Side
    max_size: Side
    default_steps: Annotated[int, Field(ge=1, le=1000)]
    max_steps: Annotated[int, Field(ge=1, le=1000)]
    default_guidance_scale: Annotated[float, Field(ge=0, le=50)]
    max_text_tokens: Annotated[int, Field(ge=1, le=4096)]

    @model_validator(mode="after")
    def _the_defaults_are_possible(self) -> Self:
        for name in ("default_width", "default_height"):
            side = getattr(self, name)
            if not self.min_size <= side <= self.max_size or side % self.size_multiple:
                raise ValueError(f"{name} is not a multiple of size_multiple between min_size and max_size")
        if self.default_steps > self.max_steps:
            raise ValueError("default_steps is more than max_steps")
        return self


class NewModel(reading.Body):
    """A model to register as the next version of its name."""

    name: ModelName = Field(description="Small letters, digits, dots, underscores and hyphens.")
    family: Literal["diffusion", "gan"]
    architecture: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        description="The pipeline's kind, e.g. `sd3`; `lora` for adapters; `stylegan3-t`, `stylegan3-r` or `r3gan`."
    )
    base: ModelRef | None = Field(
        default=None, description="For adapters, and only for them: the model that they fit, `name@version`."
    )
    source: Source
    licence: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        description="Under which licence it may be used; shown wherever the model is."
    )
    accept_licence: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        default=None,
        description="GANs only: the licence once more, where it allows no commercial use. It says that you have read "
        "it and keep to it, and is kept with the model.",
    )
    parameters: Parameters | None = Field(
        default=None,
        description="Required for diffusion models; adapters have those of their base, GANs those of their "
        "`model.json`.",
    )
    default_truncation_psi: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="GANs only: ψ of requests that give none; 1, no truncation, when null."
    )

    @model_validator(mode="after")
    def _gans_describe_themselves(self) -> Self:
        if self.family == "gan":
            if self.architecture not in ARCHITECTURES:
                raise ValueError(f"a GAN has the architecture {', '.join(ARCHITECTURES)}, not {self.architecture}")
            if self.parameters is not None or self.base is not None:
                raise ValueError("parameters and base are not for GANs: a GAN's model.json says what it can do")
            if self.source.type == "hub":
                raise ValueError(
                    "a GAN is registered from files in the object store: give a source of type upload or s3"
                )
            if self.architecture == "r3gan" and self.default_truncation_psi not in (None, 1):
                raise ValueError("r3gan has no truncation: leave default_truncation_psi out")
        elif self.accept_licence is not None or self.default_truncation_psi is not None:
            raise ValueError("accept_licence and default_truncation_psi are for GANs only")
        elif self.source.type == "upload":
            raise ValueError("uploads are for GANs only: give a source of type hub or s3")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base_and_models_parameters(self) -> Self:
        if self.family == "gan":
            return self
        adapter = self.architecture == "lora"
        if adapter != (self.base is not None):
            raise ValueError("base is needed for the architecture lora, and only for it")
        if adapter == (self.parameters is not None):
            raise ValueError("parameters are needed for models, and not for the architecture lora")
        return self


@blueprint.post("/models")
@call(
    "Models",
    "Register a model",
    scope=Scope.JOBS_WRITE,
    description="Registers the next version of `name`, from a hub at a pinned revision or from files that are "
    "in the object store, uploaded or below `tenants/<your tenant id>/imports/`; their digests are taken now, so "
    "that a later change is noticed. Weights must be safetensors. A GAN is the folder that training or "
    "`calotype models import-stylegan3` made, and its `model.json` says what it can do.",
    body=JsonBody.of(NewModel, *MODEL_EXAMPLES),
    answers=[Answer(status=201, description="The version.", model=schemas.Model, headers=MODEL_HEADERS)],
    codes=["conflict", "unknown_model"],
)
def register_model(body: NewModel) -> ResponseReturnValue:
    here = services()
    tenant_id = principal().tenant_id
    base = _pinned_base(here, tenant_id, body.base)
    # Read before the transaction: gigabytes take minutes, and no lock may be held meanwhile.
    files = model_sources.files_of(here.store, tenant_id, body.source, here.settings.max_upload_bytes)
    parameters, accepted = _particulars(here, body, files)
    new = NewVersion(
        name=body.name,
        tenant_id=tenant_id,
        family=Family(body.family),
        architecture=body.architecture,
        base=base,
        files=files,
        source={**body.source.model_dump(), **accepted},
        licence=body.licence,
        parameters=parameters,
    )
    with transaction(here.engine) as conn:
        if isinstance(body.source, UploadSource):
            model_uploads.hold_upload(conn, here.store, tenant_id, UUID(body.source.id), files)
        version = registry.register_version(conn, new)
        return _model_answer(_model(conn, tenant_id, version), 201)


def _particulars(
    here: Services, body: NewModel, files: Sequence[ModelFile]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The version's parameters, and what is kept of the acceptance of its licence."""
    if body.family != "gan":
        return (body.parameters.model_dump() if body.parameters is not None else {}), {}
    description = gan_models.read_description(here.store, files, body.architecture, FILES_LOC[body.source.type])
    accepted = gan_models.accepted_licence(description, body.licence, body.accept_licence, principal().key_id)
    return registry_parameters(description, body.default_truncation_psi), accepted


def _pinned_base(here: Services, tenant_id: UUID, ref: str | None) -> str | None:
    if ref is None:
        return None
    try:
        with transaction(here.engine) as conn:
            base = registry.find_version(conn, tenant_id, ref)
    except NotFound as exc:
        raise Invalid(errors=[FieldError(loc=("base",), msg=exc.detail)], code="unknown_model") from exc
    if base.base is not None:
        raise Invalid(errors=[FieldError(loc=("base",), msg=f"{base.ref} is itself an adapter; name {base.base}")])
    return base.ref


@blueprint.get("/models")
@call(
    "Models",
    "List models",
    scope=Scope.JOBS_READ,
    query=ModelListQuery,
    answers=[
        Answer(
            status=200,
            description="Yours and the shared ones, by name, each in its latest version.",
            model=schemas.ModelPage,
        )
    ],
)
def list_models(query: ModelListQuery) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = registry.list_models(conn, principal().tenant_id, family=query.family)
    # They come by name and latest first, a tenant's own before a shared one of the same name.
    models = [list(versions) for _, versions in groupby(found, key=lambda version: version.name)]
    return paging.answer(
        models, query, key=lambda versions: versions[0].name, render=lambda versions: _json(versions[0], versions)
    )


@blueprint.get("/models/<model_name>")
@call(
    "Models",
    "Look at a model",
    scope=Scope.JOBS_READ,
    description="`name` is its latest version, `name@version` the named one.",
    answers=[Answer(status=200, description="The model.", model=schemas.Model, headers=MODEL_HEADERS)],
)
def get_model(model_name: str) -> ResponseReturnValue:
    tenant_id = principal().tenant_id
    with transaction(services().engine) as conn:
        version = registry.find_version(conn, tenant_id, model_name)
        return _model_answer(_model(conn, tenant_id, version), 200)


@blueprint.delete("/models/<model_name>")
@call(
    "Models",
    "Delete a model",
    scope=Scope.JOBS_WRITE,
    description="`name` deletes all its versions, `name@version` the named one. Refused while a job or an "
    "adapter needs it.",
    answers=[Answer(status=204, description="It is gone.")],
    codes=["conflict"],
)
def delete_model(model_name: str) -> ResponseReturnValue:
    here = services()
    with transaction(here.engine) as conn:
        keys = registry.delete_model(conn, principal().tenant_id, model_name)
    here.store.discard(keys)
    return Response(status=204)


def _model(conn: sa.Connection, tenant_id: UUID, version: ModelVersion) -> schemas.Model:
    return _json(version, registry.list_models(conn, tenant_id, name=version.name))


def _json(version: ModelVersion, versions: Sequence[ModelVersion]) -> schemas.Model:
    return schemas.Model(
        ref=version.ref,
        name=version.name,
        version=version.version,
        versions=[one.version for one in versions if one.tenant_id == version.tenant_id],
        family=version.family,
        architecture=version.architecture,
        base=version.base,
        shared=version.tenant_id is None,
        digest=version.digest,
        bytes=version.bytes,
        files=[schemas.ModelFile(path=file.path, bytes=file.bytes, sha256=file.sha256) for file in version.files],
        source=dict(version.source),
        licence=version.licence,
        parameters=dict(version.parameters),
        job_id=version.job_id,
        created_at=version.created_at,
    )


def _model_answer(model: schemas.Model, status: int) -> Response:
    return serialize.answer(model, status, Location=f"/v1/models/{model.ref}")
