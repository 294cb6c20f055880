"""What comes back from `compress_documents`: which documents, in what order, with what in them."""

import copy
import json
import logging
import threading
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import Document as LlamaIndexDocument

from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.langchain import BGERerank
from tests.fakes import WordOverlapScorer
from tests.langchain.foxes import (
    NO_SUCH_MODEL,
    OVERLAP,
    QUERY,
    RANKED,
    documents,
    positions,
    scores,
    sigmoid,
    word_overlap_rerank,
)


def test_best_three_first_with_sigmoid_scores() -> None:
    ranked = word_overlap_rerank().compress_documents(documents(), QUERY)
    assert positions(ranked) == [1, 3, 2]
    assert scores(ranked) == pytest.approx([0.9525741268, 0.8807970780, 0.7310585786], abs=1e-10)


def test_without_normalize_the_scores_are_the_logits() -> None:
    ranked = word_overlap_rerank(normalize=False).compress_documents(documents(), QUERY)
    assert scores(ranked) == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("top_n", [1, 2, 4, 5, 6, None])
def test_top_n_cuts_and_none_keeps_all_with_ties_in_the_given_order(top_n: int | None) -> None:
    ranked = word_overlap_rerank(top_n=top_n).compress_documents(documents(), QUERY)
    assert positions(ranked) == RANKED[:top_n]


@pytest.mark.parametrize("normalize", [True, False])
def test_threshold_is_inclusive_on_the_scale_that_is_shown(normalize: bool) -> None:
    of_one_word = sigmoid(1) if normalize else 1.0
    reranker = word_overlap_rerank(top_n=None, normalize=normalize, score_threshold=of_one_word)
    assert positions(reranker.compress_documents(documents(), QUERY)) == [1, 3, 2, 4]


def test_scores_are_python_floats_that_json_takes() -> None:
    ranked = word_overlap_rerank(include_logit=True).compress_documents(documents(), QUERY)
    metadata = [document.metadata for document in ranked]
    assert {type(score) for score in scores(ranked)} == {float}
    assert json.loads(json.dumps(metadata)) == metadata


def test_include_logit_writes_the_raw_score_beside_the_shown_one() -> None:
    ranked = word_overlap_rerank(include_logit=True).compress_documents(documents(), QUERY)
    assert ranked[0].metadata == {
        "position": 1,
        "relevance_score": sigmoid(3),
        "rerank_raw_score": 3.0,
    }


def test_score_key_names_the_key() -> None:
    (best,) = word_overlap_rerank(top_n=1, score_key="bge").compress_documents(documents(), QUERY)
    assert best.metadata == {"position": 1, "bge": sigmoid(3)}


def test_inputs_are_the_same_after_two_queries() -> None:
    given = documents()
    before = [document.model_dump_json() for document in given]
    same = list(given)
    reranker = word_overlap_rerank(include_logit=True)
    first = reranker.compress_documents(given, QUERY)
    first_scores = scores(first)
    reranker.compress_documents(given, "lazy dog")
    assert [document.model_dump_json() for document in given] == before
    assert all(now is then for now, then in zip(given, same, strict=True))
    assert scores(first) == first_scores  # nor does the second call change the first's results


def test_reranking_twice_changes_nothing() -> None:
    reranker = word_overlap_rerank(top_n=None, include_logit=True, metadata_keys=["position"])
    once = reranker.compress_documents(documents(), QUERY)
    assert reranker.compress_documents(once, QUERY) == once


def test_a_stale_score_is_replaced_and_the_callers_own_id_key_is_not() -> None:
    stale = {"relevance_score": 0.11, "id": "mine", "position": 0}
    given = Document(id="theirs", page_content="the red fox", metadata=stale)
    (ranked,) = word_overlap_rerank().compress_documents([given], QUERY)
    assert ranked.metadata == {"relevance_score": sigmoid(2), "id": "mine", "position": 0}
    assert ranked.id == "theirs"
    assert stale["relevance_score"] == 0.11


def test_subclasses_extra_fields_and_uncopyable_metadata_survive() -> None:
    class Page(Document):
        number: int

    lock = threading.Lock()
    given = Page(id="p", page_content="the red fox", metadata={"lock": lock}, number=7)
    with pytest.raises(TypeError, match="cannot pickle"):
        copy.deepcopy(given.metadata)
    (ranked,) = word_overlap_rerank().compress_documents([given], QUERY)
    assert isinstance(ranked, Page)
    assert (ranked.id, ranked.number, ranked.page_content) == ("p", 7, "the red fox")
    assert ranked.metadata["lock"] is lock
    assert ranked is not given


def test_duplicates_are_kept() -> None:
    given = [Document(page_content="the red fox", metadata={"position": i}) for i in range(3)]
    assert positions(word_overlap_rerank().compress_documents(given, QUERY)) == [0, 1, 2]


def test_any_sequence_of_documents_will_do() -> None:
    assert positions(word_overlap_rerank().compress_documents(tuple(documents()), QUERY)) == [
        1,
        3,
        2,
    ]


def test_one_call_to_the_scorer_scores_all_documents() -> None:
    scorer = WordOverlapScorer()
    word_overlap_rerank(scorer=scorer).compress_documents(documents(), QUERY)
    assert (scorer.calls, scorer.pairs_scored) == (1, 5)


def test_metadata_keys_put_the_values_that_are_there_before_the_text() -> None:
    scorer = WordOverlapScorer()
    reranker = word_overlap_rerank(scorer=scorer, metadata_keys=["title", "page", "absent"])
    given = [
        Document(page_content="It jumps.", metadata={"title": "Red fox", "page": 0, "other": 1}),
        Document(page_content="It sleeps.", metadata={"title": None}),
    ]
    ranked = reranker.compress_documents(given, QUERY)
    passages = [passage for _, passage in scorer.asked[0]]
    assert passages == ["title: Red fox\npage: 0\n\nIt jumps.", "It sleeps."]
    assert [document.page_content for document in ranked] == ["It jumps.", "It sleeps."]
    assert scores(ranked) == [sigmoid(3), sigmoid(0)]


class TestWithoutText:
    given = (
        Document(page_content="", metadata={"position": 0, "relevance_score": 0.9}),
        Document(page_content="a lazy dog", metadata={"position": 1}),
        Document(page_content=" \n\t", metadata={"position": 2}),
        Document(page_content="the red fox", metadata={"position": 3}),
    )

    def test_comes_last_unscored(self) -> None:
        scorer = WordOverlapScorer()
        reranker = word_overlap_rerank(scorer=scorer, top_n=None, include_logit=True)
        ranked = reranker.compress_documents(self.given, QUERY)
        assert positions(ranked) == [3, 1, 0, 2]
        assert scores(ranked) == [sigmoid(2), sigmoid(0), None, None]
        assert ranked[2].metadata["rerank_raw_score"] is None
        assert [passage for _, passage in scorer.asked[0]] == ["a lazy dog", "the red fox"]

    def test_counts_towards_top_n(self) -> None:
        assert positions(word_overlap_rerank().compress_documents(self.given, QUERY)) == [3, 1, 0]

    def test_is_dropped_under_a_threshold_even_of_zero(self) -> None:
        reranker = word_overlap_rerank(score_threshold=0.0)
        assert positions(reranker.compress_documents(self.given, QUERY)) == [3, 1]

    def test_is_said_once_in_the_log_without_any_text(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        reranker = word_overlap_rerank()
        reranker.compress_documents(self.given, QUERY)
        reranker.compress_documents(self.given, QUERY)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("2 of 4 documents have no text")
        assert "dog" not in record.getMessage()

    def test_needs_no_model(self) -> None:
        reranker = BGERerank(model=NO_SUCH_MODEL)
        ranked = reranker.compress_documents([self.given[0], self.given[2]], QUERY)
        assert (positions(ranked), scores(ranked)) == ([0, 2], [None, None])

    @pytest.mark.parametrize("blank", ["", " \n", "\u200b\x00\ufeff"], ids=ascii)
    def test_metadata_does_not_stand_in_for_it(self, blank: str) -> None:
        given = [
            Document(page_content=blank, metadata={"title": "Red fox"}),
            Document(page_content="a fox", metadata={"title": "Zoo"}),
        ]
        asked = {"metadata_keys": ["title"]}
        ranked = word_overlap_rerank(**asked).compress_documents(given, QUERY)
        assert scores(ranked) == [sigmoid(1), None]
        dropping = word_overlap_rerank(no_text="drop", **asked)
        assert scores(dropping.compress_documents(given, QUERY)) == [sigmoid(1)]
        refusing = word_overlap_rerank(no_text="raise", **asked)
        with pytest.raises(InvalidInputError, match="document at position 0 has no text"):
            refusing.compress_documents(given, QUERY)


def test_nothing_relevant_is_an_empty_list() -> None:
    given = [Document(page_content="a lazy dog"), Document(page_content=""), *documents()]
    assert word_overlap_rerank(score_threshold=0.9999).compress_documents(given, QUERY) == []
    alone = word_overlap_rerank(min_n=1).compress_documents(given[1:2], QUERY)
    assert alone == []


def test_equal_documents_take_one_place_if_asked() -> None:
    found = documents()
    again = [d.model_copy(update={"metadata": {"from": "keywords"}}) for d in found]
    by_id = [d.model_copy(update={"page_content": f"{d.page_content}."}) for d in found]
    once = word_overlap_rerank(drop_duplicates=True, top_n=None)
    expected = word_overlap_rerank(top_n=None).compress_documents(found, QUERY)
    assert once.compress_documents([*found, *again, *by_id], QUERY) == expected


def test_a_document_of_llama_index_is_named_with_what_to_do() -> None:
    wrong: Any = LlamaIndexDocument(text="a fox")
    with pytest.raises(
        InvalidInputError, match=r"0 is llama_index\.\S+Document, not a Document of"
    ):
        word_overlap_rerank().compress_documents([wrong], QUERY)
    written: Any = Document(page_content="a fox").model_dump()
    with pytest.raises(InvalidInputError, match=r"0 is dict, .*Document\(\*\*item\)"):
        word_overlap_rerank().compress_documents([written], QUERY)


def test_no_documents_give_none_without_loading() -> None:
    assert BGERerank(model=NO_SUCH_MODEL).compress_documents([], QUERY) == []


@pytest.mark.parametrize("query", ["", "  \n\t"])
def test_a_blank_query_passes_documents_through_without_loading(
    query: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = documents()
    given[0].metadata["relevance_score"] = 0.9  # of another query
    reranker = BGERerank(model=NO_SUCH_MODEL, score_threshold=0.5)
    ranked = reranker.compress_documents(given, query)
    assert positions(ranked) == [0, 1, 2]
    assert scores(ranked) == [None, None, None]
    assert [(d.id, d.page_content) for d in ranked] == [(d.id, d.page_content) for d in given[:3]]
    assert [record.getMessage() for record in caplog.records] == [
        "The query is blank: 5 documents keep their order, unscored."
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_the_scores_by_eye_are_those_of_the_fake() -> None:
    pairs = [(QUERY, document.page_content) for document in documents()]
    assert WordOverlapScorer().score(pairs).tolist() == list(OVERLAP)
