"""`on_error="keep"` in LlamaIndex: marked nodes, never changed ones."""

from typing import Any

import pytest
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.schema import MetadataMode, NodeWithScore
from llama_index_instrumentation import get_dispatcher

from bge_rerank_integrations.errors import ScoringTimeout
from bge_rerank_integrations.llama_index import BGERerank, BGERerankTraceEvent
from tests.fakes import FailingScorer, WordOverlapScorer


def test_unscored_nodes_follow_in_their_order_and_are_marked(nodes: list[NodeWithScore]) -> None:
    reranker = BGERerank(scorer=FailingScorer(scored=2), top_n=None, on_error="keep")
    before = [node.model_dump() for node in nodes]
    ranked = reranker.postprocess_nodes(nodes, query_str="red fox")
    assert {node.node_id for node in ranked[:2]} == {node.node_id for node in nodes[:2]}
    assert [node.node_id for node in ranked[2:]] == [node.node_id for node in nodes[2:]]
    assert [node.score for node in ranked[2:]] == [None, None]
    assert [n.node.metadata.get("rerank_scored") for n in ranked] == [None, None, False, False]
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert "rerank_scored" not in ranked[2].node.get_content(metadata_mode=mode)
    assert [node.model_dump() for node in nodes] == before


def test_a_later_pass_that_scores_says_so(nodes: list[NodeWithScore]) -> None:
    kept = BGERerank(scorer=FailingScorer(), top_n=None, on_error="keep")
    unscored = kept.postprocess_nodes(nodes, query_str="red fox")
    scored = BGERerank(scorer=WordOverlapScorer(), top_n=None)
    again = scored.postprocess_nodes(unscored, query_str="red fox")
    assert [node.node.metadata["rerank_scored"] for node in again] == [True] * len(nodes)
    fresh = scored.postprocess_nodes(nodes, query_str="red fox")
    assert [n.score for n in again] == [n.score for n in fresh]


def test_raising_is_the_default(nodes: list[NodeWithScore]) -> None:
    with pytest.raises(ScoringTimeout):
        BGERerank(scorer=FailingScorer()).postprocess_nodes(nodes, query_str="red fox")


def test_a_trace_is_sent_without_texts(nodes: list[NodeWithScore]) -> None:
    traces: list[dict[str, Any]] = []

    class Handler(BaseEventHandler):
        def handle(self, event: BaseEvent, **kwargs: Any) -> None:
            if isinstance(event, BGERerankTraceEvent):
                traces.append(event.trace)

    handler = Handler()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        BGERerank(scorer=WordOverlapScorer(), top_n=1).postprocess_nodes(nodes, query_str="red fox")
    finally:
        dispatcher.event_handlers.remove(handler)
    assert [passage["before"] for passage in traces[0]["passages"]] == [0, 1, 2, 3]
    assert sum(passage["after"] is not None for passage in traces[0]["passages"]) == 1
    assert "fox" not in str(traces)
