"""How an archive lays its dataset out: which images belong to it, and which caption and label each has.

Each layout is one function that looks at the contents and gives the samples, or None when the archive is not
laid out its way. A new layout is one more function in :data:`LAYOUTS`, and its description file's name in
:data:`DOCUMENTS`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from calotype.archive import printable, refusal
from calotype.datasets import dataset_json, metadata
from calotype.datasets.images import ImageFacts

#: Files that describe the images, by their base name.
DOCUMENTS = frozenset({metadata.FILE_NAME, dataset_json.FILE_NAME})
#: Licences and notices travel with the images they speak of.
NOTICE = re.compile(r"(README|LICEN[CS]E|NOTICE|COPYING|ATTRIBUTION)(\.(md|txt))?", re.IGNORECASE)
MAX_NOTICE_BYTES = 1 << 20
MAX_NOTICES = 16
MAX_LABELS = 1_000


@dataclass(kw_only=True)
class Contents:
    """What an archive holds, by safe name."""

    images: dict[str, ImageFacts] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    notices: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with all that is known of it."""

    #: Its name in the archive it came in.
    source: str
    #: Its name in the dataset: relative to the folder that holds the dataset.
    file_name: str
    facts: ImageFacts
    text: str | None = None
    label: str | None = None
    extra: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


def arrange(contents: Contents) -> tuple[list[Sample], dict[str, bytes]]:
    """The samples of a dataset, sorted by file name, and its notices by their name in the dataset.

    Raises:
        Invalid: empty_dataset, metadata_invalid, missing_image, layout_unclear, duplicate_name, too_many_labels.
    """
    if not contents.images:
        raise refusal("empty_dataset", None, "holds no image", "Put PNG, JPEG or WebP files into it.")
    root = _root([*contents.images, *contents.documents])
    samples = next(found for layout in LAYOUTS if (found := layout(contents, root)) is not None)
    labels = {sample.label for sample in samples if sample.label is not None}
    if len(labels) > MAX_LABELS:
        raise refusal(
            "too_many_labels", None, f"has {len(labels)} different labels", f"At most {MAX_LABELS} are taken."
        )
    _check_no_folder_is_a_file([sample.file_name for sample in samples], contents, root)
    notices = {_relative(name, root): text for name, text in contents.notices.items()}
    if len(notices) < len(contents.notices):
        raise refusal("duplicate_name", None, "has a notice twice, at the top and below", "Keep one of the two.")
    return sorted(samples, key=lambda sample: sample.file_name), notices


def described(contents: Contents, root: str) -> list[Sample] | None:
    """``metadata.jsonl`` beside or above the images says everything; every image has its line."""
    top = _document(contents, root, metadata.FILE_NAME)
    if top is None:
        return None
    if len(contents.documents) > 1:
        problem = f"and {metadata.FILE_NAME} both describe the images"
        raise refusal("layout_unclear", dataset_json.FILE_NAME, problem, "Keep one of the two.")
    samples = [_described(line, contents, root) for line in metadata.parse(top)]
    silent = contents.images.keys() - {sample.source for sample in samples}
    if silent:
        raise refusal(
            "metadata_invalid",
            min(silent),
            f"has no line in {metadata.FILE_NAME}",
            'Add one ({"file_name": "…"} is enough), or remove the image.',
        )
    return samples


def labelled(contents: Contents, root: str) -> list[Sample] | None:
    """``dataset.json`` above the images, as NVIDIA's GAN tools write it: folders are numbers there, not classes."""
    top = _document(contents, root, dataset_json.FILE_NAME)
    if top is None:
        return None
    entries = dataset_json.parse(top)
    if entries is None:
        return plain(contents, root)
    samples = [_labelled(entry, contents, root) for entry in entries]
    silent = contents.images.keys() - {sample.source for sample in samples}
    if silent:
        raise refusal(
            "metadata_invalid",
            min(silent),
            f"has no label in {dataset_json.FILE_NAME}",
            'Add one, remove the image, or write {"labels": null} to have no labels at all.',
        )
    return samples


def folders(contents: Contents, root: str) -> list[Sample] | None:
    """One folder a class: the first folder below the top is the label. A folder around everything is none."""
    relative = {name: _relative(name, root) for name in contents.images}
    stray = [name for name, inner in relative.items() if "/" not in inner]
    if len(stray) == len(relative):
        return None
    if stray:
        raise refusal(
            "layout_unclear",
            min(stray),
            "lies beside folders of images",
            f"Move it into the folder of its class, or describe all images in {metadata.FILE_NAME}.",
        )
    for name, inner in relative.items():
        if len(inner.split("/")[0]) > metadata.MAX_LABEL:
            raise refusal("name_invalid", name, "has too long a class folder", "Shorten the folder's name.")
    return [
        Sample(source=name, file_name=inner, facts=contents.images[name], label=inner.split("/")[0])
        for name, inner in relative.items()
    ]


def plain(contents: Contents, root: str) -> list[Sample] | None:
    """Images in one folder, with nothing said about them."""
    return [
        Sample(source=name, file_name=_relative(name, root), facts=facts) for name, facts in contents.images.items()
    ]


Layout = Callable[[Contents, str], "list[Sample] | None"]
#: In the order in which they are tried; the last takes anything.
LAYOUTS: tuple[Layout, ...] = (described, labelled, folders, plain)


def _document(contents: Contents, root: str, base: str) -> bytes | None:
    """The description file of that name; None when there is none."""
    top = posixpath.join(root, base)
    for name in contents.documents:
        if posixpath.basename(name) == base and name != top:
            remedy = f"One {base} at the top describes all images, subfolders included."
            raise refusal("metadata_invalid", name, "lies in a subfolder", remedy)
    return contents.documents.get(top)


def _labelled(entry: dataset_json.Entry, contents: Contents, root: str) -> Sample:
    source = posixpath.join(root, entry.file_name)
    facts = contents.images.get(source)
    if facts is None:
        raise refusal(
            "missing_image",
            entry.file_name,
            f"has label {entry.number} in {dataset_json.FILE_NAME} but is not in the archive",
            f"Add the image or remove the label; names are relative to {dataset_json.FILE_NAME}, and case matters.",
        )
    return Sample(source=source, file_name=entry.file_name, facts=facts, label=entry.label)


def _described(line: metadata.Line, contents: Contents, root: str) -> Sample:
    source = posixpath.join(root, line.file_name)
    facts = contents.images.get(source)
    if facts is None:
        raise refusal(
            "missing_image",
            line.file_name,
            f"is described in {metadata.FILE_NAME} line {line.number} but is not in the archive",
            "Add the image or remove the line; names are relative to metadata.jsonl, and case matters.",
        )
    for key, claimed in line.facts.items():
        if claimed != getattr(facts, key):
            raise metadata.problem(
                line.number,
                f"says {key} {printable(str(claimed))} of an image with {getattr(facts, key)}",
                "Correct it or leave it out.",
            )
    return Sample(
        source=source,
        file_name=line.file_name,
        facts=facts,
        text=line.text,
        label=line.label,
        extra=line.extra,
    )


def _check_no_folder_is_a_file(names: list[str], contents: Contents, root: str) -> None:
    """No system could unpack a dataset in which a name is both."""
    files = {metadata.FILE_NAME, *names, *(_relative(name, root) for name in contents.notices)}
    for name in names:
        folder = posixpath.dirname(name)
        while folder:
            if folder in files:
                raise refusal("duplicate_name", name, f"lies in a folder named like the file '{folder}'", "Rename one.")
            folder = posixpath.dirname(folder)


def _root(names: list[str]) -> str:
    """The deepest folder that holds all of ``names``; ``""`` for the archive's top."""
    return posixpath.commonpath([posixpath.dirname(name) for name in names])


def _relative(name: str, root: str) -> str:
    """``name`` from ``root`` on; the base name of what lies above or beside it."""
    if not root:
        return name
    return name[len(root) + 1 :] if name.startswith(f"{root}/") else posixpath.basename(name)
