"""`python -m worker --queues diffusion.generate,diffusion.train`: one worker process, one batch at a time."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

from calotype import log as logs
from calotype.errors import SettingsError
from calotype.jobs import QUEUES
from calotype.settings import load_settings
from worker import tracking
from worker.exit import ExitCode
from worker.families import HANDLERS
from worker.process import WorkerProcess


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until it is asked to stop; returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        settings = load_settings()
        settings.require("database_url", "broker_url", "s3_endpoint", "s3_access_key", "s3_secret_key")
        if any(name.endswith(".train") for name in options.queues):
            tracking.require(settings)
        logs.configure(settings)
        process = WorkerProcess(settings, options.queues, options.name)
    except SettingsError as exc:
        sys.stderr.write(f"{exc.detail}\n")
        return ExitCode.USAGE
    return process.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker", description="Runs jobs of one or more queues.")
    parser.add_argument(
        "--queues",
        required=True,
        type=_queues,
        metavar="A,B",
        help=f"queues to serve, separated by commas: {', '.join(HANDLERS)}",
    )
    parser.add_argument("--name", default=socket.gethostname(), help="how the worker is called in lists and logs")
    return parser


def _queues(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError(f"name at least one queue of {', '.join(HANDLERS)}")
    for name in names:
        if name not in QUEUES:
            raise argparse.ArgumentTypeError(f"{name} is no queue; the queues served here are {', '.join(HANDLERS)}")
        if name not in HANDLERS:
            raise argparse.ArgumentTypeError(
                f"no code of this release serves {name} yet; the queues served are {', '.join(HANDLERS)}"
            )
    return names


if __name__ == "__main__":
    sys.exit(main())
