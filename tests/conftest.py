"""Real services for the tests: one Postgres, Redis and S3 a run, a fresh database and bucket a test."""

from __future__ import annotations

import os

# Before anything imports torch: its threads would otherwise spin at every barrier while others use the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import importlib.util
import itertools
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import pytest_socket

from calotype.local.data_dir import DataDir, RunningStack
from calotype.local.modules import module_argv, module_environment
from calotype.local.process import Command, Process, wait_until_ready
from calotype.local.services import Services, make_services, missing_programs, start_services, stop_processes
from calotype.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from calotype.artifacts import ObjectStore
    from calotype.jobs import Job
    from calotype.tenants import Tenant

T = TypeVar("T")

TESTS = Path(__file__).parent
TEMPLATE = "template_calotype"
#: What a suite needs beside Python packages that every installation has.
SUITES_ON_SERVICES = ("integration", "faults", "acceptance")


def pytest_configure(config: pytest.Config) -> None:
    missing = [f"{problem.program} (package {problem.distribution})" for problem in missing_programs()]
    modules = ("flask", "gunicorn", "torch", "diffusers")
    missing += [f"package {name}" for name in modules if not _installed(name)]
    config.stash[_MISSING] = missing


_MISSING = pytest.StashKey[list[str]]()
_SKIPPED = pytest.StashKey[dict[str, str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip suites that lack something, unless CALOTYPE_REQUIRE names them: then the run fails."""
    config.stash[_SKIPPED] = {}
    required = os.environ.get("CALOTYPE_REQUIRE", "").replace(",", " ").split()
    for item in items:
        suite = item.path.relative_to(TESTS).parts[0]
        missing = _missing(config, suite)
        if not missing:
            continue
        reason = f"missing: {', '.join(missing)}; the packages come with: pip install 'calotype[api,worker,local]'"
        if suite in required:
            raise pytest.UsageError(f"CALOTYPE_REQUIRE names {suite}, which cannot run here: {reason}")
        config.stash[_SKIPPED][suite] = reason
        item.add_marker(pytest.mark.skip(reason=reason))


def _missing(config: pytest.Config, suite: str) -> list[str]:
    if suite not in SUITES_ON_SERVICES:
        return []
    programs = ["curl"] if suite == "acceptance" and shutil.which("curl") is None else []
    return config.stash[_MISSING] + programs


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for suite, reason in config.stash.get(_SKIPPED, {}).items():
        terminalreporter.write_line(f"SKIPPED the whole suite {suite}: {reason}", yellow=True)


def pytest_runtest_setup() -> None:
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@pytest.fixture(scope="session")
def eventually() -> Callable[..., object]:
    """``eventually(predicate, timeout=10, message="")`` returns the first true value of the predicate."""

    def poll(predicate: Callable[[], T], timeout: float = 10.0, message: str = "") -> T:
        deadline = time.monotonic() + timeout
        while True:
            value = predicate()
            if value:
                return value
            if time.monotonic() > deadline:
                pytest.fail(f"not true within {timeout:g} s: {message or predicate}")
            time.sleep(0.02)

    return poll


@pytest.fixture(scope="session")
def services_dir() -> Iterator[Path]:
    """A folder that an unprivileged Postgres can enter, which pytest's own temporary folders are not."""
    with _open_folder() as path:
        yield path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """The same, for one test."""
    with _open_folder() as path:
        yield path


@contextmanager
def _open_folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="calotype-tests-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def services(services_dir: Path) -> Iterator[Services]:
    """Postgres, Redis and S3, started once and stopped by pid at the end of the run."""
    made = make_services(services_dir, durable=False)
    processes = start_services(made.all)
    yield made
    stop_processes(processes)


@pytest.fixture(scope="session")
def template_database(services: Services) -> str:
    """The name of a migrated database from which each test's own is copied."""
    from calotype.database import connect_engine, migrate

    services.postgres.ensure_database(TEMPLATE)
    settings = Settings(database_url=services.postgres.url(TEMPLATE))
    engine = connect_engine(settings, application_name="template")
    try:
        migrate(engine)
    finally:
        engine.dispose()
    return TEMPLATE


@pytest.fixture
def database_url(services: Services, template_database: str) -> Iterator[str]:
    """A fresh, migrated database."""
    name = f"test_{secrets.token_hex(6)}"
    _administer(services, f'CREATE DATABASE "{name}" TEMPLATE "{template_database}" STRATEGY file_copy')
    yield services.postgres.url(name)
    _administer(services, f'DROP DATABASE "{name}" WITH (FORCE)')


_broker_numbers = itertools.cycle(range(1, 16))


@pytest.fixture
def broker_url(services: Services) -> str:
    """An empty Redis database that no other test uses at the same time."""
    import redis

    url = services.redis.url.removesuffix("/0") + f"/{next(_broker_numbers)}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def settings(services: Services, database_url: str, broker_url: str, tmp_path: Path) -> Settings:
    """Settings of a test's own database, broker and bucket, with short leases."""
    return Settings(
        database_url=database_url,
        broker_url=broker_url,
        s3_endpoint=services.s3.endpoint,
        s3_access_key=services.s3.access_key,
        s3_secret_key=services.s3.secret_key,
        s3_bucket=f"test-{secrets.token_hex(6)}",
        lease_seconds=3.0,
        heartbeat_seconds=0.5,
        cancel_poll_seconds=0.2,
        idle_poll_seconds=0.2,
        reconcile_seconds=0.2,
        retry_seconds=0.1,
        shutdown_seconds=10.0,
        stall_seconds=30.0,
        cache_dir=tmp_path / "cache",
        data_dir=tmp_path / "data",
        device="cpu",
    )


def _administer(services: Services, statement: str) -> None:
    import psycopg
    from sqlalchemy.engine import make_url

    url = make_url(services.postgres.url("postgres")).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """An engine on a fresh, migrated database."""
    from calotype.database import connect_engine

    made = connect_engine(settings, application_name="test")
    yield made
    made.dispose()


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    """An object store on a fresh, empty bucket."""
    from calotype.artifacts import ObjectStore

    made = ObjectStore(settings)
    made.ensure_bucket()
    return made


@pytest.fixture
def make_tenant(engine: Engine) -> Callable[..., Tenant]:
    """``make_tenant(name=None, **limits)``: a tenant, under a name of its own when none is given."""
    from calotype.database import transaction
    from calotype.tenants import create_tenant

    def make(name: str | None = None, **limits: Any) -> Tenant:
        with transaction(engine) as conn:
            return create_tenant(conn, name or f"tenant-{secrets.token_hex(4)}", **limits)

    return make


@pytest.fixture
def make_job(engine: Engine, make_tenant: Callable[..., Tenant]) -> Callable[..., Job]:
    """``make_job(tenant=None, **fields of NewJob)``: a queued job, by default to generate one image."""
    from calotype import queue
    from calotype.database import transaction
    from calotype.jobs import Family, Kind

    defaults: dict[str, Any] = {
        "kind": Kind.GENERATE,
        "family": Family.DIFFUSION,
        "model": "starter-diffusion@1",
        "spec": {
            "kind": "generate",
            "family": "diffusion",
            "model": "starter-diffusion@1",
            "input": {
                "prompt": "blue bird logo",
                "num_images": 1,
                "width": 64,
                "height": 64,
                "steps": 2,
                "guidance_scale": 3.5,
                "seed": 1,
            },
        },
    }

    def make(tenant: Tenant | None = None, **fields: Any) -> Job:
        owner = tenant or make_tenant()
        with transaction(engine) as conn:
            return queue.submit(conn, queue.NewJob(tenant_id=owner.id, **{**defaults, **fields}))

    return make


@dataclass(frozen=True)
class RunningUp:
    """A `calotype up` that runs as a process of its own."""

    process: Process
    data_dir: DataDir
    url: str
    api_key: str

    def pids(self) -> dict[str, int]:
        """The process of each part, by its name."""
        running = self.data_dir.running()
        return {} if running is None else {name: child.pid for name, child in running.children.items()}

    def settings(self) -> Settings:
        """What its processes were given; a test may reach its database with it."""
        variables = Path(f"/proc/{self.pids()['api']}/environ").read_text().split("\0")
        pairs = (variable.split("=", 1) for variable in variables if variable.startswith("CALOTYPE_"))
        return load_settings(dict(pairs))


#: Short leases and polls, so that what takes a minute in life takes a second here.
UP_ENVIRONMENT = {
    "CALOTYPE_LEASE_SECONDS": "5",
    "CALOTYPE_HEARTBEAT_SECONDS": "1",
    "CALOTYPE_CANCEL_POLL_SECONDS": "0.2",
    "CALOTYPE_IDLE_POLL_SECONDS": "0.5",
    "CALOTYPE_RECONCILE_SECONDS": "0.5",
    "CALOTYPE_RETRY_SECONDS": "0.5",
}


@pytest.fixture(scope="session")
def start_up() -> Iterator[Callable[..., RunningUp]]:
    """``start_up(data_dir, workers=1, **environment)``: `calotype up` on a free port, ready when this returns."""
    started: list[Process] = []

    def start(data_dir: Path, workers: int = 1, **environment: str) -> RunningUp:
        place = DataDir(data_dir)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CALOTYPE_")}
        arguments = ("up", "--port", "0", "--workers", str(workers), "--data-dir", str(data_dir))
        command = Command(
            name="calotype up",
            argv=module_argv("calotype.cli", *arguments),
            environment={**module_environment(inherited), **UP_ENVIRONMENT, **environment},
            log=data_dir.with_name(f"{data_dir.name}.log"),
            grace_seconds=60,
        )
        process = Process(command)
        started.append(process)
        wait_until_ready(process, lambda: (place.running() or _NOT_RUNNING).ready, timeout=120)
        running = place.running()
        assert running is not None
        return RunningUp(process, place, running.url, place.read_api_key() or "")

    yield start
    for process in started:
        process.stop()


_NOT_RUNNING = RunningStack(url="", pid=0, ready=False, api_key_file="")


@pytest.fixture(scope="session")
def stack(services_dir: Path, start_up: Callable[..., RunningUp]) -> RunningUp:
    """One real `calotype up` for the whole run, with one worker."""
    return start_up(services_dir / "stack")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an untrained pipeline; a step of it takes milliseconds."""
    from tests import tiny_sd3

    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny_sd3.pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_model(stack: RunningUp, tiny_folder: Path) -> str:
    """The name under which the stack shares it with every tenant."""
    from calotype.artifacts import ObjectStore
    from calotype.database import connect_engine
    from calotype.local.starter_assets import register_pipeline
    from tests import tiny_sd3

    settings = stack.settings()
    engine = connect_engine(settings, application_name="test")
    register_pipeline(engine, ObjectStore(settings), tiny_folder, "tiny", tiny_sd3.PARAMETERS)
    engine.dispose()
    return "tiny"


@dataclass(frozen=True)
class Ended:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(stack: RunningUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """``cli("list", "--json")``: runs the command line against the stack, in this process, which saves its start."""
    monkeypatch.setenv("CALOTYPE_DATA_DIR", str(stack.data_dir.path))

    def run(*arguments: str) -> Ended:
        from calotype.cli import main

        monkeypatch.setattr("sys.argv", ["calotype", *arguments])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return Ended(code or 0, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def command_lines() -> Callable[[], list[str]]:
    """``command_lines()``: what every process of this machine was started with."""

    def read() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
            except (FileNotFoundError, ProcessLookupError):
                # It ended while we looked.
                continue
        return found

    return read
