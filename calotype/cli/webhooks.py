"""Commands on webhooks: what was told of ended jobs, and the secret that signs it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from calotype.cli.connect import ApiKey, AsJson, Limit, Url, connect
from calotype.cli.console import err, out, print_json
from calotype.cli.render import moment, table

app = typer.Typer(help="See what was told of ended jobs, send it again, and show the secret.", no_args_is_help=True)

DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="The id of a delivery.", show_default=False)]


@app.command("list")
def list_deliveries(
    job: Annotated[str | None, typer.Option(help="Only those of this job.")] = None,
    state: Annotated[str | None, typer.Option(help="pending, delivered, failed or gone.")] = None,
    limit: Limit = 20,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries, newest first."""
    with connect(url, api_key) as client:
        found = list(client.webhook_deliveries(job=job, state=state, limit=limit))
    if as_json:
        print_json(found)
        return
    rows = (
        (one["id"], one["type"], one["state"], one["attempts"], _latest(one), moment(one["next_try_at"]), one["url"])
        for one in found
    )
    out().print(table(("id", "type", "state", "tries", "latest", "next try", "url"), rows, "no deliveries"))


@app.command()
def show(delivery_id: DeliveryId, url: Url = None, api_key: ApiKey = None) -> None:
    """Show a delivery, its tries and what it sends, as JSON."""
    with connect(url, api_key) as client:
        print_json(client.webhook_delivery(delivery_id))


@app.command()
def replay(delivery_id: DeliveryId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Send a delivery again, whatever became of it; its URL takes webhooks again after a 410."""
    with connect(url, api_key) as client:
        found = client.replay_webhook(delivery_id)
    print_json(found) if as_json else err().print(f"{found['id']} is {found['state']}", markup=False)


@app.command()
def secret(
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one; for a day both sign.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Print the secret that signs the webhooks that bring none of their own."""
    with connect(url, api_key) as client:
        found = client.rotate_webhook_secret() if rotate else client.webhook_secret()
    if as_json:
        print_json(found)
        return
    out().print(found["secret"], markup=False)
    if found["previous_until"] is not None:
        err().print(f"the one before signs, too, until {moment(found['previous_until'])}", markup=False)


def _latest(delivery: dict[str, Any]) -> str:
    """What came of the latest try, in a word."""
    if not delivery["tries"]:
        return ""
    last = delivery["tries"][-1]
    return str(last["status_code"] or last["error"])
