"""`calotype models register`: a GAN's folder on this disk becomes a version in the registry.

What can be known here is checked here: nobody uploads gigabytes to be told that a licence was not accepted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import err, fail, out, print_json
from calotype.cli.models_import import check_name

if TYPE_CHECKING:
    from calotype.gan_description import GanDescription


def register(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A GAN as training or `import-stylegan3` made it: model.json and *.safetensors.",
            exists=True,
            file_okay=False,
            readable=True,
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="What to call the model; its next version is made.", show_default=False)],
    licence: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Under which licence it may be used, where model.json does not say.", show_default=False
        ),
    ] = None,
    accept_licence: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Says that you have read the licence of weights that allow no commercial use, and keep to it.",
            show_default=False,
        ),
    ] = None,
    truncation_psi: Annotated[
        float | None, typer.Option(min=0.0, max=2.0, help="ψ of requests that give none; 1 when not given.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Upload a GAN's folder and register it as the next version of a model."""
    check_name(name)
    files = _files(folder)
    description = _description(folder)
    body: dict[str, Any] = {
        "name": name,
        "family": "gan",
        "architecture": description.architecture,
        "licence": _licence(description, licence, accept_licence),
        "accept_licence": accept_licence,
        "default_truncation_psi": truncation_psi,
    }
    with connect(url, api_key) as client, err().status(f"uploading {folder} …"):
        model = client.register_model(body, files)
    if as_json:
        print_json(model)
    else:
        out().print(f"{model['ref']} ({model['architecture']}, {model['licence']})", markup=False)


def _files(folder: Path) -> list[Path]:
    """The folder's files, `model.json` last: with it an upload is whole."""
    from calotype.gan_description import FILE, FILES, GENERATOR

    found = sorted(folder.iterdir(), key=lambda path: (path.name == FILE, path.name))
    for path in found:
        if path.name not in FILES or not path.is_file():
            fail(f"{path} is no part of a GAN.", f"It has {', '.join(FILES)} and nothing else; move it away.")
    for name in (FILE, GENERATOR):
        if not (folder / name).exists():
            fail(f"{folder} holds no {name}.", "Give the folder of a GAN as training or `import-stylegan3` made it.")
    return found


def _description(folder: Path) -> GanDescription:
    from calotype.gan_description import FILE, MAX_BYTES, GanDescription, UnreadableDescription

    path = folder / FILE
    if path.stat().st_size > MAX_BYTES:
        fail(f"{path} has more than {MAX_BYTES:,} bytes: it describes no GAN.")
    try:
        return GanDescription.read(path.read_bytes())
    except UnreadableDescription as exc:
        fail(f"{path} describes no GAN: {exc}")


def _licence(description: GanDescription, given: str | None, accepted: str | None) -> str:
    """Under which licence to register it."""
    from calotype.gan_description import FILE, licence_mistake

    own = description.licence
    licence = given or (own.id if own is not None else None)
    if licence is None:
        fail(
            f"{FILE} names no licence.",
            "Say under which the model may be used, e.g. --licence Apache-2.0 or --licence proprietary.",
        )
    mistake = licence_mistake(description, licence, accepted)
    if mistake is not None:
        field, reason = mistake
        fail(f"--{field.replace('_', '-')}: {reason}.")
    return licence
