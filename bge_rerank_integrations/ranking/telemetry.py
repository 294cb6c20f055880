"""Record reranks as OpenTelemetry spans in programs that use OpenTelemetry.

Attributes follow the RERANKER span of OpenInference's semantic conventions (Arize,
spec/semantic_conventions.md); the rest of a `RerankTrace` has the prefix `bge_rerank.`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.types import Pair

EndSpan = Callable[[RerankTrace], None]


@contextmanager
def rerank_span(
    limit: int | None, texts: Sequence[Pair] | None, *, wanted: bool
) -> Iterator[EndSpan | None]:
    """Open a span around a rerank; yield a function that takes its trace, or None if not recorded.

    OpenTelemetry is not imported: a program that uses it has already done so. `texts` are put into
    the span if given. An error is recorded by its class, without its message.
    """
    opentelemetry = sys.modules.get("opentelemetry.trace")
    if opentelemetry is None or not wanted:
        yield None
        return
    tracer = opentelemetry.get_tracer("bge_rerank_integrations")
    with tracer.start_as_current_span(
        "rerank", record_exception=False, set_status_on_exception=False
    ) as span:
        if not span.is_recording():
            yield None
            return
        span.set_attribute("openinference.span.kind", "RERANKER")
        if limit is not None:
            span.set_attribute("reranker.top_k", limit)
        if texts:
            span.set_attribute("reranker.query", texts[0][0])
        try:
            yield lambda trace: span.set_attributes(_attributes(trace, texts))
        except BaseException as error:
            # an exception's message may quote a server's answer
            status = opentelemetry.Status(opentelemetry.StatusCode.ERROR, type(error).__name__)
            span.set_status(status)
            raise


@contextmanager
def under_run(handlers: Iterable[object], run_id: object) -> Iterator[None]:
    """Make the span that a handler keeps for a LangChain run the current span.

    OpenInference, OpenLLMetry and Langfuse keep one for each run, but do not make it current.
    """
    opentelemetry = sys.modules.get("opentelemetry.trace")
    spans = () if opentelemetry is None else (_span_of(handler, run_id) for handler in handlers)
    for span in spans:
        if opentelemetry is not None and isinstance(span, opentelemetry.Span):
            with opentelemetry.use_span(
                span, record_exception=False, set_status_on_exception=False
            ):
                yield
            return
    yield


def _span_of(handler: Any, run_id: object) -> object:
    if hasattr(handler, "get_span"):  # OpenInference
        return handler.get_span(run_id)
    for kept, span in (("spans", "span"), ("_runs", "_otel_span")):  # OpenLLMetry, Langfuse
        if isinstance(runs := getattr(handler, kept, None), Mapping):
            return getattr(runs.get(run_id), span, None)
    return None


def _attributes(trace: RerankTrace, texts: Sequence[Pair] | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    kept = sorted((p for p in trace.passages if p.after is not None), key=lambda p: p.after or 0)
    for side, passages in (("input", trace.passages), ("output", tuple(kept))):
        for place, passage in enumerate(passages):
            document = f"reranker.{side}_documents.{place}.document"
            attributes[f"{document}.id"] = str(passage.before)
            if passage.score is not None and side == "output":
                attributes[f"{document}.score"] = passage.score
            if texts is not None:
                attributes[f"{document}.content"] = texts[passage.before][1]
    if "model" in trace.facts:
        attributes["reranker.model_name"] = trace.facts["model"]
    for group in ("counts", "seconds", "facts"):
        noted: Mapping[str, Any] = getattr(trace, group)
        attributes |= {f"bge_rerank.{group}.{name}": value for name, value in noted.items()}
    for name in ("scale", "calibrated", "kept_by", "failure", "evidence_failure"):
        if getattr(trace, name) is not None:
            attributes[f"bge_rerank.{name}"] = getattr(trace, name)
    return attributes
