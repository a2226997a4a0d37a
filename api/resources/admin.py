"""Tenants and keys, for those who run the service."""

from __future__ import annotations

from typing import Annotated, Self, cast
from uuid import UUID

from flask import Blueprint, Response
from flask.typing import ResponseReturnValue
from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from api import paging, reading, schemas, serialize
from api.calls import Answer, JsonBody, call
from api.examples import KEY_EXAMPLE, TENANT_CHANGE_EXAMPLE, TENANT_EXAMPLE
from api.paging import PageQuery
from api.services import services
from calotype import tenants
from calotype.database import transaction
from calotype.errors import NotFound
from calotype.tenants import Scope

blueprint = Blueprint("admin", __name__)

TENANT_HEADERS = {"Location": "Path of the tenant."}

TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Limit = Annotated[int, Field(ge=0, le=1_000_000)]
Weight = Annotated[float, Field(ge=0.01, le=1000.0)]
WEIGHT = "Share of the device time beside other tenants that wait, too."
MAX_QUEUED = "Most jobs that may wait; null: no limit."
MAX_RUNNING = "Most jobs that may run at once; null: no limit."


class NewTenant(reading.Body):
    """A tenant to create."""

    name: TenantName = Field(description="Small letters, digits and hyphens.")
    weight: Weight = Field(default=1.0, description=WEIGHT)
    max_queued: Limit | None = Field(default=None, description=MAX_QUEUED)
    max_running: Limit | None = Field(default=None, description=MAX_RUNNING)


class TenantChange(reading.Body):
    """What to change; what is left out stays."""

    # Values by a factory are not shown as defaults: there are none, what is left out is not looked at.
    weight: Weight = Field(default_factory=lambda: 1.0, description=WEIGHT)
    max_queued: Limit | None = Field(default_factory=lambda: None, description=MAX_QUEUED)
    max_running: Limit | None = Field(default_factory=lambda: None, description=MAX_RUNNING)

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"name what to change: {', '.join(type(self).model_fields)}")
        return self

    def changes(self) -> tenants.TenantChange:
        """Only what was named."""
        return cast("tenants.TenantChange", self.model_dump(exclude_unset=True))


class NewKey(reading.Body):
    """A key to make."""

    tenant: TenantName = Field(description="Whose key it is.")
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(
        default="key", description="What it is for."
    )
    scopes: list[Scope] = Field(
        default=[Scope.JOBS_READ, Scope.JOBS_WRITE], min_length=1, description="What it may do."
    )
    expires_at: AwareDatetime | None = Field(default=None, description="RFC 3339; null: never.")


class TenantListQuery(PageQuery):
    """Which tenants; by name."""


class KeyListQuery(PageQuery):
    """Which keys; newest first."""

    tenant: str | None = Field(default=None, description="Only keys of this tenant.")


@blueprint.post("/admin/tenants")
@call(
    "Administration",
    "Create a tenant",
    scope=Scope.ADMIN,
    body=JsonBody.of(NewTenant, TENANT_EXAMPLE),
    answers=[Answer(status=201, description="The tenant.", model=schemas.Tenant, headers=TENANT_HEADERS)],
    codes=["conflict"],
)
def create_tenant(body: NewTenant) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        tenant = tenants.create_tenant(conn, **body.model_dump())
    return _tenant_answer(tenant, 201)


@blueprint.get("/admin/tenants")
@call(
    "Administration",
    "List tenants",
    scope=Scope.ADMIN,
    query=TenantListQuery,
    answers=[Answer(status=200, description="By name.", model=schemas.TenantPage)],
)
def list_tenants(query: TenantListQuery) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = tenants.list_tenants(conn)
    return paging.answer(found, query, key=lambda tenant: tenant.name, render=_tenant)


@blueprint.get("/admin/tenants/<tenant>")
@call(
    "Administration",
    "Look at a tenant",
    scope=Scope.ADMIN,
    answers=[Answer(status=200, description="The tenant.", model=schemas.Tenant, headers=TENANT_HEADERS)],
)
def get_tenant(tenant: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        return _tenant_answer(tenants.get_tenant(conn, tenant), 200)


@blueprint.patch("/admin/tenants/<tenant>")
@call(
    "Administration",
    "Change a tenant",
    scope=Scope.ADMIN,
    body=JsonBody.of(TenantChange, TENANT_CHANGE_EXAMPLE),
    answers=[Answer(status=200, description="The tenant.", model=schemas.Tenant, headers=TENANT_HEADERS)],
)
def update_tenant(tenant: str, body: TenantChange) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        changed = tenants.change_tenant(conn, tenant, **body.changes())
    return _tenant_answer(changed, 200)


@blueprint.post("/admin/keys")
@call(
    "Administration",
    "Make a key",
    scope=Scope.ADMIN,
    description="The answer holds the key itself, this once.",
    body=JsonBody.of(NewKey, KEY_EXAMPLE),
    answers=[Answer(status=201, description="The key.", model=schemas.IssuedKey)],
    codes=["not_found"],
)
def create_key(body: NewKey) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        tenant = tenants.get_tenant(conn, body.tenant)
        key, plaintext = tenants.create_key(
            conn, tenant, scopes=body.scopes, name=body.name, expires_at=body.expires_at
        )
    return serialize.answer(_new_key(key, plaintext), 201)


@blueprint.get("/admin/keys")
@call(
    "Administration",
    "List keys",
    scope=Scope.ADMIN,
    query=KeyListQuery,
    answers=[Answer(status=200, description="Newest first, revoked ones too.", model=schemas.KeyPage)],
    codes=["not_found"],
)
def list_keys(query: KeyListQuery) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = tenants.list_keys(conn, query.tenant)
    return paging.answer(found, query, key=lambda key: str(key.id), render=_key, descending=True)


@blueprint.post("/admin/keys/<key_id>/rotate")
@call(
    "Administration",
    "Rotate a key",
    scope=Scope.ADMIN,
    description="Makes a new key with the same tenant, name and scopes, and revokes this one at once.",
    answers=[Answer(status=201, description="The new key.", model=schemas.IssuedKey)],
    codes=["conflict"],
)
def rotate_key(key_id: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        key, plaintext = tenants.rotate_key(conn, _parse_key_id(key_id))
    return serialize.answer(_new_key(key, plaintext), 201)


@blueprint.delete("/admin/keys/<key_id>")
@call(
    "Administration",
    "Revoke a key",
    scope=Scope.ADMIN,
    description="It is refused from now on; revoking it again is harmless.",
    answers=[Answer(status=204, description="It is revoked.")],
)
def revoke_key(key_id: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        tenants.revoke_key(conn, _parse_key_id(key_id))
    return Response(status=204)


def _parse_key_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise NotFound("There is no such key.") from exc


def _tenant(tenant: tenants.Tenant) -> schemas.Tenant:
    return schemas.Tenant(
        id=tenant.id,
        name=tenant.name,
        weight=tenant.weight,
        max_queued=tenant.max_queued,
        max_running=tenant.max_running,
        created_at=tenant.created_at,
    )


def _tenant_answer(tenant: tenants.Tenant, status: int) -> Response:
    return serialize.answer(_tenant(tenant), status, Location=f"/v1/admin/tenants/{tenant.name}")


def _key(key: tenants.Key) -> schemas.Key:
    return schemas.Key(
        id=key.id,
        tenant=key.tenant_name,
        name=key.name,
        prefix=key.prefix,
        scopes=list(key.scopes),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


def _new_key(key: tenants.Key, plaintext: str) -> schemas.IssuedKey:
    return schemas.IssuedKey(**_key(key).model_dump(), key=plaintext)
