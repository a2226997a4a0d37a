"""The Flask application."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Flask

from api import document, errors, metrics, observe, pages, turns
from api.resources import (
    admin,
    bulk,
    datasets,
    events,
    explain,
    fleet,
    jobs,
    model_uploads,
    models,
    service,
    usage,
    webhooks,
)
from api.services import EXTENSION, Services
from api.uploads import UploadRequest
from api.watch import Watcher
from calotype.artifacts import ObjectStore
from calotype.database import autocommitting, connect_engine
from calotype.doorbell import Doorbell
from calotype.settings import Settings

#: Text fields of a form around an uploaded file; none of ours is long.
MAX_FORM_TEXT_BYTES = 64 << 10
MAX_FORM_PARTS = 8


def create_app(
    settings: Settings,
    engine: sa.Engine | None = None,
    store: ObjectStore | None = None,
    doorbell: Doorbell | None = None,
) -> Flask:
    """The application; makes the connections that are not given from ``settings``. Connects at first use."""
    app = Flask("api", static_folder=None)
    app.request_class = UploadRequest
    app.url_map.strict_slashes = True
    app.config.update(
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        MAX_FORM_MEMORY_SIZE=MAX_FORM_TEXT_BYTES,
        MAX_FORM_PARTS=MAX_FORM_PARTS,
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    engine, statements = _engines(settings) if engine is None else (engine, autocommitting(engine))
    here = Services(
        settings=settings,
        engine=engine,
        statements=statements,
        store=store or ObjectStore(settings),
        doorbell=doorbell or Doorbell(settings),
        watcher=Watcher(engine, settings),
        turns=turns.Turns(settings.api_threads),
        waiters=turns.Permits(settings.api_waiters),
    )
    app.extensions[EXTENSION] = here
    registry = metrics.make_registry(here.engine)
    app.extensions[service.METRICS_REGISTRY] = registry
    app.extensions[service.PROBES] = service.make_probes(here)
    metrics.add_waiting(registry, here.waiters)
    observe.install(app, registry)
    turns.install(app, here.turns)
    errors.install(app)
    for part in (jobs, bulk, events, explain, webhooks, datasets, models, model_uploads, fleet, usage, admin):
        app.register_blueprint(part.blueprint, url_prefix="/v1")
    for open_part in (service, document, pages):
        app.register_blueprint(open_part.blueprint)
    return app


def _engines(settings: Settings) -> tuple[sa.Engine, sa.Engine]:
    """For transactions and for single statements; half of the connections each."""
    pool = max(1, settings.database_pool // 2)
    return (
        connect_engine(settings, application_name="calotype-api", pool_size=pool),
        connect_engine(settings, application_name="calotype-api", pool_size=pool, autocommit=True),
    )
