"""Postgres refuses to run as root: which account it runs as instead, and what that account can reach."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from calotype.local.errors import StackError
from calotype.local.process import Account


def unprivileged_account(existing: Path | None = None) -> Account | None:
    """None when this process is not root; else the owner of ``existing``, or ``nobody``."""
    if os.geteuid() != 0:
        return None
    if existing is not None and existing.exists():
        owner = existing.stat()
        if owner.st_uid != 0:
            return Account(name=_name_of(owner.st_uid), uid=owner.st_uid, gid=owner.st_gid)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as exc:
        raise StackError(
            "Postgres refuses to run as root, and this system has no account `nobody` to run it as.",
            "Run calotype as an ordinary user, or set CALOTYPE_DATABASE_URL to a Postgres of your own.",
        ) from exc
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def can_enter(path: Path, account: Account) -> bool:
    """Whether ``account`` may pass through every folder down to ``path``, judged by owner, group and mode."""
    resolved = path.resolve()
    folders = [*reversed(resolved.parents), resolved]
    return all(_may_execute(folder, account) for folder in folders if folder.is_dir())


def _may_execute(path: Path, account: Account) -> bool:
    info = path.stat()
    if info.st_uid == account.uid:
        return bool(info.st_mode & stat.S_IXUSR)
    if info.st_gid == account.gid:
        return bool(info.st_mode & stat.S_IXGRP)
    return bool(info.st_mode & stat.S_IXOTH)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
