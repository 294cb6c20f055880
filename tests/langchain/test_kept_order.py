"""`on_error="keep"` in LangChain: marked documents, never changed ones."""

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from bge_rerank_integrations.errors import ScoringTimeout
from bge_rerank_integrations.langchain import BGERerank
from tests.fakes import FailingScorer, WordOverlapScorer
from tests.langchain.foxes import QUERY, documents


def test_unscored_documents_follow_in_their_order_and_are_marked() -> None:
    given, before = documents(), documents()
    reranker = BGERerank(
        scorer=FailingScorer(scored=2), top_n=None, on_error="keep", include_logit=True
    )
    ranked = reranker.compress_documents(given, QUERY)
    texts = [document.page_content for document in given if document.page_content.strip()]
    assert {document.page_content for document in ranked[:2]} == set(texts[:2])
    late = ranked[2 : len(texts)]
    assert [document.page_content for document in late] == texts[2:]
    assert [document.metadata["relevance_score"] for document in late] == [None] * len(late)
    assert [document.metadata["rerank_raw_score"] for document in late] == [None] * len(late)
    assert [document.metadata["rerank_scored"] for document in late] == [False] * len(late)
    assert all("rerank_scored" not in document.metadata for document in ranked[:2])
    assert given == before


def test_a_later_pass_that_scores_says_so() -> None:
    kept = BGERerank(scorer=FailingScorer(), top_n=None, on_error="keep")
    again = BGERerank(scorer=WordOverlapScorer(), top_n=2).compress_documents(
        kept.compress_documents(documents(), QUERY), QUERY
    )
    assert [document.metadata["rerank_scored"] for document in again] == [True, True]


def test_raising_is_the_default() -> None:
    with pytest.raises(ScoringTimeout):
        BGERerank(scorer=FailingScorer()).compress_documents(documents(), QUERY)


def test_a_trace_is_sent_without_texts() -> None:
    traces: list[dict[str, Any]] = []

    class Handler(BaseCallbackHandler):
        def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            traces.append({"name": name, **data})

    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=1)
    reranker.compress_documents(documents(), QUERY, callbacks=[Handler()])
    (trace,) = traces
    assert trace["name"] == "bge_rerank_trace"
    assert sum(passage["after"] is not None for passage in trace["passages"]) == 1
    assert "fox" not in str(trace)
