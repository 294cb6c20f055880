"""Where a server is and what is shown of that: never a password, a query string or a key."""

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from bge_rerank_integrations.errors import InvalidInputError

_MEANT_AS_ADDRESS = re.compile(
    r"""\s*(?: [^:./~\\][^:]+:/      # any scheme, misspelt ones too; one letter is a drive
        | [^:/\\]+:[^/\\]*@       # a user and a password
        | [\w.-]+:\d{2,}(?:/|\s*$)   # host:port; one digit is a model's tag
        | \[[\da-f:.%]+\]        # an IPv6 host
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_HOST = re.compile(r"[\w.-]+|[\da-f:.]+(?:%[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Address:
    """A checked `http` or `https` URL without user, query string and fragment."""

    url: str
    host: str
    encrypted: bool

    @property
    def on_this_machine(self) -> bool:
        """Whether nothing leaves this machine: `localhost` or a loopback address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_path(self, path: str, *, model: str | None = None) -> str:
        """The URL with the path behind it; what both have in the middle is there once.

        `http://h/v1` and `/v1/rerank` give `http://h/v1/rerank`, and so does the whole address.
        """
        filled = path.replace("{model}", quote(model or "", safe="/@"))
        ours, theirs = self.url.split("/")[3:], filled.split("/")[1:]
        for shared in range(min(len(ours), len(theirs)), 0, -1):
            if ours[-shared:] == theirs[:shared]:
                theirs = theirs[shared:]
                break
        return "/".join([self.url, *theirs])


@dataclass(frozen=True, slots=True)
class Secret:
    """A key that shows itself to nobody and is in no pickle."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key is not pickled; give it again where it is needed")


def read_address(url: object) -> Address:
    """Check the URL; raises `InvalidInputError`, which shows no part that could be secret."""
    if not isinstance(url, str):
        raise InvalidInputError(f"base_url is {type(url).__name__}; it must be a string")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _no_address("its host or port cannot be read") from None
    if parts.scheme not in ("http", "https") or "://" not in url:
        short = re.fullmatch(r"[a-z]{2,6}", parts.scheme) and "://" in url
        raise _no_address(
            f"its scheme is {parts.scheme!r}" if short else "http:// or https:// is missing"
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidInputError(
            "base_url holds a user or password, which would be seen in logs; give api_key instead"
        )
    if not host or not url.isprintable() or " " in url or not _HOST.fullmatch(host):
        raise _no_address("it has no host, or a character that no address has, such as a blank")
    if parts.query or parts.fragment:
        raise InvalidInputError(
            f"base_url has something behind {'?' if parts.query else '#'}, which no server here "
            "takes and which may be a key; leave it out and give a key as api_key"
        )
    shown = f"[{host}]" if ":" in host else host
    at = shown if port is None else f"{shown}:{port}"
    return Address(f"{parts.scheme}://{at}{parts.path.rstrip('/')}", host, parts.scheme == "https")


def is_address(model: str) -> bool:
    """Whether what was given as a model was meant as the address of a server.

    That is a larger set than the addresses which `read_address` takes: who misspells one is to be
    told so, and not that there is no such folder, with a password in the message. Whoever has a
    folder of such a name writes `./` before it.
    """
    return _MEANT_AS_ADDRESS.match(model) is not None


def refuse_address(model: str) -> None:
    """Raise `InvalidInputError` for an address where only a model of this process has a meaning."""
    if is_address(model):
        raise InvalidInputError(
            "the model is the address of a server; here it must be a hub id or a folder (write ./ "
            "before one with such a name)"
        )


def _no_address(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"base_url, or the address given as model, is no address of a server: {why}; it looks "
        "like http://host:port or https://host"
    )
