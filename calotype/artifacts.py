"""The object store: keys, uploads, presigned URLs. The only user of the minio package.

Sizes, digests and content types live in Postgres; the store is asked for bytes only.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit
from uuid import UUID

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import StaticProvider
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, S3Error, ServerError
from minio.signer import sign_v4_s3
from minio.time import to_amz_date
from urllib3.exceptions import HTTPError

from calotype.errors import DependencyDown, NotFound
from calotype.ids import new_id
from calotype.jobs import Artifact
from calotype.settings import Settings

__all__ = ["Artifact", "ObjectStore", "StoredObject", "dataset_key", "job_prefix", "model_upload_prefix", "upload_key"]

log = logging.getLogger(__name__)

#: Seconds: to connect, and between two pieces of an answer.
TIMEOUT = urllib3.Timeout(connect=3.0, read=30.0)
#: Stores refuse what is signed a quarter of an hour early or late; a clock that is wrong by less is left alone.
SKEW = timedelta(minutes=5)
#: Not the code of a missing bucket: that is no verdict on an object, and whoever runs the service can mend it.
_MISSING = frozenset({"NoSuchKey", "NoSuchObject", "ResourceNotFound"})
_NO_BUCKET = "The object store lacks the bucket that CALOTYPE_S3_BUCKET names; make it, or name one that is there."


def job_prefix(tenant_id: UUID, job_id: UUID, epoch: int) -> str:
    """Where one attempt of a job puts its files; another epoch never writes here."""
    return f"tenants/{tenant_id}/jobs/{job_id}/{epoch}/"


def dataset_key(tenant_id: UUID | None, digest: str) -> str:
    """Where the canonical archive of a dataset lies."""
    owner = f"tenants/{tenant_id}" if tenant_id is not None else "shared"
    return f"{owner}/datasets/{digest}.zip"


def upload_key(tenant_id: UUID) -> str:
    """A fresh place for a client's direct upload."""
    return f"tenants/{tenant_id}/uploads/{new_id()}"


def model_upload_prefix(tenant_id: UUID, upload_id: UUID) -> str:
    """Where a client puts the files of one model, which it then registers."""
    return f"tenants/{tenant_id}/model-uploads/{upload_id}/"


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An entry of a listing."""

    key: str
    bytes: int
    modified: datetime


class _Connections(urllib3.PoolManager):
    """Signs by the store's clock where that of this machine is wrong: a worker with a bad clock delivers its work.

    Every answer tells how far it is off. The client has no clock to set, and signs what it sends before it comes here;
    so what it signed by a wrong clock is signed anew.
    """

    def __init__(self, credentials: Credentials, region: str, **kw: Any) -> None:
        super().__init__(**kw)
        self._credentials = credentials
        self._region = region
        #: To add to the clock here.
        self._correction = timedelta(0)

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> Any:  # type: ignore[override]
        answer = self._ask(method, url, redirect, kw)
        if not self._learn(answer.headers) or answer.status < 400:
            return answer
        answer.drain_conn()
        return self._ask(method, url, redirect, kw)

    def _ask(self, method: str, url: str, redirect: bool, options: dict[str, Any]) -> Any:
        if self._correction:
            options = {**options, "headers": self._signed_anew(method, url, options["headers"])}
        return super().urlopen(method, url, redirect, **options)

    def _signed_anew(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
        now = datetime.now(UTC) + self._correction
        dated: dict[str, Any] = {**headers, "x-amz-date": to_amz_date(now)}
        return sign_v4_s3(
            method=method,
            url=urlsplit(url),
            region=self._region,
            headers=dated,
            credentials=self._credentials,
            content_sha256=dated["x-amz-content-sha256"],
            date=now,
        )

    def _learn(self, headers: Mapping[str, str]) -> bool:
        """Whether the clock here turns out to be off by something else than was believed."""
        try:
            told = parsedate_to_datetime(headers["Date"])
        except (KeyError, ValueError):
            # The answer does not say, or not in words of HTTP.
            return False
        before, off = self._correction, told.replace(tzinfo=UTC) - datetime.now(UTC)
        self._correction = off if abs(off) > SKEW else timedelta(0)
        return abs(self._correction - before) > SKEW


class ObjectStore:
    """One bucket of an S3-compatible store. Safe to use from several threads.

    Every call raises :class:`~calotype.errors.DependencyDown` when the store cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        settings.require("s3_endpoint", "s3_access_key", "s3_secret_key")
        self.bucket = settings.s3_bucket
        self._settings = settings
        self._client = self._connect(settings.s3_endpoint or "")
        # Signing is arithmetic: this client never connects.
        self._signer = self._connect(settings.s3_public_endpoint or settings.s3_endpoint or "")

    def _connect(self, endpoint: str) -> Minio:
        address = urlsplit(endpoint)
        credentials = StaticProvider(self._settings.s3_access_key or "", self._settings.s3_secret_key or "")
        region = self._settings.s3_region
        retries = urllib3.Retry(total=2, backoff_factor=0.1, status_forcelist=[500, 502, 503, 504])
        return Minio(
            address.netloc,
            credentials=credentials,
            secure=address.scheme == "https",
            # Given, since not every server answers GetBucketLocation in a form that the client reads.
            region=region,
            http_client=_Connections(
                credentials.retrieve(), region, timeout=TIMEOUT, maxsize=16, retries=retries, cert_reqs="CERT_REQUIRED"
            ),
        )

    def ensure_bucket(self) -> None:
        """Makes the bucket when it is missing."""
        with _translated("the bucket"):
            if not self._client.bucket_exists(self.bucket):
                self._client.make_bucket(self.bucket)

    def ping(self) -> None:
        """Returns when the store answers and the bucket is there.

        Raises:
            NotFound: the store answers but has no such bucket.
        """
        with _translated("the bucket"):
            if not self._client.bucket_exists(self.bucket):
                raise NotFound(f"The object store has no bucket {self.bucket!r}.")

    def put_file(self, key: str, path: Path, content_type: str = "application/octet-stream") -> None:
        """Uploads a file."""
        with _translated(key):
            self._client.fput_object(self.bucket, key, str(path), content_type=content_type)

    def put_bytes(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Uploads bytes."""
        with _translated(key):
            self._client.put_object(self.bucket, key, io.BytesIO(data), len(data), content_type=content_type)

    def get_bytes(self, key: str) -> bytes:
        """A whole object.

        Raises:
            NotFound: there is no such object.
        """
        with self.open_stream(key) as stream:
            return stream.read()

    def fetch_file(self, key: str, path: Path) -> None:
        """Downloads an object to ``path``, which appears only when complete.

        Raises:
            NotFound: there is no such object.
            OSError: the file cannot be written (a full disk).
        """
        part = path.with_name(f"{path.name}.part")
        try:
            with self.open_stream(key) as stream, part.open("wb") as file:
                while chunk := stream.read(1 << 20):
                    file.write(chunk)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def open_stream(self, key: str) -> Iterator[IO[bytes]]:
        """A readable stream of an object.

        Raises:
            NotFound: there is no such object.
        """
        with _translated(key):
            response: Any = self._client.get_object(self.bucket, key)
            try:
                yield response
            finally:
                response.close()
                response.release_conn()

    def stat(self, key: str) -> StoredObject:
        """Size and age of an object.

        Raises:
            NotFound: there is no such object.
        """
        with _translated(key):
            found = self._client.stat_object(self.bucket, key)
            return StoredObject(key=key, bytes=found.size or 0, modified=found.last_modified or datetime.now(UTC))

    def has(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def list_keys(self, prefix: str) -> Iterator[StoredObject]:
        """Every object under ``prefix``."""
        with _translated(prefix):
            for found in self._client.list_objects(self.bucket, prefix=prefix, recursive=True):
                if not found.is_dir and found.object_name is not None:
                    yield StoredObject(
                        key=found.object_name,
                        bytes=found.size or 0,
                        modified=found.last_modified or datetime.now(UTC),
                    )

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are gone already are fine."""
        with _translated("objects to delete"):
            doomed = [DeleteObject(key) for key in keys]
            problems = list(self._client.remove_objects(self.bucket, doomed)) if doomed else []
        left = [problem for problem in problems if problem.code not in _MISSING]
        if left:
            raise DependencyDown(f"The object store kept {left[0].name}: {left[0].message}")

    def discard(self, keys: Iterable[str]) -> None:
        """Removes objects whose rows are gone already.

        An outage is logged, not raised: the deletion has happened, and the collector of orphans finds what is left.
        """
        doomed = list(keys)
        try:
            self.delete(doomed)
        except DependencyDown as exc:
            log.warning("objects left behind", extra={"objects": doomed, "reason": exc.detail})

    def presign_get(
        self, key: str, *, content_type: str, filename: str, expires: float | None = None
    ) -> tuple[str, datetime]:
        """A URL that anybody may read the object with, and when it stops working.

        It carries the content type, since not every store keeps one.
        """
        seconds = int(expires or self._settings.presign_seconds)
        headers: dict[str, str | list[str] | tuple[str]] = {
            "response-content-type": content_type,
            "response-content-disposition": f"inline; filename*=UTF-8''{quote(filename)}",
        }
        url = self._signer.presigned_get_object(
            self.bucket, key, expires=timedelta(seconds=seconds), response_headers=headers
        )
        return url, datetime.now(UTC) + timedelta(seconds=seconds)

    def presign_put(self, key: str, expires: float | None = None) -> tuple[str, datetime]:
        """A URL that one object may be written with, and when it stops working."""
        seconds = int(expires or self._settings.presign_seconds)
        url = self._signer.presigned_put_object(self.bucket, key, expires=timedelta(seconds=seconds))
        return url, datetime.now(UTC) + timedelta(seconds=seconds)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """The client's errors as ours."""
    try:
        yield
    except S3Error as exc:
        if exc.code in _MISSING:
            raise NotFound(f"The object store has no {what}.") from exc
        if exc.code == "NoSuchBucket":
            raise DependencyDown(_NO_BUCKET) from exc
        raise DependencyDown(f"The object store refused {what}: {exc.code}: {exc.message}") from exc
    except InvalidResponseError as exc:
        # Some servers answer errors as text/xml, which the client does not parse.
        if any(f"<Code>{code}</Code>" in str(exc) for code in _MISSING):
            raise NotFound(f"The object store has no {what}.") from exc
        if "<Code>NoSuchBucket</Code>" in str(exc):
            raise DependencyDown(_NO_BUCKET) from exc
        raise DependencyDown(f"The object store cannot be used right now ({what}): {type(exc).__name__}") from exc
    except (ServerError, HTTPError, json.JSONDecodeError) as exc:
        raise DependencyDown(f"The object store cannot be used right now ({what}): {type(exc).__name__}") from exc
