"""Commands on datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import err, out, print_json
from calotype.cli.render import moment, table

app = typer.Typer(help="Upload, list and delete datasets.", no_args_is_help=True)


@app.command()
def upload(
    archive: Annotated[
        Path,
        typer.Argument(
            help="A zip or tar of images, perhaps with metadata.jsonl (file_name, text, label) or dataset.json.",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Its name; else that of the file.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Upload images to train on or to compare with."""
    with connect(url, api_key) as client:
        dataset = client.upload_dataset(archive, name=name)
    if as_json:
        print_json(dataset)
    else:
        out().print(f"{dataset['id']} ({dataset['name']}, {dataset['images']} images)", markup=False)


@app.command("list")
def list_datasets(url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List your datasets and the shared ones."""
    with connect(url, api_key) as client:
        datasets = list(client.datasets())
    if as_json:
        print_json(datasets)
        return
    rows = ((d["id"], d["name"], d["images"], d["bytes"], moment(d["created_at"])) for d in datasets)
    out().print(table(("id", "name", "images", "bytes", "created"), rows, "no datasets"))


@app.command()
def delete(
    dataset_id: Annotated[str, typer.Argument(help="The id, `ds_…`.", show_default=False)],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Delete a dataset that no job needs any more."""
    with connect(url, api_key) as client:
        client.delete_dataset(dataset_id)
    err().print(f"deleted {dataset_id}")
