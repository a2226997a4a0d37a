"""Models and their versions: ``name@version``, files, digest, licence, parameters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.errors import Conflict, NotFound
from calotype.ids import new_id
from calotype.jobs import TERMINAL, Family

models = tables.model_versions
_REF = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})(?:@([1-9][0-9]{0,8}))?")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file of a version."""

    #: Relative to the model's folder, with forward slashes.
    path: str
    object_key: str
    bytes: int
    #: Hexadecimal.
    sha256: str


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """What :func:`register_version` writes."""

    name: str
    #: None: shared with every tenant.
    tenant_id: UUID | None
    family: Family
    #: The pipeline's kind, e.g. ``sd3``; ``lora`` for adapters.
    architecture: str
    files: Sequence[ModelFile]
    #: Where it comes from: ``{"type": "starter" | "upload" | "s3" | "hub" | "train", …}``.
    source: Mapping[str, Any]
    #: For adapters: the model they fit, ``name@version``.
    base: str | None = None
    licence: str | None = None
    #: What jobs need to know: sizes, default steps and guidance, text length.
    parameters: Mapping[str, Any] = field(default_factory=dict)
    job_id: UUID | None = None

    @property
    def digest(self) -> str:
        """sha256 over names and digests of the files; over the pinned source when the files are elsewhere."""
        if not self.files:
            return hashlib.sha256(repr(sorted(self.source.items())).encode()).hexdigest()
        return files_digest((file.path, file.sha256) for file in self.files)


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One row of ``model_versions``."""

    id: UUID
    name: str
    version: int
    tenant_id: UUID | None
    family: Family
    architecture: str
    base: str | None
    digest: str
    files: tuple[ModelFile, ...]
    source: Mapping[str, Any]
    licence: str | None
    parameters: Mapping[str, Any]
    job_id: UUID | None
    created_at: datetime

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def key(self) -> str:
        """What a worker keeps it under: tenants may use the same names, so the reference alone is not enough."""
        return f"{self.ref}#{self.id}"

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        values = dict(row)
        values["family"] = Family(row["family"])
        values["files"] = tuple(ModelFile(**file) for file in row["files"])
        return cls(**values)


def files_digest(files: Iterable[tuple[str, str]]) -> str:
    """The digest of a version from ``(path, sha256)`` of its files, whatever their order."""
    digest = hashlib.sha256()
    for path, sha256 in sorted(files):
        digest.update(f"{sha256}  {path}\n".encode())
    return digest.hexdigest()


def parse_ref(ref: str) -> tuple[str, int | None]:
    """``name`` or ``name@version`` in parts.

    Raises:
        NotFound: it has neither form, so nothing can have that name.
    """
    match = _REF.fullmatch(ref)
    if match is None:
        raise NotFound(f"There is no model {ref!r}; a reference looks like name or name@3.")
    return match[1], int(match[2]) if match[2] else None


def find_version(conn: sa.Connection, tenant_id: UUID, ref: str, *, hold: bool = False) -> ModelVersion:
    """The version that ``ref`` means to a tenant: its own models first, then the shared ones; the latest version
    when none is named.

    ``hold`` keeps it from being deleted until the transaction ends: for a job that is about to name it.

    Raises:
        NotFound: nothing that this tenant may see has that name or version.
    """
    name, version = parse_ref(ref)
    values = {"tenant_id": tenant_id, "name": name, "version": version}
    row = conn.execute(_FIND_AND_HOLD if hold else _FIND, values).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no model {ref!r}. GET /v1/models lists those you may use.")
    return ModelVersion.from_row(row)


# Built once, for every submission looks for its model.
_VERSION = sa.bindparam("version", type_=sa.Integer)
_FIND = (
    sa.select(models)
    .where(
        sa.or_(models.c.tenant_id == sa.bindparam("tenant_id"), models.c.tenant_id.is_(None)),
        models.c.name == sa.bindparam("name"),
        sa.or_(_VERSION.is_(None), models.c.version == _VERSION),
    )
    .order_by(models.c.tenant_id.is_(None), models.c.version.desc())
    .limit(1)
)
_FIND_AND_HOLD = _FIND.with_for_update(read=True, key_share=True)


def list_models(
    conn: sa.Connection, tenant_id: UUID, *, family: Family | None = None, name: str | None = None
) -> list[ModelVersion]:
    """Every version a tenant may see, by name, latest first."""
    statement = sa.select(models).where(_visible(tenant_id))
    if family is not None:
        statement = statement.where(models.c.family == family)
    if name is not None:
        statement = statement.where(models.c.name == name)
    statement = statement.order_by(models.c.name, models.c.tenant_id.is_(None), models.c.version.desc())
    return [ModelVersion.from_row(row) for row in conn.execute(statement).mappings()]


def register_version(conn: sa.Connection, new: NewVersion) -> ModelVersion:
    """Adds the next version of a model. Two that register at once get different numbers.

    Raises:
        Conflict: the model has another family, or is a shared one that the tenant may not extend.
    """
    owner = str(new.tenant_id) if new.tenant_id is not None else "shared"
    conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"model:{owner}:{new.name}", 0))))
    own = models.c.tenant_id.is_not_distinct_from(new.tenant_id)
    latest = conn.execute(
        sa.select(models.c.version, models.c.family)
        .where(own, models.c.name == new.name)
        .order_by(models.c.version.desc())
        .limit(1)
    ).one_or_none()
    if latest is not None and latest.family != new.family:
        raise Conflict(f"Model {new.name!r} is of the {latest.family} family; give the new one another name.")
    if latest is None and new.tenant_id is not None and _is_shared(conn, new.name):
        raise Conflict(f"{new.name!r} is a shared model; register yours under another name.")
    statement = (
        models.insert()
        .values(
            id=new_id(),
            tenant_id=new.tenant_id,
            name=new.name,
            version=(latest.version if latest is not None else 0) + 1,
            family=new.family,
            architecture=new.architecture,
            base=new.base,
            digest=new.digest,
            files=[asdict(file) for file in new.files],
            source=dict(new.source),
            licence=new.licence,
            parameters=dict(new.parameters),
            job_id=new.job_id,
        )
        .returning(models)
    )
    return ModelVersion.from_row(conn.execute(statement).mappings().one())


def is_taken(conn: sa.Connection, tenant_id: UUID, name: str, family: Family) -> bool:
    """Whether a tenant cannot register a version of that family under that name."""
    row = conn.execute(
        sa.select(models.c.family, models.c.tenant_id)
        .where(_visible(tenant_id), models.c.name == name)
        .order_by(models.c.tenant_id.is_(None))
        .limit(1)
    ).one_or_none()
    return row is not None and (row.tenant_id is None or row.family != family)


def delete_model(conn: sa.Connection, tenant_id: UUID, ref: str) -> list[str]:
    """Removes a tenant's own model, all versions or the named one; gives the object keys to delete after the commit.

    Raises:
        NotFound: the tenant owns no such model (a shared one is not its own).
        Conflict: a job that has not ended, or an adapter, needs a version.
    """
    name, version = parse_ref(ref)
    condition = sa.and_(models.c.tenant_id == tenant_id, models.c.name == name)
    if version is not None:
        condition = sa.and_(condition, models.c.version == version)
    # Locked first: a submission that holds a version commits its job before the jobs are looked at.
    rows = conn.execute(sa.select(models).where(condition).order_by(models.c.id).with_for_update()).mappings().all()
    doomed = [ModelVersion.from_row(row) for row in rows]
    if not doomed:
        raise NotFound(f"You own no model {ref!r}.")
    refs = [one.ref for one in doomed]
    _refuse_if_needed(conn, tenant_id, refs)
    conn.execute(models.delete().where(condition))
    keys = {file.object_key for one in doomed for file in one.files}
    return sorted(keys - _still_used(conn, keys))


def _refuse_if_needed(conn: sa.Connection, tenant_id: UUID, refs: Sequence[str]) -> None:
    jobs = tables.jobs
    uses = sa.or_(
        jobs.c.model.in_(refs),
        # Adapters and contenders, pinned in the spec.
        *[sa.cast(jobs.c.spec, sa.Text).contains(f'"{ref}"', autoescape=True) for ref in refs],
    )
    needing = conn.execute(
        sa.select(jobs.c.id)
        .where(jobs.c.tenant_id == tenant_id, jobs.c.state.notin_([str(state) for state in TERMINAL]), uses)
        .limit(1)
    ).scalar_one_or_none()
    if needing is not None:
        raise Conflict(f"Job {needing} needs {refs[0]} and has not ended; cancel it or wait, then delete the model.")
    adapter = conn.execute(
        sa.select(models.c.name, models.c.version)
        .where(models.c.tenant_id == tenant_id, models.c.base.in_(refs))
        .limit(1)
    ).one_or_none()
    if adapter is not None:
        raise Conflict(f"Adapter {adapter.name}@{adapter.version} rests on {refs[0]}; delete the adapter first.")


def _still_used(conn: sa.Connection, keys: set[str]) -> set[str]:
    """Which of ``keys`` are published as artifacts too, or belong to another version."""
    if not keys:
        return set()
    artifacts = tables.artifacts
    published = conn.execute(sa.select(artifacts.c.object_key).where(artifacts.c.object_key.in_(keys))).scalars()
    file = sa.func.jsonb_array_elements(models.c.files).table_valued("value", joins_implicitly=True)
    key: sa.ColumnElement[str] = sa.literal_column("value ->> 'object_key'")
    listed = conn.execute(sa.select(key).select_from(models, file).where(key.in_(keys))).scalars()
    return {*published, *listed}


def _is_shared(conn: sa.Connection, name: str) -> bool:
    shared = sa.select(models.c.id).where(models.c.tenant_id.is_(None), models.c.name == name).limit(1)
    return conn.execute(shared).first() is not None


def _visible(tenant_id: UUID) -> sa.ColumnElement[bool]:
    return sa.or_(models.c.tenant_id == tenant_id, models.c.tenant_id.is_(None))
