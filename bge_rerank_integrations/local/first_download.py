"""What a model's first use will download, said before it begins: the weights take minutes."""

import logging
from collections.abc import Sequence

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache

# HTTPError is what any request of the hub's HTTP library raises, whichever library its release has
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

logger = logging.getLogger("bge_rerank_integrations")


def announce_download(
    model: str,
    patterns: Sequence[str],
    *,
    revision: str | None,
    cache_dir: str,
    token: str | None,
) -> None:
    """Log how many files of a hub model are about to come, their size, and where they will lie.

    Silent, and asks nobody, where the cache has them; silent too where the hub has no such model
    or cannot be reached, which the download itself says better. Raises `HFValidationError` for
    what is no hub id.
    """
    if constants.HF_HUB_OFFLINE or _is_cached(model, patterns, revision, cache_dir):
        return
    try:
        info = HfApi().model_info(
            model,
            revision=revision,
            files_metadata=True,
            token=token,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return
    except HfHubHTTPError:
        logger.warning("%s: downloading it to %s, once", model, cache_dir)
        return
    except (HTTPError, OSError):  # no connection
        return
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    missing = [
        sizes[name]
        for name in filter_repo_objects(sizes, allow_patterns=list(patterns))
        if not isinstance(
            try_to_load_from_cache(model, name, cache_dir=cache_dir, revision=info.sha), str
        )
    ]
    if not missing:
        return
    known = [size for size in missing if size is not None]
    files = f"{len(missing)} file{'s' if len(missing) > 1 else ''}"
    size = f", {readable_size(sum(known))}," if len(known) == len(missing) else ""
    logger.warning("%s: downloading %s%s to %s, once", model, files, size, cache_dir)


def readable_size(size: int) -> str:
    """Bytes in decimal units, as hubs and disks count them: 2271000000 is "2.3 GB"."""
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def _is_cached(model: str, patterns: Sequence[str], revision: str | None, cache_dir: str) -> bool:
    try:
        snapshot_download(
            model,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=True,
            allow_patterns=list(patterns),
        )
    except LocalEntryNotFoundError:
        return False
    return True
