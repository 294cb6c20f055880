"""When to try again, how long to wait, and when to leave a dead server alone. Sends nothing."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

WORTH_RETRYING = frozenset({408, 429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Waits between tries: random up to a bound that doubles, so that clients spread out."""

    max_retries: int = 3
    first_wait: float = 0.5
    longest_wait: float = 8.0

    def wait(self, tries: int, retry_after: float | None) -> float:
        """Seconds to wait after so many tries; at least what the server asked for."""
        bound = min(self.longest_wait, self.first_wait * 2.0 ** (tries - 1))
        drawn = random.uniform(0, bound)  # noqa: S311 - spreads load, guards nothing
        return drawn if retry_after is None else retry_after + drawn


def read_retry_after(header: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, a number or a date; None if it says neither.

    The two forms: RFC 9110, section 10.2.3.
    """
    if header is None:
        return None
    if header.strip().isascii() and header.strip().isdigit():
        return float(header.strip()[:9])
    try:
        at = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


class Circuit:
    """Refuses to ask a server that failed several requests in a row, for a while.

    After `rest` seconds one request is let through; if it fails, the rest begins again. Not
    thread-safe: it lives on one event loop.
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
        """None if a request may go now, else the seconds until one may."""
        if self._failed < self._limit:
            return None
        left = self._opened + self._rest - self._clock()
        if left > 0:
            return left
        self._opened = self._clock()
        return None

    def failed(self) -> None:
        """A request was given up: the server was not reached or is down."""
        self._failed += 1
        self._opened = self._clock()

    def answered(self) -> None:
        """The server is there, whatever it said."""
        self._failed = 0
