"""Datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from api.schemas.answers import Answer, Page


class Dataset(Answer):
    """A validated set of images."""

    id: str = Field(description="`ds_…`")
    name: str
    shared: bool = Field(description="Whether it belongs to every tenant and cannot be deleted.")
    digest: str = Field(description="sha256 of the content.")
    bytes: int
    images: int
    captions: bool = Field(description="Whether its images have captions.")
    labels: list[str]
    created_at: datetime


class DatasetUpload(Answer):
    """Where to put the archive of a dataset."""

    id: str = Field(description="The id the dataset will have, unless its content is there already.")
    name: str
    method: Literal["PUT"] = "PUT"
    url: str = Field(description="Presigned: send the archive's bytes there, without the API key.")
    url_expires_at: datetime
    complete: str = Field(description="Path to POST to when the archive is there.")


class DatasetPage(Page[Dataset]):
    """Datasets."""
