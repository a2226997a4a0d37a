"""Models from a hub: a pinned revision, and only files that cannot run code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calotype.errors import DependencyDown, JobFailed
from calotype.settings import Settings
from worker.digests import sha256_of

#: Weights as safetensors, configurations and vocabularies. Pickles (*.bin, *.pt, *.ckpt) and code are left out.
SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.md", "LICENSE*")
REVISION = re.compile(r"[0-9a-f]{40}")


def fetch(settings: Settings, repo: str, revision: str, into: Path, pulse: Callable[[], None]) -> dict[str, str]:
    """Fetch `repo` at a commit into a folder; returns path → sha256.

    Raises JobFailed `model_unavailable` when there is no such thing or it is gated, DependencyDown when the hub cannot
    be reached.
    """
    if not REVISION.fullmatch(revision):
        raise _unavailable(f"{repo} is not pinned: {revision!r} is no commit id of 40 hexadecimal digits.")
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        snapshot_download(
            repo,
            revision=revision,
            local_dir=into,
            endpoint=settings.hub_url,
            token=settings.hub_token or False,
            allow_patterns=list(SAFE_FILES),
            tqdm_class=_pulsing(pulse),
        )
    except GatedRepoError as exc:
        raise _unavailable(
            f"{repo} is gated: accept its licence on the hub and give a token by CALOTYPE_HUB_TOKEN_FILE."
        ) from exc
    except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise _unavailable(f"The hub has no {repo} at {revision}, or the token may not read it.") from exc
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError) as exc:
        raise DependencyDown(f"The model hub cannot be reached: {type(exc).__name__}.") from exc
    # The client's own bookkeeping is no part of the model.
    shutil.rmtree(into / ".cache", ignore_errors=True)
    digests = {path.relative_to(into).as_posix(): sha256_of(path) for path in sorted(into.rglob("*")) if path.is_file()}
    if not any(name.endswith(".safetensors") for name in digests):
        raise _unavailable(f"{repo} at {revision} holds no safetensors; pickled weights are never loaded.")
    return digests


def _pulsing(pulse: Callable[[], None]) -> type[Any]:
    """A progress bar that shows nothing and pulses: only there does the client call back during a download."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Pulsing(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> Any:
            pulse()
            return super().update(n)

    return Pulsing


def _unavailable(detail: str) -> JobFailed:
    return JobFailed("model_unavailable", "The model cannot be fetched", detail, retryable=False)
