"""Events, spans and the older callbacks: paired, true afterwards, and silent on invalid input."""

import pytest
from llama_index.core.callbacks import CallbackManager, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import Document, ImageNode, NodeWithScore, QueryBundle, TextNode
from llama_index_instrumentation.dispatcher import instrument_tags
from llama_index_instrumentation.events.span import SpanDropEvent
from llama_index_instrumentation.span_handlers import SimpleSpanHandler

from bge_rerank_integrations.errors import InvalidInputError, OutOfMemoryError
from bge_rerank_integrations.llama_index import BGERerank
from tests.fakes import FailingScorer, WordOverlapScorer
from tests.llama_index.conftest import CallbackRecorder, EventRecorder

QUERY = "red fox"


async def rerank(
    reranker: BGERerank, nodes: list[NodeWithScore], query: QueryBundle | None, *, native: bool
) -> list[NodeWithScore]:
    if native:
        return await reranker.apostprocess_nodes(nodes, query)
    return reranker.postprocess_nodes(nodes, query)


both = pytest.mark.parametrize("native", [False, True], ids=["sync", "async"])


@both
async def test_one_start_one_end_in_one_span(
    nodes: list[NodeWithScore], recorder: EventRecorder, spans: SimpleSpanHandler, *, native: bool
) -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=3)
    with instrument_tags({"tenant": "blue"}):
        ranked = await rerank(reranker, nodes, QueryBundle(QUERY), native=native)

    start, end = recorder.reranks
    assert isinstance(start, ReRankStartEvent)
    assert isinstance(start.query, QueryBundle)
    assert start.query.query_str == QUERY
    assert (start.top_n, start.model_name) == (3, "word-overlap")
    assert [(node.node_id, node.score) for node in start.nodes] == [
        (node.node_id, node.score) for node in nodes
    ]
    assert isinstance(end, ReRankEndEvent)
    assert [(node.node_id, node.score) for node in end.nodes] == [
        (node.node_id, node.score) for node in ranked
    ]
    method = "_apostprocess_nodes" if native else "_postprocess_nodes"
    assert [span.id_.rpartition("-")[0].split("-")[0] for span in spans.completed_spans] == [
        f"BGERerank.{method}"
    ]
    assert {start.span_id, end.span_id} == {spans.completed_spans[0].id_}
    assert start.tags == end.tags == {"tenant": "blue"}


def test_the_model_is_named_as_the_user_named_it(recorder: EventRecorder) -> None:
    image = NodeWithScore(node=ImageNode(image_url="file:///a.png"))  # needs no model
    BGERerank(model="/no/such/model", top_n=None).postprocess_nodes([image], query_str=QUERY)
    start = recorder.reranks[0]
    assert isinstance(start, ReRankStartEvent)
    assert (start.model_name, start.top_n) == ("/no/such/model", 1)


@both
async def test_callback_handlers_hear_the_same(nodes: list[NodeWithScore], *, native: bool) -> None:
    heard = CallbackRecorder()
    reranker = BGERerank(
        scorer=WordOverlapScorer(), top_n=None, callback_manager=CallbackManager([heard])
    )
    await rerank(reranker, nodes, QueryBundle(QUERY), native=native)

    (start,), (end,) = heard.starts, heard.ends
    assert start is not None
    assert end is not None
    assert [node.node_id for node in start.pop(EventPayload.NODES)] == ["n0", "n1", "n2", "n3"]
    assert start == {
        EventPayload.MODEL_NAME: "word-overlap",
        EventPayload.QUERY_STR: QUERY,
        EventPayload.TOP_K: 4,
    }
    assert [node.node_id for node in end.pop(EventPayload.NODES)] == ["n2", "n1", "n3", "n0"]
    assert end == {}


def test_later_changes_do_not_falsify_events(recorder: EventRecorder) -> None:
    text = TextNode(text="fox", metadata={"page": 1}, embedding=[1.0])
    document = Document(text="red fox")
    given = [NodeWithScore(node=text, score=0.2), NodeWithScore(node=document, score=0.1)]
    query = QueryBundle(QUERY)
    heard = CallbackRecorder()
    reranker = BGERerank(scorer=WordOverlapScorer(), callback_manager=CallbackManager([heard]))
    ranked = reranker.postprocess_nodes(given, query)
    first_scores = [node.score for node in ranked]
    written = [event.model_dump_json() for event in recorder.reranks]
    for node in [*given, *ranked]:
        node.score = -7.0
    text.set_content("changed")
    text.metadata["page"] = 2
    assert text.embedding is not None
    text.embedding[0] = 9.0
    text.excluded_llm_metadata_keys.append("page")
    assert document.text_resource is not None
    document.text_resource.text = "changed"
    query.query_str = "changed"

    assert [event.model_dump_json() for event in recorder.reranks] == written
    assert heard.starts[0] is not None
    assert [node.score for node in heard.starts[0][EventPayload.NODES]] == [0.2, 0.1]
    assert heard.ends[0] is not None
    assert [node.score for node in heard.ends[0][EventPayload.NODES]] == first_scores


@both
async def test_a_failure_ends_what_it_began(
    nodes: list[NodeWithScore], recorder: EventRecorder, spans: SimpleSpanHandler, *, native: bool
) -> None:
    heard = CallbackRecorder()
    failing, heard_by = FailingScorer(OutOfMemoryError), CallbackManager([heard])
    reranker = BGERerank(scorer=failing, callback_manager=heard_by)
    with pytest.raises(OutOfMemoryError) as caught:
        await rerank(reranker, nodes, QueryBundle(QUERY), native=native)

    assert [type(event) for event in recorder.events] == [
        ReRankStartEvent,
        ReRankEndEvent,
        SpanDropEvent,
    ]
    assert len({event.span_id for event in recorder.events}) == 1
    assert recorder.events[1].nodes == []
    assert (len(spans.completed_spans), len(spans.dropped_spans)) == (0, 1)
    assert heard.ends == [{EventPayload.EXCEPTION: caught.value}]


@both
@pytest.mark.parametrize("query", [None, QueryBundle("  "), QueryBundle(QUERY)])
async def test_nothing_is_told_when_nothing_is_ranked(
    recorder: EventRecorder, query: QueryBundle | None, *, native: bool
) -> None:
    heard = CallbackRecorder()
    reranker = BGERerank(scorer=WordOverlapScorer(), callback_manager=CallbackManager([heard]))
    if query is None:
        with pytest.raises(InvalidInputError):
            await rerank(reranker, [NodeWithScore(node=TextNode(text="a"))], query, native=native)
    elif query.query_str == QUERY:
        await rerank(reranker, [], query, native=native)
        with pytest.raises(InvalidInputError):
            await rerank(reranker, [TextNode(text="a")], query, native=native)  # type: ignore[list-item]
        reranker.no_text = "raise"
        with pytest.raises(InvalidInputError):
            await rerank(reranker, [NodeWithScore(node=TextNode())], query, native=native)
    else:
        await rerank(reranker, [NodeWithScore(node=TextNode(text="a"))], query, native=native)
    assert recorder.reranks == []
    assert (heard.starts, heard.ends) == ([], [])
