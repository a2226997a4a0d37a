"""The report: one HTML file without anything from outside, for somebody who must decide between models."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jinja2
from PIL import Image

from worker.benchmark import plots, verdict
from worker.benchmark.matrix import MEMORY_KINDS
from worker.benchmark.reference import Prompt
from worker.benchmark.sheets import SHEET_IMAGES, contact_sheet, thumbnail

JsonObject = dict[str, Any]

#: Prompts that are shown side by side, and pixels of an image's edge there.
_COMPARED: Final = 8
_EDGE: Final = 128


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The pictures of a benchmark."""

    prompts: Sequence[Prompt]
    #: Contender's name → sample number → image.
    samples: Mapping[str, Mapping[int, Image.Image]]
    #: The held-out image that a prompt describes.
    real: Callable[[Prompt], Image.Image]


@dataclass(frozen=True, kw_only=True)
class _Cell:
    text: str
    note: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class _Compared:
    prompt: str
    real: str
    #: One data URL a contender.
    images: Sequence[str]


def render(result: JsonObject, gallery: Gallery) -> str:
    """The page for a benchmark's result."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("worker.benchmark"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": verdict.number, "seconds": verdict.seconds, "bytes": _bytes}
    measured = [contender for contender in result["contenders"] if contender["status"] == "succeeded"]
    colours = {c["name"]: plots.colour_of(position) for position, c in enumerate(measured)}
    return environment.get_template("report.html").render(
        result=result,
        measured=measured,
        failed=[contender for contender in result["contenders"] if contender["status"] == "failed"],
        colours=colours,
        findings=verdict.in_short(result),
        matrix=_matrix(result),
        compared=_compared(gallery),
        speed=_speed(measured),
        quality=_quality(measured),
        tradeoff=_tradeoff(measured),
        sheets={name: _sheet(images) for name, images in gallery.samples.items()},
        sheet_images=SHEET_IMAGES,
        memory_kinds=MEMORY_KINDS,
    )


def _matrix(result: JsonObject) -> list[tuple[JsonObject, list[_Cell]]]:
    matrix = result["decision_matrix"]
    return [(row, _row(row, matrix["columns"], result["contenders"])) for row in matrix["rows"]]


def _row(row: JsonObject, columns: Sequence[JsonObject], contenders: Sequence[JsonObject]) -> list[_Cell]:
    best = verdict.winner(row, columns, contenders)
    cells = []
    for column in columns:
        value = column["values"][row["key"]]
        text = "–" if value is None else verdict.seconds(value) if row["unit"] == "s" else verdict.number(value)
        cells.append(_Cell(text=text, note=column["notes"].get(row["key"], ""), best=column["name"] == best))
    return cells


def _compared(gallery: Gallery) -> list[_Compared]:
    """The first samples with different prompts that every measured contender has."""
    samples = list(gallery.samples.values())
    chosen: dict[str, int] = {}
    for number, prompt in enumerate(gallery.prompts):
        if len(chosen) < _COMPARED and samples and all(number in images for images in samples):
            chosen.setdefault(prompt.text, number)
    return [
        _Compared(
            prompt=text,
            real=_small(gallery.real(gallery.prompts[number])),
            images=[_small(images[number]) for images in samples],
        )
        for text, number in chosen.items()
    ]


def _speed(measured: Sequence[JsonObject]) -> str | None:
    timed = any(batch["status"] == "measured" for contender in measured for batch in contender["latency"])
    return _data_url(plots.speed_chart(measured)) if timed else None


def _quality(measured: Sequence[JsonObject]) -> str | None:
    scored = any(contender["fd"] or contender["kid"] for contender in measured)
    return _data_url(plots.quality_chart(measured)) if scored else None


def _tradeoff(measured: Sequence[JsonObject]) -> str | None:
    chart = plots.tradeoff_chart(measured)
    return None if chart is None else _data_url(chart)


def _sheet(images: Mapping[int, Image.Image]) -> str:
    return _image_url(contact_sheet([images[number] for number in sorted(images)]))


def _small(image: Image.Image) -> str:
    return _image_url(thumbnail(image, _EDGE))


def _image_url(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return _data_url(data.getvalue())


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _bytes(value: float) -> str:
    return f"{verdict.number(value / 1e9)} GB" if value >= 1e9 else f"{verdict.number(value / 1e6)} MB"
