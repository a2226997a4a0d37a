"""Models and their versions."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from api.schemas.answers import Answer, Page
from calotype.jobs import Family


class ModelFile(Answer):
    path: str
    bytes: int
    sha256: str


class ModelVersion(Answer):
    """One version of a model."""

    ref: str = Field(description="`name@version`; what a job pins.")
    name: str
    version: int
    family: Family
    architecture: str = Field(description="e.g. `sd3`, `lora`")
    base: str | None = Field(description="For adapters: the model they fit.")
    shared: bool = Field(description="Whether it belongs to every tenant and cannot be deleted.")
    digest: str
    bytes: int = Field(description="Of all files; 0 for a hub model, whose files a worker fetches.")
    files: list[ModelFile]
    source: dict[str, Any] = Field(description="Where it came from: `type` is starter, upload, s3, hub or train.")
    licence: str | None
    parameters: dict[str, Any] = Field(description="Sizes, steps and defaults that it supports.")
    job_id: UUID | None = Field(description="The train job that made it.")
    created_at: datetime


class Model(ModelVersion):
    """A model: its latest version, or the one that was asked for, and which others there are."""

    versions: list[int] = Field(description="All versions, latest first.")


class FileUpload(Answer):
    """Where to put one file."""

    path: str
    method: Literal["PUT"] = "PUT"
    url: str = Field(description="Presigned: send the file's bytes there, without the API key.")


class ModelUpload(Answer):
    """Where to put the files of a model."""

    id: UUID = Field(description='Register the model with `{"type": "upload", "id": …}` as its source.')
    files: list[FileUpload]
    url_expires_at: datetime


class ModelPage(Page[Model]):
    """Models."""
