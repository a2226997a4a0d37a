"""Models and versions on a real Postgres."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from calotype import queue, registry
from calotype.database import transaction
from calotype.errors import Conflict, NotFound
from calotype.jobs import Family, Job, Kind
from calotype.registry import ModelVersion
from calotype.tenants import Tenant


def _find(engine: Engine, tenant: Tenant, ref: str) -> ModelVersion:
    with transaction(engine) as conn:
        return registry.find_version(conn, tenant.id, ref)


def test_versions_count_up_and_the_latest_is_meant_when_none_is_named(
    engine: Engine, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    first = make_model("brand", tenant_id=tenant.id)
    second = make_model("brand", tenant_id=tenant.id)
    assert (first.ref, second.ref) == ("brand@1", "brand@2")
    assert _find(engine, tenant, "brand") == second
    assert _find(engine, tenant, "brand@1") == first


def test_versions_registered_at_once_get_different_numbers(
    tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    refs: list[str] = []
    threads = [
        threading.Thread(target=lambda: refs.append(make_model("brand", tenant_id=tenant.id).ref)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(refs) == [f"brand@{number}" for number in range(1, 7)]


def test_a_tenant_sees_its_own_and_the_shared_models_only(
    engine: Engine, make_tenant: Callable[..., Tenant], make_model: Callable[..., ModelVersion]
) -> None:
    owner, stranger = make_tenant(), make_tenant()
    make_model("common")
    make_model("mine", tenant_id=owner.id)
    with transaction(engine) as conn:
        assert [one.name for one in registry.list_models(conn, owner.id)] == ["common", "mine"]
        assert [one.name for one in registry.list_models(conn, stranger.id)] == ["common"]
    with pytest.raises(NotFound):
        _find(engine, stranger, "mine")


def test_a_shared_name_cannot_be_extended_by_a_tenant(tenant: Tenant, make_model: Callable[..., ModelVersion]) -> None:
    make_model("common")
    with pytest.raises(Conflict):
        make_model("common", tenant_id=tenant.id)


def test_a_model_keeps_its_family(tenant: Tenant, make_model: Callable[..., ModelVersion]) -> None:
    make_model("mine", tenant_id=tenant.id)
    with pytest.raises(Conflict):
        make_model("mine", tenant_id=tenant.id, family=Family.GAN)


@pytest.mark.parametrize("ref", ["", "UPPER", "a@0", "a@x", "a b", "../etc", "nothing@3", "nothing"])
def test_what_is_no_reference_is_not_found(engine: Engine, tenant: Tenant, ref: str) -> None:
    with pytest.raises(NotFound):
        _find(engine, tenant, ref)


def test_the_digest_depends_on_names_and_contents_and_not_on_their_order() -> None:
    files = [("a", "1" * 64), ("b", "2" * 64)]
    assert registry.files_digest(files) == registry.files_digest(files[::-1])
    assert registry.files_digest(files) != registry.files_digest([("a", "2" * 64), ("b", "1" * 64)])


def test_deleting_a_model_gives_its_objects_and_spares_those_that_others_use(
    engine: Engine, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    first = make_model("one", tenant_id=tenant.id)
    make_model("two", tenant_id=tenant.id, files=first.files)
    lone = make_model("three", tenant_id=tenant.id)
    with transaction(engine) as conn:
        assert registry.delete_model(conn, tenant.id, "one") == []
        assert registry.delete_model(conn, tenant.id, "three") == [lone.files[0].object_key]
    with pytest.raises(NotFound):
        _find(engine, tenant, "one")


def test_a_model_that_something_needs_is_not_deleted(
    engine: Engine, tenant: Tenant, make_model: Callable[..., ModelVersion], make_job: Callable[..., Job]
) -> None:
    make_model("base", tenant_id=tenant.id)
    make_model("adapter", tenant_id=tenant.id, base="base@1", architecture="lora")
    with pytest.raises(Conflict, match="adapter@1"), transaction(engine) as conn:
        registry.delete_model(conn, tenant.id, "base")
    job = make_job(spec={"input": {"adapters": [{"model": "adapter@1"}]}})
    with pytest.raises(Conflict, match=str(job.id)), transaction(engine) as conn:
        registry.delete_model(conn, tenant.id, "adapter")


def test_a_model_that_a_job_is_about_to_name_is_deleted_after_that_or_not_at_all(
    engine: Engine, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    make_model("mine", tenant_id=tenant.id)
    refused: list[Conflict] = []

    def delete() -> None:
        try:
            with transaction(engine) as conn:
                registry.delete_model(conn, tenant.id, "mine")
        except Conflict as exc:
            refused.append(exc)

    with transaction(engine) as conn:
        held = registry.find_version(conn, tenant.id, "mine", hold=True)
        deletion = threading.Thread(target=delete)
        deletion.start()
        deletion.join(0.3)
        assert deletion.is_alive()
        queue.submit(
            conn,
            queue.NewJob(tenant_id=tenant.id, kind=Kind.GENERATE, family=Family.DIFFUSION, model=held.ref, spec={}),
        )
    deletion.join(10)
    assert len(refused) == 1


def test_a_name_that_only_resembles_the_one_that_a_job_needs_is_deleted(
    engine: Engine, tenant: Tenant, make_model: Callable[..., ModelVersion], make_job: Callable[..., Job]
) -> None:
    make_model("my_brand", tenant_id=tenant.id)
    make_job(spec={"input": {"adapters": [{"model": "my-brand@1"}]}})
    with transaction(engine) as conn:
        assert registry.delete_model(conn, tenant.id, "my_brand")


def test_a_shared_model_is_not_a_tenants_to_delete(
    engine: Engine, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    make_model("common")
    with pytest.raises(NotFound), transaction(engine) as conn:
        registry.delete_model(conn, tenant.id, "common")
