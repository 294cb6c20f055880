"""One server as one process sees it: what it is, what it is asked, what its answers are worth.

Lives on the event loop of `io_thread`, and is made there.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

from bge_rerank_integrations.base.address import Address, Secret
from bge_rerank_integrations.errors import InvalidInputError, RemoteAnswerError
from bge_rerank_integrations.remote.client import (
    Client,
    ClientOptions,
    Credentials,
    check_success,
    own_status,
)
from bge_rerank_integrations.remote.dialects import DIALECTS, Dialect, request_body
from bge_rerank_integrations.remote.handshake import PAGES, ServerInfo
from bge_rerank_integrations.remote.messages import Answer, parse_json, read_answer, separate_ties
from bge_rerank_integrations.remote.model_check import SENTENCES, check_model
from bge_rerank_integrations.remote.splitting import Chunk, split_pairs, to_json
from bge_rerank_integrations.types import FloatArray, Pair


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """What the caller asked for; None leaves it to the server or its dialect."""

    address: Address
    model: str | None
    dialect: Dialect | None
    deployment: str | None
    batch_size: int | None
    key: Secret | None
    client: ClientOptions


@dataclass(frozen=True, slots=True)
class Known:
    """What the first use finds out."""

    dialect: Dialect
    info: ServerInfo


class Server:
    """Recognised and tried once, then asked for scores."""

    def __init__(self, asked: ServerRequest) -> None:
        self.process = os.getpid()
        self._asked = asked
        self._client = Client(asked.client)
        self._first_use = asyncio.Lock()
        self._known: Known | None = None

    async def known(self, deadline: float | None) -> Known:
        """The dialect and what the server said of itself, found out at the first call.

        Raises `UnsupportedModel` if what it serves is no reranker, or its scores are not on the
        scale of the dialect; `RemoteAnswerError` if no dialect is recognised; and what asking
        raises.
        """
        async with self._first_use:
            if self._known is None:
                dialect = self._asked.dialect
                if dialect is None:
                    info = await self._recognise(deadline)
                    dialect = DIALECTS[info.dialect]
                else:
                    info = ServerInfo(dialect.name, self._asked.model, dialect.max_documents)
                check_dialect_options(dialect, info.model, self._asked.deployment)
                known = Known(dialect, info)
                if dialect.self_hosted:
                    await self._try_out(known, deadline)
                self._known = known
        return self._known

    async def score(
        self,
        pairs: Sequence[Pair],
        positions: Sequence[int],
        scores: FloatArray,
        deadline: float | None,
    ) -> None:
        """Fill `scores`, one for each pair; those that came before a failure stay filled in.

        After a failure no further request is begun; those under way are waited for.
        """
        known = await self.known(deadline)
        dialect, info = known.dialect, known.info
        chunks = split_pairs(
            pairs,
            positions,
            max_documents=self._asked.batch_size or info.max_documents,
            max_bytes=dialect.max_bytes,
            repeats_query=dialect.repeats_query,
        )
        waiting, failed = iter(chunks), asyncio.Event()

        async def work() -> None:
            for chunk in waiting:
                try:
                    async with self._client.slots:
                        if failed.is_set():
                            return
                        await self._fill(known, chunk, pairs, scores, deadline=deadline)
                except Exception:
                    failed.set()
                    raise

        workers = min(len(chunks), self._asked.client.max_concurrency)
        for error in await asyncio.gather(
            *(work() for _ in range(workers)), return_exceptions=True
        ):
            if error is not None:
                raise error

    async def close(self) -> None:
        await self._client.close()

    async def _fill(
        self,
        known: Known,
        chunk: Chunk,
        pairs: Sequence[Pair],
        scores: FloatArray,
        *,
        deadline: float | None,
    ) -> None:
        """One request's scores; halved and asked again where the server says it is too much."""
        passages = [pairs[index][1] for index in chunk.indices]
        answer = await self._answer(known, chunk.query, passages, deadline=deadline)
        if answer is not None:
            breaks_ties = chunk.whole and known.dialect.order_breaks_ties
            scores[list(chunk.indices)] = (
                separate_ties(answer.scores, answer.order) if breaks_ties else answer.scores
            )
            return
        half = len(passages) // 2
        for part in (chunk.indices[:half], chunk.indices[half:]):
            smaller = Chunk(chunk.query, part, whole=False)
            await self._fill(known, smaller, pairs, scores, deadline=deadline)

    async def _answer(
        self,
        known: Known,
        query: str,
        passages: Sequence[str],
        *,
        deadline: float | None,
        logits: bool = True,
    ) -> Answer | None:
        """The answer to one request, or None if the server takes fewer passages than these."""
        dialect = known.dialect
        model = self._asked.model or (known.info.model if dialect.needs_model else None)
        url = self._asked.address.with_path(dialect.path, model=model)
        source = f"{dialect.name} at {url}"
        reply = await self._client.ask(
            "POST",
            url,
            self._credentials(dialect),
            source=source,
            body=to_json(request_body(dialect, query, passages, model=model, logits=logits)),
            status_header=dialect.status_header,
            deadline=deadline,
        )
        status = own_status(reply, dialect.status_header)
        if status in dialect.too_large and len(passages) > 1:
            return None
        check_success(
            reply, source, status_header=dialect.status_header, private=[query, *passages]
        )
        return read_answer(dialect, parse_json(reply.body, source), len(passages), source)

    async def _recognise(self, deadline: float | None) -> ServerInfo:
        for path, reading in PAGES:
            url = self._asked.address.with_path(path)
            source = f"the server at {self._asked.address.url}"
            reply = await self._client.ask(
                "GET", url, self._credentials(None), source=source, deadline=deadline
            )
            if reply.status in (401, 403):
                check_success(reply, source, status_header=None, private=())
            if reply.status == 200:
                try:
                    page = parse_json(reply.body, source)
                except RemoteAnswerError:
                    continue  # a page for people, behind an address that another server has not
                info = reading(page, self._asked.model, source)
                if info is not None:
                    return info
        raise RemoteAnswerError(
            f"the server at {self._asked.address.url} does not say what it is; "
            f"give its dialect: one of {', '.join(DIALECTS)}"
        )

    async def _try_out(self, known: Known, deadline: float | None) -> None:
        source = f"{known.dialect.name} at {self._asked.address.url}"

        async def row(sentence: str, *, logits: bool = True) -> FloatArray:
            answer = await self._answer(
                known, sentence, SENTENCES, deadline=deadline, logits=logits
            )
            if answer is None:
                raise RemoteAnswerError(f"{source} says that two short passages are too much")
            return answer.scores

        scores = [await row(sentence) for sentence in SENTENCES]
        gives_both = bool(known.dialect.probabilities)
        probabilities = await row(SENTENCES[0], logits=False) if gives_both else None
        check_model(scores, probabilities, known.dialect.scale, source)

    def _credentials(self, dialect: Dialect | None) -> Credentials:
        headers = dict(dialect.headers) if dialect else {}
        if dialect and dialect.deployment_header and self._asked.deployment:
            headers[dialect.deployment_header] = self._asked.deployment
        return Credentials(
            headers=headers,
            key_header=dialect.key_header if dialect else "Authorization",
            key_prefix=dialect.key_prefix if dialect else "Bearer ",
            key=self._asked.key,
        )


def check_dialect_options(dialect: Dialect, model: str | None, deployment: str | None) -> None:
    """Raise `InvalidInputError` for an option that the dialect lacks or needs."""
    if deployment is not None and dialect.deployment_header is None:
        raise InvalidInputError(
            f"deployment is {deployment!r}, and {dialect.name} has no deployments"
        )
    if model is None and (dialect.needs_model or "{model}" in dialect.path):
        raise InvalidInputError(f"{dialect.name} serves several models; name one with model=...")
