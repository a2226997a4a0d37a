"""The secret that signs the webhooks of a tenant that bring none of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.webhooks.signing import new_secret

tenants = tables.tenants

#: How long the secret before a rotation goes on signing beside the new one, so that receivers can change over.
BOTH_SIGN = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True)
class TenantSecret:
    """What signs now, and what signed before."""

    current: str = field(repr=False)
    #: Signs, too, until then; None: there is none.
    before: str | None = field(repr=False)
    before_until: datetime | None

    @property
    def signing(self) -> tuple[str, ...]:
        """Every secret that a message is signed with, the current one first."""
        return (self.current,) if self.before is None else (self.current, self.before)


def get_secret(conn: sa.Connection, tenant_id: UUID) -> TenantSecret:
    """The tenant's secret; made now if it has none."""
    row = conn.execute(_select(tenant_id)).one()
    if row.webhook_secret is None:
        # Where two come here at once the second one's condition no longer holds, and it reads what the first made.
        none_yet = sa.and_(tenants.c.id == tenant_id, tenants.c.webhook_secret.is_(None))
        conn.execute(tenants.update().where(none_yet).values(webhook_secret=new_secret()))
        row = conn.execute(_select(tenant_id)).one()
    return TenantSecret(current=row.webhook_secret, before=row.before, before_until=row.until)


def rotate_secret(conn: sa.Connection, tenant_id: UUID) -> TenantSecret:
    """Makes a new secret; the present one, if any, signs beside it for :data:`BOTH_SIGN`."""
    conn.execute(
        tenants.update()
        .where(tenants.c.id == tenant_id)
        .values(
            webhook_secret=new_secret(),
            webhook_secret_before=tenants.c.webhook_secret,
            webhook_secret_rotated_at=sa.func.now(),
        )
    )
    return get_secret(conn, tenant_id)


def _select(tenant_id: UUID) -> sa.Select[tuple[str | None, str | None, datetime | None]]:
    until = tenants.c.webhook_secret_rotated_at + BOTH_SIGN
    signs = sa.and_(until > sa.func.now(), tenants.c.webhook_secret_before.is_not(None))
    return sa.select(
        tenants.c.webhook_secret,
        sa.case((signs, tenants.c.webhook_secret_before)).label("before"),
        sa.case((signs, until)).label("until"),
    ).where(tenants.c.id == tenant_id)
