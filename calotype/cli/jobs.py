"""Commands on jobs that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.cli.connect import ApiKey, AsJson, Limit, Url, connect
from calotype.cli.console import err, out, print_json
from calotype.cli.follow import follow, tell_outcome
from calotype.cli.render import job_details, job_table

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job.", show_default=False)]


def wait(
    job_id: JobId,
    timeout: Annotated[float | None, typer.Option(help="Give up after this many seconds.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Then download its artifacts here.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a job has ended, with a progress bar. Exit code 0 when it succeeded, else 1."""
    with connect(url, api_key) as client:
        job = follow(client, job_id, timeout=timeout)
        tell_outcome(client, job, output=output, as_json=as_json)


def show(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show a job: its state, spec, artifacts, error."""
    with connect(url, api_key) as client:
        job = client.get(job_id)
    print_json(job) if as_json else out().print(job_details(job))


def list_jobs(
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, …")] = None,
    kind: Annotated[str | None, typer.Option(help="train, generate or benchmark")] = None,
    family: Annotated[str | None, typer.Option(help="diffusion, …")] = None,
    model: Annotated[str | None, typer.Option(help="Name or name@version.")] = None,
    since: Annotated[str | None, typer.Option(help="Created at or after this time (RFC 3339).")] = None,
    limit: Limit = 20,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with connect(url, api_key) as client:
        found = client.jobs(limit=limit, state=state, kind=kind, family=family, model=model, since=since)
        jobs = list(found)
    print_json(jobs) if as_json else out().print(job_table(jobs))


def cancel(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Cancel a job. A running one ends within a step or so."""
    with connect(url, api_key) as client:
        job = client.cancel(job_id)
    _tell(job, f"{job['id']} is {job['state']}", as_json)


def retry(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Submit the spec of an ended job again, as a new job."""
    with connect(url, api_key) as client:
        job = client.retry(job_id)
    _tell(job, f"{job['id']} is {job['state']}; it retries {job_id}", as_json)


def download(
    job_id: JobId,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to put the files in.")] = Path(),
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Download what a job made; each file is checked against its digest."""
    with connect(url, api_key) as client:
        paths = client.download(job_id, output)
    if as_json:
        print_json([str(path) for path in paths])
        return
    for path in paths:
        out().print(str(path), markup=False)
    if not paths:
        err().print(f"{job_id} has no artifacts")


def delete(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB…", help="Ids of jobs.", show_default=False)],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Delete ended jobs and their artifacts."""
    with connect(url, api_key) as client:
        for job_id in job_ids:
            client.delete(job_id)
            err().print(f"deleted {job_id}")


def _tell(job: dict[str, Any], text: str, as_json: bool) -> None:
    print_json(job) if as_json else out().print(text)
