"""Asking a server until it answers, refuses, or has had its time.

Lives on the event loop of `io_thread`; nothing here knows what a rerank is.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from bge_rerank_integrations.base.address import Secret
from bge_rerank_integrations.errors import RemoteAnswerError, RemoteRefused, RemoteUnavailable
from bge_rerank_integrations.remote.redaction import describe_body, describe_status
from bge_rerank_integrations.remote.retries import (
    WORTH_RETRYING,
    Circuit,
    RetryPolicy,
    read_retry_after,
)
from bge_rerank_integrations.remote.transport import NoReply, Reply, Transport


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How long to wait for what, in seconds, and how much to ask at once."""

    connect_timeout: float
    read_timeout: float
    request_timeout: float
    max_concurrency: int
    retries: RetryPolicy


@dataclass(frozen=True, slots=True)
class Credentials:
    """What goes with every request; the key is put in at the last moment."""

    headers: Mapping[str, str]
    key_header: str
    key_prefix: str
    key: Secret | None

    def all_headers(self) -> dict[str, str]:
        headers = dict(self.headers)
        if self.key is not None:
            headers[self.key_header] = self.key_prefix + self.key.value
        return headers


class Client:
    """Requests to one server, with retries, a circuit and bounds on time and size."""

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._circuit = Circuit()
        self.slots = asyncio.Semaphore(options.max_concurrency)
        self._transport = Transport(
            connect_timeout=options.connect_timeout,
            read_timeout=options.read_timeout,
            connections=options.max_concurrency,
        )

    async def ask(
        self,
        method: Literal["GET", "POST"],
        url: str,
        credentials: Credentials,
        *,
        source: str,
        body: bytes | None = None,
        status_header: str | None = None,
        deadline: float | None = None,
    ) -> Reply:
        """The server's answer with whatever status is not worth another try.

        `status_header` names the header in which a gateway passes on a failing model's own status.
        `deadline`, by the event loop's clock, is when the caller stops waiting: no wait is begun
        that would end behind it. Raises `RemoteUnavailable`, also when the `request_timeout` has
        passed, and `RemoteAnswerError` for an answer that is too large or no HTTP.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.request_timeout
        try:
            async with asyncio.timeout_at(end):
                return await self._persistently(
                    method,
                    url,
                    credentials,
                    source=source,
                    body=body,
                    status_header=status_header,
                    end=end if deadline is None else min(end, deadline),
                )
        except TimeoutError:
            self._circuit.failed()
        raise RemoteUnavailable(
            f"{source} did not answer in full within {self._options.request_timeout:g} s, the "
            "request_timeout for one request and its retries"
        )

    async def _persistently(
        self,
        method: Literal["GET", "POST"],
        url: str,
        credentials: Credentials,
        *,
        source: str,
        body: bytes | None,
        status_header: str | None,
        end: float,
    ) -> Reply:
        policy = self._options.retries
        self._refuse_while_resting(source)
        tries = 0
        while True:
            found = await self._transport.send(
                method,
                url,
                headers={"Content-Type": "application/json", **credentials.all_headers()},
                body=body,
                most_bytes=most_bytes(body),
            )
            tries += 1
            if isinstance(found, Reply):
                status = own_status(found, status_header)
                if status not in WORTH_RETRYING:
                    self._circuit.answered()
                    return found
                why, asked = describe_status(status), found.headers.get("retry-after")
            elif found.kind == "connection":
                why, asked = found.reason, None
            else:
                self._give_up(found, source)
            wait = policy.wait(tries, read_retry_after(asked))
            late = asyncio.get_running_loop().time() + wait > end
            if tries > policy.max_retries or late:
                break
            await asyncio.sleep(wait)
        if isinstance(found, NoReply) or own_status(found, status_header) in (502, 503, 504):
            self._circuit.failed()
        raise RemoteUnavailable(
            f"{source} did not answer after {tries} {'try' if tries == 1 else 'tries'}: {why}"
            + (f"; it asks to wait {wait:.0f} s, longer than there is time" if late else "")
        )

    def _refuse_while_resting(self, source: str) -> None:
        rest = self._circuit.refusal()
        if rest is not None:
            raise RemoteUnavailable(
                f"{source} failed several times in a row and is not asked again for {rest:.0f} s"
            )

    def _give_up(self, found: NoReply, source: str) -> NoReturn:
        if found.kind == "answer":
            raise RemoteAnswerError(f"{source} gave {found.reason}")
        self._circuit.failed()
        raise RemoteUnavailable(f"{source} cannot be used: {found.reason}")

    async def close(self) -> None:
        await self._transport.close()


def most_bytes(body: bytes | None) -> int:
    """The longest answer that is read: servers may echo the texts, in JSON's longest escapes."""
    return 1_000_000 + 8 * len(body or b"")


def own_status(reply: Reply, status_header: str | None) -> int:
    """The status, or the one that a gateway passes on from the model behind it."""
    passed_on = reply.headers.get(status_header, "") if status_header else ""
    # three digits, as a status has: int() itself refuses very many
    return int(passed_on) if re.fullmatch("[1-5][0-9]{2}", passed_on) else reply.status


def check_success(
    reply: Reply, source: str, *, status_header: str | None, private: Sequence[str]
) -> None:
    """Raise unless the answer is a 200 that holds JSON.

    A 5xx or 424 is a `RemoteUnavailable`, any other 4xx and a redirect a `RemoteRefused`, the rest
    a `RemoteAnswerError`. `private` are the texts that must not be in the message.
    """
    status = own_status(reply, status_header)
    if reply.status == 200:
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise RemoteAnswerError(
                f"{source} answered with {kind or 'no content type'!r} where JSON was to come; "
                "is it the address of a rerank server?"
            )
        return
    said = describe_body(reply.body, private)
    about = f"{source} answered {describe_status(status)}" + (f": {said}" if said else "")
    if 300 <= status < 400:
        raise RemoteRefused(
            f"{about}; redirects are not followed, because the key and the texts would go to "
            "another server: give the right base_url"
        )
    if status in (401, 403):
        raise RemoteRefused(f"{about}; check api_key")
    if 400 <= status < 500 and status != 424:
        raise RemoteRefused(about)
    if status >= 500 or status == 424:
        raise RemoteUnavailable(about)
    raise RemoteAnswerError(about)
