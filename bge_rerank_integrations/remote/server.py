"""One server as one process sees it: recognised and tested at the first use, then asked for scores.

Created and used on the event loop of `transport.py`.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bge_rerank_integrations.base.address import Address, Secret
from bge_rerank_integrations.errors import InvalidInputError, RemoteAnswerError
from bge_rerank_integrations.remote.client import (
    Client,
    ClientConfig,
    HttpRequest,
    check_success,
    effective_status,
)
from bge_rerank_integrations.remote.dialects import DIALECTS, Dialect, request_body
from bge_rerank_integrations.remote.handshake import PAGES, SENTENCES, ServerInfo, check_scores
from bge_rerank_integrations.remote.messages import (
    Answer,
    Chunk,
    parse_json,
    read_answer,
    separate_ties,
    split_pairs,
    to_json,
)
from bge_rerank_integrations.types import FloatArray, Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(ClientConfig):
    """The caller's options; None leaves the choice to the server or its dialect."""

    address: Address
    model: str | None
    dialect: Dialect | None
    deployment: str | None
    batch_size: int | None
    key: Secret | None


class Server:
    """A client, and what the first use found out about the server."""

    def __init__(self, options: ServerConfig) -> None:
        self.process = os.getpid()
        self._options = options
        self._client = Client(options)
        self._first_use = asyncio.Lock()
        self._known: tuple[Dialect, ServerInfo] | None = None

    async def known(self, deadline: float | None) -> tuple[Dialect, ServerInfo]:
        """The server's dialect and information, determined at the first call.

        Raises `UnsupportedModel` if the model is not a reranker or its scores are not on the
        dialect's scale, `RemoteAnswerError` if no dialect is recognised, and what `Client.send`
        raises.
        """
        async with self._first_use:
            if self._known is None:
                dialect, model = self._options.dialect, self._options.model
                if dialect is None:
                    info = await self._recognise(deadline)
                    dialect = DIALECTS[info.dialect]
                else:
                    info = ServerInfo(dialect.name, model, dialect.max_documents)
                check_dialect_options(dialect, info.model, self._options.deployment)
                # a gateway that speaks a hosted service's protocol may serve any model
                elsewhere = dialect.hosts and self._options.address.host not in dialect.hosts
                if dialect.self_hosted or elsewhere:
                    await self._test(dialect, info, deadline)
                self._known = dialect, info
        return self._known

    async def score(
        self, pairs: Mapping[Pair, int], scores: FloatArray, deadline: float | None
    ) -> None:
        """Fill `scores`, one per pair; scores that arrived before a failure stay filled in.

        `pairs` are distinct, each with its position in the caller's list.

        After a failure no further request is sent; those under way are awaited.
        """
        dialect, info = await self.known(deadline)
        listed = list(pairs)
        chunks = split_pairs(
            listed,
            list(pairs.values()),
            max_documents=self._options.batch_size or info.max_documents,
            max_bytes=dialect.max_bytes,
            repeats_query=dialect.repeats_query,
        )
        remaining, failed = iter(chunks), asyncio.Event()

        async def fill(chunk: Chunk) -> None:
            """One request; if the server finds it too large, two of half the size."""
            passages = [listed[index][1] for index in chunk.indices]
            answer = await self._ask(dialect, info, chunk.query, passages, deadline)
            if answer is None:
                half = len(passages) // 2
                for some in (chunk.indices[:half], chunk.indices[half:]):
                    await fill(Chunk(chunk.query, some, whole=False))
                return
            breaks_ties = chunk.whole and dialect.order_breaks_ties
            scores[list(chunk.indices)] = (
                separate_ties(answer.scores, answer.order) if breaks_ties else answer.scores
            )

        async def work() -> None:
            for chunk in remaining:
                try:
                    async with self._client.slots:
                        if failed.is_set():
                            return
                        await fill(chunk)
                except Exception:
                    failed.set()
                    raise

        workers = [work() for _ in range(min(len(chunks), self._options.max_concurrency))]
        for error in await asyncio.gather(*workers, return_exceptions=True):
            if error is not None:
                raise error

    async def close(self) -> None:
        await self._client.close()

    async def _ask(
        self,
        dialect: Dialect,
        info: ServerInfo,
        query: str,
        passages: Sequence[str],
        deadline: float | None,
        *,
        logits: bool = True,
    ) -> Answer | None:
        """The answer to one request, or None if the server accepts only fewer passages."""
        model = self._options.model or (info.model if dialect.needs_model else None)
        url = self._options.address.with_path(dialect.path, model=model)
        headers = dict(dialect.headers)
        if dialect.deployment_header and self._options.deployment:
            headers[dialect.deployment_header] = self._options.deployment
        request = HttpRequest(
            "POST",
            url,
            source=f"{dialect.name} at {url}",
            headers=headers,
            key=self._options.key,
            key_header=dialect.key_header,
            key_prefix=dialect.key_prefix,
            body=to_json(request_body(dialect, query, passages, model=model, logits=logits)),
            status_header=dialect.status_header,
            private=[query, *passages],
        )
        reply = await self._client.send(request, deadline)
        if effective_status(reply, dialect.status_header) in dialect.too_large and passages[1:]:
            return None
        check_success(reply, request)
        answer = parse_json(reply.body, request.source)
        return read_answer(dialect, answer, len(passages), request.source)

    async def _recognise(self, deadline: float | None) -> ServerInfo:
        address = self._options.address
        source = f"the server at {address.url}"
        for path, read_page in PAGES:
            url = address.with_path(path)
            request = HttpRequest("GET", url, source, headers={}, key=self._options.key)
            reply = await self._client.send(request, deadline)
            if reply.status in (401, 403):
                check_success(reply, request)
            if reply.status == 200:
                try:
                    page = parse_json(reply.body, source)
                except RemoteAnswerError:
                    continue  # an HTML page at an address that only other servers use
                info = read_page(page, self._options.model, source)
                if info is not None:
                    return info
        raise RemoteAnswerError(
            f"the server at {address.url} does not say what it is; set dialect to one of "
            f"{', '.join(DIALECTS)}"
        )

    async def _test(self, dialect: Dialect, info: ServerInfo, deadline: float | None) -> None:
        source = f"{dialect.name} at {self._options.address.url}"

        async def scores_of(sentence: str, *, logits: bool = True) -> FloatArray:
            answer = await self._ask(dialect, info, sentence, SENTENCES, deadline, logits=logits)
            if answer is None:
                raise RemoteAnswerError(f"{source} refuses two short passages as too large")
            return answer.scores

        scores = [await scores_of(sentence) for sentence in SENTENCES]
        probabilities = None
        if dialect.probabilities:
            probabilities = await scores_of(SENTENCES[0], logits=False)
        check_scores(scores, probabilities, dialect.scale, source)


def check_dialect_options(dialect: Dialect, model: str | None, deployment: str | None) -> None:
    """Raise `InvalidInputError` for an option that the dialect does not have, or needs."""
    if deployment is not None and dialect.deployment_header is None:
        raise InvalidInputError(
            f"deployment is {deployment!r}, but {dialect.name} has no deployments"
        )
    if model is None and (dialect.needs_model or "{model}" in dialect.path):
        raise InvalidInputError(f"{dialect.name} serves several models; name one with model=...")
