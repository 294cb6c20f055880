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
from bge_rerank_integrations.options import real_number, whole_number
from bge_rerank_integrations.remote import transport
from bge_rerank_integrations.remote.dialects import Dialect, dialect_named, dialect_of_host
from bge_rerank_integrations.remote.handshake import ServerInfo
from bge_rerank_integrations.remote.server import Server, ServerConfig, check_dialect_options
from bge_rerank_integrations.types import FloatArray, Pair, Scale

logger = logging.getLogger("bge_rerank_integrations")

KEY_VARIABLE = "BGE_RERANK_API_KEY"
"""The key's environment variable for most dialects, and while the dialect is unknown."""


class RemoteScorer:
    """A reranker behind an address; see `types.Scorer` for the laws it keeps.

    `dialect` is the server's protocol, by name or as a `Dialect`; with `"auto"` the server is
    recognised at the first use. `model` is the model to request, for dialects that name models, and
    `deployment` that of an Azure endpoint. Without `api_key`, the key is read from the dialect's
    environment variable, if it is set.

    A request has at most `batch_size` passages (by default, as many as the server accepts); at most
    `max_concurrency` requests are under way at once, from all threads and event loops.
    `connect_timeout`, `read_timeout` (the longest silence) and `request_timeout` (a request with
    its retries) are in seconds. Failed connections and the statuses 408, 429, 500, 502, 503 and 504
    are retried up to `max_retries` times, after random waits below `first_wait`, then twice that,
    and so on, or after as long as `Retry-After` says.

    Raises `InvalidInputError` for an invalid address or option, and if a hosted service's key is
    missing. Nothing is sent yet: at the first use, a server of your own is tested with two
    sentences, to see that it serves a reranker and on which scale.
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
        chosen: Dialect | None
        if isinstance(dialect, Dialect):
            chosen = dialect
        else:
            chosen = dialect_of_host(address.host) if dialect == "auto" else dialect_named(dialect)
        if chosen is not None:
            check_dialect_options(chosen, model, deployment)
        variable = KEY_VARIABLE if chosen is None else chosen.key_variable
        key = _read_key(api_key, variable)
        if key is None and chosen is not None and address.host in chosen.hosts:
            raise InvalidInputError(f"{address.host} needs a key: pass api_key, or set {variable}")
        if key and not (address.encrypted or address.on_this_machine):
            logger.warning("the key for %s goes over the network unencrypted", address.url)
        self._options = ServerConfig(
            address=address,
            model=model,
            dialect=chosen,
            deployment=deployment,
            key=key,
            batch_size=None if batch_size is None else _count("batch_size", batch_size),
            connect_timeout=_seconds("connect_timeout", connect_timeout),
            read_timeout=_seconds("read_timeout", read_timeout),
            request_timeout=_seconds("request_timeout", request_timeout),
            max_concurrency=_count("max_concurrency", max_concurrency),
            max_retries=_count("max_retries", max_retries, least=0),
            first_wait=_seconds("first_wait", first_wait),
        )
        self._server: Server | None = None
        self._inherited: list[Server] = []
        self._closed = False

    def __repr__(self) -> str:
        # a traceback that shows variables also shows an object whose constructor failed
        return f"RemoteScorer({self.name!r})" if hasattr(self, "_options") else "RemoteScorer()"

    @property
    def name(self) -> str:
        """Dialect, address, model and deployment; never the key.

        It does not change if the server's model is replaced behind the same address and name.
        """
        options = self._options
        dialect = "auto" if options.dialect is None else options.dialect.name
        about = [text for text in (options.model, options.deployment) if text is not None]
        return f"{dialect}:{options.address.url}[{','.join(about)}]"

    @property
    def scale(self) -> Scale:
        """The scale of the server's scores; with `dialect="auto"` the first use asks the server."""
        if self._options.dialect is not None:
            return self._options.dialect.scale
        return transport.run(self._recognised(seconds_left()))[0].scale

    def probe(self) -> ServerInfo:
        """Recognise and test the server now, and return what is known of it.

        Raises `UnsupportedModel` if its model is not a reranker or its scores are not on the
        dialect's scale, and what `score` raises.
        """
        return transport.run(self._recognised(seconds_left()))[1]

    def score(self, pairs: Iterable[Any]) -> FloatArray:
        """One raw score per pair, float32, in the given order; equal pairs are sent once.

        `pairs` is a list of (query, passage), a list of {"query":, "passage":}, or a pandas
        DataFrame with those columns, for which a Series with its index is returned.

        If a service gives only probabilities and a query's passages fit into one request, ties are
        broken in the service's order, by the smallest float32 steps; other ties remain.

        Raises `InvalidInputError`, and with the scores that arrived as `partial`:
        `ScoringTimeout` at the time limit, `RemoteUnavailable` if the server is not reached or
        fails after the retries, `RemoteRefused`, `RemoteAnswerError`.
        """
        read = read_pairs(pairs)
        with timed("computing"):
            scores = transport.run(self._scores(read, seconds_left()))
        return like_input(pairs, scores)

    async def ascore(self, pairs: Iterable[Any]) -> FloatArray:
        """`score` without a thread, from any event loop; cancelling it stops the requests."""
        read = read_pairs(pairs)
        with timed("computing"):
            scores = await transport.arun(self._scores(read, seconds_left()))
        return like_input(pairs, scores)

    def close(self) -> None:
        """Close the connections; requests under way fail, and so does any later use."""
        self._closed = True
        server, self._server = self._server, None
        if server is not None and server.process == os.getpid():
            transport.run(server.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a RemoteScorer is not pickled, because it holds a key and connections; create one "
            "where it is needed, or pickle an adapter, which does so by itself"
        )

    async def _recognised(self, left: float | None) -> tuple[Dialect, ServerInfo]:
        deadline = _deadline(left)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._current_server().known(deadline)
        except TimeoutError:
            pass
        url = self._options.address.url
        raise ScoringTimeout(f"the time limit passed before {url} was recognised and tested")

    async def _scores(self, pairs: Sequence[Pair], left: float | None) -> FloatArray:
        first: dict[Pair, int] = {}  # the position of each distinct pair
        for position, pair in enumerate(pairs):
            first.setdefault(pair, position)
        row_of = {pair: row for row, pair in enumerate(first)}
        rows = [row_of[pair] for pair in pairs]
        found = np.full(len(first), np.nan, dtype=np.float32)
        if not pairs:
            return found
        url, deadline = self._options.address.url, _deadline(left)
        try:
            async with asyncio.timeout_at(deadline):
                await self._current_server().score(first, found, deadline)
            facts = {"model": self._options.model or url, "server": url}
            note({"computed": len(first)}, facts)
            return found[rows]
        except ScoringFailed as error:
            error.partial = _partial(found[rows])
            raise
        except TimeoutError:
            pass
        scored = int(np.isfinite(found[rows]).sum())
        raise ScoringTimeout(
            f"the time limit passed when {url} had scored {scored} of {len(pairs)} pairs",
            partial=_partial(found[rows]),
        )

    def _current_server(self) -> Server:
        """The connections of this process, created on the event loop they are used on."""
        if self._closed:
            raise RerankError(
                f"the scorer of {self._options.address.url} was closed; load it again"
            )
        if self._server is None or self._server.process != os.getpid():
            if self._server is not None:
                self._inherited.append(self._server)  # its sockets belong to the parent process
            self._server = Server(self._options)
            weakref.finalize(self, _close_abandoned, self._server)
        return self._server


def _close_abandoned(server: Server) -> None:
    if server.process == os.getpid():
        transport.submit(server.close())


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
            f"the key, from api_key or {variable}, has a character that HTTP headers cannot carry"
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
