"""The object store: what is missing, and what is down."""

from __future__ import annotations

import dataclasses

import pytest

from calotype.artifacts import ObjectStore
from calotype.errors import DependencyDown, NotFound
from calotype.settings import Settings


def test_an_object_that_is_not_there_is_not_found(store: ObjectStore) -> None:
    with pytest.raises(NotFound):
        store.get_bytes("tenants/a/one.png")
    with pytest.raises(NotFound):
        store.stat("tenants/a/one.png")


def test_a_missing_bucket_is_a_service_to_mend_and_not_an_object_that_is_gone(settings: Settings) -> None:
    astray = ObjectStore(dataclasses.replace(settings, s3_bucket="nobody-made-this"))
    with pytest.raises(DependencyDown, match="CALOTYPE_S3_BUCKET"):
        astray.get_bytes("tenants/a/one.png")
    with pytest.raises(DependencyDown, match="CALOTYPE_S3_BUCKET"):
        list(astray.list_keys("tenants/"))
