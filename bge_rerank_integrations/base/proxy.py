"""The proxy that the environment names for a server or the hub.

The HTTP library reads the same variables, but handles neither ranges of addresses nor this machine,
and fails altogether if one of them names a proxy that it does not support.
"""

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies

from bge_rerank_integrations.base.address import Address, read_ip
from bge_rerank_integrations.errors import InvalidInputError, MissingExtra

_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it; the URL may hold a password."""

    variable: str
    url: str = field(repr=False)
    encrypted: bool


def find_proxy(address: Address) -> Proxy | None:
    """The proxy of `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY` for this address; None without one.

    A server on this machine, or one that `NO_PROXY` names, is reached without a proxy. Raises
    `InvalidInputError` for a proxy that is neither HTTP nor SOCKS5, and `MissingExtra` for SOCKS
    without its package.
    """
    found = getproxies()
    kind = "https" if address.encrypted else "http"
    if not found.get(kind):
        kind = "all"
    url, variable = found.get(kind, "").strip(), f"{kind.upper()}_PROXY"
    if not url or address.on_this_machine or _is_excluded(address, found.get("no", "")):
        return None
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port  # raises for an invalid port
    except ValueError:
        host = ""
    if not re.fullmatch(r"[\w.:-]+", host, re.ASCII) or parts.scheme not in _SCHEMES:
        raise InvalidInputError(
            f"{variable} is not the address of a proxy that can be used for {address.url}: write "
            f"one of {', '.join(f'{scheme}://host:port' for scheme in _SCHEMES)}, or name the host "
            "in NO_PROXY"
        )
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        missing = MissingExtra("socksio", "socks")
        missing.msg = f"{variable} names a SOCKS proxy, but {missing}"
        raise missing
    return Proxy(variable, url, encrypted=parts.scheme == "https")


def _is_excluded(address: Address, no_proxy: str) -> bool:
    """Whether `NO_PROXY` names the host: by `*`, domain, IP address or range; a port may follow."""
    port = urlsplit(address.url).port or (443 if address.encrypted else 80)
    for entry in no_proxy.lower().replace(",", " ").split():
        entry = entry.partition("://")[2].rstrip("/") or entry  # noqa: PLW2901
        host, wanted = entry, ""
        if entry.startswith("["):
            host, _, wanted = entry[1:].partition("]")
        elif entry.count(":") == 1:
            host, _, wanted = entry.partition(":")
        if wanted.strip(":") in ("", str(port)) and (host == "*" or _covers(host, address.host)):
            return True
    return False


def _covers(entry: str, host: str) -> bool:
    ip = read_ip(host)
    if ip is None:
        domain = entry.removeprefix("*").strip(".")
        return domain != "" and f".{host.rstrip('.')}".endswith(f".{domain}")
    with suppress(ValueError):
        return ip in ipaddress.ip_network(entry, strict=False)
    return False
