"""The hub's client with our own rules for proxies, the same as for servers.

Its own rules build a connection for every proxy variable, even an unused one, do not support ranges
of addresses, and send this machine's addresses to a proxy. The whole process shares the client, so
it is replaced only during our own requests. The caller's client is not closed, as it would be by
the hub's own function for setting a client.
"""

# ruff: noqa: SLF001

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub.utils import _http

from bge_rerank_integrations.base.address import Address
from bge_rerank_integrations.base.fork import Lock
from bge_rerank_integrations.base.proxy import find_proxy

hub: Any = _http  # of any release
_lock = Lock()
_users = 0
_theirs: tuple[Any, ...] = ()


@contextmanager
def proxies_by_our_rules() -> Iterator[None]:
    """Send the requests to the hub inside this block through the proxy of `find_proxy`.

    Nothing changes without proxies in the environment or with a client that the caller configured.
    """
    proxied = any(getproxies().get(kind) for kind in ("http", "https", "all"))
    if not proxied or getattr(hub, _NAMES[0]) not in (_DEFAULT, _OURS[0]):
        yield
        return
    _exchange(+1)
    try:
        yield
    finally:
        _exchange(-1)


def _exchange(change: int) -> None:
    """Install our client for the first user, and restore the caller's after the last one."""
    global _users, _theirs
    with _lock, vars(hub).get("_CLIENT_LOCK", nullcontext()):
        _users += change
        if _users == change:  # the first
            _theirs = tuple(getattr(hub, name) for name in _NAMES)
            vars(hub).update(zip(_NAMES, _OURS, strict=True))
        elif _users == 0 and getattr(hub, _NAMES[0]) is _OURS[0]:
            vars(hub).update(zip(_NAMES, _theirs, strict=True))


def _proxy_for(url: str) -> str | None:
    parts = urlsplit(url)
    at = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    proxy = find_proxy(Address(at, parts.hostname or "", parts.scheme == "https"))
    return None if proxy is None else proxy.url


def _new_client() -> Any:
    """A client like the hub's own, but each request finds its proxy by its address.

    It keeps no connection, so that it need not be closed while another thread uses it.
    """
    http: Any = vars(hub).get("httpx2") or vars(hub)["httpx"]  # huggingface-hub 2, and 1
    tls = http.create_ssl_context()

    @cache
    def through(proxy: str | None) -> Any:
        limits = http.Limits(max_keepalive_connections=0)
        return http.HTTPTransport(verify=tls, proxy=proxy, limits=limits)

    class ByAddress(http.BaseTransport):  # type: ignore[misc]  # the base is not known here
        def handle_request(self, request: Any) -> Any:
            return through(_proxy_for(str(request.url))).handle_request(request)

    return http.Client(
        transport=ByAddress(),
        event_hooks={"request": [hub.hf_request_event_hook]},
        follow_redirects=True,
        timeout=None,
    )


def _new_session() -> Any:
    """The same for huggingface-hub before 1.0, which is built on requests."""

    class ByAddress(hub.UniqueRequestIdAdapter):  # type: ignore[misc]
        def send(self, request: Any, *args: Any, **given: Any) -> Any:
            request.headers.pop("Proxy-Authorization", None)  # a redirect adds it by other rules
            proxy = _proxy_for(request.url)
            # whose name for SOCKS where the proxy resolves the server's name is socks5h
            given["proxies"] = proxy and {"all": re.sub("(?i)^socks5:", "socks5h:", proxy)}
            return super().send(request, *args, **given)

    session = vars(hub)["requests"].Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, ByAddress())
    return session


_OURS: tuple[Any, ...]
if hasattr(hub, "default_client_factory"):
    _NAMES = ("_GLOBAL_CLIENT_FACTORY", "_GLOBAL_CLIENT")
    _DEFAULT, _OURS = hub.default_client_factory, (_new_client, None)
else:
    _NAMES = ("_GLOBAL_BACKEND_FACTORY", "_get_session_from_cache")
    _DEFAULT = hub._default_backend_factory
    # without room for sessions, so that no connection is kept
    _OURS = (_new_session, lru_cache(0)(lambda **_: hub._GLOBAL_BACKEND_FACTORY()))
