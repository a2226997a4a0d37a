"""The tree of commands, and what becomes of an error."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from calotype.cli import (
    admin,
    bulk,
    datasets,
    events,
    explain,
    fleet,
    jobs,
    models,
    processes,
    simulate,
    submit,
    up,
    webhooks,
)
from calotype.cli.console import fail
from calotype.cli.demo import demo
from calotype.client import ApiError, ClientError
from calotype.errors import CalotypeError
from calotype.local.errors import StackError

app = typer.Typer(
    name="calotype",
    help="A job queue for image generation: train, generate, benchmark.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="rich",
)

app.command(rich_help_panel="Run it here")(up.up)
app.command(rich_help_panel="Run it here")(demo)
submit.app.command("bulk")(bulk.submit_bulk)
app.add_typer(submit.app, name="submit", rich_help_panel="Jobs")
app.command(rich_help_panel="Jobs")(jobs.wait)
app.command("list", rich_help_panel="Jobs")(jobs.list_jobs)
app.command(rich_help_panel="Jobs")(jobs.show)
app.command(rich_help_panel="Jobs")(explain.explain)
app.command(rich_help_panel="Jobs")(events.logs)
app.command(rich_help_panel="Jobs")(jobs.cancel)
app.command(rich_help_panel="Jobs")(jobs.retry)
app.command(rich_help_panel="Jobs")(jobs.download)
app.command(rich_help_panel="Jobs")(jobs.delete)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel="Jobs")
app.add_typer(datasets.app, name="datasets", rich_help_panel="What jobs use")
app.add_typer(models.app, name="models", rich_help_panel="What jobs use")
app.add_typer(fleet.queues_app, name="queues", rich_help_panel="Operation")
app.add_typer(fleet.workers_app, name="workers", rich_help_panel="Operation")
app.command(rich_help_panel="Operation")(fleet.usage)
app.add_typer(admin.tenants_app, name="tenants", rich_help_panel="Operation")
app.add_typer(admin.keys_app, name="keys", rich_help_panel="Operation")
app.command(rich_help_panel="Operation")(simulate.simulate)
app.command(rich_help_panel="Operation")(processes.migrate)
app.command(rich_help_panel="Operation")(processes.version)
for name, module in (("api", "api"), ("worker", "worker"), ("reconciler", "worker.reconciler")):
    app.command(
        name,
        help=f"Run `python -m {module}` in place of this process; arguments are passed on.",
        rich_help_panel="Operation",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )(processes.become(module))


def _print_version(wanted: bool) -> None:
    if wanted:
        processes.version()
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool,
        # Eager, or the missing command is complained about first.
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """The options that stand before a command."""


def run() -> None:
    """Run the command line and exit."""
    try:
        app()
    except ApiError as exc:
        fields = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in exc.errors]
        # A single field error is the detail already.
        fail("\n  ".join([exc.detail, *(fields if len(fields) > 1 else [])]), _remedy(exc))
    except StackError as exc:
        fail(exc.message, exc.remedy)
    except CalotypeError as exc:
        fail(exc.detail)
    except ClientError as exc:
        fail(str(exc))
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; nothing is left to say and nowhere to say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as exc:
        fail(f"{exc.strerror or exc}{f': {exc.filename}' if exc.filename else ''}")


def _remedy(exc: ApiError) -> str:
    if exc.status == 401:
        return "Give a valid key with --api-key or CALOTYPE_API_KEY; `calotype keys create` makes one."
    if exc.status == 403:
        return "Use a key that has the scope; `calotype keys create --scope …` makes one."
    if exc.status == 429 and exc.retry_after is not None:
        return f"Try again in {exc.retry_after:g} s."
    if exc.status >= 500 and exc.request_id is not None:
        return f"Try again; the server's log has more under the request id {exc.request_id}."
    return ""
