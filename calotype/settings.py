"""All settings in one place: ``CALOTYPE_<NAME>`` environment variables, read once at start.

Every field of :class:`Settings` is one variable; its ``doc`` is what `docs/settings.md` prints. A secret may also be
given as a file by ``CALOTYPE_<NAME>_FILE``. An unknown ``CALOTYPE_*`` name or a bad value raises
:class:`~calotype.errors.SettingsError`, which names the variable.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from calotype.errors import SettingsError
from calotype.webhooks.targets import read_networks

PREFIX = "CALOTYPE_"
#: Names that belong to the test suite and to the Makefile, not to the product.
FOREIGN = frozenset({"CALOTYPE_REQUIRE"})


def _text(value: str) -> str:
    return value


def _positive(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError("must be a positive number")
    return number


def _count(value: str) -> int:
    number = int(value)
    if number <= 0:
        raise ValueError("must be a positive whole number")
    return number


def _whole(value: str) -> int:
    number = int(value)
    if number < 0:
        raise ValueError("must be a whole number, 0 or more")
    return number


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise ValueError("must be small letters, digits and hyphens, at most 63")
    return value


def _port(value: str) -> int:
    number = int(value)
    # A larger one would silently be taken modulo 65536.
    if not 0 < number < 65_536:
        raise ValueError("must be a whole number from 1 to 65535")
    return number


def _path(value: str) -> Path:
    return Path(value).expanduser()


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(name or 'nothing' for name in allowed)}")
        return value

    return parse


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if urlsplit(value).scheme not in schemes:
            raise ValueError(f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    return parse


def _networks(value: str) -> str:
    try:
        return ",".join(str(network) for network in read_networks(value))
    except ValueError as exc:
        raise ValueError(f"must be networks with commas between, e.g. 10.1.0.0/16 ({exc})") from exc


def _setting(parse: Callable[[str], Any], default: Any, doc: str, *, secret: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"parse": parse, "doc": doc, "secret": secret})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the operator decided. Sizes are bytes, times are seconds."""

    # Services
    database_url: str | None = _setting(
        _url("postgresql", "postgres", "postgresql+psycopg"), None, "Postgres; the truth.", secret=True
    )
    broker_url: str | None = _setting(
        _url("redis", "rediss"), None, "Redis or Valkey; carries doorbells only.", secret=True
    )
    s3_endpoint: str | None = _setting(_url("http", "https"), None, "Address of the S3-compatible object store.")
    s3_public_endpoint: str | None = _setting(
        _url("http", "https"),
        None,
        "Address under which clients see the store; presigned URLs are signed for it.",
    )
    s3_access_key: str | None = _setting(_text, None, "Access key of the store.", secret=True)
    s3_secret_key: str | None = _setting(_text, None, "Secret key of the store.", secret=True)
    s3_bucket: str = _setting(
        _text, "calotype", "Bucket that holds everything; `calotype up` makes it when it is missing."
    )
    s3_region: str = _setting(_text, "us-east-1", "Region the signatures are made for.")
    presign_seconds: float = _setting(_positive, 3600.0, "How long a presigned URL is good for (at most 7 days).")

    # HTTP
    bind_host: str = _setting(_text, "127.0.0.1", "Address the API listens on.")
    port: int = _setting(_port, 8080, "Port the API listens on.")
    api_workers: int = _setting(_count, 1, "Server processes of the API.")
    api_threads: int = _setting(_count, 16, "Requests that a server process works on at once.")
    api_waiters: int = _setting(
        _count,
        1152,
        "Clients that may wait at a server process at once, for events or with a long poll, those of one tenant up to "
        "7/8 of it; each takes a thread and about 100 kB.",
    )
    api_connections: int = _setting(
        _count, 3000, "Connections a server process accepts; must exceed the requests and waiting clients together."
    )
    max_body_bytes: int = _setting(_count, 1 << 20, "Largest JSON body.")
    max_upload_bytes: int = _setting(_count, 2 << 30, "Largest dataset archive, and largest upload of a model.")
    database_pool: int = _setting(_count, 16, "Postgres connections of a process; at least 2 of an API process.")
    gpu_hour_usd: float | None = _setting(
        _positive, None, "Price of a device-hour in US dollars; quotes show money when it is set."
    )

    # Limits of datasets and images
    max_pixels: int = _setting(_count, 64_000_000, "Largest image, width times height.")
    max_dataset_images: int = _setting(_count, 200_000, "Most images of a dataset.")
    max_dataset_bytes: int = _setting(_count, 20 << 30, "Most bytes of a dataset, unpacked.")

    # Leases
    lease_seconds: float = _setting(_positive, 60.0, "How long a claim holds without a heartbeat.")
    heartbeat_seconds: float = _setting(_positive, 10.0, "How often a worker renews its leases.")
    cancel_poll_seconds: float = _setting(_positive, 1.0, "How often a worker asks whether its job was canceled.")
    idle_poll_seconds: float = _setting(_positive, 2.0, "How often an idle worker looks for work by itself (jittered).")
    stall_seconds: float = _setting(_positive, 900.0, "A job that shows no life this long ends its worker process.")
    shutdown_seconds: float = _setting(_positive, 60.0, "Grace a stopping worker gives its job to checkpoint.")
    retry_seconds: float = _setting(_positive, 10.0, "First backoff after a retryable failure; doubles, with jitter.")
    reconcile_seconds: float = _setting(_positive, 5.0, "How often the reconciler makes its round.")
    progress_seconds: float = _setting(
        _positive, 86_400.0, "How long the progress events of a job are kept after its end; the others stay with it."
    )
    orphan_seconds: float = _setting(_positive, 3600.0, "Age after which an unreferenced object is collected.")
    idempotency_seconds: float = _setting(_positive, 86_400.0, "How long an idempotency key is remembered.")
    retain_seconds: float | None = _setting(
        _positive, None, "How long artifacts of jobs without `retain_seconds` are kept; unset: as long as the job."
    )
    keep_jobs_seconds: float = _setting(
        _positive, 90 * 86_400.0, "How long ended jobs are kept, and their artifacts unless promised for longer."
    )

    # Webhooks
    webhook_private_addresses: str = _setting(
        _networks,
        "",
        "Networks that webhooks may reach though they are not public, and without TLS: `10.1.0.0/16,fd00::/8`.",
    )
    keep_deliveries_seconds: float = _setting(
        _positive, 30 * 86_400.0, "How long a webhook delivery is kept to be looked at and replayed."
    )

    # Workers
    pool: str = _setting(_name, "default", "Workers of a pool share out their device time among the tenants together.")
    max_batch: int = _setting(_count, 16, "Most images that a worker makes in one call of a model; 1: no batches.")
    affinity_seconds: float = _setting(
        _positive, 30.0, "How long a job may be passed over for jobs whose model is loaded already."
    )
    affinity_streak: int = _setting(
        _whole, 8, "How many such jobs in a row may pass it; 0: every job is taken in its turn."
    )
    cache_dir: Path = _setting(_path, Path("~/.cache/calotype").expanduser(), "Model and dataset cache of this node.")
    cache_bytes: int = _setting(_count, 100 << 30, "Largest size of that cache.")
    memory_bytes: int = _setting(_count, 8 << 30, "Memory budget of the models a worker keeps loaded.")
    device: str = _setting(_choice("auto", "cpu", "cuda"), "auto", "Where workers compute.")
    compile_gans: str = _setting(
        _choice("no", "yes"), "no", "torch.compile for GANs: a slow first image, then faster ones on a GPU."
    )
    train_devices: int = _setting(
        _count,
        1,
        "Most GPUs that one training of a GAN takes of a machine; more than 1 only where no other worker uses them.",
    )
    tracker: str = _setting(
        _choice("", "tensorboard", "wandb"),
        "",
        "Where trainings are tracked besides: `tensorboard`, `wandb`.",
    )
    tracker_project: str = _setting(_text, "calotype", "Project of Weights & Biases that the runs go to.")
    tracker_entity: str | None = _setting(_text, None, "Team or user it belongs to; unset: the key's own.")
    tracker_url: str | None = _setting(
        _url("http", "https"), None, "Address of a W&B server of one's own; unset: the public service."
    )
    tracker_key: str | None = _setting(_text, None, "Key of the W&B account that writes the runs.", secret=True)
    heartbeat_file: Path | None = _setting(_path, None, "A worker touches this file while it is alive (probes).")
    hub_url: str | None = _setting(_url("http", "https"), None, "A model hub mirror.")
    hub_token: str | None = _setting(_text, None, "Token for gated models.", secret=True)

    # First start
    bootstrap_key: str | None = _setting(
        _text, None, "The first admin key, for a database that has no key yet.", secret=True
    )

    # Clients and the embedded stack
    url: str | None = _setting(_url("http", "https"), None, "The API that the command line and the client talk to.")
    api_key: str | None = _setting(_text, None, "The key they use.", secret=True)
    data_dir: Path = _setting(_path, Path(".calotype"), "Where the embedded stack keeps its data.")

    # Logs
    log_format: str = _setting(_choice("auto", "json", "text"), "auto", "JSON lines, or text when on a terminal.")
    log_level: str = _setting(_choice("debug", "info", "warning", "error"), "info", "Least level that is logged.")

    def __repr__(self) -> str:
        shown = []
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            hidden = setting.metadata["secret"] and value is not None
            shown.append(f"{setting.name}={'***' if hidden else repr(value)}")
        return f"Settings({', '.join(shown)})"

    def require(self, *names: str) -> None:
        """Raises :class:`SettingsError` naming the first of ``names`` that is not set."""
        for name in names:
            if getattr(self, name) is None:
                raise SettingsError(
                    f"{PREFIX}{name.upper()} is not set; it is needed here. {documentation(name)} "
                    "`calotype up` sets it for the processes it starts."
                )


def documentation(name: str) -> str:
    """The one-line description of a setting."""
    return str(Settings.__dataclass_fields__[name].metadata["doc"])


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Reads every ``CALOTYPE_*`` variable of ``environ`` (the process's own when None).

    Raises:
        SettingsError: an unknown name or a bad value; says which, and what is near.
    """
    source = os.environ if environ is None else environ
    known = {f"{PREFIX}{f.name.upper()}": f for f in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for variable in sorted(name for name in source if name.startswith(PREFIX) and name not in FOREIGN):
        field = known.get(variable) or _secret_file(variable, known)
        if field is None:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.8)
            hint = f" Did you mean {near[0]}?" if near else " See docs/settings.md for the names."
            raise SettingsError(f"{variable} is not a setting of Calotype.{hint}")
        if field.name in values:
            raise SettingsError(f"{PREFIX}{field.name.upper()} is given twice, as a value and as a file; keep one.")
        text = source[variable] if variable in known else _read_secret(variable, source[variable])
        try:
            values[field.name] = field.metadata["parse"](text)
        except ValueError as exc:
            shown = "the value" if field.metadata["secret"] else repr(text)
            raise SettingsError(f"{variable}: {shown} is not valid: {exc}.") from exc
    settings = Settings(**values)
    _check_together(settings)
    return settings


def _secret_file(variable: str, known: Mapping[str, dataclasses.Field[Any]]) -> dataclasses.Field[Any] | None:
    field = known.get(variable.removesuffix("_FILE")) if variable.endswith("_FILE") else None
    return field if field is not None and field.metadata["secret"] else None


def _read_secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise SettingsError(f"{variable}: cannot read {path}: {exc.strerror}.") from exc


def _check_together(settings: Settings) -> None:
    if settings.heartbeat_seconds * 2 > settings.lease_seconds:
        raise SettingsError(
            f"CALOTYPE_HEARTBEAT_SECONDS ({settings.heartbeat_seconds:g}) must be at most half of "
            f"CALOTYPE_LEASE_SECONDS ({settings.lease_seconds:g}), or one late heartbeat loses a lease."
        )
    if settings.api_connections <= settings.api_threads + settings.api_waiters:
        raise SettingsError(
            f"CALOTYPE_API_CONNECTIONS ({settings.api_connections}) must exceed CALOTYPE_API_THREADS "
            f"({settings.api_threads}) and CALOTYPE_API_WAITERS ({settings.api_waiters}) together, or waiting clients "
            "starve requests."
        )
    if not 1 <= settings.presign_seconds <= 7 * 86_400:
        raise SettingsError("CALOTYPE_PRESIGN_SECONDS must be from 1 to 604800 (7 days); S3 allows no more.")


def environment(settings: Settings) -> dict[str, str]:
    """The ``CALOTYPE_*`` variables that give ``settings`` again; how a parent hands them to a child process."""
    result = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is not None and value != field.default:
            result[f"{PREFIX}{field.name.upper()}"] = str(value)
    return result
