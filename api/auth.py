"""Who calls: a bearer key, the tenant it belongs to and the scopes it carries."""

from __future__ import annotations

from flask import g, request

from api.services import services
from calotype import tenants
from calotype.database import statement
from calotype.errors import Forbidden, Unauthenticated
from calotype.tenants import Principal, Scope


def authenticate() -> Principal:
    """The owner of the request's API key.

    Raises:
        Unauthenticated: there is no key, or it is unknown, revoked or expired. Which of these is not said.
    """
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if not scheme:
        raise Unauthenticated("No API key was given; send the header `Authorization: Bearer <key>`.")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("The Authorization header must read `Bearer <key>`.")
    with statement(services().statements) as conn:
        return tenants.authenticate(conn, key.strip())


def require(principal: Principal, scope: Scope) -> None:
    """Raises :class:`Forbidden` unless the key carries ``scope``."""
    if scope not in principal.scopes:
        held = ", ".join(sorted(principal.scopes))
        raise Forbidden(f"This call needs a key with the scope {scope}; this key has {held}.")


def principal() -> Principal:
    """Who makes the present request; only within a call that has a scope."""
    caller: Principal = g.principal
    return caller
