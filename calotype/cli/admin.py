"""Commands on tenants and keys; they need a key with the scope `admin`."""

from __future__ import annotations

from typing import Annotated

import typer

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import err, out, print_json
from calotype.cli.render import moment, table

tenants_app = typer.Typer(help="Make and list tenants (admin).", no_args_is_help=True)
keys_app = typer.Typer(help="Make, list, rotate and revoke keys (admin).", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The id of a key.", show_default=False)]


@tenants_app.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="A short name.", show_default=False)],
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a tenant: an owner of jobs, models and datasets that others do not see."""
    with connect(url, api_key) as client:
        tenant = client.create_tenant(name)
    print_json(tenant) if as_json else out().print(f"made the tenant {tenant['name']}", markup=False)


@tenants_app.command("list")
def list_tenants(url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the tenants."""
    with connect(url, api_key) as client:
        tenants = list(client.tenants())
    if as_json:
        print_json(tenants)
        return
    rows = ((t["name"], t["id"], moment(t["created_at"])) for t in tenants)
    out().print(table(("name", "id", "created"), rows, "no tenants"))


@keys_app.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="The owner; made if it does not exist.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="jobs:read, jobs:write, admin; repeat for several.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is not shown again."""
    with connect(url, api_key) as client:
        if tenant not in {known["name"] for known in client.tenants()}:
            client.create_tenant(tenant)
            err().print(f"made the tenant {tenant}", markup=False)
        key = client.create_key(tenant, name=name, scopes=scope)
    print_json(key) if as_json else out().print(key["key"], markup=False)


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List keys; never the keys themselves."""
    with connect(url, api_key) as client:
        keys = list(client.keys(tenant=tenant))
    if as_json:
        print_json(keys)
        return
    rows = (
        (
            key["id"],
            key["tenant"],
            key["name"],
            key["prefix"] + "…",
            key["scopes"],
            moment(key["last_used_at"]),
            moment(key["revoked_at"]),
        )
        for key in keys
    )
    out().print(table(("id", "tenant", "name", "key", "scopes", "last used", "revoked"), rows, "no keys"))


@keys_app.command("revoke")
def revoke_key(key_id: KeyId, url: Url = None, api_key: ApiKey = None) -> None:
    """Make a key useless at once."""
    with connect(url, api_key) as client:
        client.revoke_key(key_id)
    err().print(f"revoked {key_id}", markup=False)


@keys_app.command("rotate")
def rotate_key(key_id: KeyId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Replace a key by a new one with the same owner and scopes, and print the new one."""
    with connect(url, api_key) as client:
        key = client.rotate_key(key_id)
    print_json(key) if as_json else out().print(key["key"], markup=False)
