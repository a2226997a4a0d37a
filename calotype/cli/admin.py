"""Commands on tenants and keys; they need a key with the scope `admin`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import err, fail, out, print_json
from calotype.cli.render import moment, table

if TYPE_CHECKING:
    from rich.console import RenderableType

tenants_app = typer.Typer(help="Make and list tenants (admin).", no_args_is_help=True)
keys_app = typer.Typer(help="Make, list, rotate and revoke keys (admin).", no_args_is_help=True)

#: Lifts a limit.
NO_LIMIT = "none"

TenantName = Annotated[str, typer.Argument(metavar="NAME", help="A short name.", show_default=False)]
Weight = Annotated[
    float | None, typer.Option(help="Share of the device time beside other tenants that wait, too; 1 at first.")
]
MaxQueued = Annotated[str | None, typer.Option(help=f"Most jobs that may wait; `{NO_LIMIT}`: any number.")]
MaxRunning = Annotated[str | None, typer.Option(help=f"Most jobs that may run at once; `{NO_LIMIT}`: any number.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The id of a key.", show_default=False)]


@tenants_app.command("create")
def create_tenant(
    name: TenantName,
    weight: Weight = None,
    max_queued: MaxQueued = None,
    max_running: MaxRunning = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a tenant: an owner of jobs, models and datasets that others do not see."""
    with connect(url, api_key) as client:
        tenant = client.create_tenant(name, **_changes(weight, max_queued, max_running))
    print_json(tenant) if as_json else out().print(f"made the tenant {tenant['name']}", markup=False)


@tenants_app.command("change")
def change_tenant(
    name: TenantName,
    weight: Weight = None,
    max_queued: MaxQueued = None,
    max_running: MaxRunning = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Change a tenant's share and limits; what is left out stays."""
    changes = _changes(weight, max_queued, max_running)
    if not changes:
        fail("Nothing was given to change.", "Give --weight, --max-queued or --max-running.")
    with connect(url, api_key) as client:
        tenant = client.change_tenant(name, **changes)
    print_json(tenant) if as_json else out().print(_tenant_table([tenant]))


def _changes(weight: float | None, max_queued: str | None, max_running: str | None) -> dict[str, Any]:
    given = {
        "weight": weight,
        "max_queued": None if max_queued is None else _limit("--max-queued", max_queued),
        "max_running": None if max_running is None else _limit("--max-running", max_running),
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return {name: None if value == NO_LIMIT else value for name, value in changes.items()}


def _limit(option: str, text: str) -> int | str:
    if text == NO_LIMIT:
        return text
    if not text.isdecimal():
        fail(f"{option} takes a whole number, or `{NO_LIMIT}` to lift the limit; got {text!r}.")
    return int(text)


@tenants_app.command("list")
def list_tenants(url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the tenants."""
    with connect(url, api_key) as client:
        tenants = list(client.tenants())
    print_json(tenants) if as_json else out().print(_tenant_table(tenants))


def _tenant_table(tenants: Iterable[Mapping[str, Any]]) -> RenderableType:
    columns = ("name", "weight", "may wait", "may run", "created", "id")
    rows = (
        (
            t["name"],
            f"{t['weight']:g}",
            _shown(t["max_queued"]),
            _shown(t["max_running"]),
            moment(t["created_at"]),
            t["id"],
        )
        for t in tenants
    )
    return table(columns, rows, "no tenants")


def _shown(limit: int | None) -> str:
    return "any number" if limit is None else str(limit)


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
