"""The hub's client with our own rules for proxies, which are those of the servers too.

Its own rules build a connection for every proxy variable, also where none is used, know no ranges
of addresses, and send this machine's addresses to a proxy. The client belongs to the whole process,
so it is replaced only while we ask the hub, and nothing of the caller's is closed, as the hub's own
function for a new client would do.
"""

# ruff: noqa: SLF001

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.request import getproxies

from huggingface_hub.utils import _http as hub

from bge_rerank_integrations.base.address import Address
from bge_rerank_integrations.base.fork import Lock
from bge_rerank_integrations.base.proxy import find_proxy

_lock = Lock()
_users = 0
_theirs: tuple[Any, Any] = (None, None)


@contextmanager
def proxies_by_our_rules() -> Iterator[None]:
    """Send the requests to the hub inside this block through the proxy of `find_proxy`.

    Nothing changes without proxies in the environment, with a client that the caller has
    configured, or before huggingface-hub 1.0, whose client chooses a proxy for each request.
    """
    default = getattr(hub, "default_client_factory", None)
    proxied = any(getproxies().get(kind) for kind in ("http", "https", "all"))
    if default is None or not proxied or hub._GLOBAL_CLIENT_FACTORY not in (default, _new_client):
        yield
        return
    _exchange(+1)
    try:
        yield
    finally:
        _exchange(-1)


def _exchange(change: int) -> None:
    """Put our client in place for the first user, and the caller's back after the last one."""
    global _users, _theirs
    with _lock, hub._CLIENT_LOCK:
        _users += change
        if _users == change:  # the first
            _theirs = hub._GLOBAL_CLIENT_FACTORY, hub._GLOBAL_CLIENT
            hub._GLOBAL_CLIENT_FACTORY, hub._GLOBAL_CLIENT = _new_client, None
        elif _users == 0 and hub._GLOBAL_CLIENT_FACTORY is _new_client:
            hub._GLOBAL_CLIENT_FACTORY, hub._GLOBAL_CLIENT = _theirs


def _new_client() -> Any:
    """A client as the hub's own, but each request finds its proxy by its address.

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
            url = request.url
            at = f"{url.scheme}://{url.netloc.decode()}"
            proxy = find_proxy(Address(at, url.host, url.scheme == "https"))
            return through(proxy and proxy.url).handle_request(request)

    return http.Client(
        transport=ByAddress(),
        event_hooks={"request": [hub.hf_request_event_hook]},
        follow_redirects=True,
        timeout=None,
    )
