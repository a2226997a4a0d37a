"""What a request names, models above all: looked up and held, or remembered from the last time.

A version never changes; what changes is which version a name means. A submission may therefore rest on what a name
meant the last time, if the statement that writes the job compares it with what the name means then
(:func:`calotype.queue.submit_at_once`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol
from uuid import UUID

import sqlalchemy as sa

from calotype import datasets, init_images, registry
from calotype.datasets import Dataset
from calotype.errors import NotFound
from calotype.jobs import Family
from calotype.registry import ModelVersion

#: Names of one process; those used least lately are forgotten.
MOST_REMEMBERED = 1000


class References(Protocol):
    """How the references of a tenant's request are resolved."""

    def version(self, ref: str) -> ModelVersion:
        """The version that ``name`` or ``name@version`` means. Raises NotFound."""

    def dataset(self, ref: str) -> Dataset:
        """A dataset by its id or name. Raises NotFound."""

    def init_image(self, text: str) -> str:
        """An image to start from, its dataset pinned. Raises Invalid."""

    def is_taken(self, name: str, family: Family) -> bool:
        """Whether the tenant cannot register a version of that family under that name."""


class NotRemembered(NotFound):
    """It must be looked up."""


class Memory:
    """What names meant lately, of all tenants; for the threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: OrderedDict[tuple[UUID, str], ModelVersion] = OrderedDict()

    def recall(self, tenant_id: UUID, ref: str) -> ModelVersion | None:
        with self._lock:
            found = self._versions.get((tenant_id, ref))
            if found is not None:
                self._versions.move_to_end((tenant_id, ref))
            return found

    def note(self, tenant_id: UUID, ref: str, version: ModelVersion) -> None:
        with self._lock:
            self._versions[(tenant_id, ref)] = version
            self._versions.move_to_end((tenant_id, ref))
            if len(self._versions) > MOST_REMEMBERED:
                self._versions.popitem(last=False)


class Held:
    """Looks up in the database; what was found is not deleted before the transaction ends."""

    def __init__(self, conn: sa.Connection, tenant_id: UUID, memory: Memory | None = None) -> None:
        self._conn, self._tenant_id, self._memory = conn, tenant_id, memory

    def version(self, ref: str) -> ModelVersion:
        found = registry.find_version(self._conn, self._tenant_id, ref, hold=True)
        if self._memory is not None:
            self._memory.note(self._tenant_id, ref, found)
        return found

    def dataset(self, ref: str) -> Dataset:
        return datasets.find_dataset(self._conn, self._tenant_id, ref, hold=True)

    def init_image(self, text: str) -> str:
        return init_images.check_init_image(self._conn, self._tenant_id, text)

    def is_taken(self, name: str, family: Family) -> bool:
        return registry.is_taken(self._conn, self._tenant_id, name, family)


class Remembered:
    """Only remembers. :attr:`used` is what was rested on; everything but models is for the database."""

    def __init__(self, memory: Memory, tenant_id: UUID) -> None:
        self._memory, self._tenant_id = memory, tenant_id
        self.used: dict[str, ModelVersion] = {}

    def version(self, ref: str) -> ModelVersion:
        found = self._memory.recall(self._tenant_id, ref)
        if found is None:
            raise NotRemembered(f"Model {ref!r} must be looked up.")
        self.used[ref] = found
        return found

    def dataset(self, ref: str) -> Dataset:
        raise NotRemembered(f"Dataset {ref!r} must be looked up.")

    def init_image(self, text: str) -> str:
        raise NotRemembered("The image must be looked up.")

    def is_taken(self, name: str, family: Family) -> bool:
        raise NotRemembered(f"Whether {name!r} is taken as a name of a {family} model must be looked up.")
