"""Addresses of servers, checked so that no shown part is a password, a query string or a key."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from bge_rerank_integrations.errors import InvalidInputError

_MEANT_AS_ADDRESS = re.compile(
    r"""\s*(?: [^:./~\\][^:]+:[/\\]   # any scheme, even misspelt; one letter is a drive
        | (?! [.~] | /(?!/) | \w:[/\\] | \\\\ ) @?[^@]+@   # user, password or key; not a clear path
        | [\w.-]+:\d{2,}(?:/|\s*$)   # host:port; a single digit is a model's tag
        | \[[\da-f:.%]+\]        # an IPv6 host
        | (?! [.~/\\] | \w:[/\\] ) [^?]+\?[^=]+=   # a query, which may hold a key; not a clear path
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_MAY_BE_TAG = re.compile(r"(?!localhost:)[\w-]+:\d+", re.IGNORECASE)
_HOST = re.compile(r"[\w.-]+|[\da-f:.]+(?:%[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Address:
    """A checked `http` or `https` URL without user, query string and fragment."""

    url: str
    host: str
    encrypted: bool

    @property
    def on_this_machine(self) -> bool:
        """Whether the host is `localhost`, a loopback address, or 0.0.0.0, which means one."""
        ip = read_ip(self.host)
        if ip is None:
            return f".{self.host.rstrip('.')}".endswith(".localhost")
        return ip.is_loopback or ip.is_unspecified

    def with_path(self, path: str, *, model: str | None = None) -> str:
        """The URL with the path appended, without repeating a part that the URL ends with.

        `http://h/v1` and `/v1/rerank` give `http://h/v1/rerank`, and so does the complete address.
        """
        filled = path.replace("{model}", quote(model or "", safe="/@"))
        ours, theirs = self.url.split("/")[3:], filled.split("/")[1:]
        for shared in range(min(len(ours), len(theirs)), 0, -1):
            if ours[-shared:] == theirs[:shared]:
                theirs = theirs[shared:]
                break
        return "/".join([self.url, *theirs])


def read_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address, version 4 also if it is written within one of version 6; None for a name."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def read_address(url: object) -> Address:
    """Check a URL; raises `InvalidInputError` without any part that may be secret."""
    if not isinstance(url, str):
        raise InvalidInputError(f"base_url is {type(url).__name__}; it must be a string")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _not_an_address("its host or port is invalid") from None
    if parts.scheme not in ("http", "https") or "://" not in url:
        short = re.fullmatch(r"[a-z]{2,6}", parts.scheme) and "://" in url
        raise _not_an_address(
            f"its scheme is {parts.scheme!r}" if short else "http:// or https:// is missing"
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidInputError(
            "base_url has a user or password, which logs would show; pass api_key instead"
        )
    if not host or not url.isprintable() or " " in url or not _HOST.fullmatch(host):
        raise _not_an_address("it has no host, or an invalid character, such as a space")
    if parts.query or parts.fragment:
        raise InvalidInputError(
            f"base_url has a part after {'?' if parts.query else '#'}, which no server here uses "
            "and which may be a key; remove it, and pass a key as api_key"
        )
    shown = f"[{host}]" if ":" in host else host
    at = shown if port is None else f"{shown}:{port}"
    return Address(f"{parts.scheme}://{at}{parts.path.rstrip('/')}", host, parts.scheme == "https")


def is_address(model: str) -> bool:
    """Whether a model is meant as the address of a server.

    Misspelt addresses count too: `read_address` then reports the mistake, instead of a message that
    no such folder exists and that shows a password. For a folder with such a name, prefix `./`.
    """
    return _MEANT_AS_ADDRESS.match(model) is not None


def may_be_tag(model: str) -> bool:
    """Whether it may be a model with a tag, such as `name:567`, which also looks like host:port."""
    return _MAY_BE_TAG.fullmatch(model) is not None


def refuse_address(model: str) -> None:
    """Raise `InvalidInputError` for an address where only a model in this process is possible."""
    if is_address(model):
        raise InvalidInputError(
            "the model is the address of a server; here it must be a hub id or a folder (prefix ./ "
            "if a folder has such a name)"
        )


def _not_an_address(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"base_url, or the address given as model, is not the address of a server: {why}; valid "
        "addresses are http://host:port or https://host (prefix ./ if a folder has such a name)"
    )
