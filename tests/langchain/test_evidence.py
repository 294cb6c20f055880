"""`explain` in LangChain: offsets into the document's `page_content`, in its metadata."""

import json
import logging
from typing import Any

import pytest
from langchain_core.documents import Document
from pydantic import ValidationError

from bge_rerank_integrations.errors import RemoteUnavailable
from bge_rerank_integrations.langchain import BGERerank
from tests.fakes import FailingScorer, WordOverlapScorer

QUERY = "red fox eats"
TEXTS = ["A dog barks. A fox.", "A hat is red. The red fox eats mice.", "Stocks fell."]


def titled() -> list[Document]:
    return [Document(page_content=text, metadata={"title": "red fox eats"}) for text in TEXTS]


def explaining(**fields: Any) -> BGERerank:
    defaults: dict[str, Any] = {"scorer": WordOverlapScorer(), "explain": True, "top_n": None}
    return BGERerank(**defaults | fields)


def quoted(ranked: list[Document]) -> list[str]:
    notes = [document.metadata for document in ranked]
    return [
        document.page_content[note["rerank_evidence_start"] : note["rerank_evidence_end"]]
        for document, note in zip(ranked, notes, strict=True)
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"metadata_keys": ["title"]},
    ],
)
async def test_offsets_point_into_the_page_content_whatever_was_scored(
    fields: dict[str, Any],
) -> None:
    reranker = explaining(**fields)
    ranked = reranker.compress_documents(titled(), QUERY)
    assert dict(zip([d.page_content for d in ranked], quoted(ranked), strict=True)) == {
        TEXTS[0]: "A fox.",
        TEXTS[1]: "The red fox eats mice.",
        TEXTS[2]: "Stocks fell.",
    }
    assert await reranker.acompress_documents(titled(), QUERY) == ranked
    step = reranker.as_runnable()
    assert step.invoke({"documents": titled(), "query": QUERY}) == ranked


def test_the_note_is_plain_data_on_the_scale_of_the_score() -> None:
    documents = titled()
    (best,) = explaining(top_n=1, normalize=False).compress_documents(documents, QUERY)
    note = {
        "rerank_evidence": "The red fox eats mice.",
        "rerank_evidence_start": 14,
        "rerank_evidence_end": 36,
        "rerank_evidence_score": 3.0,
    }
    assert json.loads(json.dumps(best.metadata)) == {
        "title": "red fox eats",
        "relevance_score": 3.0,
        **note,
    }
    assert all(isinstance(value, str | int | float) for value in best.metadata.values()), "storable"
    assert documents == titled()


def test_none_where_nothing_was_scored(caplog: pytest.LogCaptureFixture) -> None:
    documents = [*titled(), Document(page_content=" ")]
    ranked = explaining().compress_documents(documents, QUERY)
    assert ranked[-1].metadata["rerank_evidence"] is None
    failing = explaining(scorer=FailingScorer(RemoteUnavailable), on_error="keep")
    with caplog.at_level(logging.WARNING):
        kept = failing.compress_documents(ranked, "other")
    assert [document.metadata["rerank_evidence"] for document in kept] == [None] * 4
    blank = explaining().compress_documents(titled(), " ")
    assert [document.metadata["rerank_evidence"] for document in blank] == [None] * 3


def test_the_note_is_not_scored_in_a_second_pass() -> None:
    with pytest.raises(ValidationError, match="rerank_evidence"):
        explaining(metadata_keys=["rerank_evidence"])
