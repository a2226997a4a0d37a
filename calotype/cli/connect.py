"""Which API a command talks to, with which key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from calotype.cli.console import fail

if TYPE_CHECKING:
    from calotype.client import Client

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The API; else CALOTYPE_URL, else the stack that runs on .calotype/.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="The key; else CALOTYPE_API_KEY or .calotype/api-key.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.")]


@dataclass(frozen=True)
class Target:
    """An API and the key to use there."""

    url: str
    api_key: str


def connect(url: str | None, api_key: str | None) -> Client:
    """A client for the API that the options, the environment or a running embedded stack name."""
    from calotype.client import Client

    found = target(url, api_key)
    return Client(found.url, found.api_key)


def target(url: str | None, api_key: str | None) -> Target:
    """Options win over the environment, which wins over the stack of the data folder."""
    from calotype.local.data_dir import DataDir
    from calotype.settings import load_settings

    settings = load_settings()
    url, api_key = url or settings.url, api_key or settings.api_key
    data_dir = DataDir(settings.data_dir)
    running = data_dir.running()
    if url is None:
        if running is None:
            fail(
                f"No Calotype runs on {data_dir.path}.",
                "Start one with `calotype up`, or say which one to use: --url URL --api-key KEY "
                "(CALOTYPE_URL, CALOTYPE_API_KEY), or CALOTYPE_DATA_DIR for one on another folder.",
            )
        url = running.url
    # The key of a stack is for that stack only: it is not shown to another server.
    if api_key is None and running is not None and running.url == url.rstrip("/"):
        api_key = data_dir.read_api_key()
    if api_key is None:
        fail(f"There is no key for {url}.", "Give one with --api-key KEY or CALOTYPE_API_KEY.")
    return Target(url, api_key)
