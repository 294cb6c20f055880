"""A reranker as a Ray Serve application, in the dialects of TEI and of Cohere and Jina.

Ray Serve has the HTTP server, the replicas and their restarts. This adds what a reranker needs:
requests scored together, a bound on what waits, a key, and answers that existing clients read.
"""

import asyncio
import hmac
import os
import time
from pathlib import Path
from typing import Any, Self

from bge_rerank_integrations.errors import (
    InvalidInputError,
    MissingExtra,
    RerankError,
    ScoringFailed,
)
from bge_rerank_integrations.types import FloatArray

try:
    from pydantic import Field, model_validator
    from ray import serve
    from ray.serve import metrics
    from starlette.requests import Request
    from starlette.responses import Response
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("ray", "pydantic", "starlette", "fastapi"):
        raise
    raise MissingExtra(str(error.name), "ray") from error

from bge_rerank_integrations.adapter_base import ScorerFields
from bge_rerank_integrations.base.deadline import in_worker
from bge_rerank_integrations.base.raw_scores import checked_scores
from bge_rerank_integrations.serve.protocol import (
    Refusal,
    RerankCall,
    answer_bytes,
    read_call,
    refuse_other_model,
    write_answer,
)

__all__ = ["ServeSettings", "rerank_app"]

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")


class ServeSettings(ScorerFields):
    """Which model is served and within which bounds; every option of `load_scorer` is a field."""

    served_names: tuple[str, ...] = Field(
        default=(), description="Names that a request may call the model by, beside its own."
    )
    api_key_variable: str | None = Field(
        default=None,
        description="Environment variable of the replicas that holds the bearer key; None asks "
        "for none.",
    )
    replicas: int = Field(default=1, ge=1, description="Copies of the model.")
    cpus: float = Field(default=1, ge=0, description="CPUs of a replica.")
    gpus: float = Field(default=0, ge=0, description="GPUs of a replica; may be a part of one.")
    max_passages: int = Field(default=1000, ge=1, description="Most passages in a request.")
    max_batch_pairs: int = Field(
        default=1024, ge=1, description="Most pairs that are scored together."
    )
    max_waiting_pairs: int = Field(
        default=4096, ge=1, description="Most pairs in a replica, scored or waiting; then 429."
    )
    max_body_bytes: int = Field(default=8_000_000, ge=1, description="Largest request.")
    batch_wait: float = Field(
        default=0.005, ge=0, description="Seconds to wait for more requests to score together."
    )

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if not self.max_passages <= self.max_batch_pairs <= self.max_waiting_pairs:
            raise ValueError(
                f"max_passages={self.max_passages}, max_batch_pairs={self.max_batch_pairs} and "
                f"max_waiting_pairs={self.max_waiting_pairs} must not fall: a request must fit "
                "into a batch, and a batch into what may wait"
            )
        return self

    def names(self) -> tuple[str, ...]:
        """What requests may call the model; the first name is the one that answers give."""
        own = Path(self.model).name if Path(self.model).is_dir() else self.model
        return (own, *self.served_names)


def rerank_app(settings: ServeSettings) -> serve.Application:
    """The application, for `ray.serve.run` or as an `import_path` with `args` in a Serve config.

    Routes: POST /rerank, /v1/rerank and /v2/rerank take TEI's requests and Cohere's and Jina's;
    GET /info says what is served, GET /health whether it can be. With `api_key_variable` all but
    /health ask for the key as a bearer token. Answers with 429 when `max_waiting_pairs` wait.

    Metrics are Ray's, at each node's metrics port: ray_bge_rerank_requests_total by status,
    ray_bge_rerank_batch_pairs, ray_bge_rerank_batch_seconds and ray_bge_rerank_waiting_pairs.
    """
    deployed = serve.deployment(
        name="reranker",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        # every request reaches the replica, which refuses at its own bound: Serve's would be a 503
        max_ongoing_requests=2 * settings.max_waiting_pairs,
        max_queued_requests=2 * settings.max_waiting_pairs,
        health_check_timeout_s=60,
    )(_Replica)
    return deployed.bind(settings)


class _Replica:
    """One copy of the model; Ray Serve calls it for each request."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._names = settings.names()
        self._key = _read_key(settings.api_key_variable)
        self._scorer = settings.loaded_scorer()
        if self._scorer.scale == "cosine":
            raise InvalidInputError(
                f"{self._names[0]} is an embedder, whose cosines are no reranker's scores: clients "
                "of these protocols expect 0 to 1; serve a reranker"
            )
        self._waiting = 0
        self._batch.set_max_batch_size(settings.max_batch_pairs)  # type: ignore[attr-defined]
        self._batch.set_batch_wait_timeout_s(settings.batch_wait)  # type: ignore[attr-defined]
        self._requests = metrics.Counter(
            "bge_rerank_requests_total", "Requests by HTTP status.", tag_keys=("status",)
        )
        self._batch_pairs = metrics.Histogram(
            "bge_rerank_batch_pairs", "Pairs scored together.", boundaries=[1, 8, 32, 128, 512]
        )
        self._batch_seconds = metrics.Histogram(
            "bge_rerank_batch_seconds", "Time of a batch.", boundaries=[0.01, 0.03, 0.1, 0.3, 1, 3]
        )
        self._waiting_pairs = metrics.Gauge("bge_rerank_waiting_pairs", "Pairs in the replica.")

    async def __call__(self, request: Request) -> Response:
        try:
            status, answer = 200, await self._answer(request)
        except Refusal as refusal:
            status, answer = refusal.status, refusal.body()
        self._requests.inc(tags={"status": str(status)})
        headers = {"Retry-After": "1"} if status == 429 else {}
        if status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        return Response(answer_bytes(answer), status, headers, media_type="application/json")

    async def check_health(self) -> None:
        """Called by Ray Serve; a replica that cannot score is replaced."""
        await in_worker(checked_scores, self._scorer, [("health", "check")])

    async def _answer(self, request: Request) -> Any:
        route = request.method, request.url.path
        if route == ("GET", "/health"):
            await self.check_health()
            return {"status": "ok"}
        self._check_key(request)
        if route == ("GET", "/info"):
            return self._info()
        if request.method != "POST" or request.url.path not in RERANK_PATHS:
            raise Refusal(404, "NotFound", "POST /rerank, GET /info and GET /health are served")
        call = read_call(await self._read(request), most=self._settings.max_passages)
        refuse_other_model(call.model, self._names)
        pairs = len(call.passages)
        if self._waiting + pairs > self._settings.max_waiting_pairs:
            raise Refusal(429, "Overloaded", "too many pairs are waiting; try again later")
        self._waiting += pairs
        self._waiting_pairs.set(self._waiting)
        try:
            scores = await self._batch(call)
        finally:
            self._waiting -= pairs
            self._waiting_pairs.set(self._waiting)
        if isinstance(scores, ScoringFailed):
            raise Refusal(424, "Backend", str(scores))
        if isinstance(scores, RerankError):
            raise Refusal(422, "Validation", str(scores))
        return write_answer(call, scores, self._scorer.scale, self._names[0])

    @serve.batch(
        batch_size_fn=lambda calls: sum(len(call.passages) for call in calls),
        max_concurrent_batches=2,
    )
    async def _batch(self, calls: list[RerankCall]) -> list[FloatArray | RerankError]:
        """The scores of each call; an error of one is not the others'."""
        try:
            return list(await self._score(calls))
        except RerankError as error:
            if len(calls) == 1:
                return [error]
        alone = await asyncio.gather(
            *(self._score([call]) for call in calls), return_exceptions=True
        )
        found: list[FloatArray | RerankError] = []
        for outcome in alone:
            if isinstance(outcome, RerankError):
                found.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                found += outcome
        return found

    async def _score(self, calls: list[RerankCall]) -> list[FloatArray]:
        began = time.perf_counter()
        pairs = [pair for call in calls for pair in call.pairs]
        scores = await in_worker(checked_scores, self._scorer, pairs)
        self._batch_pairs.observe(len(pairs))
        self._batch_seconds.observe(time.perf_counter() - began)
        found, start = [], 0
        for call in calls:
            found.append(scores[start : start + len(call.passages)])
            start += len(call.passages)
        return found

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._settings.max_body_bytes:
                raise Refusal(
                    413, "Validation", f"the body exceeds {self._settings.max_body_bytes} bytes"
                )
        return bytes(body)

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._key is not None and not hmac.compare_digest(
            given.encode(), f"Bearer {self._key}".encode()
        ):
            raise Refusal(401, "Unauthorized", "the bearer key is missing or wrong")

    def _info(self) -> dict[str, Any]:
        """What TEI's /info has, as far as it is true here."""
        return {
            "model_id": self._names[0],
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_client_batch_size": self._settings.max_passages,
            "auto_truncate": True,
        }


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InvalidInputError(
            f"{variable} is not set where the replica runs, so no key could be asked for; set it "
            "there, for example in the runtime_env of the application"
        )
    return key
