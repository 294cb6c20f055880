"""A rerank as an OpenTelemetry span, with texts only if asked for."""

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bge_rerank_integrations import Reranker
from bge_rerank_integrations.errors import ScoringTimeout
from tests.fakes import FailingScorer, WordOverlapScorer

PASSAGES = ["a dog", "the red fox", "a fox"]
EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider(shutdown_on_exit=False)
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
trace.set_tracer_provider(PROVIDER)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    EXPORTER.clear()
    yield
    EXPORTER.clear()


def only_span() -> ReadableSpan:
    (span,) = EXPORTER.get_finished_spans()
    return span


def test_ranks_and_scores_without_texts() -> None:
    Reranker(WordOverlapScorer(), top_n=2, normalize=False).rerank("red fox", PASSAGES)
    span = only_span()
    said = dict(span.attributes or {})
    assert (span.name, said["openinference.span.kind"]) == ("rerank", "RERANKER")
    assert said["reranker.top_k"] == 2
    assert [said[f"reranker.input_documents.{n}.document.id"] for n in range(3)] == ["0", "1", "2"]
    assert said["reranker.output_documents.0.document.id"] == "1"
    assert said["reranker.output_documents.0.document.score"] == 2.0
    assert said["reranker.output_documents.1.document.id"] == "2"
    assert "reranker.output_documents.2.document.id" not in said
    assert said["bge_rerank.kept_by"] == "top_n 2 leaves 2"
    assert "fox" not in str(said)


def test_texts_if_asked_for() -> None:
    Reranker(WordOverlapScorer(), trace_texts=True).rerank("red fox", PASSAGES)
    said = dict(only_span().attributes or {})
    assert said["reranker.query"] == "red fox"
    assert said["reranker.output_documents.0.document.content"] == "the red fox"


def test_it_can_be_switched_off() -> None:
    Reranker(WordOverlapScorer(), otel_span=False).rerank("red fox", PASSAGES)
    assert EXPORTER.get_finished_spans() == ()


def test_an_error_ends_the_span_without_its_message() -> None:
    with pytest.raises(ScoringTimeout):
        Reranker(FailingScorer()).rerank("red fox", PASSAGES)
    span = only_span()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == "ScoringTimeout"
    assert not span.events
