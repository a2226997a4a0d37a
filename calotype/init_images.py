"""Where the image of an image-to-image job comes from; checked when the job is submitted, read when it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from calotype import datasets, lookup
from calotype.errors import FieldError, Invalid, NotFound

_DATA = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")
_ARTIFACT = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/(.+)")
_DATASET = re.compile(r"([^/]+)/(.+)")


@dataclass(frozen=True, kw_only=True)
class DatasetImageRef:
    """An image of a dataset."""

    dataset: str
    file_name: str


@dataclass(frozen=True, kw_only=True)
class ArtifactRef:
    """An artifact of a job."""

    job_id: UUID
    name: str


@dataclass(frozen=True, kw_only=True)
class InlineImage:
    """A ``data:`` URL."""

    url: str


def parse_init_image(text: str) -> DatasetImageRef | ArtifactRef | InlineImage:
    """What ``text`` refers to.

    Raises:
        Invalid: it has none of the three forms.
    """
    if _DATA.fullmatch(text):
        return InlineImage(url=text)
    if match := _ARTIFACT.fullmatch(text):
        return ArtifactRef(job_id=UUID(match[1]), name=match[2])
    if not text.startswith("data:") and (match := _DATASET.fullmatch(text)):
        return DatasetImageRef(dataset=match[1], file_name=match[2])
    raise _wrong("must be `ds_…/file.png`, `<job id>/<artifact>` or a base64 data URL of a PNG, JPEG or WebP")


def check_init_image(conn: sa.Connection, tenant_id: UUID, text: str) -> str:
    """Checks that the tenant may use the image; gives the reference with the dataset's name replaced by its id.

    Raises:
        Invalid: there is no such image; names the field.
    """
    ref = parse_init_image(text)
    try:
        if isinstance(ref, DatasetImageRef):
            dataset = datasets.find_dataset(conn, tenant_id, ref.dataset, hold=True)
            return f"{dataset.id}/{ref.file_name}"
        if isinstance(ref, ArtifactRef):
            job = lookup.get(conn, tenant_id, ref.job_id, hold=True)
            published = lookup.artifacts_of(conn, [job.id]).get(job.id, [])
            image = next((one for one in published if one.name == ref.name), None)
            if image is None and job.artifacts_expired_at is not None:
                raise NotFound(f"The images of job {job.id} were deleted at their time; make them anew with /retry.")
            if image is None or not image.content_type.startswith("image/"):
                raise NotFound(f"Job {job.id} has published no image {ref.name!r}.")
    except NotFound as exc:
        raise _wrong(exc.detail) from exc
    return text


def _wrong(message: str) -> Invalid:
    return Invalid(errors=[FieldError(loc=("input", "init_image"), msg=message)])
