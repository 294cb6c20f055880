"""The scorer whose model runs on a server, for threads and for any event loop."""

import asyncio
import logging
import math
import os
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from bge_rerank_integrations.base.address import Secret, read_address
from bge_rerank_integrations.base.contract import like_input, read_pairs
from bge_rerank_integrations.base.deadline import seconds_left
from bge_rerank_integrations.base.trace import note, timed
from bge_rerank_integrations.errors import (
    InvalidInputError,
    RerankError,
    ScoringFailed,
    ScoringTimeout,
)
from bge_rerank_integrations.option_checks import real_number, whole_number
from bge_rerank_integrations.remote import io_thread
from bge_rerank_integrations.remote.client import ClientOptions
from bge_rerank_integrations.remote.dialects import Dialect, dialect_named, dialect_of_host
from bge_rerank_integrations.remote.handshake import ServerInfo
from bge_rerank_integrations.remote.retries import RetryPolicy
from bge_rerank_integrations.remote.server import (
    Known,
    Server,
    ServerRequest,
    check_dialect_options,
)
from bge_rerank_integrations.types import FloatArray, Pair, Scale

logger = logging.getLogger("bge_rerank_integrations")

KEY_VARIABLE = "BGE_RERANK_API_KEY"
"""The environment variable of the key while the dialect is not known, and of most dialects."""


class RemoteScorer:
    """A reranker behind an address; see `types.Scorer` for the laws it keeps.

    `dialect` is the server's protocol by name or as a value of your own; with `"auto"` the server
    is asked what it is at the first use. `model` is what the server is asked for, if its dialect
    names models, and `deployment` an Azure endpoint's. Without `api_key` the key is taken from the
    environment variable of the dialect, if that is set.

    A request holds at most `batch_size` passages (by default what the server takes), and at most
    `max_concurrency` of them are under way at once, from however many threads and event loops.
    `connect_timeout`, `read_timeout` (the longest silence) and `request_timeout` (one request with
    its retries) are in seconds. What is worth it (no connection, 408, 429, 502, 503, 504) is tried
    again up to `max_retries` times, after random waits up to `first_wait`, then twice that, and so
    on, or as long as `Retry-After` says.

    Raises `InvalidInputError` for an address or option that cannot be. Nothing is sent yet: at the
    first use a server of your own is tried with two sentences, to see that it serves a reranker
    and on which scale.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        dialect: str | Dialect = "auto",
        api_key: str | None = None,
        deployment: str | None = None,
        batch_size: int | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
        request_timeout: float = 60.0,
        max_concurrency: int = 8,
        max_retries: int = 3,
        first_wait: float = 0.5,
    ) -> None:
        address = read_address(base_url)
        if isinstance(dialect, str):
            chosen = dialect_of_host(address.host) if dialect == "auto" else dialect_named(dialect)
        else:
            chosen = dialect
        if chosen is not None:
            check_dialect_options(chosen, model, deployment)
        self._asked = ServerRequest(
            address=address,
            model=model,
            dialect=chosen,
            deployment=deployment,
            batch_size=None if batch_size is None else _count("batch_size", batch_size),
            key=_read_key(api_key, KEY_VARIABLE if chosen is None else chosen.key_variable),
            client=ClientOptions(
                connect_timeout=_seconds("connect_timeout", connect_timeout),
                read_timeout=_seconds("read_timeout", read_timeout),
                request_timeout=_seconds("request_timeout", request_timeout),
                max_concurrency=_count("max_concurrency", max_concurrency),
                retries=RetryPolicy(
                    max_retries=_count("max_retries", max_retries, least=0),
                    first_wait=_seconds("first_wait", first_wait),
                ),
            ),
        )
        self._server: Server | None = None
        self._parents: list[Server] = []
        self._closed = False
        if self._asked.key and not (address.encrypted or address.on_this_machine):
            logger.warning("the key for %s goes over the network unencrypted", address.url)

    def __repr__(self) -> str:
        # a traceback that shows variables also shows the object whose making failed
        return f"RemoteScorer({self.name!r})" if hasattr(self, "_asked") else "RemoteScorer()"

    @property
    def name(self) -> str:
        """Dialect, address, model and deployment; never the key.

        A server whose model is exchanged behind the same address and name is not seen here.
        """
        dialect = "auto" if self._asked.dialect is None else self._asked.dialect.name
        about = [text for text in (self._asked.model, self._asked.deployment) if text is not None]
        return f"{dialect}:{self._asked.address.url}[{','.join(about)}]"

    @property
    def scale(self) -> Scale:
        """What the server's scores are; with `dialect="auto"` the first use asks the server."""
        if self._asked.dialect is not None:
            return self._asked.dialect.scale
        return io_thread.run(self._known(seconds_left())).dialect.scale

    def probe(self) -> ServerInfo:
        """Ask the server what it is and try it, as the first use does; what is known of it.

        Raises `UnsupportedModel` for a server whose model is no reranker or whose scores are not
        on the scale that its dialect states, and what `score` raises.
        """
        return io_thread.run(self._known(seconds_left())).info

    def score(self, pairs: Iterable[Any]) -> FloatArray:
        """One raw score per pair, float32, in the order given; equal pairs are asked for once.

        `pairs` is a list of (query, passage), a list of {"query":, "passage":}, or a pandas
        DataFrame with those columns, for which a Series with its index comes back.

        Where a service gives only probabilities and a query's passages fit into one request, ties
        are broken as the service ordered them, by the least steps of float32; other ties stay.

        Raises `InvalidInputError`, and with the scores that did come as `partial`:
        `ScoringTimeout` at the time limit, `RemoteUnavailable` when the server is not reached or
        fails also after the retries, `RemoteRefused`, `RemoteAnswerError`.
        """
        read = read_pairs(pairs)
        with timed("computing"):
            scores = io_thread.run(self._scores(read, seconds_left()))
        return like_input(pairs, scores)

    async def ascore(self, pairs: Iterable[Any]) -> FloatArray:
        """`score` without a thread: for any event loop, also for several. Cancelling stops it."""
        read = read_pairs(pairs)
        with timed("computing"):
            scores = await io_thread.arun(self._scores(read, seconds_left()))
        return like_input(pairs, scores)

    def close(self) -> None:
        """Close the connections; what is under way fails, and so does a later use."""
        self._closed = True
        server, self._server = self._server, None
        if server is not None and server.process == os.getpid():
            io_thread.run(server.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a RemoteScorer is not pickled, because it holds a key and connections; "
            "make one where it is needed, or pickle an adapter, which does so by itself"
        )

    async def _known(self, left: float | None) -> Known:
        deadline = _deadline(left)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._present_server().known(deadline)
        except TimeoutError:
            pass
        raise ScoringTimeout(
            f"the time limit passed before {self._asked.address.url} had said what it is"
        )

    async def _scores(self, pairs: Sequence[Pair], left: float | None) -> FloatArray:
        places: dict[Pair, int] = {}
        positions = []
        for position, pair in enumerate(pairs):
            if pair not in places:
                places[pair] = len(places)
                positions.append(position)
        found = np.full(len(places), np.nan, dtype=np.float32)
        rows = [places[pair] for pair in pairs]
        deadline = _deadline(left)
        if not pairs:
            return found
        try:
            async with asyncio.timeout_at(deadline):
                await self._present_server().score(list(places), positions, found, deadline)
            self._note(len(places))
            return found[rows]
        except ScoringFailed as error:
            error.partial = _partial(found[rows])
            raise
        except TimeoutError:
            pass
        scored = int(np.isfinite(found[rows]).sum())
        raise ScoringTimeout(
            f"the time limit passed when {self._asked.address.url} had scored {scored} of "
            f"{len(pairs)} pairs",
            partial=_partial(found[rows]),
        )

    def _note(self, computed: int) -> None:
        url = self._asked.address.url
        note({"computed": computed}, {"model": self._asked.model or url, "server": url})

    def _present_server(self) -> Server:
        """The connections of this process, made on the event loop that all of this runs on."""
        if self._closed:
            raise RerankError(f"the scorer of {self._asked.address.url} was closed; load it again")
        if self._server is None or self._server.process != os.getpid():
            if self._server is not None:
                self._parents.append(self._server)  # its sockets are the parent process's
            self._server = Server(self._asked)
            weakref.finalize(self, _close_forgotten, self._server)
        return self._server


def _close_forgotten(server: Server) -> None:
    if server.process == os.getpid():
        io_thread.submit(server.close())


def _deadline(left: float | None) -> float | None:
    return None if left is None else asyncio.get_running_loop().time() + left


def _partial(scores: FloatArray) -> FloatArray | None:
    return scores if np.isfinite(scores).any() else None


def _read_key(api_key: str | None, variable: str) -> Secret | None:
    key = api_key if api_key is not None else os.environ.get(variable)
    if not key:
        return None
    if not isinstance(key, str) or not key.isascii() or not key.isprintable():
        raise InvalidInputError(
            f"the key, from api_key or {variable}, has a character that no HTTP header carries"
        )
    return Secret(key)


def _seconds(name: str, value: float) -> float:
    seconds = real_number(value)
    if seconds is None or not 0 < seconds < math.inf:
        raise InvalidInputError(f"{name} is {value!r}; it must be a number of seconds above 0")
    return seconds


def _count(name: str, value: int, *, least: int = 1) -> int:
    number = whole_number(value)
    if number is None or number < least:
        raise InvalidInputError(f"{name} is {value!r}; it must be a whole number from {least}")
    return number
