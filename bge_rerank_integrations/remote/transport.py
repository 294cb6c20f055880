"""HTTP for the whole process, on one event loop; the only import of the HTTP library.

Because all requests run on that loop, a scorer serves any number of threads and event loops, and
waiting for a server occupies no thread of the caller's pool. Failures are returned as values: the
library's exceptions hold the request, and with it the key.
"""

import asyncio
import os
import ssl
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

from bge_rerank_integrations.base.deadline import check_cancelled
from bge_rerank_integrations.errors import missing_extra

with missing_extra("remote"):
    import httpx2

T = TypeVar("T")
Method = Literal["GET", "POST"]

_CANCEL_POLL_SECONDS = 0.05

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_inherited_loops: list[asyncio.AbstractEventLoop | None] = []


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start the coroutine on the shared loop; cancelling the future stops it."""
    # outside the lock: a garbage collection here may close an abandoned server, which submits too
    return asyncio.run_coroutine_threadsafe(work, _running_loop())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine and wait for its result; interrupting the caller stops it."""
    future = submit(work)
    try:
        while True:
            check_cancelled()
            if wait([future], timeout=_CANCEL_POLL_SECONDS).done:
                return future.result()
    finally:
        future.cancel()


async def arun(work: Coroutine[Any, Any, T]) -> T:
    """`run`, awaitable from any event loop; cancelling the awaiting task stops the coroutine."""
    return await asyncio.wrap_future(submit(work))


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="bge-rerank-io", daemon=True).start()
        return _loop


def _forget_loop() -> None:
    # The loop's thread does not exist in the child. The loop itself is kept alive: collecting it
    # would remove the parent's sockets from the selector that both processes share.
    global _loop, _lock
    _inherited_loops.append(_loop)
    _loop, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_loop)


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer, whatever its status; header names are lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why there is no usable answer.

    `kind`: `"connection"` failed or broke, `"slow"` exceeded the read timeout, `"unsafe"` failed
    TLS, `"answer"` is too large, compressed or not HTTP. Only `"connection"` is worth a retry.
    """

    kind: Literal["connection", "slow", "unsafe", "answer"]
    reason: str


class Transport:
    """A connection pool that never follows redirects, decompresses, or reads without a limit."""

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
        self, method: Method, url: str, headers: dict[str, str], body: bytes | None, max_bytes: int
    ) -> Reply | NoReply:
        """The answer if it has at most `max_bytes` bytes, else why there is none."""
        try:
            async with self._client.stream(method, url, headers=headers, content=body) as response:
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    return NoReply("answer", "a compressed answer, although none was requested")
                read = bytearray()
                async for block in response.aiter_raw():
                    read += block
                    if len(read) > max_bytes:
                        return NoReply("answer", f"an answer of more than {max_bytes} bytes")
                lowered = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status_code, lowered, bytes(read))
        except (httpx2.TransportError, httpx2.InvalidURL, UnicodeError) as error:
            return self._no_reply(error)

    def _no_reply(self, error: Exception) -> NoReply:
        if isinstance(error, httpx2.ConnectTimeout):
            return NoReply("connection", "no connection within the connect_timeout")
        if isinstance(error, httpx2.TimeoutException):
            return NoReply("slow", f"no data for {self._read_timeout:g} s, the read_timeout")
        if _is_tls_error(error):
            return NoReply("unsafe", "TLS failed: the certificate is not valid here")
        if isinstance(error, httpx2.ConnectError):
            return NoReply("connection", "no connection")
        if isinstance(error, httpx2.TransportError):
            return NoReply("connection", f"the connection broke ({type(error).__name__})")
        return NoReply("answer", "an address or header that HTTP cannot carry")

    async def close(self) -> None:
        await self._client.aclose()


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # reading the certificates takes longer than 100 requests


def _is_tls_error(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None
