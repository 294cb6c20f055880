"""The scorer whose model runs on a server, for threads and for any event loop."""

import asyncio
import logging
import os
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
from pydantic import SecretStr

from bge_rerank_integrations.base.address import read_address
from bge_rerank_integrations.base.contract import like_input, read_pairs
from bge_rerank_integrations.base.deadline import seconds_left
from bge_rerank_integrations.base.option_group import read_options, secret_text, write_out
from bge_rerank_integrations.base.proxy import find_proxy
from bge_rerank_integrations.base.trace import note, timed
from bge_rerank_integrations.errors import (
    InvalidInputError,
    RerankError,
    ScoringFailed,
    ScoringTimeout,
)
from bge_rerank_integrations.remote import event_loop
from bge_rerank_integrations.remote.dialects import (
    Dialect,
    check_dialect_options,
    find_dialect,
)
from bge_rerank_integrations.remote.handshake import ServerInfo
from bge_rerank_integrations.remote.server import RemoteOptions, Server
from bge_rerank_integrations.types import FloatArray, Pair, Scale

logger = logging.getLogger("bge_rerank_integrations")

P = ParamSpec("P")
T = TypeVar("T")

KEY_VARIABLE = "BGE_RERANK_API_KEY"
"""The key's environment variable for most dialects, and while the dialect is unknown."""


def _with_keywords(
    _cls: Callable[P, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, str, P], None]]:
    return lambda function: write_out(function, RemoteOptions)


class RemoteScorer:
    """A reranker on a server; see `types.Scorer` for the laws that it obeys.

    `dialect` is the server's protocol, by name or as a `Dialect`; with `"auto"` the server is
    recognised at the first use. `model` is the model to request, for dialects that name models, and
    `deployment` that of an Azure endpoint. Without `api_key`, the key is read from the dialect's
    environment variable, if it is set.

    For the other options see `RemoteOptions`; `max_concurrency` counts the requests of all threads
    and event loops. Failed connections and the statuses 408, 429, 500, 502, 503 and 504 are
    retried, after random waits below `first_wait`, then twice that, and so on, or after as long as
    `Retry-After` says. Requests go through the proxy that the environment names for the address:
    see docs/networks.md.

    Raises `InvalidInputError` for an invalid address, option or proxy, and if a hosted service's
    key is missing; `MissingExtra` for a SOCKS proxy without its package. Nothing is sent yet: at
    the first use, a server of your own is tested with two sentences, to see that it serves a
    reranker and on which scale.
    """

    @_with_keywords(RemoteOptions)
    def __init__(self, base_url: str, **options: Any) -> None:
        read = read_options(RemoteOptions, options, caller="RemoteScorer")
        address, variable, hosted = read_address(base_url), KEY_VARIABLE, False
        if isinstance(read.dialect, str):
            read.dialect = find_dialect(read.dialect, address.host) or read.dialect
        if isinstance(read.dialect, Dialect):
            check_dialect_options(read.dialect, read.model, read.deployment)
            variable = read.dialect.key_variable
            hosted = address.host in read.dialect.hosts
        read.api_key = _read_key(secret_text(read.api_key), variable)
        if hosted and read.api_key is None:
            raise InvalidInputError(f"{address.host} needs a key: pass api_key, or set {variable}")
        self._proxy = find_proxy(address)
        if read.api_key and not (address.encrypted or address.on_this_machine):
            hop = f"the proxy of {self._proxy.variable}" if self._proxy else "the network"
            logger.warning("the key for %s goes over %s unencrypted", address.url, hop)
        self._address, self._options = address, read
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
        dialect, options = self._options.dialect, self._options
        named = dialect.name if isinstance(dialect, Dialect) else dialect
        about = [text for text in (options.model, options.deployment) if text is not None]
        return f"{named}:{self._address.url}[{','.join(about)}]"

    @property
    def scale(self) -> Scale:
        """The scale of the server's scores.

        With the dialects `"auto"` and those of vLLM, whose older versions give only probabilities,
        the first use asks the server.
        """
        dialect = self._options.dialect
        if isinstance(dialect, Dialect) and not dialect.generations:
            return dialect.scale
        return event_loop.run(self._recognised)[0].scale

    def probe(self) -> ServerInfo:
        """Recognise and test the server now; returns its dialect, model and limit.

        Raises `UnsupportedModel` if its model is not a reranker or its scores are not on the
        dialect's scale, and what `score` raises.
        """
        return event_loop.run(self._recognised)[1]

    def score(self, pairs: Iterable[Any]) -> FloatArray:
        """One raw score per pair, float32, in the given order; equal pairs are sent once.

        `pairs` is a list of (query, passage), a list of {"query":, "passage":}, or a pandas
        DataFrame with those columns, for which a Series with its index is returned.

        Raises `InvalidInputError`, and with the scores that arrived as `partial`:
        `ScoringTimeout` at the time limit, `RemoteUnavailable` if the server is not reached or
        fails after the retries, `RemoteRefused`, `RemoteAnswerError`.
        """
        read = read_pairs(pairs)
        with timed("computing"):
            scores = event_loop.run(partial(self._scores, read))
        return like_input(pairs, scores)

    async def ascore(self, pairs: Iterable[Any]) -> FloatArray:
        """`score` without a thread, from any event loop; cancelling it stops the requests."""
        read = read_pairs(pairs)
        with timed("computing"):
            scores = await event_loop.arun(partial(self._scores, read))
        return like_input(pairs, scores)

    def close(self) -> None:
        """Close the connections; open requests fail, and so does any later use."""
        self._closed = True
        server, self._server = self._server, None
        if server is not None and server.process == os.getpid():
            event_loop.run(server.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a RemoteScorer is not pickled, because it holds a key and connections; create one "
            "where it is needed, or pickle an adapter, which does so by itself"
        )

    async def _recognised(self) -> tuple[Dialect, ServerInfo]:
        late = f"before {self._address.url} was recognised and tested"
        return await _in_time(self._current_server().known(), lambda: late)

    async def _scores(self, pairs: Sequence[Pair]) -> FloatArray:
        scores, url = np.full(len(pairs), np.nan, dtype=np.float32), self._address.url
        if not pairs:
            return scores

        def late() -> str:
            return f"when {url} had scored {np.isfinite(scores).sum()} of {len(pairs)} pairs"

        try:
            await _in_time(self._current_server().score(pairs, scores), late)
        except ScoringFailed as error:
            error.partial = scores if np.isfinite(scores).any() else None
            raise
        note({"computed": len(set(pairs))}, {"model": self._options.model or url, "server": url})
        return scores

    def _current_server(self) -> Server:
        """The connections of this process, created on the event loop they are used on."""
        if self._closed:
            raise RerankError(f"the scorer of {self._address.url} was closed; load it again")
        if self._server is None or self._server.process != os.getpid():
            if self._server is not None:
                self._inherited.append(self._server)  # its sockets belong to the parent process
            self._server = Server(self._address, self._options, self._proxy)
            weakref.finalize(self, _close_abandoned, self._server)
        return self._server


def _close_abandoned(server: Server) -> None:
    if server.process == os.getpid():
        event_loop.submit(server.close())


async def _in_time(work: Awaitable[T], late: Callable[[], str]) -> T:
    try:
        async with asyncio.timeout(seconds_left()):
            return await work
    except TimeoutError:
        pass  # raised below, without the library's frames, which hold the key
    raise ScoringTimeout(f"the time limit passed {late()}")


def _read_key(api_key: str | None, variable: str) -> SecretStr | None:
    key = api_key if api_key is not None else os.environ.get(variable)
    if not key:
        return None
    if not key.isascii() or not key.isprintable():
        raise InvalidInputError(
            f"the key, from api_key or {variable}, has a character that HTTP headers cannot carry"
        )
    return SecretStr(key)
