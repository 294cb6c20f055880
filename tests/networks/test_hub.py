"""Weights in the networks and images that people have: the right score, or the reason by name.

The hub is a server on this machine. The client's constants are those that it reads from the
environment when it is imported.
"""

import json
import logging
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants, file_download, get_session
from huggingface_hub.utils import _http

from bge_rerank_integrations import (
    CheckpointError,
    InvalidInputError,
    ModelNotFound,
    RerankError,
    load_scorer,
)
from tests.local.hub import Hub, add_to_cache, commit_of, run_with_hub, running_hub
from tests.remote.socks import socks_to

its: Any = _http
if hasattr(its, "default_client_factory"):
    set_client_factory, default_client_factory = its.set_client_factory, its.default_client_factory
else:  # before huggingface-hub 1.0
    set_client_factory = its.configure_http_backend
    default_client_factory = its._default_backend_factory

ID = "org/reranker"
HOME = "models--org--reranker"
PAIRS = [("what is a panda?", "The giant panda is a bear."), ("大熊猫吃什么？", "竹子。")]
OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
MAIN = commit_of(ID, "main")


def scores_of(model: str | Path, **options: Any) -> list[float]:
    scores: list[float] = load_scorer(str(model), **options).score(PAIRS).tolist()
    return scores


@pytest.fixture(scope="module")
def running(reranker_base: Path) -> Iterator[Hub]:
    with running_hub({ID: {"main": reranker_base}}) as hub:
        yield hub


@pytest.fixture
def hub(running: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that the client of this process asks, without trouble and directly."""
    running.trouble = ""
    running.asked.clear()
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    point_client_at(running.address, monkeypatch)
    yield running
    set_client_factory(default_client_factory)


def point_client_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    set_client_factory(default_client_factory)  # the client reads the proxies when it is built


@pytest.fixture
def cache(tmp_path: Path, reranker_base: Path) -> Path:
    """A cache with the model as the hub has it."""
    add_to_cache(tmp_path / "cache", ID, reranker_base, commit=MAIN, branch="main")
    return tmp_path / "cache"


Set = Callable[[Hub, pytest.MonkeyPatch], object]


def trouble(name: str) -> Set:
    return lambda hub, _: setattr(hub, "trouble", name)


def endpoint(address: str) -> Set:
    return lambda _, patch: point_client_at(address, patch)


def proxy(variable: str, address: str, *, hub_at: str = "http://hub.example") -> Set:
    """A proxy; `address` may hold the hub's own as {hub}."""

    def change(hub: Hub, patch: pytest.MonkeyPatch) -> None:
        patch.setenv(variable, address.format(hub=hub.address))
        patch.setitem(sys.modules, "socksio", None)  # as where it is not installed
        point_client_at(hub_at, patch)

    return change


def proxy_407(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.trouble = "407"
    proxy("HTTP_PROXY", "{hub}")(hub, patch)


def silent(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.trouble = "silent"
    patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)


def https(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    point_client_at(hub.address.replace("http:", "https:"), patch)


SITUATIONS: dict[str, tuple[Set, str]] = {
    "a log-in page": (trouble("page"), "it answered with a web page"),
    "a redirect to a log-in page": (trouble("redirect"), "it answered with a web page"),
    "no answer": (silent, "it gave no answer in time"),
    "endless redirects": (trouble("loop"), "its redirects never end"),
    "JSON that is not a hub's": (trouble("odd"), "its answer is not that of a hub"),
    "401": (trouble("401"), "it answered 401.*HF_TOKEN"),
    "403": (trouble("403"), "it answered 403 Forbidden.*firewall"),
    "404": (trouble("404"), "it answered with status 404"),
    "407": (trouble("407"), "the proxy answered 407.*USER:PASSWORD"),
    "429": (trouble("429"), "it answered 429 Too Many Requests.*HF_TOKEN"),
    "503": (trouble("503"), "it answered with status 503"),
    "HF_ENDPOINT without a scheme": (endpoint("mirror.example"), "HF_ENDPOINT must begin with"),
    "a name that does not exist": (endpoint("https://hub.invalid"), "its name is not found"),
    "nobody listens": (endpoint("http://127.0.0.1:9"), "it cannot be reached"),
    "no TLS where it is expected": (https, "TLS failed.*SSL_CERT_FILE"),
    "a SOCKS proxy without its package": (
        proxy("ALL_PROXY", "socks5://ann:secret@127.0.0.1:9"),
        r"ALL_PROXY names a SOCKS proxy, .* \"bge-rerank-integrations\[socks\]\" \(ALL_PROXY=socks5://\*\*\*@127\.0\.0\.1:9\)",
    ),
    "a SOCKS 4 proxy": (
        proxy("ALL_PROXY", "socks4://127.0.0.1:9"),
        r"ALL_PROXY is not the address of a proxy.*socks5h://host:port.*\(ALL_PROXY=socks4",
    ),
    "a proxy that does not tunnel": (
        proxy("HTTPS_PROXY", "{hub}", hub_at="https://hub.example"),
        "the proxy refused .*HTTPS_PROXY=",
    ),
    "a proxy that is not there": (
        proxy("http_proxy", "http://127.0.0.1:9"),
        "it cannot be reached .*http_proxy=http://127.0.0.1:9",
    ),
    "a proxy that wants a password": (proxy_407, "the proxy answered 407.*HTTP_PROXY="),
}
BROKEN = {
    "no header of a hub": ("no commit", "lacks X-Repo-Commit"),
    "cut off": ("cut", r"broke off (at \d+ of \d+ bytes|\(IncompleteRead.*\)): load again"),
    "too short": ("short", r"broke off at \d+ of \d+ bytes: load again"),
}
"""Those that come in the middle of a download."""


@pytest.mark.parametrize("situation", [*SITUATIONS, *BROKEN])
def test_without_a_cache_the_error_says_what_was_asked_what_came_and_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, situation: str
) -> None:
    change, said = SITUATIONS.get(situation) or (
        trouble(BROKEN[situation][0]), BROKEN[situation][1],
    )  # fmt: skip
    change(hub, monkeypatch)
    with pytest.raises(ModelNotFound) as error:
        scores_of(ID, cache_dir=str(tmp_path))
    message = str(error.value)
    assert f"{constants.ENDPOINT} was asked for {ID}: " in message
    assert re.search(said, message), message
    assert f"{ID} is not" in message
    assert str(tmp_path) in message
    assert all(word in message for word in ("HF_ENDPOINT", "ModelScope", "folder", "[offline]"))
    assert "secret" not in message
    reached = situation not in ("nobody listens", "a proxy that is not there")
    assert ("cannot be reached" in message) is not reached


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_whole_model_in_the_cache_is_used_with_one_warning_that_names_the_reason(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    reranker_base: Path,
    caplog: pytest.LogCaptureFixture,
    situation: str,
) -> None:
    change, said = SITUATIONS[situation]
    change(hub, monkeypatch)
    found = [scores_of(ID, cache_dir=str(cache)) for _ in range(2)]
    assert found == [scores_of(reranker_base)] * 2
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    (warning,) = [text for text in warnings if "was asked for" in text]
    assert re.search(said, warning)
    assert warning.endswith(f"The copy in the cache is used: {cache / HOME / 'snapshots' / MAIN}")


def test_after_a_download_broke_off_the_next_load_goes_on(
    hub: Hub, tmp_path: Path, reranker_base: Path
) -> None:
    hub.trouble = "short"
    with pytest.raises(ModelNotFound, match="load again"):
        scores_of(ID, cache_dir=str(tmp_path))
    # before its release 2, the client does not know which files a snapshot has
    missing = r"files are missing \(.*model\.safetensors|no model\.safetensors .*broke off, load it"
    with pytest.raises((ModelNotFound, CheckpointError), match=missing):
        scores_of(ID, cache_dir=str(tmp_path), local_files_only=True)
    hub.trouble = ""
    assert scores_of(ID, cache_dir=str(tmp_path)) == scores_of(reranker_base)


@pytest.mark.parametrize("options", [{"local_files_only": True}, {"revision": MAIN}], ids=str)
@pytest.mark.parametrize("proxied", [False, True])
def test_nobody_is_asked_for_a_commit_in_the_cache_or_without_a_network(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    reranker_base: Path,
    options: dict[str, Any],
    proxied: bool,
) -> None:
    if proxied:  # a client cannot even be built
        proxy("ALL_PROXY", "socks4://127.0.0.1:9", hub_at=hub.address)(hub, monkeypatch)
    assert scores_of(ID, cache_dir=str(cache), **options) == scores_of(reranker_base)
    assert hub.asked == []


# Proxies, by the rules that servers have too (tests/remote/test_networks.py).

HTTP, SOCKS = "http://127.0.0.1:9", "socks5://127.0.0.1:9"


@pytest.fixture
def every_name_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *rest, **more: resolve("127.0.0.1", *rest, **more)
    )


@pytest.mark.usefixtures("every_name_is_this_machine")
@pytest.mark.parametrize(
    ("proxies", "host", "direct"),
    [
        # this machine
        ({"ALL_PROXY": SOCKS}, "127.0.0.1", True),
        ({"ALL_PROXY": "socks4://127.0.0.1:9"}, "127.0.0.1", True),
        ({"ALL_PROXY": HTTP}, "localhost", True),
        ({"HTTP_PROXY": HTTP, "HTTPS_PROXY": HTTP}, "127.8.9.1", True),
        ({"HTTP_PROXY": HTTP}, "[::1]", True),
        ({"HTTP_PROXY": HTTP}, "0.0.0.0", True),
        ({"HTTP_PROXY": HTTP, "NO_PROXY": "other.example"}, "127.0.0.1", True),
        # hosts that NO_PROXY names
        ({"ALL_PROXY": SOCKS, "NO_PROXY": "hub.example"}, "hub.example", True),
        ({"ALL_PROXY": SOCKS, "NO_PROXY": ".example"}, "hub.example", True),
        ({"all_proxy": SOCKS, "no_proxy": "*"}, "hub.example", True),
        ({"ALL_PROXY": "socks4://p:9", "NO_PROXY": "a.example, *"}, "hub.example", True),
        ({"HTTP_PROXY": HTTP, "NO_PROXY": "hub.example:{port}"}, "hub.example", True),
        ({"HTTP_PROXY": HTTP, "NO_PROXY": "hub.example:1"}, "hub.example", False),
        ({"HTTP_PROXY": HTTP, "NO_PROXY": "10.0.0.0/8"}, "10.9.8.7", True),
        ({"ALL_PROXY": HTTP, "NO_PROXY": "10.0.0.0/8"}, "11.9.8.7", False),
        ({"ALL_PROXY": HTTP, "NO_PROXY": "fd00::/8"}, "[fd00::7]", True),
        ({"ALL_PROXY": HTTP, "NO_PROXY": "[fd00::7]:{port}"}, "[fd00::7]", True),
        ({"ALL_PROXY": HTTP, "NO_PROXY": "fd00::8"}, "[fd00::7]", False),
        ({"ALL_PROXY": HTTP, "NO_PROXY": "ub.example"}, "hub.example", False),
        # a proxy of another scheme is not looked at
        ({"HTTPS_PROXY": SOCKS}, "hub.example", True),
        ({"HTTP_PROXY": HTTP, "ALL_PROXY": SOCKS}, "hub.example", False),
        ({"HTTP_PROXY": "", "ALL_PROXY": HTTP}, "hub.example", False),
    ],
    ids=str,
)
def test_the_hub_is_asked_directly_or_through_the_proxy(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reranker_base: Path,
    proxies: dict[str, str],
    host: str,
    direct: bool,
) -> None:
    port = hub.address.rpartition(":")[2]
    monkeypatch.setitem(sys.modules, "socksio", None)  # as where it is not installed
    for name, value in proxies.items():
        monkeypatch.setenv(name, value.format(port=port))
    point_client_at(f"http://{host}:{port}", monkeypatch)
    if direct:
        assert scores_of(ID, cache_dir=str(tmp_path)) == scores_of(reranker_base)
        return
    with pytest.raises(ModelNotFound, match=r"it cannot be reached .*_PROXY=http://127\.0\.0\.1:9"):
        scores_of(ID, cache_dir=str(tmp_path))
    assert hub.asked == []


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_the_hub_is_asked_through_a_socks_proxy(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reranker_base: Path, scheme: str
) -> None:
    with socks_to(int(hub.address.rpartition(":")[2])) as (address, asked):
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{address}")
        point_client_at("http://hub.example", monkeypatch)
        assert scores_of(ID, cache_dir=str(tmp_path)) == scores_of(reranker_base)
    assert set(asked) == {"hub.example"}


@pytest.mark.parametrize("variable", ["NO_PROXY", "ALL_PROXY"])
def test_a_token_is_not_sent_to_the_host_of_the_files(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reranker_base: Path, variable: str
) -> None:
    hub.trouble = "moved"
    monkeypatch.setenv(variable, HTTP)
    assert scores_of(ID, cache_dir=str(tmp_path), token="secret") == scores_of(reranker_base)
    files = [(path, token) for _, path, token in hub.asked if "/resolve/" in path]
    sent = {(path.startswith("/moved"), token) for path, token in files}
    assert sent == {(False, "secret"), (True, "")}


def test_the_callers_client_is_as_it_was(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reranker_base: Path
) -> None:
    theirs, expected = get_session(), scores_of(reranker_base)
    monkeypatch.setenv("HTTP_PROXY", HTTP)
    caches = [str(tmp_path / str(i)) for i in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda cache: scores_of(ID, cache_dir=cache), caches))
    assert found == [expected] * 4
    assert get_session() is theirs
    hub.trouble = "503"
    with pytest.raises(ModelNotFound):
        scores_of(ID, cache_dir=str(tmp_path / "none"))
    assert get_session() is theirs
    hub.trouble = ""
    monkeypatch.delenv("HTTP_PROXY")
    assert theirs.get(f"{hub.address}/api/models/{ID}").status_code == 200


def test_a_client_that_the_caller_configured_is_used(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reranker_base: Path
) -> None:
    asked = []

    def configured() -> Any:
        client = default_client_factory()
        hooks = client.event_hooks if hasattr(client, "event_hooks") else client.hooks
        hooks["response"].append(lambda r, **_: asked.append(urlsplit(str(r.request.url)).path))
        return client

    set_client_factory(configured)
    monkeypatch.setenv("HTTPS_PROXY", HTTP)
    assert scores_of(ID, cache_dir=str(tmp_path)) == scores_of(reranker_base)
    assert sorted(asked) == sorted(path for _, path, _ in hub.asked)


def test_a_part_of_a_commit_is_completed(hub: Hub, cache: Path, reranker_base: Path) -> None:
    (cache / HOME / "snapshots" / MAIN / "tokenizer.json").unlink()
    assert scores_of(ID, cache_dir=str(cache), revision=MAIN) == scores_of(reranker_base)
    assert "tokenizer.json" in hub.files_asked_for


# Caches as images have them.


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny_models

    return tiny_models.build_reranker_base(tmp_path_factory.mktemp("retrained"), seed=31)


def test_a_lone_snapshot_without_refs_is_used(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path, reranker_base: Path
) -> None:
    shutil.rmtree(cache / HOME / "refs")
    expected = scores_of(reranker_base)
    assert scores_of(ID, cache_dir=str(cache), local_files_only=True) == expected
    point_client_at("http://127.0.0.1:9", monkeypatch)
    assert scores_of(ID, cache_dir=str(cache), revision="main") == expected
    assert hub.asked == []


def test_several_snapshots_without_refs_are_named(
    cache: Path, reranker_base: Path, retrained: Path
) -> None:
    add_to_cache(cache, ID, retrained, commit=NEW)
    shutil.rmtree(cache / HOME / "refs")
    options: dict[str, Any] = {"cache_dir": str(cache), "local_files_only": True}
    with pytest.raises(ModelNotFound, match=f"no refs/main .*{NEW}.*{MAIN}.*as revision"):
        load_scorer(ID, **options)
    assert scores_of(ID, revision=MAIN, **options) == scores_of(reranker_base)
    assert scores_of(ID, revision=NEW, **options) == scores_of(retrained)


@pytest.mark.parametrize("given", ["id", "folder of the model", "folder of the snapshot"])
def test_links_to_missing_blobs_are_named(cache: Path, given: str) -> None:
    shutil.rmtree(cache / HOME / "blobs")
    folder = cache / HOME
    options: dict[str, Any] = {}
    model = {"folder of the model": folder, "folder of the snapshot": folder / "snapshots" / MAIN}
    if given == "id":
        options = {"cache_dir": str(cache), "local_files_only": True}
    said = r"config\.json is a link to a missing file: mount or copy all of the folder models--"
    with pytest.raises(ModelNotFound, match=said):
        load_scorer(str(model.get(given, ID)), **options)


def test_the_models_folder_of_the_cache_is_opened_at_its_snapshot(
    cache: Path, reranker_base: Path, retrained: Path
) -> None:
    add_to_cache(cache, ID, retrained, commit=NEW, branch="v2")
    folder = cache / HOME
    assert scores_of(folder) == scores_of(reranker_base)
    assert scores_of(folder, revision="v2") == scores_of(retrained)
    assert scores_of(folder, revision=NEW) == scores_of(retrained)
    shutil.rmtree(folder / "refs")
    with pytest.raises(ModelNotFound, match=f"snapshots counts .*{NEW}"):
        load_scorer(str(folder))
    with pytest.raises(InvalidInputError, match="revision"):
        load_scorer(str(folder / "snapshots" / NEW), revision="v2")


@pytest.mark.parametrize("offline", [True, False])
def test_a_cache_that_cannot_be_written(
    hub: Hub, cache: Path, reranker_base: Path, offline: bool
) -> None:
    folders = [folder for folder in cache.rglob("*") if folder.is_dir()]
    for folder in (cache, *folders):
        folder.chmod(0o555)
    try:
        found = scores_of(ID, cache_dir=str(cache), local_files_only=offline)
    finally:
        for folder in (cache, *folders):
            folder.chmod(0o755)
    assert found == scores_of(reranker_base)


def test_a_cache_folder_that_cannot_be_made_names_the_settings(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(ModelNotFound, match=r"cannot be read or written .*HF_HOME.*cache_dir"):
        load_scorer(ID, cache_dir=str(tmp_path / "file" / "cache"))


NOBODY = """
import json, os, sys
if os.name == "posix":
    import pwd
    def nobody(*_):
        raise KeyError("no entry in passwd")
    pwd.getpwuid = pwd.getpwnam = nobody
for name in ("HOME", "USERPROFILE", "HOMEDRIVE", "HOMEPATH", "LOGNAME", "USER", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
model, home, pairs = json.load(sys.stdin)
if not home:
    del os.environ["HF_HOME"]
from bge_rerank_integrations import ModelNotFound, load_scorer
try:
    print(json.dumps(load_scorer(model).score(pairs).tolist()))
except ModelNotFound as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("home", [True, False])
def test_a_user_without_a_home_and_without_a_name(
    running: Hub, cache: Path, reranker_base: Path, tmp_path: Path, home: bool, offline: bool
) -> None:
    running.trouble = ""
    (tmp_path / "hub").symlink_to(cache)
    given = [ID, home, PAIRS]
    done = run_with_hub(
        NOBODY, given, address=running.address, home=tmp_path, offline=offline, fresh=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if home:
        assert found == pytest.approx(scores_of(reranker_base), abs=1e-5)
    else:
        assert "this user has no home folder: set HF_HOME, or give cache_dir" in found


def test_a_home_that_is_not_known_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RerankError, match="no folder ~nobody-of-that-name/model"):
        load_scorer("~nobody-of-that-name/model")
