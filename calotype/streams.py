"""Reading `text/event-stream`, as far as the API writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

MEDIA_TYPE = "text/event-stream"


def read_events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The data of each event, which is a JSON object; one that was cut off is no event."""
    rest = b""
    for chunk in chunks:
        *frames, rest = (rest + chunk).split(b"\n\n")
        for frame in frames:
            # Not splitlines: only a newline ends a line.
            data = b"".join(line.removeprefix(b"data:") for line in frame.split(b"\n") if line.startswith(b"data:"))
            if data:
                yield json.loads(data)
