"""Every statement that moves a job: one function a transition of :data:`calotype.jobs.TRANSITIONS`.

All take a connection inside a transaction that the caller commits, and use the clock of the database only. The guard
lives in the UPDATE: state, and for a worker's writes the epoch, stand in its WHERE, so that a write that comes too late
changes nothing and says so. No lock is held while a job runs.
"""

from __future__ import annotations

# Reading goes through the same name, so that callers know one module.
from calotype.lookup import JobFilter, Page, QueueStats, artifacts_of, get, list_jobs, queue_stats
from calotype.queue.accounts import Count, usage_last
from calotype.queue.claiming import DEFAULT_POOL, Claimant, Claimed, claim, claim_batch
from calotype.queue.deleting import delete
from calotype.queue.ending import acknowledge_cancel, cancel, fail, finish, job_error, release
from calotype.queue.holding import checkpoint, heartbeat, look, progress, tell
from calotype.queue.submitting import RETRY_AFTER_SECONDS, retry, submit, submit_at_once
from calotype.queue.sweeping import LOST, PASSED, expire, reap, tidy
from calotype.queue.values import NewJob, Outcome
from calotype.queue.waiting import backoff

__all__ = [
    "DEFAULT_POOL",
    "LOST",
    "PASSED",
    "RETRY_AFTER_SECONDS",
    "Claimant",
    "Claimed",
    "Count",
    "JobFilter",
    "NewJob",
    "Outcome",
    "Page",
    "QueueStats",
    "acknowledge_cancel",
    "artifacts_of",
    "backoff",
    "cancel",
    "checkpoint",
    "claim",
    "claim_batch",
    "delete",
    "expire",
    "fail",
    "finish",
    "get",
    "heartbeat",
    "job_error",
    "list_jobs",
    "look",
    "progress",
    "queue_stats",
    "reap",
    "release",
    "retry",
    "submit",
    "submit_at_once",
    "tell",
    "tidy",
    "usage_last",
]
