"""`calotype models import-stylegan3`: an official network in this project's format.

The reading is the worker's, since tensors are. It runs in a process of its own, so that this one needs no torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from calotype.cli.console import err, fail, out, print_json

#: What has to be accepted, by the word that accepts it.
LICENCE = "nvidia-source-code-licence"
MODULE = "worker.families.gan.pickle_import"
#: How the converter ends when the file was refused, with one line that says why.
_REFUSED = 2


def import_stylegan3(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.pkl",
            help="A network as NVIDIA publishes it. It is read as data: nothing in it runs.",
            exists=True,
            dir_okay=False,
            readable=True,
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="What to call the model.", show_default=False)],
    accept_licence: Annotated[
        str | None,
        typer.Option(
            metavar=LICENCE,
            help="Says that you have read the licence of the official networks (no commercial use) and keep to it.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write it; else ./NAME. Must not be there yet.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Convert an official StyleGAN3 network to safetensors, with its configuration, licence and origin."""
    check_name(name)
    _check_licence(accept_licence)
    _check_installed()
    target = folder or Path(name)
    description = _convert(file, target)
    if as_json:
        print_json({"name": name, "folder": str(target), **description})
        return
    size = description["generator"]["resolution"]
    out().print(f"{target} ({description['architecture']}, {size} x {size} pixels, {LICENCE})", markup=False)
    command = f"calotype models register {target} --name {name} --accept-licence {LICENCE}"
    err().print(f"Make it usable with: {command}", markup=False)


def check_name(name: str) -> None:
    """BadParameter for what can name no model."""
    from calotype.specs.common import MODEL_NAME

    if re.fullmatch(MODEL_NAME, name) is None:
        raise typer.BadParameter(
            f"{name!r} can name no model: small letters, digits, dots, underscores and hyphens", param_hint="--name"
        )


def _check_licence(accepted: str | None) -> None:
    if accepted != LICENCE:
        said = "was not accepted" if accepted is None else f"goes by another word than {accepted!r}"
        fail(
            f"The licence of the official StyleGAN3 networks {said}.",
            "The NVIDIA Source Code Licence allows research and evaluation, no commercial use. When you have read it "
            f"and keep to it, say so with --accept-licence {LICENCE}.",
        )


def _check_installed() -> None:
    missing = [module for module in ("worker", "torch", "safetensors") if importlib.util.find_spec(module) is None]
    if missing:
        fail(
            f"Converting needs what workers need, and {missing[0]} is not installed here.",
            "Install it with: pip install 'calotype[worker]'",
        )


def _convert(file: Path, target: Path) -> dict[str, Any]:
    from calotype.local.modules import module_argv, module_environment

    argv = module_argv(MODULE, str(file.absolute()), str(target.absolute()))
    done = subprocess.run(argv, env=module_environment(os.environ), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        _fail_as(done)
    description: dict[str, Any] = json.loads(done.stdout)
    return description


def _fail_as(done: subprocess.CompletedProcess[str]) -> NoReturn:
    lines = done.stderr.strip().splitlines() or ["no reason was given"]
    if done.returncode == _REFUSED:
        fail(lines[-1], "Nothing in the file was run, and nothing was written.")
    fail(f"The converter ended with {done.returncode}: {lines[-1]}", "Nothing was written.")
