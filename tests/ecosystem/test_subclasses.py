"""Subclasses of the adapters: their own private names never meet ours."""

from typing import Any

import pytest
from langchain.agents.middleware import AgentMiddleware
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import BaseModel, PrivateAttr, field_validator

from bge_rerank_integrations import langchain, langchain_agents, llama_index
from bge_rerank_integrations.langchain import BGERerank as Compressor
from bge_rerank_integrations.llama_index import BGERerank as Postprocessor
from tests.fakes import WordOverlapScorer

BASES: list[type] = [
    AgentMiddleware,
    BaseCrossEncoder,
    BaseDocumentCompressor,
    BaseEmbedding,
    BaseModel,
    BaseNodePostprocessor,
    BaseRetriever,
    Embeddings,
]
COMMON = [
    "_api_key",
    "_build",
    "_built",
    "_cache",
    "_calibration",
    "_check",
    "_client",
    "_compress",
    "_config",
    "_content",
    "_device",
    "_errors",
    "_fields",
    "_first",
    "_groups",
    "_item",
    "_items",
    "_key",
    "_load",
    "_loaded",
    "_lock",
    "_logger",
    "_model",
    "_model_name",
    "_name",
    "_open",
    "_options",
    "_query",
    "_rank",
    "_ranked",
    "_read",
    "_rerank",
    "_reranked",
    "_reranker",
    "_said",
    "_score",
    "_scorer",
    "_scores",
    "_search",
    "_session",
    "_settings",
    "_state",
    "_store",
    "_text",
    "_texts",
    "_token",
    "_tokenizer",
    "_top_n",
    "_validate",
    "_warned",
]


def private_names(some: type) -> set[str]:
    names = {*dir(some), *getattr(some, "__private_attributes__", {})}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("module", [langchain, langchain_agents, llama_index])
def test_private_names_of_public_classes_have_a_prefix(module: Any) -> None:
    theirs = set[str]().union(*map(private_names, BASES))
    public = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and not name.startswith("_")
        and value.__module__ == module.__name__
    ]
    assert public
    for one in public:
        ours = private_names(one) - theirs
        assert [name for name in ours if not name.startswith("_bge_")] == [], one


@pytest.mark.parametrize("adapter", [Compressor, Postprocessor])
def test_a_subclass_has_the_values_that_it_gave_to_common_names(adapter: Any) -> None:
    attributes: dict[str, Any] = {name: PrivateAttr(default=name) for name in COMMON}
    made = type("Mine", (adapter,), {**attributes, "__module__": __name__})(
        scorer=WordOverlapScorer(), top_n=1
    )
    texts = ["a dog", "red fox"]
    for _ in range(2):
        if adapter is Compressor:
            documents = [Document(page_content=text) for text in texts]
            found = [one.page_content for one in made.compress_documents(documents, "red fox")]
        else:
            nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
            ranked = made.postprocess_nodes(nodes, query_str="red fox")
            found = [one.node.get_content() for one in ranked]
        assert found == ["red fox"]
    assert [getattr(made, name) for name in COMMON] == COMMON


def test_a_subclass_may_name_its_validators_as_it_likes() -> None:
    class Strict(Compressor):
        @field_validator("top_n")
        @classmethod
        def _check_scorer(cls, top_n: int | None) -> int | None:
            if top_n == 13:
                raise ValueError("not thirteen")
            return top_n

    with pytest.raises(ValueError, match="not thirteen"):
        Strict(top_n=13)
    with pytest.raises(ValueError, match="scorer is a int; it must have name"):
        Strict(scorer=13)
