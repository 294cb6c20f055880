"""Which proxy a server is asked through, by the variables that people have set."""

import logging
import sys
from typing import Any

import pytest

from bge_rerank_integrations import InvalidInputError, MissingExtra, load_scorer
from bge_rerank_integrations.base.address import read_address
from bge_rerank_integrations.base.proxy import find_proxy
from bge_rerank_integrations.errors import RemoteRefused, RemoteUnavailable
from bge_rerank_integrations.remote.scorer import RemoteScorer
from tests.remote.fault_server import answer, failing
from tests.remote.serving import serving
from tests.remote.socks import socks_to

PAIRS = [("a b", "a"), ("a b", "")]
SCORES = [-0.5, -1.5]
FAR = "http://rerank.example:8080"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http://", "HTTP://", " http://", ""])
def test_a_server_is_asked_through_an_http_proxy(
    variable: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("tei") as proxy:
        monkeypatch.setenv(variable, scheme + proxy.url.removeprefix("http://"))
        with RemoteScorer(FAR, dialect="tei") as scorer:
            assert scorer.score(PAIRS).tolist() == SCORES
    assert {path for _, path, _, _ in proxy.requests} == {f"{FAR}/rerank"}


def test_an_https_server_is_asked_through_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(answer({}, 403)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//user:canary@"))
        with (
            RemoteScorer(
                "https://api.cohere.com", model="m", api_key="sk", max_retries=0
            ) as scorer,
            pytest.raises(
                RemoteUnavailable, match="no connection through the proxy of HTTPS_PROXY"
            ),
        ):
            scorer.score(PAIRS)
        assert proxy.asked[0].line == "CONNECT api.cohere.com:443 HTTP/1.1"
        assert "authorization" not in proxy.asked[0].headers, "the key is for the service alone"
        assert "proxy-authorization" in proxy.asked[0].headers


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_server_is_asked_through_a_socks_proxy(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("tei") as served, socks_to(int(served.url.rpartition(":")[2])) as (proxy, asked):
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{proxy}")
        with RemoteScorer(FAR, dialect="tei") as scorer:
            assert scorer.score(PAIRS).tolist() == SCORES
    assert set(asked) == {"rerank.example"}


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://h:9", "socks4://h:9", "?"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_this_machine_is_asked_directly(
    variable: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    with serving("tei") as served, RemoteScorer(served.url, dialect="tei") as scorer:
        assert scorer.score(PAIRS).tolist() == SCORES
    for url in (
        "http://localhost:1",
        "https://localhost",
        "http://127.8.9.1",
        "http://[::1]:8080",
        "http://a.localhost",
        "http://localhost.:8",
        "http://0.0.0.0:8",
        "http://[::ffff:127.0.0.1]",
    ):
        assert find_proxy(read_address(url)) is None


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("*", FAR, True),
        ("a.example, *", FAR, True),
        ("rerank.example", FAR, True),
        ("Rerank.Example", FAR, True),
        (".rerank.example", FAR, True),
        ("example", FAR, True),
        (".example", FAR, True),
        ("*.example", FAR, True),
        ("a.example rerank.example", FAR, True),
        ("rerank.example:8080", FAR, True),
        ("rerank.example:80", FAR, False),
        ("ank.example", FAR, False),
        ("other.example", FAR, False),
        ("", FAR, False),
        (" , ", FAR, False),
        (".", FAR, False),
        ("api.example:443", "https://api.example", True),
        ("api.example:80", "http://api.example", True),
        ("api.example:443", "https://api.example:8443", False),
        ("10.0.0.7", "http://10.0.0.7:80", True),
        ("10.0.0.0/8", "http://10.9.8.7:80", True),
        ("10.0.0.1/8", "https://10.9.8.7", True),
        ("10.0.0.0/8:8080", "http://10.9.8.7:8080", True),
        ("10.0.0.0/8", "http://11.0.0.7", False),
        ("10.0.0.0/8", "http://[2001:db8::7]", False),
        ("2001:db8::7", "http://[2001:db8::7]:80", True),
        ("2001:0db8:0::7", "http://[2001:db8::7]", True),
        ("[2001:db8::7]", "http://[2001:db8::7]", True),
        ("[2001:db8::7]:80", "http://[2001:db8::7]", True),
        ("[2001:db8::7]:81", "http://[2001:db8::7]", False),
        ("2001:db8::/32", "http://[2001:db8::7]", True),
        ("0.7", "http://10.0.0.7", False),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.7]", True),
        ("fe80::/10", "http://[fe80::1%25eth0]", True),
        ("10.0.0.0/99", "http://10.0.0.7", False),
        ("http://rerank.example", FAR, True),
        ("https://rerank.example:8080/", FAR, True),
        ("rerank.example.", FAR, True),
        ("rerank.example", "http://rerank.example.", True),
    ],
)
@pytest.mark.parametrize("proxy", ["http://proxy:3128", "socks4://proxy"])
def test_a_host_that_no_proxy_names_is_asked_directly(
    no_proxy: str, url: str, direct: bool, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    if direct:
        assert find_proxy(read_address(url)) is None
    elif proxy.startswith("http"):
        found = find_proxy(read_address(url))
        assert found is not None
        assert (found.variable, found.url) == ("ALL_PROXY", proxy)
    else:
        with pytest.raises(InvalidInputError, match="ALL_PROXY"):
            find_proxy(read_address(url))


def test_the_variable_of_the_scheme_goes_before_the_one_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://a:1")
    monkeypatch.setenv("HTTPS_PROXY", "b:2")
    for url, variable, proxy in (
        ("http://h", "ALL_PROXY", "socks5://a:1"),
        ("https://h", "HTTPS_PROXY", "http://b:2"),
    ):
        found = find_proxy(read_address(url))
        assert found is not None
        assert (found.variable, found.url) == (variable, proxy)


@pytest.mark.parametrize(
    "proxy",
    ["socks4://canary", "socks4a://canary:1", "ftp://canary", "socks://u:canary@h:1",
     "http://u:canary@h:port", "http://h:99999/canary", "http://", "http://can ary", "https://[::canary"],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable_alone(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(
        InvalidInputError, match="ALL_PROXY is not the address of a proxy"
    ) as refused:
        load_scorer(FAR)
    assert "socks5h://host:port" in str(refused.value)
    assert "ary" not in str(refused.value)


def test_socks_without_its_package_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://u:canary@h:1")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(MissingExtra) as missing:
        load_scorer(FAR)
    assert str(missing.value) == (
        "ALL_PROXY names a SOCKS proxy, but 'socksio' is not installed; it comes with: "
        'pip install "bge-rerank-integrations[socks]"'
    )


def test_a_proxy_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(answer({})) as server:
        url = server.url
    for scheme in ("http", "socks5"):
        monkeypatch.setenv("ALL_PROXY", url.replace("http", scheme))
        with (
            RemoteScorer(FAR, dialect="tei", max_retries=0) as scorer,
            pytest.raises(RemoteUnavailable, match="no connection through the proxy of ALL_PROXY"),
        ):
            scorer.score(PAIRS)


def test_a_proxy_that_wants_a_password_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(answer({}, 407)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with (
            RemoteScorer(FAR, dialect="tei") as scorer,
            pytest.raises(RemoteRefused, match="407 Proxy Authentication Required"),
        ):
            scorer.score(PAIRS)


@pytest.mark.parametrize(
    ("variable", "proxy", "url", "hop"),
    [
        ("HTTP_PROXY", "http://p:1", FAR, "the proxy of HTTP_PROXY"),
        ("ALL_PROXY", "https://p:1", FAR, "the proxy of ALL_PROXY"),
        ("HTTPS_PROXY", "http://p:1", FAR, "the network"),
        ("HTTPS_PROXY", "http://p:1", "https://rerank.example", None),
        ("HTTP_PROXY", "http://p:1", "http://127.0.0.1:8", None),
    ],
)
def test_an_unencrypted_hop_of_a_key_is_said(
    variable: str,
    proxy: str,
    url: str,
    hop: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(variable, proxy)
    caplog.set_level(logging.WARNING)
    options: Any = {"dialect": "tei", "api_key": "sk-canary"}
    RemoteScorer(url, **options)
    said = [] if hop is None else [f"the key for {url} goes over {hop} unencrypted"]
    assert [record.message for record in caplog.records] == said
    RemoteScorer(url, dialect="tei")
    assert len(caplog.records) == len(said)
