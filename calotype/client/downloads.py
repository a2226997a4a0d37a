"""Fetching what a job made, from the object store or through the API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx

from calotype.client.connection import pause
from calotype.client.errors import DownloadError, Json
from calotype.client.jobs import JobCalls
from calotype.transfers import TransferError, fetch, has_digest, plain_name


class DownloadCalls(JobCalls):
    """The artifacts of a job."""

    def download(
        self, job: Json | str, directory: Path | str, *, on_file: Callable[[Path], None] | None = None
    ) -> list[Path]:
        """Fetch every artifact of a job into ``directory``; each appears whole and checked or not at all.

        A file that is there already with the right digest is kept. Raises DownloadError.
        """
        job, directory = self.get(job) if isinstance(job, str) else job, Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for artifact in job["artifacts"]:
            try:
                target = directory / plain_name(artifact["name"])
            except TransferError as exc:
                raise DownloadError(f"An artifact of job {job['id']} was not fetched: {exc}.") from exc
            if not has_digest(target, artifact["sha256"]):
                self._fetch(job["id"], artifact, target)
            paths.append(target)
            if on_file is not None:
                on_file(target)
        return paths

    def _fetch(self, job_id: str, artifact: Json, target: Path) -> None:
        through_api = f"{self.url}/v1/jobs/{quote(job_id, safe='')}/artifacts/{quote(artifact['name'], safe='')}"
        reason: Exception | None = None
        for attempt in range(self._retries + 1):
            try:
                try:
                    fetch(self._plain, artifact["url"], target, artifact["sha256"])
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    # The object store may have no address that this machine can reach.
                    fetch(self._http, through_api, target, artifact["sha256"])
            except (httpx.TransportError, httpx.HTTPStatusError, TransferError) as exc:
                reason = exc
                pause(attempt)
                # The URL may have expired: a fresh one is signed with every look at the job.
                fresh = {item["name"]: item for item in self.get(job_id)["artifacts"]}
                artifact = fresh.get(artifact["name"], artifact)
            else:
                return
        raise DownloadError(f"{artifact['name']} of job {job_id} could not be fetched: {reason}") from reason
