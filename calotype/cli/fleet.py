"""Commands on queues, workers and what was used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import err, fail, out, print_json
from calotype.cli.render import moment, table

if TYPE_CHECKING:
    from calotype.client import Client

queues_app = typer.Typer(help="Show queues; pause and resume them (admin).", no_args_is_help=True)
workers_app = typer.Typer(help="Show workers; drain them (admin).", no_args_is_help=True)

QueueName = Annotated[str, typer.Argument(metavar="QUEUE", help="e.g. diffusion.generate", show_default=False)]
WorkerName = Annotated[str, typer.Argument(metavar="WORKER", help="The name or id of a worker.", show_default=False)]


@queues_app.command("list")
def list_queues(url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show what waits and what runs, per queue."""
    with connect(url, api_key) as client:
        found = client.queues()
    if as_json:
        print_json(found)
        return
    columns = ("name", "waiting", "runnable", "running", "oldest waits", "workers", "paused")
    rows = (
        (
            queue["name"],
            _count(queue, "depth"),
            _count(queue, "runnable"),
            queue["running"],
            f"{queue['oldest_wait_seconds'] or 0:.0f} s",
            queue["workers"],
            _pause(queue),
        )
        for queue in found
    )
    out().print(table(columns, rows, "no queues"))


def _count(queue: dict[str, Any], name: str) -> str:
    """Whether it is all of them, too."""
    return f"{queue[name]}+" if queue["at_least"] else str(queue[name])


def _pause(queue: dict[str, Any]) -> str:
    if not queue["paused"]:
        return ""
    return f"since {moment(queue['paused_at'])}{': ' if queue['pause_reason'] else ''}{queue['pause_reason']}"


@queues_app.command("pause")
def pause_queue(
    name: QueueName,
    reason: Annotated[str, typer.Option(help="Shown to who asks why a job waits.")] = "",
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Start no more jobs of a queue until it is resumed; jobs are taken in, and what runs goes on."""
    with connect(url, api_key) as client:
        client.pause_queue(name, reason=reason)
    err().print(f"paused {name}; `calotype queues resume {name}` opens it again", markup=False)


@queues_app.command("resume")
def resume_queue(name: QueueName, url: Url = None, api_key: ApiKey = None) -> None:
    """Open a paused queue again."""
    with connect(url, api_key) as client:
        client.resume_queue(name)
    err().print(f"{name} is open", markup=False)


@workers_app.command("list")
def list_workers(url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the workers, what they do and which models they have loaded."""
    with connect(url, api_key) as client:
        found = client.workers()
    if as_json:
        print_json(found)
        return
    rows = (
        (
            worker["name"],
            worker["state"] if not worker["draining"] else "draining",
            worker["pool"],
            worker["device"].get("name") or worker["device"].get("kind"),
            worker["queues"],
            worker["loaded_models"],
            moment(worker["last_seen_at"]),
            worker["id"],
        )
        for worker in found
    )
    columns = ("name", "state", "pool", "device", "queues", "loaded models", "last seen", "id")
    out().print(table(columns, rows, "no workers"))


@workers_app.command("drain")
def drain_worker(worker: WorkerName, url: Url = None, api_key: ApiKey = None) -> None:
    """Let a worker end what it has and take no more jobs, e.g. before its node is taken down."""
    with connect(url, api_key) as client:
        drained = client.drain_worker(_worker_id(client, worker))
    err().print(f"{drained['name']} takes no more jobs; `calotype workers undrain {worker}` undoes it", markup=False)


@workers_app.command("undrain")
def undrain_worker(worker: WorkerName, url: Url = None, api_key: ApiKey = None) -> None:
    """Let a drained worker take jobs again."""
    with connect(url, api_key) as client:
        back = client.undrain_worker(_worker_id(client, worker))
    err().print(f"{back['name']} takes jobs again", markup=False)


def _worker_id(client: Client, wanted: str) -> str:
    """The id of the one live worker that has this id or name."""
    found = [one["id"] for one in client.workers() if wanted in (one["id"], one["name"])]
    if len(found) > 1:
        fail(f"{len(found)} workers are called {wanted}.", "Give the id of one; `calotype workers list` shows them.")
    return found[0] if found else wanted


def usage(
    first: Annotated[str | None, typer.Option("--from", help="First day (UTC); else 30 days up to the last.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day (UTC); else today.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Another tenant, or '*' for all (admin).")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show jobs, images and GPU-seconds per day and queue."""
    with connect(url, api_key) as client:
        days = list(client.usage(first=first, last=last, tenant=tenant))
    if as_json:
        print_json(days)
        return
    columns = ("day", "tenant", "queue", "jobs", "from cache", "images", "GPU-seconds")
    out().print(table(columns, [*_usage_rows(days), *_total(days)], "nothing was used"))


def _usage_rows(days: Iterable[dict[str, Any]]) -> Iterable[tuple[Any, ...]]:
    for day in days:
        seconds = f"{day['gpu_seconds']:.1f}"
        yield day["day"], day["tenant"], day["queue"], day["jobs"], day["cached"], day["images"], seconds


def _total(days: list[dict[str, Any]]) -> Iterable[tuple[Any, ...]]:
    if len(days) > 1:
        jobs, cached, images, seconds = (
            sum(day[name] for day in days) for name in ("jobs", "cached", "images", "gpu_seconds")
        )
        yield "total", "", "", jobs, cached, images, f"{seconds:.1f}"
