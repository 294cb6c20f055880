"""The connection of one process to one server, which is recognised and tested at the first use.

Created and used on the event loop of `event_loop.py`.
"""

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import InstanceOf

from bge_rerank_integrations.base.address import Address
from bge_rerank_integrations.base.option_group import Count, Seconds, secret_text
from bge_rerank_integrations.base.proxy import Proxy
from bge_rerank_integrations.errors import (
    RemoteAnswerError,
    RemoteError,
    RemoteRefused,
    UnsupportedModel,
)
from bge_rerank_integrations.options import RequestOptions
from bge_rerank_integrations.remote.client import Client, Reply, Request, check_success
from bge_rerank_integrations.remote.dialects import (
    DIALECTS,
    Dialect,
    check_dialect_options,
    request_body,
)
from bge_rerank_integrations.remote.handshake import PAGES, SENTENCES, ServerInfo, settle_scale
from bge_rerank_integrations.remote.messages import (
    Chunk,
    parse_json,
    read_answer,
    split_pairs,
    to_json,
)
from bge_rerank_integrations.types import FloatArray, Pair

logger = logging.getLogger("bge_rerank_integrations")


class RemoteOptions(RequestOptions):
    """The options of a `RemoteScorer`."""

    model: str | None = None
    """Model to request, for dialects that name models."""
    dialect: InstanceOf[Dialect] | str = "auto"  # type: ignore[assignment]  # wider than a flag
    """The server's protocol, by name or as a Dialect; 'auto' detects it."""
    batch_size: Count = None
    """Maximum passages in a request; None: the server's limit."""
    first_wait: Seconds = 0.5
    """Maximum seconds before the first retry; doubled for each further one."""


class Server:
    """A client, and the dialect and information that the first use found."""

    def __init__(self, address: Address, options: RemoteOptions, proxy: Proxy | None) -> None:
        self.process = os.getpid()
        self._address, self._options = address, options
        self._client = Client(options, first_wait=options.first_wait, proxy=proxy)
        self._first_use = asyncio.Lock()
        self._known: tuple[Dialect, ServerInfo] | None = None

    async def known(self) -> tuple[Dialect, ServerInfo]:
        """The server's dialect and information, determined at the first call.

        Raises `UnsupportedModel` if the model is not a reranker or its scores are not on the
        dialect's scale, `RemoteAnswerError` if no dialect is recognised, and what `Client.send`
        raises.
        """
        async with self._first_use:
            if self._known is None:
                dialect = self._options.dialect
                if isinstance(dialect, Dialect):
                    info = ServerInfo(dialect.name, self._options.model, dialect.max_documents)
                else:
                    with _naming(f"the server at {self._address.url}"):
                        info = await self._recognise()
                    dialect = DIALECTS[info.dialect]
                check_dialect_options(dialect, info.model, self._options.deployment)
                self._model = self._options.model or (info.model if dialect.needs_model else None)
                # a gateway that speaks a hosted service's protocol may serve any model
                elsewhere = dialect.hosts and self._address.host not in dialect.hosts
                if dialect.self_hosted or elsewhere:
                    dialect = await self._test(dialect)
                self._known = dialect, info
        return self._known

    async def score(self, pairs: Sequence[Pair], scores: FloatArray) -> None:
        """Fill `scores`, one per pair; scores that arrived before a failure stay filled in.

        Equal pairs are sent once. After a failure no further request is sent; open requests are
        awaited.
        """
        dialect, info = await self.known()
        chunks = split_pairs(
            pairs,
            max_documents=self._options.batch_size or info.max_documents,
            max_bytes=dialect.max_bytes,
            repeats_query=dialect.repeats_query,
        )
        remaining, failed = iter(chunks), asyncio.Event()

        async def work() -> None:
            for chunk in remaining:
                async with self._client.slots:
                    if failed.is_set():
                        return
                    try:
                        await self._fill(scores, dialect, chunk)
                    except Exception:  # of any kind: it ends the other requests, and is raised
                        failed.set()
                        raise

        # not all at once: callers who share the client take turns
        workers = [work() for _ in range(min(len(chunks), self._options.max_concurrency))]
        for error in await asyncio.gather(*workers, return_exceptions=True):
            if error is not None:
                raise error

    async def _fill(self, scores: FloatArray, dialect: Dialect, chunk: Chunk) -> None:
        """One request; if the server finds it too large, two of half the size."""
        found = await self._ask(dialect, chunk)
        if found is None:
            for half in chunk.halves():
                await self._fill(scores, dialect, half)
            return
        for rows, score in zip(chunk.passages.values(), found, strict=True):
            scores[rows] = score

    async def close(self) -> None:
        await self._client.close()

    async def _ask(
        self, dialect: Dialect, chunk: Chunk, *, logits: bool = True
    ) -> FloatArray | None:
        """The scores of one request, or None if the server accepts only fewer passages."""
        passages = list(chunk.passages)
        body = request_body(dialect, chunk.query, passages, model=self._model, logits=logits)
        request = self._request(
            dialect,
            self._address.with_path(dialect.path, model=self._model),
            body=to_json(body),
            private=[chunk.query, *passages],
        )
        with _naming(f"{dialect.name} at {request.url}"):
            reply = await self._client.send(request)
            if reply.status in dialect.too_large and passages[1:]:
                return None
            check_success(reply, request)
            return read_answer(dialect, await _parse(reply, len(passages)), len(passages))

    def _request(
        self,
        dialect: Dialect,
        url: str,
        body: bytes | None = None,
        private: Sequence[str] = (),
    ) -> Request:
        headers, key = dict(dialect.headers), secret_text(self._options.api_key)
        if dialect.deployment_header and self._options.deployment:
            headers[dialect.deployment_header] = self._options.deployment
        if key is not None:
            headers[dialect.key_header] = dialect.key_prefix + key
        return Request(url, headers, key, body, private, dialect.status_header)

    async def _recognise(self) -> ServerInfo:
        for path, read_page in PAGES:
            # every server that has such a page takes its key in the same header
            request = self._request(DIALECTS["tei"], self._address.with_path(path))
            reply = await self._client.send(request)
            if reply.status in (401, 403):
                check_success(reply, request)
            if reply.status != 200:
                continue
            try:
                page = await _parse(reply, 0)
            except RemoteAnswerError:
                continue  # a page for people, at an address that only other servers use
            info = read_page(page, self._options.model, request.key)
            if info is not None:
                return info
        raise RemoteAnswerError(
            f"does not say what it is; set dialect to one of {', '.join(DIALECTS)}"
        )

    async def _test(self, dialect: Dialect) -> Dialect:
        """The dialect as this server speaks it."""
        try:
            scores = await self._trial(dialect)
        except RemoteRefused:
            if not dialect.generations:
                raise
            dialect = replace(dialect, options={})
            scores = await self._trial(dialect)
        with _naming(f"{dialect.name} at {self._address.url}"):
            settled = settle_scale(dialect, *scores)
        if settled.scale != dialect.scale:
            logger.warning(
                "%s at %s gives no logits for its probabilities, so scores are probabilities",
                dialect.name,
                self._address.url,
            )
        return settled

    async def _trial(self, dialect: Dialect) -> list[FloatArray | None]:
        """The scores of two sentences against each other; of the first also as probabilities."""
        requests = [(sentence, True) for sentence in SENTENCES]
        if dialect.probabilities:
            requests.append((SENTENCES[0], False))
        passages: dict[str, list[int]] = {sentence: [] for sentence in SENTENCES}
        return [
            await self._ask(dialect, Chunk(query, passages), logits=logits)
            for query, logits in requests
        ]


async def _parse(reply: Reply, results: int) -> Any:
    """The JSON of an answer; a long one is parsed on another thread than the event loop's."""
    if len(reply.body) < 100_000:
        return parse_json(reply.body, results)
    return await asyncio.to_thread(parse_json, reply.body, results)


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Put the server's name before the messages of errors about it."""
    try:
        yield
    except (RemoteError, UnsupportedModel) as error:
        error.args = (f"{source} {error}",)
        raise
