"""How much of the machine one archive may use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from calotype.archive.refusal import refusal
from calotype.errors import Invalid

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """Limits on one archive. Sizes are bytes."""

    #: The archive as it was sent.
    archive_bytes: int
    #: All that it unpacks to.
    total_bytes: int
    #: One file in it; a file is held in memory while it is looked at.
    file_bytes: int
    #: Entries, folders and litter included.
    entries: int
    #: Unpacked over packed. Images hardly compress, and text does twentyfold.
    ratio: float = 100.0
    #: Below this many unpacked bytes the ratio does not matter.
    ratio_from: int = 16 * MIB
    #: Wall-clock time to read all of it.
    seconds: float = 600.0


class Budget:
    """What reading one archive has used so far; each method raises ``Invalid`` when a limit is passed."""

    def __init__(self, limits: ArchiveLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._ends = clock() + limits.seconds
        self._entries = 0
        self._unpacked = 0
        self._reading: str | None = None

    def tick(self) -> None:
        """Checks the time."""
        if self._clock() > self._ends:
            raise refusal(
                "archive_too_slow",
                None,
                f"took more than {self._limits.seconds:g} s to read",
                "Split it into smaller datasets.",
            )

    def entry(self, name: str) -> None:
        """Counts one entry; what goes wrong from now on is said of it."""
        self._reading = name
        self._entries += 1
        if self._entries > self._limits.entries:
            raise too_many_entries(self._limits)
        self.tick()

    def unpacked(self, count: int, packed: int) -> None:
        """Counts bytes that came out of ``packed`` bytes of archive read so far."""
        self._unpacked += count
        self.expect(self._unpacked, packed, self._reading)
        self.tick()

    def expect(self, unpacked: int, packed: int, name: str | None) -> None:
        """Checks a size, counted or only declared, against the ratio and the total."""
        limits = self._limits
        if unpacked > limits.ratio_from and unpacked > limits.ratio * max(packed, 1):
            raise refusal(
                "zip_bomb",
                name,
                f"unpacks to more than {limits.ratio:g} times its size, as no image does",
                "Pack only images and their metadata.",
            )
        if unpacked > limits.total_bytes:
            raise refusal(
                "archive_too_large",
                name,
                f"unpacks to more than the {megabytes(limits.total_bytes)} that a dataset may have",
                "Split it, or make the images smaller.",
            )

    def file(self, name: str, size: int) -> None:
        """Checks the size that an entry declares before any of it is read."""
        if size > self._limits.file_bytes:
            raise refusal(
                "file_too_large",
                name,
                f"has {megabytes(size)}; one file may have {megabytes(self._limits.file_bytes)}",
                "Make the image smaller or compress it better.",
            )


def too_many_entries(limits: ArchiveLimits) -> Invalid:
    """The error for an archive with more entries than are allowed."""
    return refusal(
        "archive_too_large",
        None,
        f"has more than {limits.entries} entries",
        "Split it into smaller datasets.",
    )


def megabytes(count: int) -> str:
    """A size for people, e.g. ``12.5 MiB``."""
    return f"{count / MIB:.4g} MiB"
