"""What comes back: order, scores, threshold, cut; and what is refused."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import SimpleDirectoryReader
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.langchain import BGERerank as LangChainRerank
from bge_rerank_integrations.llama_index import BGERerank
from bge_rerank_integrations.types import FloatArray, Pair
from tests.fakes import CosineScorer, WordOverlapScorer

QUERY = "red fox"
SIGMOID = [1 / (1 + math.exp(-logit)) for logit in (0, 1, 2)]  # 0.5, 0.731, 0.881
UNLOADABLE = "/no/such/model"


class LessOne(WordOverlapScorer):
    """Word overlap less one, so that a logit can be negative or zero."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return super().score(pairs) - np.float32(1)


class Constant(WordOverlapScorer):
    """The same score for every pair."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return np.full(len(pairs), 0.25, dtype=np.float32)


def ids(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def with_score(node: TextNode | Node, score: float | None = None) -> NodeWithScore:
    return NodeWithScore(node=node, score=score)


def test_best_first_ties_in_the_given_order(nodes: list[NodeWithScore]) -> None:
    ranked = BGERerank(scorer=WordOverlapScorer(), top_n=None).postprocess_nodes(
        nodes, query_str=QUERY
    )
    assert ids(ranked) == ["n2", "n1", "n3", "n0"]
    assert [node.score for node in ranked] == [SIGMOID[2], SIGMOID[1], SIGMOID[1], SIGMOID[0]]


def test_two_come_back_by_default(nodes: list[NodeWithScore]) -> None:
    assert ids(BGERerank(scorer=WordOverlapScorer()).postprocess_nodes(nodes, query_str=QUERY)) == [
        "n2",
        "n1",
    ]


def test_forty_equal_nodes_keep_their_order() -> None:
    nodes = [with_score(TextNode(id_=str(index), text="same")) for index in range(40)]
    ranked = BGERerank(scorer=Constant(), top_n=None).postprocess_nodes(nodes, query_str=QUERY)
    assert ids(ranked) == [str(index) for index in range(40)]


def test_scores_are_python_floats_and_nodes_write_json(nodes: list[NodeWithScore]) -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), keep_retrieval_score=True, include_logit=True)
    # as LlamaIndex's own SentenceTransformerRerank leaves it
    nodes[2].score = np.float32(0.5)  # type: ignore[assignment]
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [type(node.score) for node in ranked] == [float, float]
    written = json.loads(ranked[0].to_json())
    assert (written["node"]["id_"], written["score"]) == ("n2", SIGMOID[2])
    assert written["node"]["metadata"] == {"retrieval_score": 0.5, "rerank_raw_score": 2.0}


def test_logits_are_shown_raw_without_normalize(nodes: list[NodeWithScore]) -> None:
    reranker = BGERerank(scorer=LessOne(), normalize=False, top_n=None)
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [node.score for node in ranked] == [1.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("threshold", "normalize", "kept"),
    [
        (None, True, ["n2", "n1", "n3", "n0"]),
        (SIGMOID[1], True, ["n2", "n1", "n3"]),
        (math.nextafter(SIGMOID[1], 1), True, ["n2"]),
        (1.0, True, []),
        (2.0, False, ["n2"]),
        (0.0, False, ["n2", "n1", "n3", "n0"]),
    ],
)
def test_the_threshold_is_inclusive_on_the_shown_scale(
    nodes: list[NodeWithScore], threshold: float | None, *, normalize: bool, kept: list[str]
) -> None:
    reranker = BGERerank(
        scorer=WordOverlapScorer(), top_n=None, score_threshold=threshold, normalize=normalize
    )
    assert ids(reranker.postprocess_nodes(nodes, query_str=QUERY)) == kept


def test_a_threshold_of_zero_drops_negative_logits(nodes: list[NodeWithScore]) -> None:
    reranker = BGERerank(scorer=LessOne(), top_n=None, score_threshold=0.0, normalize=False)
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [(node.node_id, node.score) for node in ranked] == [
        ("n2", 1.0),
        ("n1", 0.0),
        ("n3", 0.0),
    ]


@pytest.mark.parametrize("top_n", [0, -1])
def test_top_n_below_one_is_refused(top_n: int) -> None:
    with pytest.raises(ValueError, match="top_n"):
        BGERerank(top_n=top_n)
    reranker = BGERerank()
    with pytest.raises(ValueError, match="top_n"):
        reranker.top_n = top_n
    assert reranker.top_n == 2


@pytest.mark.parametrize("query", [None, QueryBundle(None), 7])  # type: ignore[arg-type]
def test_a_missing_query_is_an_error(nodes: list[NodeWithScore], query: QueryBundle) -> None:
    with pytest.raises(InvalidInputError, match="query_str="):
        BGERerank(model=UNLOADABLE).postprocess_nodes(nodes, query)


def test_a_missing_query_is_an_error_also_without_nodes() -> None:
    with pytest.raises(ValueError, match="query"):
        BGERerank(model=UNLOADABLE).postprocess_nodes([])


@pytest.mark.parametrize("query", [QueryBundle(QUERY), QUERY])
def test_the_query_may_stand_second(nodes: list[NodeWithScore], query: QueryBundle) -> None:
    ranked = BGERerank(scorer=WordOverlapScorer(), top_n=1).postprocess_nodes(nodes, query)
    assert ids(ranked) == ["n2"]


def test_a_blank_query_passes_the_nodes_through(
    nodes: list[NodeWithScore], caplog: pytest.LogCaptureFixture
) -> None:
    reranker = BGERerank(model=UNLOADABLE, top_n=3, score_threshold=0.99)
    with caplog.at_level(logging.WARNING):
        passed = reranker.postprocess_nodes(nodes, query_str=" \n\t")
    assert [(node.node_id, node.score) for node in passed] == [
        (node.node_id, None) for node in nodes[:3]
    ]
    assert all(new is not old for new, old in zip(passed, nodes, strict=False))
    assert ["blank" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("query", [QUERY, " "])
def test_metadata_has_the_same_keys_as_in_langchain(query: str) -> None:
    asked: dict[str, Any] = {"model": "offline", "include_logit": True, "explain": True}
    reranker = BGERerank(**asked, keep_retrieval_score=True)
    given = NodeWithScore(node=TextNode(text="A fox."), score=0.31)
    (node,) = reranker.postprocess_nodes([given], query_str=query)
    document = LangChainDocument(page_content="A fox.")
    (document,) = LangChainRerank(**asked).compress_documents([document], query)
    kept = {"retrieval_score": node.metadata["retrieval_score"]}
    assert kept == {"retrieval_score": 0.31}
    shown = {"relevance_score": node.score, **node.metadata}
    assert shown == {**document.metadata, **kept}
    assert (node.score is None) == (query == " ")


def test_no_nodes_give_no_nodes_without_loading() -> None:
    assert BGERerank(model=UNLOADABLE).postprocess_nodes([], query_str=QUERY) == []


def test_a_bare_node_is_refused_with_what_to_pass(nodes: list[NodeWithScore]) -> None:
    mixed: list[Any] = [nodes[0], TextNode(text="secret words")]
    with pytest.raises(InvalidInputError, match=r"position 1 is \S+TextNode.*NodeWithScore\(node="):
        BGERerank(model=UNLOADABLE).postprocess_nodes(mixed, query_str=QUERY)


def test_every_kind_of_node_survives_whole() -> None:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book", hash="h")}
    given: list[TextNode | Node] = [
        TextNode(id_="text", text="red fox", metadata={"page": 1}, relationships=source),
        ImageNode(id_="image", text="a red fox", image_url="file:///fox.png"),
        IndexNode(id_="index", text="a fox", index_id="summary"),
        Document(id_="document", text="red", metadata={"file": "a.txt"}),
    ]
    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=None)
    ranked = reranker.postprocess_nodes([with_score(node) for node in given], query_str=QUERY)
    assert [node.node for node in ranked] == given
    assert [type(node.node) for node in ranked] == [TextNode, ImageNode, IndexNode, Document]
    assert ranked[0].node.relationships == source


METADATA_NODE = TextNode(
    text="words",
    metadata={"animal": "red", "noise": "fox", "hidden": "hen"},
    excluded_embed_metadata_keys=["noise"],
    excluded_llm_metadata_keys=["animal", "noise"],
)


@pytest.mark.parametrize(
    ("mode", "shared"),
    [
        (MetadataMode.EMBED, 2),  # red, hen
        (MetadataMode.LLM, 1),  # hen
        (MetadataMode.ALL, 3),  # red, fox, hen
        (MetadataMode.NONE, 0),
    ],
)
def test_metadata_mode_decides_what_is_read(mode: MetadataMode, shared: int) -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), metadata_mode=mode, normalize=False)
    ranked = reranker.postprocess_nodes([with_score(METADATA_NODE)], query_str="red fox hen")
    assert ranked[0].score == shared


def test_embedded_metadata_is_read_by_default() -> None:
    assert BGERerank().metadata_mode is MetadataMode.EMBED


def test_a_cosine_is_shown_as_it_is(nodes: list[NodeWithScore]) -> None:
    ranked = BGERerank(scorer=CosineScorer(), top_n=1).postprocess_nodes(nodes, query_str=QUERY)
    assert ranked[0].score == 0.5


def textless() -> list[NodeWithScore]:
    return [
        with_score(ImageNode(id_="image", image_url="file:///fox.png"), 0.9),
        with_score(TextNode(id_="fox", text="a fox"), 0.8),
        with_score(Node(id_="node"), 0.7),
        with_score(TextNode(id_="red fox", text="a red fox"), 0.6),
        with_score(TextNode(id_="blank", text=" \n"), 0.5),
    ]


def test_nodes_without_text_come_last_and_unscored(caplog: pytest.LogCaptureFixture) -> None:
    scorer = WordOverlapScorer()
    reranker = BGERerank(scorer=scorer, top_n=4, normalize=False)
    with caplog.at_level(logging.WARNING):
        ranked = reranker.postprocess_nodes(textless(), query_str=QUERY)
        reranker.postprocess_nodes(textless(), query_str=QUERY)
    assert [(node.node_id, node.score) for node in ranked] == [
        ("red fox", 2.0),
        ("fox", 1.0),
        ("image", None),
        ("node", None),
    ]
    assert scorer.pairs_scored == 4  # two of five nodes, twice
    assert ["3 of 5 nodes have no text" in record.message for record in caplog.records] == [True]


def test_a_threshold_drops_nodes_without_text() -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=None, score_threshold=0.0)
    assert ids(reranker.postprocess_nodes(textless(), query_str=QUERY)) == ["red fox", "fox"]


def test_nodes_without_text_can_be_dropped(caplog: pytest.LogCaptureFixture) -> None:
    reranker = BGERerank(scorer=WordOverlapScorer(), top_n=None, no_text="drop")
    assert ids(reranker.postprocess_nodes(textless(), query_str=QUERY)) == ["red fox", "fox"]
    assert caplog.records == []


def test_nodes_without_text_can_be_refused() -> None:
    reranker = BGERerank(model=UNLOADABLE, no_text="raise")
    with pytest.raises(InvalidInputError, match=r"position 0 \(id image\)") as caught:
        reranker.postprocess_nodes(textless(), query_str=QUERY)
    assert caught.value.index == 0


def test_nodes_without_any_text_need_no_model() -> None:
    image = textless()[:1]
    last = BGERerank(model=UNLOADABLE).postprocess_nodes(image, query_str=QUERY)
    assert [(node.node_id, node.score) for node in last] == [("image", None)]
    dropping = BGERerank(model=UNLOADABLE, no_text="drop")
    assert dropping.postprocess_nodes(image, query_str=QUERY) == []


@pytest.mark.parametrize("mode", [MetadataMode.EMBED, MetadataMode.ALL])
def test_metadata_alone_is_no_text(mode: MetadataMode, tmp_path: Path) -> None:
    """An empty file and an image come with their path, which answers nothing."""
    (tmp_path / "red_fox.txt").write_text("")
    (tmp_path / "zoo.txt").write_text("a fox")
    found = [with_score(document) for document in SimpleDirectoryReader(tmp_path).load_data()]
    found.append(with_score(ImageNode(image_path="a.png", metadata={"file_path": "red fox.png"})))
    for node in found:
        node.node.excluded_embed_metadata_keys = []
    asked: dict[str, Any] = {"scorer": WordOverlapScorer(), "top_n": None, "metadata_mode": mode}
    last = BGERerank(**asked).postprocess_nodes(found, query_str="red fox")
    assert [node.node.get_content() for node in last] == ["a fox", "", ""]
    assert [node.score is None for node in last] == [False, True, True]
    (kept,) = BGERerank(**asked, no_text="drop").postprocess_nodes(found, query_str="red fox")
    assert kept.node.get_content() == "a fox"
    with pytest.raises(InvalidInputError, match=r"node at position 0 .* has no text"):
        BGERerank(**asked, no_text="raise").postprocess_nodes(found, query_str="red fox")


def test_a_query_bundle_in_a_query_bundle_is_unwrapped(nodes: list[NodeWithScore]) -> None:
    nested: Any = QueryBundle(QueryBundle(QUERY))  # type: ignore[arg-type]
    reranker = BGERerank(scorer=WordOverlapScorer())
    assert reranker.postprocess_nodes(nodes, query_str=nested) == reranker.postprocess_nodes(
        nodes, query_str=QUERY
    )


def test_a_document_of_langchain_is_named_with_what_to_do() -> None:
    wrong: Any = LangChainDocument(page_content="a fox")
    with pytest.raises(
        InvalidInputError, match=r"langchain_core\.\S+Document, not a NodeWithScore of llama_index"
    ) as refused:
        BGERerank(model=UNLOADABLE).postprocess_nodes([wrong], query_str=QUERY)
    assert "NodeWithScore(node=Document.from_langchain_format(document))" in str(refused.value)
    converted = [NodeWithScore(node=Document.from_langchain_format(wrong))]
    assert len(BGERerank(scorer=WordOverlapScorer()).postprocess_nodes(converted, query_str="a"))


def test_equal_nodes_take_one_place_if_asked() -> None:
    first, other = TextNode(id_="1", text="a red fox"), TextNode(id_="2", text="a fox")
    same_text = TextNode(id_="3", text="a fox", metadata={"source": "keyword search"})
    found = [with_score(node) for node in (first, other, first, same_text)]
    once = BGERerank(scorer=WordOverlapScorer(), top_n=None, drop_duplicates=True)
    assert ids(once.postprocess_nodes(found, query_str=QUERY)) == ["1", "2"]
    every = BGERerank(scorer=WordOverlapScorer(), top_n=None)
    assert ids(every.postprocess_nodes(found, query_str=QUERY)) == ["1", "1", "2", "3"]


def test_the_budget_counts_what_the_language_model_reads() -> None:
    node = TextNode(
        text="a red fox", metadata={"path": "x " * 50}, excluded_llm_metadata_keys=["path"]
    )
    (budget,) = load_scorer("offline").count_tokens(["a red fox"])
    for token_budget, kept in ((budget, 1), (budget - 1, 0)):
        reranker = BGERerank(model="offline", token_budget=token_budget)
        assert len(reranker.postprocess_nodes([with_score(node)], query_str=QUERY)) == kept


@pytest.mark.parametrize("given", [None, 7, "red fox", {"text": "red fox"}, textless()[0]])
def test_what_is_no_list_of_nodes_is_refused(given: Any) -> None:
    reranker = BGERerank(model=UNLOADABLE)
    with pytest.raises(InvalidInputError, match=f"nodes is {type(given).__name__}; pass a list"):
        reranker.postprocess_nodes(given, query_str=QUERY)
