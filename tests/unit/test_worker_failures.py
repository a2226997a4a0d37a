"""Exceptions become stable codes, and retries wait longer each time."""

from __future__ import annotations

import errno

import pytest

from calotype.errors import Conflict, DependencyDown, FieldError, Invalid, JobFailed
from calotype.settings import Settings
from worker.failures import classify, retry_in

SETTINGS = Settings(
    database_url="postgresql://u:hunter2@db/calotype",
    s3_secret_key="s3cret-key",
    hub_token="hf_token",
    retry_seconds=10.0,
)


@pytest.mark.parametrize(
    ("exc", "code", "retryable", "fatal"),
    [
        (JobFailed("bad_input", "t", "d", retryable=False), "bad_input", False, False),
        (Invalid(errors=[FieldError(loc=("a",), msg="m")]), "bad_input", False, False),
        (Conflict("'logos' is a shared model; register yours under another name."), "bad_input", False, False),
        (MemoryError(), "out_of_memory", True, False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory", True, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory", True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), "out_of_memory", True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), "internal_error", True, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "internal_error", True, True),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", True, False),
        (OSError(errno.EIO, "Input/output error"), "internal_error", False, False),
        (DependencyDown("The store is away."), "dependency_down", True, False),
        (RuntimeError("shapes do not match"), "internal_error", False, False),
    ],
)
def test_an_exception_has_one_verdict(exc: Exception, code: str, retryable: bool, fatal: bool) -> None:
    verdict = classify(exc, SETTINGS)
    assert (verdict.code, verdict.retryable, verdict.fatal) == (code, retryable, fatal)
    assert verdict.detail


def test_torchs_own_out_of_memory_is_recognised_by_its_type() -> None:
    import torch

    assert classify(torch.OutOfMemoryError("no luck"), SETTINGS).code == "out_of_memory"


def test_a_detail_says_what_happened_and_where_in_one_line_without_secrets() -> None:
    def load_weights() -> None:
        raise ValueError("postgresql://u:hunter2@db/calotype refused hunter2 s3cret-key hf_token\nsecond line")

    try:
        load_weights()
    except ValueError as exc:
        detail = classify(exc, SETTINGS).detail
    assert detail.startswith("ValueError: *** refused *** *** ***")
    assert "load_weights" in detail
    assert "second line" not in detail


def test_an_endless_message_is_cut() -> None:
    assert len(classify(ValueError("x" * 10_000), SETTINGS).detail) < 1_000


def test_retries_wait_longer_each_time_and_only_where_they_may_help() -> None:
    down = JobFailed("dependency_down", "t", "d", retryable=True)
    first, third = retry_in(down, 1, SETTINGS), retry_in(down, 3, SETTINGS)
    assert first is not None
    assert third is not None
    assert 5.0 <= first <= 10.0
    assert 20.0 <= third <= 40.0
    assert retry_in(JobFailed("bad_input", "t", "d", retryable=False), 1, SETTINGS) is None
