"""A reranker as a Ray Serve application, for clients of TEI, Cohere, Jina and vLLM.

Ray Serve provides the HTTP server, the replicas and their restarts. Requests first reach a front
end without a model, which reads them and survives if a replica of the model dies. A replica adds
batches over requests and a limit on waiting pairs.
"""

import hmac
import os
import time
from pathlib import Path
from typing import Any, Self

import numpy as np

from bge_rerank_integrations.errors import (
    InvalidInputError,
    RerankError,
    ScoringFailed,
    missing_extra,
)
from bge_rerank_integrations.types import FloatArray, MeasuresPairs, PairLength

with missing_extra("ray"):
    from pydantic import Field, model_validator
    from ray import serve
    from ray.exceptions import RayActorError, RayTaskError
    from ray.serve import metrics
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
    from ray.serve.handle import DeploymentHandle
    from starlette.requests import Request
    from starlette.responses import Response

from bge_rerank_integrations.adapter_base import ScorerFields
from bge_rerank_integrations.base.contract import checked_scores
from bge_rerank_integrations.base.deadline import in_worker
from bge_rerank_integrations.serve.protocol import (
    MODEL_PATHS,
    RERANK_PATHS,
    TEI,
    Refusal,
    RerankCall,
    answer_bytes,
    invalid,
    model_list,
    read_call,
    refuse_changed_texts,
    refuse_other_model,
    respond,
    tokens_read,
    unavailable,
    write_answer,
)

__all__ = ["ServeSettings", "rerank_app"]


class ServeSettings(ScorerFields):
    """The model to serve and its limits; every option of `load_scorer` is a field."""

    served_names: tuple[str, ...] = Field(
        default=(), description="Other names under which requests may ask for the model."
    )
    api_key_variable: str | None = Field(
        default=None,
        description="Environment variable of the replicas that holds the bearer key; without it, "
        "no key is required.",
    )
    replicas: int = Field(default=1, ge=1, description="Copies of the model.")
    cpus: float = Field(default=1, ge=0, description="CPUs of a replica.")
    gpus: float = Field(default=0, ge=0, description="GPUs of a replica; may be a fraction.")
    max_passages: int = Field(default=1000, ge=1, description="Maximum passages in a request.")
    max_batch_pairs: int = Field(default=1024, ge=1, description="Maximum pairs in a batch.")
    max_waiting_pairs: int = Field(
        default=4096, ge=1, description="Maximum pairs in a replica, scored or waiting; then 429."
    )
    max_body_bytes: int = Field(default=8_000_000, ge=1, description="Maximum size of a request.")
    batch_wait: float = Field(
        default=0.005,
        ge=0,
        description="Seconds to wait for more requests before a batch is scored.",
    )

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if not self.max_passages <= self.max_batch_pairs <= self.max_waiting_pairs:
            raise ValueError(
                f"max_passages={self.max_passages}, max_batch_pairs={self.max_batch_pairs} and "
                f"max_waiting_pairs={self.max_waiting_pairs} must not decrease: a request must fit "
                "into a batch, and a batch into the waiting pairs"
            )
        return self

    def names(self) -> tuple[str, ...]:
        """The names under which requests may ask for the model; answers have the first."""
        own = Path(self.model).name if Path(self.model).is_dir() else self.model
        return (own, *self.served_names)


def rerank_app(settings: ServeSettings) -> serve.Application:
    """The application, for `ray.serve.run` or as an `import_path` with `args` in a Serve config.

    POST /rerank, /v1/rerank and /v2/rerank accept requests of TEI, Cohere, Jina, vLLM, Infinity and
    Voyage, /v1/ranking those of NVIDIA's NIM and /v1/reranking those of Mixedbread;
    GET /info describes the model, GET /v1/models and /models list its names, GET /health checks it;
    all below the application's `route_prefix`. With `api_key_variable`, all but /health require the
    key as a bearer token. Above `max_waiting_pairs`, the answer is 429. If a replica dies, its
    requests are tried once more; the answer to the second failure is 503.

    Metrics are Ray's, at each node's metrics port: ray_bge_rerank_requests_total by status,
    ray_bge_rerank_batch_pairs, ray_bge_rerank_batch_seconds and ray_bge_rerank_waiting_pairs.
    """
    shared: dict[str, Any] = {
        "num_replicas": settings.replicas,
        # every request reaches the model, which refuses with 429; Serve would refuse with 503
        "max_ongoing_requests": 2 * settings.max_waiting_pairs,
        "max_queued_requests": 2 * settings.max_waiting_pairs,
    }
    model = serve.deployment(
        name="model",
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_timeout_s=60,
        **shared,
    )(_Model)
    front = serve.deployment(name="front", ray_actor_options={"num_cpus": 0}, **shared)(_Front)
    return front.bind(settings, model.bind(settings))


class _Front:
    """Reads requests and writes answers; called by Ray Serve for each request."""

    def __init__(self, settings: ServeSettings, model: DeploymentHandle[Any]) -> None:
        self._settings, self._model = settings, model
        self._names = settings.names()
        self._key = _read_key(settings.api_key_variable)
        self._requests = metrics.Counter(
            "bge_rerank_requests_total", "Requests by HTTP status.", tag_keys=("status",)
        )

    async def __call__(self, request: Request) -> Response:
        answer: bytes | Refusal
        try:
            answer = await self._answer(request)
        except Refusal as refusal:
            answer = refusal
        response = respond(answer)
        self._requests.inc(tags={"status": str(response.status_code)})
        return response

    async def _answer(self, request: Request) -> bytes | Refusal:
        # the path begins with the application's route_prefix, which ASGI calls the root path
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if (request.method, path) == ("GET", "/health"):
            await self._ask("check_health")
            return answer_bytes({"status": "ok"})
        self._check_key(request)
        if (request.method, path) == ("GET", "/info"):
            return answer_bytes(self._info())
        if request.method == "GET" and path in MODEL_PATHS:
            return answer_bytes(model_list(self._names))
        if request.method != "POST" or path not in RERANK_PATHS:
            served = "POST /rerank, GET /info, GET /v1/models and GET /health are served"
            raise Refusal(404, "NotFound", served)
        call = read_call(await self._read(request), max_passages=self._settings.max_passages)
        refuse_other_model(call.model, self._names)
        answer: bytes | Refusal = await self._ask("answer", call)
        return answer

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """Call the model, and another replica of it if the first one dies."""
        for _ in range(2):
            try:
                return await getattr(self._model, method).remote(*arguments)
            except RayActorError:
                continue  # scoring has no effects, so it can be repeated
            except (BackPressureError, DeploymentUnavailableError):
                break
            except RayTaskError as error:
                raised = type(error.cause).__name__  # its message may quote texts
                raise Refusal(500, "Internal", f"the model raised {raised}; see its log") from None
        raise unavailable()

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._settings.max_body_bytes:
                limit = self._settings.max_body_bytes
                raise Refusal(413, "Validation", f"the body exceeds {limit} bytes")
        return bytes(body)

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._key is not None and not hmac.compare_digest(
            given.encode(), f"Bearer {self._key}".encode()
        ):
            raise Refusal(401, "Unauthorized", "the bearer key is missing or wrong")

    def _info(self) -> dict[str, Any]:
        """The fields of TEI's /info that apply here."""
        return {
            "model_id": self._names[0],
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_client_batch_size": self._settings.max_passages,
            "auto_truncate": True,
        }


class _Model:
    """One copy of the model."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._name = settings.names()[0]
        self._scorer = settings.loaded_scorer()
        if self._scorer.scale == "cosine":
            raise InvalidInputError(
                f"{self._name} is an embedder: clients expect scores from 0 to 1, not cosines; "
                "serve a reranker"
            )
        # the same engine without the wrappers, which cannot measure pairs
        plain = settings.model_copy(update={"long_passages": "cut", "score_cache": None})
        measuring = plain.loaded_scorer()
        self._measuring = measuring if isinstance(measuring, MeasuresPairs) else None
        self._waiting = 0
        self._batch.set_max_batch_size(settings.max_batch_pairs)  # type: ignore[attr-defined]
        self._batch.set_batch_wait_timeout_s(settings.batch_wait)  # type: ignore[attr-defined]
        self._batch_pairs = metrics.Histogram(
            "bge_rerank_batch_pairs", "Pairs scored together.", boundaries=[1, 8, 32, 128, 512]
        )
        self._batch_seconds = metrics.Histogram(
            "bge_rerank_batch_seconds", "Time of a batch.", boundaries=[0.01, 0.03, 0.1, 0.3, 1, 3]
        )
        self._waiting_pairs = metrics.Gauge("bge_rerank_waiting_pairs", "Pairs in the replica.")

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that cannot score."""
        await in_worker(checked_scores, self._scorer, [("health", "check")])

    async def answer(self, call: RerankCall) -> bytes | Refusal:
        """The answer as JSON; a refusal is a value, which Ray does not wrap."""
        pairs = len(call.passages)
        if self._waiting + pairs > self._settings.max_waiting_pairs:
            return Refusal(429, "Overloaded", "too many pairs are waiting; try again later")
        self._waiting += pairs
        self._waiting_pairs.set(self._waiting)
        try:
            tokens = await self._check_texts(call)
            scores = await self._batch(call)
            if isinstance(scores, RerankError):
                raise scores
            answer = write_answer(call, scores, self._scorer.scale, self._name, tokens)
            return answer_bytes(answer)
        except Refusal as refusal:
            return refusal
        except ScoringFailed as error:
            return Refusal(424, "Backend", str(error))
        except RerankError as error:
            return invalid(str(error))
        finally:
            self._waiting -= pairs
            self._waiting_pairs.set(self._waiting)

    async def _check_texts(self, call: RerankCall) -> int:
        """The tokens that the model reads; raises `Refusal` if a limit would change a score."""
        if call.form == TEI and not call.limits:
            return 0  # which its answer does not show
        windows = self._settings.long_passages == "windows"
        lengths: list[PairLength] | None = None
        if self._measuring is not None:
            lengths = await in_worker(self._measuring.measure, call.pairs)
        refuse_changed_texts(call, lengths, windows=windows)
        return sum(sum(tokens_read(length, windows=windows)) for length in lengths or ())

    @serve.batch(
        batch_size_fn=lambda calls: sum(len(call.passages) for call in calls),
        max_concurrent_batches=2,
    )
    async def _batch(self, calls: list[RerankCall]) -> list[FloatArray | RerankError]:
        return await self._outcomes(calls)

    async def _outcomes(self, calls: list[RerankCall]) -> list[FloatArray | RerankError]:
        """The scores of each call; one call's error does not affect the others."""
        began = time.perf_counter()
        pairs = [pair for call in calls for pair in call.pairs]
        try:
            scores = await in_worker(checked_scores, self._scorer, pairs)
        except RerankError as error:
            if len(calls) == 1:
                return [error]
            return [outcome for call in calls for outcome in await self._outcomes([call])]
        self._batch_pairs.observe(len(pairs))
        self._batch_seconds.observe(time.perf_counter() - began)
        return [*np.split(scores, np.cumsum([len(call.passages) for call in calls[:-1]]))]


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InvalidInputError(
            f"{variable} is not set where the replica runs; set it there, for example in the "
            "application's runtime_env"
        )
    return key
