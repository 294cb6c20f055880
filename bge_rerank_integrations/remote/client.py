"""Requests to one server, with retries, a circuit breaker, and limits on time and size.

Runs on the event loop of `transport.py`; nothing here knows what a rerank is.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from bge_rerank_integrations.base.address import Secret
from bge_rerank_integrations.errors import RemoteAnswerError, RemoteRefused, RemoteUnavailable
from bge_rerank_integrations.remote.redaction import describe_body, describe_status
from bge_rerank_integrations.remote.transport import Method, Reply, Transport

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
DOWN_STATUSES = frozenset({502, 503, 504})
"""Statuses of a gateway whose server is down; they open the circuit breaker."""


LONGEST_WAIT = 8.0


def retry_wait(tries: int, first_wait: float, retry_after: float | None = None) -> float:
    """Seconds to wait after this many tries; at least as long as the server asked for.

    Random below a bound that doubles, so that clients that failed together spread out.
    """
    bound = min(LONGEST_WAIT, first_wait * 2.0 ** (tries - 1))
    drawn = random.uniform(0, bound)  # noqa: S311 - spreads load, guards nothing
    return drawn if retry_after is None else retry_after + drawn


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


class Circuit:
    """A circuit breaker: after several failures in a row, refuses requests for `rest` seconds.

    Then one request is let through; if it fails, the rest begins again. Not thread-safe: it is used
    on one event loop.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        rest: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._rest, self._clock = failures, rest, clock
        self._failed = 0
        self._opened = 0.0

    def refusal(self) -> float | None:
        """None if a request may be sent now, else the seconds until one may."""
        if self._failed < self._limit:
            return None
        left = self._opened + self._rest - self._clock()
        if left > 0:
            return left
        self._opened = self._clock()
        return None

    def failed(self) -> None:
        """Count a request that did not reach a running server."""
        self._failed += 1
        self._opened = self._clock()

    def answered(self) -> None:
        """The server is running, whatever it answered."""
        self._failed = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Time limits and the first wait in seconds, and how many requests and retries there may be."""

    connect_timeout: float
    read_timeout: float
    request_timeout: float
    max_concurrency: int
    max_retries: int
    first_wait: float


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request to a server; the key is added to the headers when it is sent.

    `source` names the server in messages. `status_header` names the header in which a gateway
    reports the status of the model behind it. `private` texts are never shown in a message.
    """

    method: Method
    url: str
    source: str
    headers: Mapping[str, str]
    key: Secret | None = None
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    body: bytes | None = None
    status_header: str | None = None
    private: Sequence[str] = ()

    def all_headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", **self.headers}
        if self.key is not None:
            headers[self.key_header] = self.key_prefix + self.key.value
        return headers

    @property
    def max_answer_bytes(self) -> int:
        """Servers may echo the texts with every character escaped."""
        return 1_000_000 + 8 * len(self.body or b"")


class Client:
    """Sends requests to one server; `slots` limits how many are under way."""

    def __init__(self, options: ClientConfig) -> None:
        self._options = options
        self._circuit = Circuit()
        self.slots = asyncio.Semaphore(options.max_concurrency)
        self._transport = Transport(
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            connections=options.max_concurrency,
        )

    async def send(self, request: HttpRequest, deadline: float | None = None) -> Reply:
        """The server's answer, whatever its status, once no retry could change it.

        `deadline`, on the event loop's clock, is when the caller stops waiting: no wait that would
        end after it is begun. Raises `RemoteUnavailable`, also after `request_timeout`, and
        `RemoteAnswerError` for an answer that is too large or not HTTP.
        """
        rest = self._circuit.refusal()
        if rest is not None:
            raise RemoteUnavailable(
                f"{request.source} failed several times in a row; the next request is sent in "
                f"{rest:.0f} s"
            )
        end = asyncio.get_running_loop().time() + self._options.request_timeout
        try:
            async with asyncio.timeout_at(end):
                return await self._retry(request, end if deadline is None else min(end, deadline))
        except TimeoutError:
            self._circuit.failed()
        raise RemoteUnavailable(
            f"{request.source} did not answer in full within {self._options.request_timeout:g} s, "
            "the request_timeout for a request with its retries"
        )

    async def _retry(self, request: HttpRequest, end: float) -> Reply:
        tries = 0
        while True:
            found = await self._transport.send(
                request.method,
                request.url,
                request.all_headers(),
                request.body,
                request.max_answer_bytes,
            )
            tries += 1
            retry_after = None
            if isinstance(found, Reply):
                status = effective_status(found, request.status_header)
                if status not in RETRIED_STATUSES:
                    self._circuit.answered()
                    return found
                reason = _describe(found, status, request.private)
                retry_after = read_retry_after(found.headers.get("retry-after"))
                down = status in DOWN_STATUSES
            elif found.kind == "answer":
                raise RemoteAnswerError(f"{request.source} gave {found.reason}")
            elif found.kind != "connection":
                self._circuit.failed()
                raise RemoteUnavailable(f"{request.source} cannot be used: {found.reason}")
            else:
                reason, down = found.reason, True
            wait = retry_wait(tries, self._options.first_wait, retry_after)
            too_late = asyncio.get_running_loop().time() + wait > end
            if tries > self._options.max_retries or too_late:
                break
            await asyncio.sleep(wait)
        if down:
            self._circuit.failed()
        raise RemoteUnavailable(
            f"{request.source} did not answer after {tries} {'try' if tries == 1 else 'tries'}: "
            + reason
            + (f"; it asks to wait {wait:.0f} s, longer than the time left" if too_late else "")
        )

    async def close(self) -> None:
        await self._transport.close()


def effective_status(reply: Reply, status_header: str | None) -> int:
    """The status, or the model's own status if a gateway reports it in a header."""
    reported = reply.headers.get(status_header, "") if status_header else ""
    # exactly three digits: int() refuses very long numbers
    return int(reported) if re.fullmatch("[1-5][0-9]{2}", reported) else reply.status


def check_success(reply: Reply, request: HttpRequest) -> None:
    """Raise unless the answer is a 200 with JSON.

    A 5xx or 424 is a `RemoteUnavailable`, any other 4xx and a redirect a `RemoteRefused`, anything
    else a `RemoteAnswerError`.
    """
    source = request.source
    if reply.status == 200:
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise RemoteAnswerError(
                f"{source} answered with {kind or 'no content type'!r} instead of JSON; is it the "
                "address of a rerank server?"
            )
        return
    status = effective_status(reply, request.status_header)
    answered = f"{source} answered {_describe(reply, status, request.private)}"
    if 300 <= status < 400:
        raise RemoteRefused(
            f"{answered}; redirects are not followed, because the key and the texts would go to "
            "another server: set base_url to the final address"
        )
    if status in (401, 403):
        raise RemoteRefused(f"{answered}; check api_key")
    if 400 <= status < 500 and status != 424:
        raise RemoteRefused(answered)
    if status >= 500 or status == 424:
        raise RemoteUnavailable(answered)
    raise RemoteAnswerError(answered)


def _describe(reply: Reply, status: int, private: Sequence[str]) -> str:
    said = describe_body(reply.body, private)
    return describe_status(status) + (f": {said}" if said else "")
