"""One server as one process sees it: recognised and tested at the first use, then asked for scores.

Created and used on the event loop of `event_loop.py`.
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import InstanceOf

from bge_rerank_integrations.base.address import Address
from bge_rerank_integrations.errors import RemoteAnswerError, RemoteError, UnsupportedModel
from bge_rerank_integrations.options import Count, RequestOptions, Seconds, secret_text
from bge_rerank_integrations.remote.client import Client, Reply, Request, check_success
from bge_rerank_integrations.remote.dialects import (
    DIALECTS,
    Dialect,
    check_dialect_options,
    request_body,
)
from bge_rerank_integrations.remote.handshake import PAGES, SENTENCES, ServerInfo, check_scores
from bge_rerank_integrations.remote.messages import (
    Chunk,
    parse_json,
    read_answer,
    split_pairs,
    to_json,
)
from bge_rerank_integrations.types import FloatArray, Pair


class RemoteOptions(RequestOptions):
    """The options of a `RemoteScorer`."""

    model: str | None = None
    """Model to request, for dialects that name models."""
    dialect: InstanceOf[Dialect] | str = "auto"  # type: ignore[assignment]  # wider than a flag
    """The server's protocol, by name or as a Dialect; 'auto' asks the server."""
    batch_size: Count = None
    """Most passages in a request; None: as many as the server takes."""
    first_wait: Seconds = 0.5
    """Most seconds before the first retry, doubled for each other."""


class Server:
    """A client, and what the first use found out about the server."""

    def __init__(self, address: Address, options: RemoteOptions) -> None:
        self.process = os.getpid()
        self._address, self._options = address, options
        self._client = Client(options, first_wait=options.first_wait)
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
                # a gateway that speaks a hosted service's protocol may serve any model
                elsewhere = dialect.hosts and self._address.host not in dialect.hosts
                if dialect.self_hosted or elsewhere:
                    await self._test(dialect, info)
                self._known = dialect, info
        return self._known

    async def score(self, pairs: Sequence[Pair], scores: FloatArray) -> None:
        """Fill `scores`, one per pair; scores that arrived before a failure stay filled in.

        Equal pairs are sent once. After a failure no further request is sent; those under way are
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
                        await self._fill(scores, dialect, info, chunk)
                    except Exception:
                        failed.set()
                        raise

        # not all at once: callers who share the client take turns
        workers = [work() for _ in range(min(len(chunks), self._options.max_concurrency))]
        for error in await asyncio.gather(*workers, return_exceptions=True):
            if error is not None:
                raise error

    async def _fill(
        self, scores: FloatArray, dialect: Dialect, info: ServerInfo, chunk: Chunk
    ) -> None:
        """One request; if the server finds it too large, two of half the size."""
        found = await self._ask(dialect, info, chunk)
        if found is None:
            for half in chunk.halves():
                await self._fill(scores, dialect, info, half)
            return
        for rows, score in zip(chunk.passages.values(), found, strict=True):
            scores[rows] = score

    async def close(self) -> None:
        await self._client.close()

    async def _ask(
        self, dialect: Dialect, info: ServerInfo, chunk: Chunk, *, logits: bool = True
    ) -> FloatArray | None:
        """The scores of one request, or None if the server accepts only fewer passages."""
        passages, options = list(chunk.passages), self._options
        model = options.model or (info.model if dialect.needs_model else None)
        body = request_body(dialect, chunk.query, passages, model=model, logits=logits)
        request = Request(
            self._address.with_path(dialect.path, model=model),
            self._headers(dialect),
            to_json(body),
            private=[chunk.query, *passages],
            status_header=dialect.status_header,
        )
        with _naming(f"{dialect.name} at {request.url}"):
            reply = await self._client.send(request)
            if reply.status in dialect.too_large and passages[1:]:
                return None
            check_success(reply, request)
            return read_answer(
                dialect,
                parse_json(reply.body),
                len(passages),
                break_ties=chunk.whole and dialect.order_breaks_ties,
            )

    def _headers(self, dialect: Dialect) -> dict[str, str]:
        headers = dict(dialect.headers)
        if dialect.deployment_header and self._options.deployment:
            headers[dialect.deployment_header] = self._options.deployment
        key = secret_text(self._options.api_key)
        if key is not None:
            headers[dialect.key_header] = dialect.key_prefix + key
        return headers

    async def _recognise(self) -> ServerInfo:
        for path, read_page in PAGES:
            # every server that has such a page takes its key in the same header
            request = Request(self._address.with_path(path), self._headers(DIALECTS["tei"]))
            reply = await self._client.send(request)
            if reply.status in (401, 403):
                check_success(reply, request)
            info = read_page(_read_page(reply), self._options.model)
            if info is not None:
                return info
        raise RemoteAnswerError(
            f"does not say what it is; set dialect to one of {', '.join(DIALECTS)}"
        )

    async def _test(self, dialect: Dialect, info: ServerInfo) -> None:
        passages = {sentence: [row] for row, sentence in enumerate(SENTENCES)}
        asked = [(sentence, True) for sentence in SENTENCES]
        if dialect.probabilities:
            asked.append((SENTENCES[0], False))
        scores = []
        for sentence, logits in asked:
            chunk = Chunk(sentence, passages, whole=False)
            scores.append(await self._ask(dialect, info, chunk, logits=logits))
        with _naming(f"{dialect.name} at {self._address.url}"):
            check_scores(dialect.scale, *scores)


def _read_page(reply: Reply) -> Any:
    """The JSON of an answer; None if it is a failure, or a page for people."""
    if reply.status != 200:
        return None
    try:
        return parse_json(reply.body)
    except RemoteAnswerError:
        return None


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Begin the messages of errors about a server with its name."""
    try:
        yield
    except (RemoteError, UnsupportedModel) as error:
        error.args = (f"{source} {error}",)
        raise
