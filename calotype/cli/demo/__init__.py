"""`calotype demo`: the whole product in a few minutes, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calotype.cli.connect import ApiKey, Url
from calotype.cli.console import INTERRUPTED, fail


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the results go.")] = Path("demo-output"),
    data_dir: Annotated[
        Path | None, typer.Option(help="Data of the stack it starts; .calotype/ when not given.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and images: a check, not a show.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Generate with diffusion and GAN, fine-tune, generate again and benchmark, with real jobs; leaves a report.

    Uses the stack that runs here, else starts one and stops it again.
    """
    from calotype.cli.demo.show import run
    from calotype.cli.demo.stack import running_stack

    try:
        with running_stack(url, api_key, data_dir) as target:
            run(target, output, quick=quick)
    except KeyboardInterrupt:
        fail("interrupted", "A stack that the demo had started is stopped.", code=INTERRUPTED)
