"""What is refused, and that the message says where and what, and never quotes a text."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from pydantic import ValidationError

from bge_rerank_integrations import InvalidInputError, NonFiniteScoreError, ScorerContractError
from bge_rerank_integrations.langchain import BGERerank
from tests.fakes import NanScorer, ShortScorer, WordOverlapScorer
from tests.langchain.foxes import NO_SUCH_MODEL, QUERY, documents, word_overlap_rerank

SECRET = "a secret passage"


def without_text() -> Document:
    document = Document(page_content="soon gone")
    document.page_content = None  # type: ignore[assignment]
    return document


BAD = [
    (documents(), None, "no query was given"),
    ([], None, "no query was given"),
    (documents(), 7, "the query is int"),
    ([*documents(), SECRET], QUERY, "position 5 is str, not a Document"),
    ([None, *documents()], QUERY, "position 0 is NoneType, not a Document"),
    ([documents()[0], without_text()], QUERY, "document at position 1 is NoneType, not str"),
    (SECRET, QUERY, "documents is str"),
    (documents()[0], QUERY, "documents is Document"),
    ({"text": SECRET}, QUERY, "documents is dict"),
    (None, QUERY, "documents is NoneType"),
]


@pytest.mark.parametrize(("given", "query", "message"), BAD)
async def test_invalid_input_raises_before_a_run_starts(
    given: Any, query: Any, message: str
) -> None:
    reranker, runs = BGERerank(model=NO_SUCH_MODEL), RunCollectorCallbackHandler()
    with pytest.raises(InvalidInputError, match=message) as sync_error:
        reranker.compress_documents(given, query, callbacks=[runs])
    with pytest.raises(InvalidInputError, match=message):
        await reranker.acompress_documents(given, query, callbacks=[runs])
    assert isinstance(sync_error.value, ValueError)
    assert SECRET not in str(sync_error.value)
    assert runs.traced_runs == []


def test_the_error_holds_the_position() -> None:
    with pytest.raises(InvalidInputError) as error:
        word_overlap_rerank().compress_documents([*documents(), SECRET], QUERY)  # type: ignore[list-item]
    assert error.value.index == 5


@pytest.mark.parametrize("top_n", [0, -1, -5])
def test_the_field_refuses_a_top_n_below_one_also_later(top_n: int) -> None:
    with pytest.raises(ValidationError, match=r"top_n is -?\d; it must be a whole number from 1"):
        BGERerank(top_n=top_n)
    reranker = BGERerank()
    with pytest.raises(ValidationError, match=r"top_n is -?\d; it must be a whole number from 1"):
        reranker.top_n = top_n


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="top_k"):
        BGERerank(top_k=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("key", ["relevance_score", "rerank_raw_score"])
def test_what_is_written_is_not_read_back(key: str) -> None:
    with pytest.raises(ValidationError, match=f"metadata_keys holds '{key}'"):
        BGERerank(metadata_keys=["title", key])


@pytest.mark.parametrize("request_", [["a"], {"documents": []}, {"query": "a"}, "a"])
def test_the_runnable_says_what_its_input_must_be(request_: Any) -> None:
    with pytest.raises(InvalidInputError, match='a mapping with "documents" and "query"'):
        word_overlap_rerank().as_runnable().invoke(request_)


@pytest.mark.parametrize(
    ("scorer", "error"), [(NanScorer(), NonFiniteScoreError), (ShortScorer(), ScorerContractError)]
)
def test_a_wrong_score_is_an_error_and_not_an_order(
    scorer: WordOverlapScorer, error: type[Exception]
) -> None:
    with pytest.raises(error):
        word_overlap_rerank(scorer=scorer).compress_documents(documents(), QUERY)
