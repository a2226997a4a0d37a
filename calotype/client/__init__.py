"""The HTTP client: submit jobs, wait for them, fetch what they made.

::

    from calotype.client import Client

    with Client("http://127.0.0.1:8080", api_key="cal_…") as client:
        job = client.submit({"kind": "generate", "family": "diffusion", "model": "starter-diffusion",
                             "input": {"prompt": "blue bird logo", "num_images": 4}})
        job = client.wait(job["id"])
        client.download(job, Path("out"))

Answers are the JSON objects of the HTTP API as dictionaries (`docs/api.md`). Errors::

    ClientError
    ├── ConnectionFailedError  no answer, after the retries that the call allows
    ├── ApiError               an error answer; carries the problem+json: status, code, detail, errors
    ├── JobTimeoutError        `wait` ran out of time; the job goes on
    └── DownloadError          an artifact could not be fetched whole
"""

from calotype.client.admin import AdminCalls
from calotype.client.assets import DIRECT_UPLOAD_BYTES, AssetCalls
from calotype.client.connection import LARGEST_PAGE
from calotype.client.downloads import DownloadCalls
from calotype.client.errors import (
    ApiError,
    ClientError,
    ConnectionFailedError,
    DownloadError,
    JobTimeoutError,
    Json,
)
from calotype.client.events import EventCalls
from calotype.client.fleet import FleetCalls
from calotype.client.jobs import (
    LARGEST_BULK_BYTES,
    LARGEST_BULK_LINES,
    LONGEST_POLL_SECONDS,
    TERMINAL_STATES,
)
from calotype.client.webhooks import WebhookCalls

__all__ = [
    "DIRECT_UPLOAD_BYTES",
    "LARGEST_BULK_BYTES",
    "LARGEST_BULK_LINES",
    "LARGEST_PAGE",
    "LONGEST_POLL_SECONDS",
    "TERMINAL_STATES",
    "ApiError",
    "Client",
    "ClientError",
    "ConnectionFailedError",
    "DownloadError",
    "JobTimeoutError",
    "Json",
]


class Client(DownloadCalls, EventCalls, AssetCalls, WebhookCalls, FleetCalls, AdminCalls):
    """Talks to one Calotype API with one key. Safe to use from several threads.

    Args:
        url: where the API is, e.g. ``http://127.0.0.1:8080``.
        api_key: ``cal_…``; None only for the health calls.
        timeout: seconds to wait for an answer (long polls and transfers have their own limits).
        retries: how often a call that is safe to repeat is tried again when no answer comes.
    """
