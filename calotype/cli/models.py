"""Commands on models."""

from __future__ import annotations

from typing import Annotated

import typer

from calotype.cli import models_import, models_register
from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import err, out, print_json
from calotype.cli.render import table

app = typer.Typer(help="List, show, register, delete and import models.", no_args_is_help=True)
app.command("import-stylegan3")(models_import.import_stylegan3)
app.command("register")(models_register.register)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The name of a model.", show_default=False)]


@app.command("list")
def list_models(url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List your models and the shared ones."""
    with connect(url, api_key) as client:
        models = list(client.models())
    if as_json:
        print_json(models)
        return
    rows = (
        (m["ref"], m["family"], m["architecture"], m["base"], "shared" if m["shared"] else "yours", m["licence"])
        for m in models
    )
    out().print(table(("latest", "family", "architecture", "fits", "whose", "licence"), rows, "no models"))


@app.command()
def show(name: ModelName, url: Url = None, api_key: ApiKey = None) -> None:
    """Show a model, `name` or `name@version`, as JSON."""
    with connect(url, api_key) as client:
        print_json(client.model(name))


@app.command()
def delete(name: ModelName, url: Url = None, api_key: ApiKey = None) -> None:
    """Delete a model of yours: all versions, or with `name@version` one."""
    with connect(url, api_key) as client:
        client.delete_model(name)
    err().print(f"deleted {name}")
