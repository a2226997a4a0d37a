"""Uploaded files go to disk as they arrive: an archive of gigabytes passes through a process of megabytes."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from flask import Request, request
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import ClientDisconnected
from werkzeug.formparser import FormDataParser

from api.calls import UploadBody
from api.errors import MalformedRequest
from calotype.errors import DependencyDown, FieldError, Invalid


class UploadRequest(Request):
    """A request whose file parts are written to named temporary files."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        # Closed, and with that removed, by Request.close() at the end of the request.
        return tempfile.NamedTemporaryFile(prefix="calotype-upload-")

    def make_form_data_parser(self) -> FormDataParser:
        # By default a body that breaks off counts as an empty form.
        parser = super().make_form_data_parser()
        parser.silent = False
        return parser


@contextmanager
def received(upload: UploadBody) -> Iterator[tuple[dict[str, str], Path]]:
    """The text fields and the file of the present multipart request.

    Raises:
        Invalid: a part is missing, unknown or there twice.
        MalformedRequest: the body is cut off or no multipart body.
        DependencyDown: code ``disk_full``, when the archive does not fit the server's temporary folder.
        werkzeug.exceptions.RequestEntityTooLarge: it is larger than ``request.max_content_length``.
    """
    file_name = upload.file[0]
    form, files = _parts()
    errors = [*_wrong(form, list(upload.fields)), *_wrong(files, [file_name])]
    if errors:
        raise Invalid(errors=errors)
    stream = files[file_name].stream
    stream.flush()
    yield {name: form[name] for name in upload.fields}, Path(stream.name)


def _parts() -> tuple[MultiDict[str, str], MultiDict[str, FileStorage]]:
    try:
        return request.form, request.files
    except (ClientDisconnected, ValueError) as exc:
        raise MalformedRequest("The multipart body is cut off or malformed.") from exc
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        remedy = "free space in its temporary folder (TMPDIR), or use a presigned upload"
        raise DependencyDown(f"The server has no room for this archive; {remedy}.", code="disk_full") from exc


def _wrong(given: MultiDict[str, Any], wanted: list[str]) -> Iterator[FieldError]:
    for name, values in given.lists():
        if name not in wanted:
            yield FieldError(loc=(name,), msg=f"is not a part of this form; it takes {', '.join(wanted)}")
        elif len(values) > 1:
            yield FieldError(loc=(name,), msg="is there twice")
    for name in wanted:
        if name not in given:
            yield FieldError(loc=(name,), msg="is required")
