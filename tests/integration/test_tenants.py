"""Tenants and keys on a real Postgres."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import tables, tenants
from calotype.database import transaction
from calotype.errors import Conflict, Invalid, NotFound, Unauthenticated
from calotype.tenants import Scope, Tenant


def _who(engine: Engine, plaintext: str) -> tenants.Principal:
    with transaction(engine) as conn:
        return tenants.authenticate(conn, plaintext)


def test_a_key_opens_its_tenant_with_its_scopes(engine: Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        key, plaintext = tenants.create_key(conn, tenant, scopes=[Scope.JOBS_READ], name="reader")
    who = _who(engine, plaintext)
    assert (who.tenant_id, who.key_id, who.scopes) == (tenant.id, key.id, frozenset({Scope.JOBS_READ}))


def test_the_database_does_not_hold_the_key(engine: Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        _, plaintext = tenants.create_key(conn, tenant)
        dump = str(conn.execute(sa.select(tables.api_keys)).all())
    assert plaintext not in dump and plaintext[:10] in dump


def test_unknown_revoked_and_expired_keys_open_nothing(engine: Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        key, revoked = tenants.create_key(conn, tenant)
        tenants.revoke_key(conn, key.id)
        _, expired = tenants.create_key(conn, tenant, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for plaintext in ("cal_nothing", "", revoked, expired):
        with pytest.raises(Unauthenticated):
            _who(engine, plaintext)


def test_rotation_ends_the_old_key_and_keeps_what_it_may_do(engine: Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        old, before = tenants.create_key(conn, tenant, scopes=[Scope.JOBS_READ], name="ci")
        new, after = tenants.rotate_key(conn, old.id)
    assert (new.name, new.scopes) == ("ci", (Scope.JOBS_READ,))
    assert _who(engine, after).tenant_id == tenant.id
    with pytest.raises(Unauthenticated):
        _who(engine, before)
    with pytest.raises(Conflict), transaction(engine) as conn:
        tenants.rotate_key(conn, old.id)


def test_a_bootstrap_key_may_be_stored_again_and_must_be_long(engine: Engine, tenant: Tenant) -> None:
    plaintext = tenants.new_plaintext()
    with transaction(engine) as conn:
        first = tenants.store_key(conn, tenant, plaintext, scopes=[Scope.ADMIN], name="bootstrap")
        second = tenants.store_key(conn, tenant, plaintext, scopes=[Scope.ADMIN], name="bootstrap")
        assert first.id == second.id
        with pytest.raises(Invalid):
            tenants.store_key(conn, tenant, "short", scopes=[Scope.ADMIN], name="bootstrap")


def test_the_first_key_is_an_admins_and_stays_revoked_once_it_is(engine: Engine) -> None:
    plaintext = tenants.new_plaintext()
    with transaction(engine) as conn:
        key = tenants.store_bootstrap_key(conn, plaintext)
        assert tenants.store_bootstrap_key(conn, plaintext).id == key.id
    assert (key.tenant_name, Scope.ADMIN in _who(engine, plaintext).scopes) == ("default", True)
    with transaction(engine) as conn:
        tenants.revoke_key(conn, key.id)
        with pytest.raises(Conflict, match="revoked"):
            tenants.store_bootstrap_key(conn, plaintext)


def test_names_of_tenants_are_unique_and_plain(engine: Engine, make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("acme")
    with pytest.raises(Conflict):
        make_tenant("acme")
    with pytest.raises(Invalid):
        make_tenant("Acme Inc.")


def test_weight_and_limits_can_be_changed_and_limits_lifted(engine: Engine, make_tenant: Callable[..., Tenant]) -> None:
    made = make_tenant("acme", max_queued=5)
    assert (made.weight, made.max_queued, made.max_running) == (1.0, 5, None)
    with transaction(engine) as conn:
        changed = tenants.change_tenant(conn, "acme", weight=2.5, max_running=3)
        assert (changed.weight, changed.max_queued, changed.max_running) == (2.5, 5, 3)
        lifted = tenants.change_tenant(conn, "acme", max_queued=None, max_running=None)
        assert (lifted.weight, lifted.max_queued, lifted.max_running) == (2.5, None, None)
        assert tenants.change_tenant(conn, "acme") == lifted == tenants.get_tenant(conn, "acme")
        with pytest.raises(NotFound):
            tenants.change_tenant(conn, "nobody", max_queued=2)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_the_database_refuses_a_weight_that_cannot_share(
    engine: Engine, make_tenant: Callable[..., Tenant], weight: float
) -> None:
    make_tenant("acme")
    with pytest.raises(sa.exc.IntegrityError, match="tenants_share_check"), transaction(engine) as conn:
        tenants.change_tenant(conn, "acme", weight=weight)


def test_use_is_noted(engine: Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        _, plaintext = tenants.create_key(conn, tenant)
    _who(engine, plaintext)
    with transaction(engine) as conn:
        (key,) = tenants.list_keys(conn, tenant.name)
    assert key.last_used_at is not None
