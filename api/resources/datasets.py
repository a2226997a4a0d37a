"""Datasets: uploaded through the API, or straight into the object store when they are large."""

from __future__ import annotations

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue
from pydantic import Field

from api import paging, reading, schemas, serialize, uploads
from api.auth import principal
from api.calls import Answer, JsonBody, UploadBody, call
from api.errors import ARCHIVES
from api.examples import UPLOAD_EXAMPLE
from api.paging import PageQuery
from api.services import services
from calotype import datasets
from calotype.database import transaction
from calotype.tenants import Scope

blueprint = Blueprint("datasets", __name__)

DATASET_HEADERS = {"Location": "Path of the dataset."}


class DatasetListQuery(PageQuery):
    """Which datasets; newest first."""


class NewUpload(reading.Body):
    """Announces an archive that you will put into the object store yourself."""

    name: str = Field(description="What you call the dataset.")


ARCHIVE = UploadBody(
    fields={"name": "What you call the dataset."},
    file=(
        "file",
        "A zip or tar of images, with `metadata.jsonl` (`file_name`, `text`, `label`), with `dataset.json` (`labels`) "
        "or with one folder a label.",
    ),
)


@blueprint.post("/datasets")
@call(
    "Datasets",
    "Create a dataset",
    scope=Scope.JOBS_WRITE,
    description="Send the archive as multipart form, or announce it as JSON and get a presigned URL to put it "
    "to, which suits large ones. The archive is checked whole before anything is stored: a path that climbs "
    "out, a link, a bomb or a file that is not an image is an error that names the file. Equal content is the "
    "same dataset.",
    body=JsonBody.of(NewUpload, UPLOAD_EXAMPLE),
    upload=ARCHIVE,
    answers=[
        Answer(status=201, description="The dataset.", model=schemas.Dataset, headers=DATASET_HEADERS),
        Answer(status=202, description="Announced: where to put the archive.", model=schemas.DatasetUpload),
    ],
    codes=["disk_full", *ARCHIVES],
)
def create_dataset(body: NewUpload | None) -> ResponseReturnValue:
    return _announce(body) if body is not None else _import()


def _announce(body: NewUpload) -> ResponseReturnValue:
    here = services()
    upload = datasets.create_upload(here.engine, here.store, principal().tenant_id, body.name)
    return serialize.answer(
        schemas.DatasetUpload(
            id=upload.id,
            name=upload.name,
            url=upload.url,
            url_expires_at=upload.url_expires_at,
            complete=f"/v1/datasets/{upload.id}/complete",
        ),
        202,
    )


def _import() -> ResponseReturnValue:
    here = services()
    limits = datasets.DatasetLimits.of(here.settings)
    with uploads.received(ARCHIVE) as (fields, path):
        dataset = datasets.import_archive(here.engine, here.store, principal().tenant_id, path, fields["name"], limits)
    return _dataset_answer(dataset, 201)


@blueprint.post("/datasets/<dataset_id>/complete")
@call(
    "Datasets",
    "Complete an announced dataset",
    scope=Scope.JOBS_WRITE,
    description="Call it when the archive is in its place. It is checked as if it had come through the API.",
    answers=[Answer(status=201, description="The dataset.", model=schemas.Dataset, headers=DATASET_HEADERS)],
    codes=["upload_missing", "disk_full", *ARCHIVES],
)
def complete_dataset(dataset_id: str) -> ResponseReturnValue:
    here = services()
    limits = datasets.DatasetLimits.of(here.settings)
    dataset = datasets.complete_upload(here.engine, here.store, principal().tenant_id, dataset_id, limits)
    return _dataset_answer(dataset, 201)


@blueprint.get("/datasets")
@call(
    "Datasets",
    "List datasets",
    scope=Scope.JOBS_READ,
    query=DatasetListQuery,
    answers=[Answer(status=200, description="Yours and the shared ones, newest first.", model=schemas.DatasetPage)],
)
def list_datasets(query: DatasetListQuery) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        page = datasets.list_datasets(conn, principal().tenant_id, paging.decode(query), query.limit)
    cursor = paging.encode(page.items[-1].id, query) if page.has_more else None
    data = [dataset_json(dataset) for dataset in page.items]
    return serialize.answer(schemas.DatasetPage(data=data, has_more=page.has_more, next_cursor=cursor))


@blueprint.get("/datasets/<dataset_id>")
@call(
    "Datasets",
    "Look at a dataset",
    scope=Scope.JOBS_READ,
    answers=[Answer(status=200, description="The dataset.", model=schemas.Dataset, headers=DATASET_HEADERS)],
)
def get_dataset(dataset_id: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        return _dataset_answer(datasets.find_dataset(conn, principal().tenant_id, dataset_id), 200)


@blueprint.delete("/datasets/<dataset_id>")
@call(
    "Datasets",
    "Delete a dataset",
    scope=Scope.JOBS_WRITE,
    description="Refused while a job needs it.",
    answers=[Answer(status=204, description="It is gone.")],
    codes=["dataset_in_use"],
)
def delete_dataset(dataset_id: str) -> ResponseReturnValue:
    here = services()
    with transaction(here.engine) as conn:
        keys = datasets.delete_dataset(conn, principal().tenant_id, dataset_id)
    datasets.discard_or_leave(here.engine, here.store, keys)
    return Response(status=204)


def dataset_json(dataset: datasets.Dataset) -> schemas.Dataset:
    return schemas.Dataset(
        id=dataset.id,
        name=dataset.name,
        shared=dataset.tenant_id is None,
        digest=dataset.digest,
        bytes=dataset.bytes,
        images=dataset.images,
        captions=dataset.captions,
        labels=list(dataset.labels),
        created_at=dataset.created_at,
    )


def _dataset_answer(dataset: datasets.Dataset, status: int) -> Response:
    return serialize.answer(dataset_json(dataset), status, Location=f"/v1/datasets/{dataset.id}")
