"""The JSON that the API answers, as types: what `/openapi.json` shows is what is sent."""

from __future__ import annotations

from api.schemas.admin import IssuedKey, Key, KeyPage, Tenant, TenantPage
from api.schemas.answers import Answer, Page
from api.schemas.bulk import BulkAnswer, BulkLine
from api.schemas.datasets import Dataset, DatasetPage, DatasetUpload
from api.schemas.events import Event, EventPage
from api.schemas.fleet import Queue, QueuePage, Worker, WorkerPage
from api.schemas.jobs import Artifact, Job, JobError, JobPage, JobUrls, Progress
from api.schemas.models import FileUpload, Model, ModelFile, ModelPage, ModelUpload, ModelVersion
from api.schemas.problems import Problem, ProblemError, ProblemField
from api.schemas.service import Check, Checks, Health, Readiness
from api.schemas.usage import Usage, UsagePage
from api.schemas.webhooks import WebhookDelivery, WebhookDeliveryPage, WebhookMessage, WebhookSecret, WebhookTry

__all__ = [
    "Answer",
    "Artifact",
    "BulkAnswer",
    "BulkLine",
    "Check",
    "Checks",
    "Dataset",
    "DatasetPage",
    "DatasetUpload",
    "Event",
    "EventPage",
    "FileUpload",
    "Health",
    "IssuedKey",
    "Job",
    "JobError",
    "JobPage",
    "JobUrls",
    "Key",
    "KeyPage",
    "Model",
    "ModelFile",
    "ModelPage",
    "ModelUpload",
    "ModelVersion",
    "Page",
    "Problem",
    "ProblemError",
    "ProblemField",
    "Progress",
    "Queue",
    "QueuePage",
    "Readiness",
    "Tenant",
    "TenantPage",
    "Usage",
    "UsagePage",
    "WebhookDelivery",
    "WebhookDeliveryPage",
    "WebhookMessage",
    "WebhookSecret",
    "WebhookTry",
    "Worker",
    "WorkerPage",
]
