"""Every error Calotype raises on purpose.

::

    CalotypeError
    ├── Invalid            422  the request is wrong; names field and remedy
    ├── Unauthenticated    401
    ├── Forbidden          403
    ├── NotFound           404  also for what belongs to another tenant
    ├── Conflict           409  something needs what was to be removed or changed
    ├── Gone               410  it was here and has been deleted at its time
    ├── TooLarge           413
    ├── LimitExceeded      429  carries ``retry_after``
    ├── DependencyDown     503  Postgres or the object store cannot be reached
    ├── SettingsError           a bad or unknown ``CALOTYPE_*`` variable
    ├── LeaseLost               a write carried a stale epoch; nothing was changed
    ├── CancelRequested         the job is being canceled; its result was not stored
    └── JobFailed               a handler's verdict on its job; becomes ``job.error``

``status`` is a plain HTTP number so that a server can answer without a table of its own; nothing here imports a
web framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One thing that is wrong with a request."""

    #: Where: the path of keys and indices into the request, e.g. ``("input", "width")``.
    loc: tuple[str | int, ...]
    #: What is wrong and what to do about it.
    msg: str

    def as_dict(self) -> dict[str, object]:
        return {"loc": list(self.loc), "msg": self.msg}


class CalotypeError(Exception):
    """Something went wrong."""

    code: str = "internal_error"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500

    def __init__(self, detail: str | None = None, *, code: str | None = None) -> None:
        self.detail = detail or (type(self).__doc__ or self.title).strip().splitlines()[0]
        #: What may be shown to anybody; the same, unless the detail names hosts or accounts.
        self.public_detail = self.detail
        if code is not None:
            self.code = code
        super().__init__(self.detail)


class Invalid(CalotypeError):
    """The request is not valid."""

    code = "invalid_request"
    title = "Invalid request"
    status = 422

    def __init__(
        self, detail: str | None = None, *, errors: Sequence[FieldError] = (), code: str | None = None
    ) -> None:
        super().__init__(detail or _summary(errors), code=code)
        self.errors = tuple(errors)


class Unauthenticated(CalotypeError):
    """No valid API key was given; send `Authorization: Bearer <key>`."""

    code = "unauthenticated"
    title = "Unauthenticated"
    status = 401


class Forbidden(CalotypeError):
    """The API key lacks the scope for this call."""

    code = "forbidden"
    title = "Forbidden"
    status = 403


class NotFound(CalotypeError):
    """There is no such thing."""

    code = "not_found"
    title = "Not found"
    status = 404


class Conflict(CalotypeError):
    """The present state does not allow this."""

    code = "conflict"
    title = "Conflict"
    status = 409


class Gone(CalotypeError):
    """It was here and has been deleted at its time."""

    code = "artifacts_expired"
    title = "Gone"
    status = 410


class TooLarge(CalotypeError):
    """The request body is too large."""

    code = "too_large"
    title = "Too large"
    status = 413


class LimitExceeded(CalotypeError):
    """A limit of the tenant is reached; try again later."""

    code = "limit_exceeded"
    title = "Limit exceeded"
    status = 429

    def __init__(self, detail: str | None = None, *, retry_after: float, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        #: Seconds after which a new try makes sense.
        self.retry_after = retry_after


class DependencyDown(CalotypeError):
    """A service that Calotype needs cannot be reached; try again later."""

    code = "dependency_down"
    title = "Dependency down"
    status = 503

    def __init__(self, detail: str | None = None, *, public: str | None = None, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.public_detail = public or self.detail


class SettingsError(CalotypeError):
    """A setting is wrong."""

    code = "bad_settings"
    title = "Bad settings"


class LeaseLost(CalotypeError):
    """A write carried a stale epoch; nothing was changed."""

    code = "lease_lost"
    title = "Lease lost"
    status = 409

    def __init__(self, job_id: UUID, epoch: int) -> None:
        super().__init__(f"Job {job_id} is no longer held under epoch {epoch}; nothing was changed.")
        self.job_id = job_id
        self.epoch = epoch


class CancelRequested(CalotypeError):
    """The job is being canceled."""

    code = "cancel_requested"
    title = "Cancel requested"
    status = 409


class JobFailed(CalotypeError):
    """A job cannot be done. Raised by handlers; becomes the job's ``error``.

    Stable codes: bad_input, out_of_memory, model_unavailable, dataset_unavailable, dependency_down, disk_full,
    numerical_error, mode_collapse, timeout, stalled, worker_lost, poison, internal_error.
    """

    def __init__(self, code: str, title: str, detail: str, *, retryable: bool, fatal: bool = False) -> None:
        super().__init__(detail, code=code)
        #: Short and constant for a code.
        self.job_title = title
        #: Whether another attempt may go better.
        self.retryable = retryable
        #: Whether the worker process can no longer be trusted and must exit.
        self.fatal = fatal


def _summary(errors: Sequence[FieldError]) -> str | None:
    if not errors:
        return None
    first = errors[0]
    where = ".".join(str(part) for part in first.loc)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {first.msg}{more}" if where else f"{first.msg}{more}"
