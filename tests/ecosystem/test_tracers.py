"""One request is one trace, under the tracers that people use, with exporters in memory."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableLambda
from langfuse import Langfuse
from langfuse.langchain import CallbackHandler
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode
from openinference.instrumentation.langchain import LangChainInstrumentor as OpenInference
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry import trace
from opentelemetry.instrumentation.langchain import LangchainInstrumentor as OpenLLMetry
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bge_rerank_integrations import langchain, llama_index
from tests.fakes import WordOverlapScorer

# the frameworks' bridges and OpenLLMetry import it
pytestmark = pytest.mark.filterwarnings(
    "ignore:.langchain-community. is being sunset:DeprecationWarning"
)
QUERY = "red fox"
TEXTS = ["a dog", "the red fox", "a fox"]
sync_and_async = pytest.mark.parametrize("how", ["sync", "async"])


EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider(shutdown_on_exit=False)  # for the whole file: instrumentations keep it
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    # the one provider of the process may be another test's
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", PROVIDER)
    EXPORTER.clear()
    return EXPORTER


def chain(**options: Any) -> Runnable[Any, Any]:
    documents = [Document(page_content=text) for text in TEXTS]
    step = langchain.BGERerank(scorer=WordOverlapScorer(), **options).as_runnable()
    find: Runnable[Any, Any] = RunnableLambda(
        lambda query: {"documents": documents, "query": query}
    )
    return find | step


async def ask(runnable: Runnable[Any, Any], how: str, config: Any = None) -> None:
    found = (
        runnable.invoke(QUERY, config) if how == "sync" else await runnable.ainvoke(QUERY, config)
    )
    assert found[0].page_content == "the red fox"


def check_one_trace(spans: tuple[ReadableSpan, ...], parent: str) -> None:
    """One root, and our span below the run's."""
    by_id = {span.context.span_id: span for span in spans if span.context}
    assert len([span for span in spans if span.parent is None]) == 1
    assert len({span.context.trace_id for span in spans if span.context}) == 1
    (ours,) = [span for span in spans if span.name == "rerank"]
    assert ours.parent is not None
    assert parent in by_id[ours.parent.span_id].name


@sync_and_async
@pytest.mark.parametrize("instrumentor", [OpenInference, OpenLLMetry])
async def test_langchain(instrumentor: Any, how: str, exporter: InMemorySpanExporter) -> None:
    instrumentor().instrument(tracer_provider=PROVIDER)
    try:
        await ask(chain(), how)
        check_one_trace(exporter.get_finished_spans(), "BGERerank")
        exporter.clear()
        await ask(chain(otel_span=False), how)
        assert "rerank" not in [span.name for span in exporter.get_finished_spans()]
    finally:
        instrumentor().uninstrument()


@sync_and_async
async def test_langfuse(how: str, exporter: InMemorySpanExporter) -> None:
    key = f"pk-{how}"  # there is one client for a key
    client = Langfuse(
        public_key=key,
        secret_key="sk-of-a-test",
        host="http://127.0.0.1:9",
        tracer_provider=PROVIDER,
        span_exporter=InMemorySpanExporter(),
    )
    await ask(chain(), how, {"callbacks": [CallbackHandler(public_key=key)]})
    client.flush()
    check_one_trace(exporter.get_finished_spans(), "BGERerank")


@sync_and_async
async def test_llama_index_has_one_span_for_a_rerank(
    how: str, exporter: InMemorySpanExporter
) -> None:
    LlamaIndexInstrumentor().instrument(tracer_provider=PROVIDER)
    try:
        index = VectorStoreIndex(
            [TextNode(text=text) for text in TEXTS], embed_model=MockEmbedding(embed_dim=4)
        )
        engine = index.as_query_engine(
            llm=MockLLM(),
            node_postprocessors=[llama_index.BGERerank(scorer=WordOverlapScorer())],
        )
        exporter.clear()  # of the index
        if how == "sync":
            engine.query(QUERY)
        else:
            await engine.aquery(QUERY)
        spans = exporter.get_finished_spans()
        assert len([span for span in spans if span.parent is None]) == 1
        kinds = [(span.attributes or {}).get("openinference.span.kind") for span in spans]
        assert kinds.count("RERANKER") == 1
    finally:
        LlamaIndexInstrumentor().uninstrument()
