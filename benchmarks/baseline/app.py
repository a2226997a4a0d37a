"""The HTTP side of the baseline: submit a job, look at a job."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from flask import Flask, Response, abort, jsonify, request
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from benchmarks.baseline import configuration
from benchmarks.baseline.models import Job
from benchmarks.baseline.tasks import run_job
from calotype.settings import Settings


class Input(BaseModel):
    """What to make."""

    prompt: str = Field(min_length=1, max_length=4000)
    num_images: int = Field(default=1, ge=1, le=64)
    width: int = Field(default=64, ge=8, le=8192)
    height: int = Field(default=64, ge=8, le=8192)
    steps: int = Field(default=20, ge=1, le=1000)
    seed: int | None = None


class JobRequest(BaseModel):
    """The body of a submission."""

    kind: Literal["generate"]
    family: Literal["diffusion"]
    model: str
    input: Input


def create_app() -> Flask:
    """The application. One pooled connection for each thread that serves requests."""
    app = Flask(__name__)
    engine = create_engine(configuration.database_url(), pool_size=Settings().api_threads)
    sessions = sessionmaker(engine, expire_on_commit=False)

    @app.post("/jobs")
    def submit() -> tuple[Response, int]:
        try:
            body = JobRequest.model_validate(request.get_json())
        except ValidationError as exc:
            return jsonify(errors=exc.errors(include_url=False, include_input=False)), 422
        job = Job(spec=body.model_dump())
        with sessions() as session:
            session.add(job)
            session.commit()
        run_job.delay(str(job.id))
        return jsonify(job.as_dict()), 202

    @app.get("/jobs/<uuid:job_id>")
    def look(job_id: UUID) -> Response:
        with sessions() as session:
            job = session.get(Job, job_id)
        if job is None:
            abort(404)
        return jsonify(job.as_dict())

    return app
