"""Retrievers of both frameworks, asked; their passages' ids and texts; what cannot be judged."""

from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from bge_rerank_integrations import InvalidInputError, Reranker
from bge_rerank_integrations.evaluate import evaluate, retrieve_candidates
from bge_rerank_integrations.llama_index import BGERerank, node_text
from tests.fakes import WordOverlapScorer

TEXTS = {"n1": "a dog", "n2": "a red hat", "n3": "a red fox"}


class Nodes(LlamaIndexRetriever):
    def __init__(self) -> None:
        super().__init__()
        self.given = [
            NodeWithScore(node=TextNode(id_=key, text=text, metadata={"page": key}), score=0.1)
            for key, text in TEXTS.items()
        ]

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        assert query_bundle.query_str == "red fox"
        return self.given


class Documents(LangChainRetriever):
    documents: list[Document]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        assert query == "red fox"
        return self.documents


def documents(**ids: Any) -> Documents:
    return Documents(
        documents=[
            Document(page_content=text, id=ids.get(key, key), metadata={"source": f"{key}.md"})
            for key, text in TEXTS.items()
        ]
    )


def test_a_llama_index_retriever() -> None:
    retriever = Nodes()
    before = [node.model_dump() for node in retriever.given]
    (query,) = retrieve_candidates(retriever, {"red fox": ["n3", "n9"]})
    assert (query.id, query.text, query.grades) == ("1", "red fox", {"n3": 1, "n9": 1})
    assert list(query.candidates) == ["n1", "n2", "n3"]
    mode = BGERerank().metadata_mode
    assert list(query.candidates.values()) == [node_text(node, mode) for node in retriever.given]
    assert query.candidates["n1"] == "page: n1\n\na dog"
    assert [node.model_dump() for node in retriever.given] == before


def test_a_lang_chain_retriever() -> None:
    (query,) = retrieve_candidates(documents(), {"red fox": {"n3": 2, "n1": 0}})
    assert query.grades == {"n3": 2, "n1": 0}
    assert query.candidates == TEXTS
    (query,) = retrieve_candidates(
        documents(n1=None),
        {"red fox": ["n3.md"]},
        passage_id=lambda document: document.metadata["source"],
        passage_text=lambda document: document.page_content.upper(),
    )
    assert query.candidates["n3.md"] == "A RED FOX"


def test_any_function_will_do_and_what_it_found_is_evaluated() -> None:
    questions = {"red fox": ["n3"], "fox": ["n3"]}
    queries = retrieve_candidates(
        lambda question: [*TEXTS.items(), ("n1", "a dog")],
        questions,
        passage_id=lambda item: item[0],
        passage_text=lambda item: item[1],
    )
    assert [list(query.candidates) for query in queries] == [["n1", "n2", "n3"]] * 2
    report = evaluate(queries, {"words": Reranker(WordOverlapScorer())}, resamples=100)
    assert report.first_stage["RR@10"].value == pytest.approx(1 / 3)
    assert report.rerankers[0].measures["RR@10"].value == 1


@pytest.mark.parametrize(
    ("retriever", "questions", "said"),
    [
        (documents(), {}, "questions must map at least one question"),
        (documents(), ["red fox"], "questions must map at least one question"),
        (object(), {"red fox": ["n1"]}, "retriever is a object; it must be a LlamaIndex or"),
        (documents(), {"red fox": "n1"}, "the answers to question 1 are a str; give a list of ids"),
        (documents(), {"red fox": [7]}, "query '1' has the grade 1 for the id 7"),
        (documents(), {"red fox": {"n1": 0.5}}, "query '1' has the grade 0.5 for the id 'n1'"),
        (documents(n2=None), {"red fox": ["n1"]}, "of question 1 has the id None, not a str"),
        (documents(n2="n1"), {"red fox": ["n1"]}, "two candidates of the id 'n1' with different"),
        (lambda _: None, {"red fox": ["n1"]}, "gave a NoneType for question 1; it must give a"),
        (lambda _: [7], {"red fox": ["n1"]}, "of question 1 has the id None, not a str"),
    ],
)
def test_what_cannot_be_judged_is_named_without_its_text(
    retriever: Any, questions: Any, said: str
) -> None:
    with pytest.raises(InvalidInputError) as error:
        retrieve_candidates(retriever, questions)
    assert said in str(error.value)
    assert "red" not in str(error.value)


def test_a_passage_of_another_kind_needs_both_functions() -> None:
    with pytest.raises(InvalidInputError, match="the retriever gave a int, neither"):
        retrieve_candidates(lambda _: [7], {"red fox": ["7"]}, passage_id=str)
