"""Requests to one server, with retries, a circuit breaker, and limits on time and size.

The only import of the HTTP library. Its exceptions hold the request, and with it the key, so a
failed try is a value. Error messages are phrases that follow the name of the server.
"""

import asyncio
import itertools
import math
import random
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache

from bge_rerank_integrations.base.deadline import seconds_left
from bge_rerank_integrations.base.proxy import Proxy
from bge_rerank_integrations.errors import (
    RemoteAnswerError,
    RemoteError,
    RemoteRefused,
    RemoteUnavailable,
    missing_extra,
)
from bge_rerank_integrations.options import RequestOptions
from bge_rerank_integrations.remote.redaction import (
    describe_body,
    describe_status,
    hide_private,
)

with missing_extra("remote"):
    import httpx2

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
DOWN_STATUSES = frozenset({502, 503, 504})
"""Statuses of a gateway whose server is down; they open the circuit breaker."""

LONGEST_WAIT = 8.0

HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": "bge-rerank-integrations",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A POST of `body`, or without one a GET; no message shows the `private` texts or the `key`.

    `status_header` names the header in which a gateway reports the status of the model behind it.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    key: str | None = field(repr=False)
    body: bytes | None = field(repr=False, default=None)
    private: Sequence[str] = field(repr=False, default=())
    status_header: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer; `status` is the model's own if a gateway reports it."""

    status: int
    headers: httpx2.Headers = field(repr=False)
    body: bytes = field(repr=False)


@dataclass
class Circuit:
    """A circuit breaker: after three failures in a row, refuses requests for ten seconds.

    Then it lets one request through; if that fails, the ten seconds begin again. Not thread-safe:
    it is used on one event loop.
    """

    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    closes_at: float = 0.0

    def refusal(self) -> float | None:
        """None if a request may be sent now, else the seconds until one may."""
        if self.failures < 3:
            return None
        left = self.closes_at - self.clock()
        if left > 0:
            return left
        self.closes_at = self.clock() + 10
        return None

    def failed(self) -> None:
        """Count a request that did not reach a running server."""
        self.failures += 1
        self.closes_at = self.clock() + 10

    def answered(self) -> None:
        """The server is running, whatever it answered."""
        self.failures = 0


class Client:
    """Sends requests to one server; `slots` limits how many run at once.

    It never follows redirects, decompresses, or reads without a limit.
    """

    def __init__(
        self, options: RequestOptions, *, first_wait: float, proxy: Proxy | None = None
    ) -> None:
        self._options, self._first_wait = options, first_wait
        self._through = f" through the proxy of {proxy.variable}" if proxy else ""
        self._circuit = Circuit()
        self.slots = asyncio.Semaphore(options.max_concurrency)
        timeout = httpx2.Timeout(options.read_timeout, connect=options.connect_timeout, pool=None)
        self._timeout = {"timeout": timeout.as_dict()}
        # the library's client would keep cookies, and log the words of a status line
        self._transport = httpx2.AsyncHTTPTransport(
            limits=httpx2.Limits(
                max_connections=options.max_concurrency,
                max_keepalive_connections=options.max_concurrency,
            ),
            verify=_tls(),
            proxy=None
            if proxy is None
            else httpx2.Proxy(proxy.url, ssl_context=_tls() if proxy.encrypted else None),
            trust_env=False,  # `find_proxy` has read it
        )

    async def send(self, request: Request) -> Reply:
        """The server's answer, of any status that a retry would not change.

        It begins no wait that would end after the caller's time limit. Raises `RemoteUnavailable`,
        also after `request_timeout`, and `RemoteAnswerError` for an answer that is too large or not
        HTTP.
        """
        pause = self._circuit.refusal()
        if pause is not None:
            raise RemoteUnavailable(
                f"failed several times in a row; the next request is sent in {pause:.0f} s"
            )
        limit = self._options.request_timeout
        try:
            async with asyncio.timeout(limit):
                return await self._retry(request)
        except TimeoutError:
            self._circuit.failed()
        raise RemoteUnavailable(
            f"did not answer in full within {limit:g} s, the request_timeout for a request with "
            "its retries"
        )

    async def _retry(self, request: Request) -> Reply:
        now = asyncio.get_running_loop().time
        left = seconds_left()
        end = now() + min(self._options.request_timeout, math.inf if left is None else left)
        for tries in itertools.count(1):
            found = await self._try(request)
            retry_after, down = None, True
            if isinstance(found, RemoteError):
                if isinstance(found, RemoteUnavailable):
                    self._circuit.failed()
                raise found
            if isinstance(found, Reply):
                if found.status not in RETRIED_STATUSES:
                    self._circuit.answered()
                    return found
                reason, down = describe(found, request), found.status in DOWN_STATUSES
                retry_after = read_retry_after(found.headers.get("retry-after"))
            else:
                reason = found
            wait = retry_wait(tries, self._first_wait, retry_after)
            too_late = now() + wait > end
            if tries > self._options.max_retries or too_late:
                break
            await asyncio.sleep(wait)
        if down:
            self._circuit.failed()
        raise RemoteUnavailable(
            f"did not answer after {tries} {'try' if tries == 1 else 'tries'}: {reason}"
            + ("; it asks to wait longer than the time left" if too_late and retry_after else "")
        )

    async def _try(self, request: Request) -> Reply | str | RemoteError:
        """The answer; or, if a retry may help, why the connection failed; or else an error."""
        method = "GET" if request.body is None else "POST"
        try:
            sent = httpx2.Request(
                method,
                request.url,
                headers={**HEADERS, **request.headers},
                content=request.body,
                extensions=self._timeout,
            )
            async with aclosing(await self._transport.handle_async_request(sent)) as response:
                return await _read(response, request)
        except (httpx2.TransportError, httpx2.InvalidURL, UnicodeError) as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> str | RemoteError:
        if isinstance(error, httpx2.ConnectTimeout):
            return f"no connection within the connect_timeout{self._through}"
        if isinstance(error, httpx2.TimeoutException):
            waited = f"{self._options.read_timeout:g} s, the read_timeout"
            return RemoteUnavailable(f"cannot be used: no data for {waited}")
        if _is_tls_error(error):
            return RemoteUnavailable(
                "cannot be used: TLS failed: the certificate is not valid here"
            )
        if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
            return f"no connection{self._through}"
        if isinstance(error, httpx2.TransportError):
            return f"the connection broke ({type(error).__name__})"
        return RemoteAnswerError("has an address or needs a header that HTTP cannot carry")

    async def close(self) -> None:
        await self._transport.aclose()


async def _read(response: httpx2.Response, request: Request) -> Reply | RemoteError:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return RemoteAnswerError("gave a compressed answer, although none was requested")
    limit = 1_000_000 + 8 * len(request.body or b"")  # echoed texts, every character escaped
    body = bytearray()
    async for block in response.aiter_raw():
        body += block
        if len(body) > limit:
            return RemoteAnswerError(f"gave an answer of more than {limit} bytes")
    reported = response.headers.get(request.status_header or "", "")
    return Reply(model_status(response.status_code, reported), response.headers, bytes(body))


def retry_wait(tries: int, first_wait: float, retry_after: float | None = None) -> float:
    """Seconds to wait after this many tries; at least as long as the server requests.

    Random below a bound that doubles, so that clients that failed together spread out.
    """
    bound = min(LONGEST_WAIT, first_wait * 2.0 ** (tries - 1))
    return (retry_after or 0.0) + random.uniform(0, bound)  # noqa: S311 - guards nothing


def read_retry_after(header: str | None) -> float | None:
    """Seconds in a `Retry-After` header, a number or a date (RFC 9110, 10.2.3); None if neither."""
    if header is None:
        return None
    if header.strip().isascii() and header.strip().isdigit():
        return float(header.strip()[:9])
    try:
        at = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def model_status(status: int, reported: str) -> int:
    """The status of an answer, or the status of the model behind a gateway, if it failed."""
    # exactly three digits: int() refuses very long numbers
    return int(reported) if status != 200 and re.fullmatch("[3-5][0-9]{2}", reported) else status


def check_success(reply: Reply, request: Request) -> None:
    """Raise unless the answer is a 200 with JSON.

    A 5xx or 424 is a `RemoteUnavailable`, any other 4xx and a redirect a `RemoteRefused`, anything
    else a `RemoteAnswerError`.
    """
    status = reply.status
    if status == 200:
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            shown = hide_private(kind, request.private, request.key) or "no content type"
            raise RemoteAnswerError(
                f"answered with {shown!r} instead of JSON; is it the address of a rerank server?"
            )
        return
    answered = f"answered {describe(reply, request)}"
    if status >= 500 or status == 424:
        raise RemoteUnavailable(answered)
    if status >= 400:
        raise RemoteRefused(f"{answered}; check api_key" if status in (401, 403) else answered)
    if status >= 300:
        raise RemoteRefused(
            f"{answered}; redirects are not followed, because the key and the texts would go to "
            "another server: set base_url to the final address"
        )
    raise RemoteAnswerError(answered)


def describe(reply: Reply, request: Request) -> str:
    """The status, and the parts of the server's error message that are safe to show."""
    message = describe_body(reply.body, request.private, request.key)
    return describe_status(reply.status) + (f": {message}" if message else "")


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # reading the certificates takes longer than 100 requests


def _is_tls_error(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None
