"""The caller's nodes stay as they were, byte for byte, and a second pass changes nothing."""

import threading
from collections.abc import Sequence

import pytest
from llama_index.core.schema import Document, ImageNode, MetadataMode, NodeWithScore, TextNode

from bge_rerank_integrations.llama_index import BGERerank
from tests.fakes import WordOverlapScorer

ADDED = {"retrieval_score", "rerank_raw_score"}


def written(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.to_json() for node in nodes]


def full_reranker(**changes: object) -> BGERerank:
    settings = {"top_n": None, "keep_retrieval_score": True, "include_logit": True, **changes}
    return BGERerank.from_dict(settings, scorer=WordOverlapScorer())


@pytest.fixture
def rich() -> list[NodeWithScore]:
    """Nodes of several kinds, with metadata, excluded keys and an embedding."""
    return [
        NodeWithScore(
            node=TextNode(
                id_="text",
                text="a dog",
                metadata={"title": "red", "tags": ["a", "b"]},
                excluded_embed_metadata_keys=["tags"],
                embedding=[0.1, 0.2],
            ),
            score=0.9,
        ),
        NodeWithScore(node=Document(id_="document", text="a red fox"), score=0.8),
        NodeWithScore(node=TextNode(id_="unscored", text="the fox")),
        NodeWithScore(node=ImageNode(id_="image", image_url="file:///fox.png"), score=0.6),
    ]


def test_two_queries_leave_the_nodes_byte_for_byte(rich: list[NodeWithScore]) -> None:
    before, hashes = written(rich), [given.node.hash for given in rich]
    reranker = full_reranker()
    first = reranker.postprocess_nodes(rich, query_str="red fox")
    first_written = written(first)
    second = reranker.postprocess_nodes(rich, query_str="a dog")
    assert written(rich) == before
    assert [given.node.hash for given in rich] == hashes
    assert written(first) == first_written  # the second query did not reach the first's results
    assert [node.node_id for node in first] == ["document", "text", "unscored", "image"]
    assert [node.node_id for node in second] == ["text", "document", "unscored", "image"]


def test_without_additions_the_nodes_themselves_come_back(rich: list[NodeWithScore]) -> None:
    ranked = BGERerank(scorer=WordOverlapScorer()).postprocess_nodes(rich, query_str="red fox")
    assert [node.node for node in ranked] == [rich[1].node, rich[0].node]
    assert ranked[0].node is rich[1].node
    assert ranked[0] is not rich[1]


def test_the_retrieval_score_is_kept_out_of_sight(rich: list[NodeWithScore]) -> None:
    ranked = full_reranker().postprocess_nodes(rich, query_str="red fox")
    by_id = {node.node_id: node for node in ranked}
    assert {key: node.metadata["retrieval_score"] for key, node in by_id.items()} == {
        "document": 0.8,
        "text": 0.9,
        "unscored": None,
        "image": 0.6,
    }
    assert {key: node.metadata["rerank_raw_score"] for key, node in by_id.items()} == {
        "document": 2.0,
        "text": 1.0,
        "unscored": 1.0,
        "image": None,
    }
    text = by_id["text"].node
    assert text.excluded_embed_metadata_keys == ["tags", "retrieval_score", "rerank_raw_score"]
    assert text.excluded_llm_metadata_keys == ["retrieval_score", "rerank_raw_score"]
    assert text.get_content(metadata_mode=MetadataMode.EMBED) == "title: red\n\na dog"
    assert text.get_content(metadata_mode=MetadataMode.LLM) == (
        "title: red\ntags: ['a', 'b']\n\na dog"
    )


@pytest.mark.parametrize("mode", list(MetadataMode))
def test_reranking_the_result_again_changes_nothing(
    rich: list[NodeWithScore], mode: MetadataMode
) -> None:
    # every word that a note could add to the text is in the query
    query = "red fox retrieval_score: rerank_raw_score: 0.9 0.8 1.0 2.0 none"
    reranker = full_reranker(metadata_mode=mode)
    once = reranker.postprocess_nodes(rich, query_str=query)
    twice = reranker.postprocess_nodes(once, query_str=query)
    assert written(twice) == written(once)


def test_metadata_that_cannot_be_copied_is_no_obstacle() -> None:
    lock = threading.Lock()
    node = TextNode(text="red fox", metadata={"lock": lock}, excluded_embed_metadata_keys=["lock"])
    given = NodeWithScore(node=node)
    ranked = full_reranker().postprocess_nodes([given], query_str="red fox")
    assert ranked[0].metadata["lock"] is lock
    assert set(ranked[0].metadata) == {"lock", *ADDED}
    assert set(node.metadata) == {"lock"}
