"""What the server asks of the system."""

from __future__ import annotations

import resource

import pytest

from api.server import SPARE_FILES, allow_connections

ANY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "fit"),
    [
        (1024, 1_048_576, 3000 + SPARE_FILES, 3000),
        (1024, ANY, 3000 + SPARE_FILES, 3000),
        (4096, 1_048_576, None, 3000),
        (ANY, ANY, None, 3000),
        (1024, 2048, 2048, 2048 - SPARE_FILES),
        (1024, 1024, None, 1024 - SPARE_FILES),
        (100, 100, None, 1),
    ],
)
def test_connections_are_as_many_as_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None, fit: int
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))

    assert allow_connections(3000) == fit

    assert asked == ([(raised, hard)] if raised is not None else [])
