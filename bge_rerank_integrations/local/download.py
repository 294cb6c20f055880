"""A model's folder: one on disk, or the files that the hub's client downloads."""

from collections.abc import Sequence
from pathlib import Path

from bge_rerank_integrations.errors import InvalidInputError, ModelNotFound
from bge_rerank_integrations.options import HubOptions, secret_text

HUB_DEFAULTS = HubOptions()


def find_folder(
    model: str,
    patterns: Sequence[str],
    hub: HubOptions = HUB_DEFAULTS,
) -> Path:
    """The model's folder; the matching files of a hub id are downloaded unless they are cached.

    Raises `ModelNotFound` with the name and the places that were searched, and `InvalidInputError`
    for a revision of a folder on disk.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if hub.revision is not None:
            raise InvalidInputError(
                f"revision is {hub.revision!r}, and {folder} is a folder on this machine, which "
                "has no revisions: leave revision out, or give the hub id"
            )
        return folder.resolve()
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise ModelNotFound(f"no folder {folder} (looked for it in {Path.cwd()})")
    return _download(model, patterns, hub)


def _download(model: str, patterns: Sequence[str], hub: HubOptions) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = hub.cache_dir or constants.HF_HUB_CACHE
    at = f"{model} at revision {hub.revision}" if hub.revision else model
    try:
        return Path(
            snapshot_download(
                model,
                revision=hub.revision,
                cache_dir=hub.cache_dir,
                local_files_only=hub.local_files_only,
                token=secret_text(hub.token),
                allow_patterns=list(patterns),
            )
        )
    except HFValidationError as error:
        raise ModelNotFound(f"{model!r} is neither a folder nor a hub id: {error}") from error
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{at} is gated: accept its terms on the hub and pass token=... or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"the hub has {model}, but no revision {hub.revision!r} of it"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no {model}; if it is private, pass token=... or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        offline = hub.local_files_only or constants.HF_HUB_OFFLINE
        why = "downloads are switched off" if offline else "the hub cannot be reached"
        raise ModelNotFound(
            f"{at} is not in the cache {where} (nor a folder of that name in {Path.cwd()}), and "
            f"{why}. Download it where there is a network and copy the folder here, or use "
            'model="offline", which comes with: pip install "bge-rerank-integrations[offline]"'
        ) from error
