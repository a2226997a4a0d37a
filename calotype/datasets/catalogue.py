"""The rows of ``datasets``: finding, listing and deleting them.

Every function takes a connection inside a transaction that the caller commits.
"""

from __future__ import annotations

import re
from uuid import UUID

import sqlalchemy as sa

from calotype.archive import printable
from calotype.datasets.values import Dataset
from calotype.errors import Conflict, FieldError, Forbidden, Invalid, NotFound
from calotype.jobs import TERMINAL
from calotype.lookup import Page
from calotype.tables import datasets, jobs

_ID = re.compile(r"ds_[0-9a-f]{32}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Raises :class:`Invalid` unless ``name`` can name a dataset and cannot be taken for an id."""
    if _NAME.fullmatch(name) is None or name.startswith("ds_"):
        message = (
            "must be 1 to 64 of the characters a-z, 0-9, '.', '_' and '-', beginning with a letter or digit "
            "and not with 'ds_', e.g. 'brand-2024'"
        )
        raise Invalid(errors=[FieldError(loc=("name",), msg=message)])


def is_dataset_id(ref: str) -> bool:
    """Whether ``ref`` has the form of an id."""
    return _ID.fullmatch(ref) is not None


def find_dataset(conn: sa.Connection, tenant_id: UUID, ref: str, *, hold: bool = False) -> Dataset:
    """The dataset with the id or name ``ref``: the tenant's own before a shared one, then the newest.

    ``hold`` keeps it from being deleted until the transaction ends: for a job that is about to name it.

    Raises:
        NotFound: there is none, or it is another tenant's.
    """
    if not is_dataset_id(ref) and _NAME.fullmatch(ref) is None:
        raise _missing(ref)
    column = datasets.c.id if is_dataset_id(ref) else datasets.c.name
    query = (
        sa.select(datasets)
        .where(column == ref, _ready(), _visible(tenant_id))
        .order_by(datasets.c.tenant_id.is_(None), datasets.c.id.desc())
        .limit(1)
    )
    if hold:
        query = query.with_for_update(read=True, key_share=True)
    row = conn.execute(query).mappings().first()
    if row is None:
        raise _missing(ref)
    return Dataset.from_row(row)


def list_datasets(conn: sa.Connection, tenant_id: UUID, cursor: str | None, limit: int) -> Page[Dataset]:
    """The tenant's own and the shared datasets, newest first; ``cursor`` is the last id of the page before.

    Raises:
        Invalid: the cursor is no id.
    """
    query = sa.select(datasets).where(_ready(), _visible(tenant_id)).order_by(datasets.c.id.desc())
    if cursor is not None:
        if not is_dataset_id(cursor):
            raise Invalid(errors=[FieldError(loc=("cursor",), msg="must be the next_cursor of the page before")])
        # Ids begin with the time they were made.
        query = query.where(datasets.c.id < cursor)
    found = [Dataset.from_row(row) for row in conn.execute(query.limit(limit + 1)).mappings()]
    return Page(items=found[:limit], has_more=len(found) > limit)


def delete_dataset(conn: sa.Connection, tenant_id: UUID | None, dataset_id: str) -> list[str]:
    """Removes a dataset's row, also that of an unfinished upload; ``tenant_id`` None removes a shared one.

    Gives the keys of the objects that no row refers to any more: hand them to
    :func:`~calotype.datasets.importing.discard_or_leave` after the commit.

    Raises:
        NotFound: there is none, or it is another tenant's.
        Forbidden: it is shared, and ``tenant_id`` is a tenant.
        Conflict: a job that has not ended uses it.
    """
    if not is_dataset_id(dataset_id):
        raise _missing(dataset_id)
    # Locked first: a submission that holds the row commits its job before the jobs are looked at.
    query = sa.select(datasets.c.tenant_id, datasets.c.object_key).where(datasets.c.id == dataset_id)
    row = conn.execute(query.with_for_update()).first()
    if row is None or row.tenant_id not in (tenant_id, None):
        raise _missing(dataset_id)
    if row.tenant_id != tenant_id:
        raise Forbidden(f"Dataset '{dataset_id}' is shared with everyone; it is not yours to delete.")
    _check_unused(conn, dataset_id)
    conn.execute(sa.delete(datasets).where(datasets.c.id == dataset_id))
    return [] if is_referenced(conn, row.object_key) else [row.object_key]


def is_referenced(conn: sa.Connection, object_key: str) -> bool:
    """Whether any dataset is stored, or being uploaded, under this key."""
    query = sa.select(sa.exists().where(datasets.c.object_key == object_key))
    return bool(conn.execute(query).scalar_one())


def _missing(ref: str) -> NotFound:
    return NotFound(f"There is no dataset '{printable(ref)}'. GET /v1/datasets lists those you can use.")


def _check_unused(conn: sa.Connection, dataset_id: str) -> None:
    """Jobs of any tenant count: a shared dataset serves them all."""
    field = jobs.c.spec["input"]
    # An init image is named "<dataset>/<file name>".
    uses = sa.or_(
        field["dataset"].astext == dataset_id,
        sa.func.split_part(field["init_image"].astext, "/", 1) == dataset_id,
    )
    active = jobs.c.state.not_in(sorted(TERMINAL))
    job_id = conn.execute(sa.select(jobs.c.id).where(active, uses).limit(1)).scalar_one_or_none()
    if job_id is not None:
        raise Conflict(
            f"Job {job_id} uses dataset '{dataset_id}' and has not ended. Cancel it or wait for its end.",
            code="dataset_in_use",
        )


def _ready() -> sa.ColumnElement[bool]:
    return datasets.c.state == "ready"


def _visible(tenant_id: UUID) -> sa.ColumnElement[bool]:
    return sa.or_(datasets.c.tenant_id == tenant_id, datasets.c.tenant_id.is_(None))
