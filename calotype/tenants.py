"""Tenants and their API keys. A key is shown once; only its sha256 is kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Self, TypedDict, Unpack
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.exc import IntegrityError

from calotype import tables
from calotype.errors import Conflict, Invalid, NotFound, Unauthenticated
from calotype.ids import new_id

tenants = tables.tenants
api_keys = tables.api_keys

#: The tenant of the first key.
DEFAULT_TENANT = "default"
KEY_PREFIX = "cal_"
#: Bytes of randomness in a key.
KEY_BYTES = 32
#: How much of a key is kept in the clear, to recognise it by.
SHOWN = len(KEY_PREFIX) + 6


class Scope(StrEnum):
    """What a key may do."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """Who owns jobs, datasets and models."""

    id: UUID
    name: str
    #: Most jobs that may wait; None: no limit.
    max_queued: int | None
    created_at: datetime
    #: Share of the device time beside other tenants that wait, too.
    weight: float = 1.0
    #: Most jobs that may run at once; None: no limit.
    max_running: int | None = None

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Key:
    """An API key, without the key itself."""

    id: UUID
    tenant_id: UUID
    tenant_name: str
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        return cls(**{**row, "scopes": tuple(Scope(scope) for scope in row["scopes"])})


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is calling, and what it may do."""

    tenant_id: UUID
    tenant_name: str
    key_id: UUID
    scopes: frozenset[Scope]


_KEY_COLUMNS = (
    *[column for column in api_keys.c if column.name != "sha256"],
    tenants.c.name.label("tenant_name"),
)


def create_tenant(
    conn: sa.Connection,
    name: str,
    *,
    weight: float = 1.0,
    max_queued: int | None = None,
    max_running: int | None = None,
) -> Tenant:
    """Adds a tenant.

    Raises:
        Conflict: the name is taken.
        Invalid: the name has characters that a name must not have.
    """
    values = {"id": new_id(), "name": name, "weight": weight, "max_queued": max_queued, "max_running": max_running}
    try:
        with conn.begin_nested():
            row = conn.execute(tenants.insert().values(**values).returning(tenants)).mappings().one()
    except IntegrityError as exc:
        raise _tenant_error(exc, name) from exc
    return Tenant.from_row(row)


def _tenant_error(exc: IntegrityError, name: str) -> Exception:
    constraint = getattr(getattr(exc.orig, "diag", None), "constraint_name", None)
    if constraint == "tenants_name_key":
        return Conflict(f"There is a tenant {name!r} already.")
    if constraint == "tenants_name_check":
        return Invalid(f"{name!r} cannot be a tenant's name: small letters, digits and hyphens, at most 63.")
    return exc


def get_tenant(conn: sa.Connection, name: str) -> Tenant:
    """A tenant by its name.

    Raises:
        NotFound: there is none of that name.
    """
    row = conn.execute(sa.select(tenants).where(tenants.c.name == name)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no tenant {name!r}.")
    return Tenant.from_row(row)


def list_tenants(conn: sa.Connection) -> list[Tenant]:
    """All tenants, by name."""
    return [Tenant.from_row(row) for row in conn.execute(sa.select(tenants).order_by(tenants.c.name)).mappings()]


class TenantChange(TypedDict, total=False):
    """What may change of a tenant; what is left out stays. A limit of None is none."""

    weight: float
    max_queued: int | None
    max_running: int | None


def change_tenant(conn: sa.Connection, name: str, **changes: Unpack[TenantChange]) -> Tenant:
    """Changes a tenant's weight and limits; jobs that wait or run already stay.

    Raises:
        NotFound: there is no tenant of that name.
    """
    if not changes:
        return get_tenant(conn, name)
    statement = tenants.update().where(tenants.c.name == name).values(**changes).returning(tenants)
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no tenant {name!r}.")
    return Tenant.from_row(row)


def create_key(
    conn: sa.Connection,
    tenant: Tenant,
    *,
    scopes: Sequence[Scope] = (Scope.JOBS_READ, Scope.JOBS_WRITE),
    name: str = "key",
    expires_at: datetime | None = None,
) -> tuple[Key, str]:
    """Makes a key; the plaintext is returned here and never again."""
    plaintext = new_plaintext()
    return store_key(conn, tenant, plaintext, scopes=scopes, name=name, expires_at=expires_at), plaintext


def new_plaintext() -> str:
    """A fresh key."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def store_key(
    conn: sa.Connection,
    tenant: Tenant,
    plaintext: str,
    *,
    scopes: Sequence[Scope],
    name: str,
    expires_at: datetime | None = None,
) -> Key:
    """Writes a key that was made elsewhere (the bootstrap key); the same key again changes nothing.

    Raises:
        Invalid: it is too short to be a secret.
    """
    if len(plaintext) < 24:
        raise Invalid("An API key must have at least 24 characters; `calotype keys create` makes one.")
    statement = (
        pg.insert(api_keys)
        .values(
            id=new_id(),
            tenant_id=tenant.id,
            name=name,
            prefix=plaintext[:SHOWN],
            sha256=_digest(plaintext),
            scopes=[str(scope) for scope in scopes],
            expires_at=expires_at,
        )
        .on_conflict_do_nothing(constraint="api_keys_sha256_key")
    )
    conn.execute(statement)
    return _key(conn, api_keys.c.sha256 == _digest(plaintext))


def store_bootstrap_key(conn: sa.Connection, plaintext: str) -> Key:
    """Writes the first admin key, of the default tenant, which is made when missing; again changes nothing.

    Raises:
        Conflict: the key was revoked; whoever revoked it meant it.
        Invalid: it is too short to be a secret.
    """
    try:
        tenant = get_tenant(conn, DEFAULT_TENANT)
    except NotFound:
        tenant = create_tenant(conn, DEFAULT_TENANT)
    key = store_key(conn, tenant, plaintext, scopes=tuple(Scope), name="bootstrap")
    if key.revoked_at is not None:
        raise Conflict("CALOTYPE_BOOTSTRAP_KEY is a key that was revoked; set it to a new one.")
    return key


def authenticate(conn: sa.Connection, plaintext: str) -> Principal:
    """Who holds this key.

    Raises:
        Unauthenticated: it is unknown, revoked or expired; the three are not told apart.
    """
    row = conn.execute(_OWNER, {"sha256": _digest(plaintext)}).one_or_none()
    if row is None:
        raise Unauthenticated("The API key is unknown, revoked or expired.")
    if row.unnoted:
        conn.execute(_NOTE_USE, {"key_id": row.id})
    return Principal(
        tenant_id=row.tenant_id,
        tenant_name=row.tenant_name,
        key_id=row.id,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
    )


# At most once a minute a key, so that reading does not become writing.
_UNNOTED = "coalesce(k.last_used_at < now() - interval '1 minute', true)"

# At every request: a fixed text, which costs less than a statement that is built anew.
_OWNER = sa.text(f"""
SELECT k.id, k.tenant_id, t.name AS tenant_name, k.scopes, {_UNNOTED} AS unnoted
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.sha256 = :sha256 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
""")  # noqa: S608 - fixed texts

# Of two requests at once the second finds it noted.
_NOTE_USE = sa.text(f"UPDATE api_keys k SET last_used_at = now() WHERE k.id = :key_id AND {_UNNOTED}")  # noqa: S608


def list_keys(conn: sa.Connection, tenant_name: str | None = None) -> list[Key]:
    """Keys, newest first, revoked ones too; of one tenant or of all.

    Raises:
        NotFound: there is no tenant of that name.
    """
    statement = _keys().order_by(api_keys.c.id.desc())
    if tenant_name is not None:
        statement = statement.where(api_keys.c.tenant_id == get_tenant(conn, tenant_name).id)
    return [Key.from_row(row) for row in conn.execute(statement).mappings()]


def rotate_key(conn: sa.Connection, key_id: UUID) -> tuple[Key, str]:
    """Revokes a key and makes another with the same tenant, name, scopes and expiry.

    Raises:
        NotFound: there is no such key.
        Conflict: it is revoked already.
    """
    old = _key(conn, api_keys.c.id == key_id)
    if not _revoke(conn, key_id):
        raise Conflict("This key is revoked already; make a new one.")
    tenant = get_tenant(conn, old.tenant_name)
    return create_key(conn, tenant, scopes=old.scopes, name=old.name, expires_at=old.expires_at)


def revoke_key(conn: sa.Connection, key_id: UUID) -> Key:
    """Ends a key at once; revoking twice is harmless.

    Raises:
        NotFound: there is no such key.
    """
    _revoke(conn, key_id)
    return _key(conn, api_keys.c.id == key_id)


def _revoke(conn: sa.Connection, key_id: UUID) -> bool:
    """Whether it is this call that revoked the key: of two at once, one."""
    pending = sa.and_(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    return conn.execute(api_keys.update().where(pending).values(revoked_at=sa.func.now())).rowcount == 1


def _keys() -> sa.Select[Any]:
    return sa.select(*_KEY_COLUMNS).join(tenants, tenants.c.id == api_keys.c.tenant_id)


def _key(conn: sa.Connection, condition: sa.ColumnElement[bool]) -> Key:
    row = conn.execute(_keys().where(condition)).mappings().one_or_none()
    if row is None:
        raise NotFound("There is no such key.")
    return Key.from_row(row)


def _digest(plaintext: str) -> bytes:
    # No salt and no slow hash: the key is 256 random bits, nothing can be guessed or looked up.
    return hashlib.sha256(plaintext.encode()).digest()
