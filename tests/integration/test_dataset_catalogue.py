"""Who sees a dataset, and who may delete it when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from dataset_archives import captioned, keys

from calotype import queue
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.datasets import (
    DatasetLimits,
    delete_dataset,
    discard_objects,
    find_dataset,
    import_archive,
    import_shared,
    list_datasets,
)
from calotype.errors import Conflict, Forbidden, Invalid, NotFound
from calotype.jobs import Family, Job, Kind
from calotype.settings import Settings
from calotype.tenants import Tenant

LIMITS = DatasetLimits.of(Settings())


@pytest.fixture
def owner(make_tenant: Callable[..., Tenant]) -> UUID:
    return make_tenant().id


@pytest.fixture
def other(make_tenant: Callable[..., Tenant]) -> UUID:
    return make_tenant().id


def test_a_tenant_sees_its_own_and_shared_datasets_and_no_others(
    engine: sa.Engine, store: ObjectStore, owner: UUID, other: UUID, saved: Callable[[bytes], Path]
) -> None:
    shared = import_shared(engine, store, saved(captioned("red")), "brand", LIMITS)
    assert import_shared(engine, store, saved(captioned("red")), "brand", LIMITS) == shared
    assert shared.object_key == f"shared/datasets/{shared.digest}.zip"
    mine = import_archive(engine, store, owner, saved(captioned("blue")), "brand", LIMITS)
    newer = import_archive(engine, store, owner, saved(captioned("green")), "brand", LIMITS)
    with transaction(engine) as conn:
        assert find_dataset(conn, owner, "brand") == newer
        assert find_dataset(conn, other, "brand") == shared
        assert find_dataset(conn, owner, shared.id) == shared
        for ref in (mine.id, newer.id, "nothing", "a\0b", "ds_" + "0" * 32):
            with pytest.raises(NotFound):
                find_dataset(conn, other, ref)
        first = list_datasets(conn, owner, None, 2)
        assert (first.items, first.has_more) == ([newer, mine], True)
        rest = list_datasets(conn, owner, first.items[-1].id, 2)
        assert (rest.items, rest.has_more) == ([shared], False)
        assert list_datasets(conn, other, None, 10).items == [shared]
        with pytest.raises(Invalid):
            list_datasets(conn, owner, "a\0b", 2)


def test_a_dataset_is_deleted_by_its_owner_alone(
    engine: sa.Engine, store: ObjectStore, owner: UUID, other: UUID, saved: Callable[[bytes], Path]
) -> None:
    mine = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    shared = import_shared(engine, store, saved(captioned("red")), "starter", LIMITS)
    with pytest.raises(NotFound), transaction(engine) as conn:
        delete_dataset(conn, other, mine.id)
    with pytest.raises(Forbidden), transaction(engine) as conn:
        delete_dataset(conn, owner, shared.id)
    with transaction(engine) as conn:
        doomed = delete_dataset(conn, owner, mine.id)
    assert doomed == [mine.object_key]
    discard_objects(engine, store, doomed)
    assert keys(store) == [shared.object_key]
    with transaction(engine) as conn:
        assert delete_dataset(conn, None, shared.id) == [shared.object_key]


def test_a_dataset_is_kept_while_a_job_needs_it(
    engine: sa.Engine,
    store: ObjectStore,
    owner: UUID,
    saved: Callable[[bytes], Path],
    make_job: Callable[..., Job],
) -> None:
    made = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    for named in ({"dataset": made.id}, {"init_image": f"{made.id}/red.png"}):
        job_id = make_job(tenant_id=owner, kind=Kind.TRAIN, spec={"input": named}).id
        with pytest.raises(Conflict, match=str(job_id)) as caught, transaction(engine) as conn:
            delete_dataset(conn, owner, made.id)
        assert caught.value.code == "dataset_in_use"
        with transaction(engine) as conn:
            queue.cancel(conn, owner, job_id)
    with transaction(engine) as conn:
        assert delete_dataset(conn, owner, made.id) == [made.object_key]


def test_a_deletion_waits_for_a_submission_that_names_the_dataset(
    engine: sa.Engine, store: ObjectStore, owner: UUID, saved: Callable[[bytes], Path]
) -> None:
    made = import_archive(engine, store, owner, saved(captioned("red")), "brand", LIMITS)
    outcome: list[str] = []

    def delete() -> None:
        try:
            with transaction(engine) as conn:
                delete_dataset(conn, owner, made.id)
        except Conflict as error:
            outcome.append(error.code)

    with transaction(engine) as conn:
        held = find_dataset(conn, owner, "brand", hold=True)
        deletion = threading.Thread(target=delete)
        deletion.start()
        deletion.join(0.3)
        assert deletion.is_alive()
        spec = {"input": {"dataset": held.id}}
        new = queue.NewJob(tenant_id=owner, kind=Kind.TRAIN, family=Family.DIFFUSION, model=None, spec=spec)
        queue.submit(conn, new)
    deletion.join(10)
    assert outcome == ["dataset_in_use"]
