"""One query and five documents, small enough to rank by eye."""

import math

from langchain_core.documents import Document

from bge_rerank_integrations.langchain import BGERerank
from tests.fakes import WordOverlapScorer

QUERY = "red fox jumps"
TEXTS = ("a lazy dog", "the red fox jumps", "a red car", "a fox jumps high", "the red hen")
OVERLAP = (0, 3, 1, 2, 1)
RANKED = [1, 3, 2, 4, 0]  # 2 and 4 tie, and keep their order

NO_SUCH_MODEL = "/no/such/model"
"""Loading it raises, so a call that succeeds has not loaded."""


def documents() -> list[Document]:
    return [
        Document(id=f"id-{index}", page_content=text, metadata={"position": index})
        for index, text in enumerate(TEXTS)
    ]


def positions(ranked: list[Document]) -> list[int]:
    return [document.metadata["position"] for document in ranked]


def scores(ranked: list[Document]) -> list[float | None]:
    return [document.metadata["relevance_score"] for document in ranked]


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def word_overlap_rerank(**fields: object) -> BGERerank:
    return BGERerank(**{"scorer": WordOverlapScorer(), **fields})  # type: ignore[arg-type]
