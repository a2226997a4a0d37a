"""Make the starter datasets: real brand logos, 64 x 64 on white, from two CC0 sets on npm.

    python -m starter.recipe.dataset --work DIR

Writes three zips in the product's dataset format (images and `metadata.jsonl`) to `starter/assets`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

import starter
from starter.recipe.captions import captions, describe, shape_words

LOGOS: Final = "@iconify-json/logos@1.2.19"
SIMPLE_ICONS: Final = "simple-icons@16.37.0"

#: Edge of an image, and of the margin that stays white around the logo, in pixels.
SIZE: Final = 64
MARGIN: Final = 6

#: Logos longer than this relative to their shorter side are wordmarks more often than marks.
MAX_ASPECT: Final = 1.7

#: Share of name prefixes, out of 1000, that are held out; chosen for about 940 held-out logos.
HELD_OUT_PER_MILLE: Final = 225

#: Brands whose products go by another name in one of the sets.
ALIASES: Final = {"aws": "amazon", "gcp": "google", "ms": "microsoft", "k8s": "kubernetes"}

#: The vendor whose icons share one visible style: white line drawings on a graded square tile.
BRAND_PREFIX: Final = "aws-"

NOTICE: Final = """\
The images were rendered from the icon sets `{logos}` and `{simple}` (npm), which their authors dedicated to the public
domain (CC0 1.0). Names and marks shown in them remain the property of their owners; the dataset is for training,
testing and measurement and grants no right to use any mark.
"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One logo as its set ships it."""

    #: unique name, e.g. "logos-github"
    name: str
    #: the brand's name as people write it
    title: str
    svg: str
    #: what the brand is called without its set, to tell brands apart
    brand: str


@dataclass(frozen=True, kw_only=True)
class Logo:
    """One logo as the dataset holds it."""

    source: Source
    image: Image.Image


def main() -> None:
    """Fetch, render, filter, split, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads")
    work: Path = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    logos = distinct(rendered(sources(work)))
    train = [logo for logo in logos if not held_out(logo.source.brand)]
    held = [logo for logo in logos if held_out(logo.source.brand)]
    train = without_lookalikes(train, held)
    brand = [logo for logo in train if is_brand(logo)]
    for name, part in (("train", train), ("held out", held), ("brand", brand)):
        print(f"{name}: {len(part)} logos")
    write(starter.train_dataset(), train)
    write(starter.heldout_dataset(), held)
    write(starter.brand_dataset(), brand)


def sources(work: Path) -> Iterator[Source]:
    """Every logo of both sets, in a stable order."""
    yield from _iconify(_fetched(LOGOS, work))
    yield from _simple_icons(_fetched(SIMPLE_ICONS, work))


def rendered(found: Iterator[Source]) -> Iterator[Logo]:
    """The logos that can be drawn, are not wordmarks and are not white on white."""
    for source in found:
        image = render(source.svg)
        if image is not None:
            yield Logo(source=source, image=image)


def render(svg: str) -> Image.Image | None:
    """A logo centred on white within the margin, or None when it is blank, too long or nearly white."""
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=256, skip_system_fonts=True)
    except ValueError:
        return None
    drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = drawing.getchannel("A").getbbox()
    if box is None:
        return None
    drawing = drawing.crop(box)
    width, height = drawing.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        return None
    scale = (SIZE - 2 * MARGIN) / max(width, height)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    paper = Image.new("RGBA", drawing.size, "white")
    flat = Image.alpha_composite(paper, drawing).convert("RGB").resize(fitted, Image.Resampling.BOX)
    page = Image.new("RGB", (SIZE, SIZE), "white")
    page.paste(flat, ((SIZE - fitted[0]) // 2, (SIZE - fitted[1]) // 2))
    ink = np.asarray(page).min(axis=2) < 200
    return page if float(ink.mean()) > 0.02 else None


def distinct(logos: Iterator[Logo]) -> list[Logo]:
    """The logos without exact copies; the first of each picture stays."""
    first = {logo.image.tobytes(): logo for logo in reversed(list(logos))}
    return sorted(first.values(), key=lambda logo: logo.source.name)


def brand_of(name: str) -> str:
    """The letters that tell brands apart: aliases resolved, separators removed."""
    parts = re.findall(r"[a-z0-9]+", name.lower())
    return "".join([ALIASES.get(parts[0], parts[0]), *parts[1:]]) if parts else ""


def held_out(brand: str) -> bool:
    """Whether a brand is held out, by its first three letters: variants of one name always fall on one side."""
    digest = hashlib.sha256(brand[:3].encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def is_brand(logo: Logo) -> bool:
    """Whether a logo has the demonstration brand's style: the vendor's, and a filled square."""
    return logo.source.name.startswith(f"logos-{BRAND_PREFIX}") and shape_words(logo.image) == ("solid", "square")


def without_lookalikes(train: Sequence[Logo], held: Sequence[Logo]) -> list[Logo]:
    """The training logos whose 16 x 16 thumbnail differs from every held-out one: a brand may have two names."""
    marks = _thumbnails(held)
    near = [float(((marks - mark) ** 2).mean(axis=1).min()) for mark in _thumbnails(train)]
    return [logo for logo, distance in zip(train, near, strict=True) if distance > 0.002]


def write(path: Path, logos: Sequence[Logo]) -> None:
    """A dataset zip: lossless WebP images, one line of metadata each, the notice; equal input gives equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for logo in logos:
            file_name = f"images/{logo.source.name}.webp"
            lines.append(json.dumps(row(file_name, logo), ensure_ascii=False))
            archive.writestr(_entry(file_name, zipfile.ZIP_STORED), _webp(logo.image))
        archive.writestr(_entry("metadata.jsonl", zipfile.ZIP_DEFLATED), "\n".join(lines) + "\n")
        notice = NOTICE.format(logos=LOGOS, simple=SIMPLE_ICONS)
        archive.writestr(_entry("NOTICE", zipfile.ZIP_DEFLATED), notice)


def row(file_name: str, logo: Logo) -> dict[str, str]:
    """One line of `metadata.jsonl`: the label is the dominant colour, and the caption names it first."""
    words = describe(logo.image, logo.source.title)
    choice = hashlib.sha256(logo.source.name.encode()).digest()[0] % 3
    return {
        "file_name": file_name,
        "text": captions(words)[choice],
        "label": words.colours[0],
        "title": logo.source.title,
        "brand": logo.source.brand,
    }


def _fetched(package: str, work: Path) -> Path:
    """The unpacked folder of an npm package at a pinned version."""
    answer = subprocess.run(["npm", "pack", "--silent", package], cwd=work, check=True, capture_output=True, text=True)
    archive = work / answer.stdout.strip().splitlines()[-1]
    target = work / archive.name.removesuffix(".tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target / "package"


def _iconify(folder: Path) -> Iterator[Source]:
    """The logos of an Iconify set: `icons.json` holds bodies without their `<svg>`."""
    data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    for name, icon in sorted(data["icons"].items()):
        width, height = icon.get("width", data["width"]), icon.get("height", data["height"])
        head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'<svg {head} viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
        title = name.removesuffix("-icon").replace("-", " ")
        yield Source(name=f"logos-{name}", title=title, svg=svg, brand=brand_of(name))


def _simple_icons(folder: Path) -> Iterator[Source]:
    """The logos of Simple Icons: black paths, painted here in the brand's own colour."""
    icons = json.loads((folder / "data" / "simple-icons.json").read_text(encoding="utf-8"))
    for icon in sorted(icons, key=lambda entry: str(entry["title"]).lower()):
        slug = icon.get("slug") or _slug(icon["title"])
        path = folder / "icons" / f"{slug}.svg"
        if path.exists():
            svg = path.read_text(encoding="utf-8").replace("<svg ", f'<svg fill="#{icon["hex"]}" ', 1)
            yield Source(name=f"simple-{slug}", title=icon["title"], svg=svg, brand=brand_of(icon["title"]))


def _slug(title: str) -> str:
    """A title's file name in Simple Icons (its `sdk.mjs`, `titleToSlug`)."""
    spelled = title.lower().replace("+", "plus").replace(".", "dot").replace("&", "and")
    for letter, plain in zip("đħıĸŀłßŧ", ("d", "h", "i", "k", "l", "l", "ss", "t"), strict=True):
        spelled = spelled.replace(letter, plain)
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFD", spelled))


def _thumbnails(logos: Sequence[Logo]) -> NDArray[np.float64]:
    """Grey 16 x 16 thumbnails, flattened, 0 to 1, shape (N, 256)."""
    small = [logo.image.convert("L").resize((16, 16), Image.Resampling.BOX) for logo in logos]
    return np.stack([np.asarray(image, dtype=np.float64).ravel() / 255.0 for image in small])


def _webp(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "WEBP", lossless=True, quality=100, method=4)
    return data.getvalue()


def _entry(name: str, method: int) -> zipfile.ZipInfo:
    """A zip entry with a fixed date, so that archives can be compared by their digest."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = method
    entry.external_attr = 0o644 << 16
    return entry


if __name__ == "__main__":
    main()
