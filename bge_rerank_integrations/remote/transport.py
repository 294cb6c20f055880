"""One request over HTTP: the only file that knows the HTTP library.

What went wrong comes back as a value, because the library's exceptions hold the request, and with
it the key.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from bge_rerank_integrations.errors import MissingExtra

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtra(str(error.name), "remote") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, whatever the status; header names are lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why there is no answer; `kind` says whether another try could help.

    `"connection"` broke or was refused, `"slow"` is silence beyond the read timeout, `"unsafe"` is
    TLS that failed, `"answer"` is one that is too large, encoded or no HTTP.
    """

    kind: Literal["connection", "slow", "unsafe", "answer"]
    reason: str


class Transport:
    """A pool of connections. Never follows a redirect, never unpacks, never reads without end."""

    def __init__(self, *, connect_timeout: float, read_timeout: float, connections: int) -> None:
        self._read_timeout = read_timeout
        self._client = httpx2.AsyncClient(
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": "bge-rerank-integrations",
            },
            timeout=httpx2.Timeout(
                connect=connect_timeout, read=read_timeout, write=read_timeout, pool=None
            ),
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections
            ),
            follow_redirects=False,
            verify=_tls(),
        )

    async def send(
        self,
        method: Literal["GET", "POST"],
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        most_bytes: int,
    ) -> Reply | NoReply:
        """The answer, if it is at most `most_bytes` long, or why there is none."""
        try:
            async with self._client.stream(
                method, url, headers=dict(headers), content=body
            ) as response:
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    return NoReply("answer", "an answer that is compressed, which was not asked")
                read = bytearray()
                async for piece in response.aiter_raw():
                    read += piece
                    if len(read) > most_bytes:
                        return NoReply("answer", f"an answer of more than {most_bytes} bytes")
                lowered = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status_code, lowered, bytes(read))
        except (httpx2.TransportError, httpx2.InvalidURL, UnicodeError) as error:
            return self._no_reply(error)

    def _no_reply(self, error: Exception) -> NoReply:
        if isinstance(error, httpx2.ConnectTimeout):
            return NoReply("connection", "no connection within the connect_timeout")
        if isinstance(error, httpx2.TimeoutException):
            return NoReply("slow", f"silence for {self._read_timeout:g} s, the read_timeout")
        if _is_about_tls(error):
            return NoReply("unsafe", "TLS that failed: the certificate does not hold")
        if isinstance(error, httpx2.ConnectError):
            return NoReply("connection", "no connection")
        if isinstance(error, httpx2.TransportError):
            return NoReply("connection", f"a connection that broke ({type(error).__name__})")
        return NoReply("answer", "an address or header that HTTP cannot carry")

    async def close(self) -> None:
        await self._client.aclose()


@cache
def _tls() -> ssl.SSLContext:
    # reading the certificates takes longer than a hundred requests
    return httpx2.create_ssl_context()


def _is_about_tls(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
