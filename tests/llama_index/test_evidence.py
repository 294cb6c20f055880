"""`explain` in LlamaIndex: offsets into the node's own text, out of sight of embedder and LLM."""

import json
import logging
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import TokenTextSplitter
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from bge_rerank_integrations.errors import RemoteUnavailable
from bge_rerank_integrations.llama_index import BGERerank
from tests.fakes import FailingScorer, WordOverlapScorer

QUERY = "red fox eats"
TEXTS = ["A dog barks. A fox.", "A hat is red. The red fox eats mice.", "Stocks fell."]


@pytest.fixture
def titled() -> list[NodeWithScore]:
    """Each has a title in its metadata, which has all words of the query."""
    return [
        NodeWithScore(node=TextNode(text=text, id_=str(i), metadata={"title": "red fox eats"}))
        for i, text in enumerate(TEXTS)
    ]


def explaining(**fields: Any) -> BGERerank:
    defaults: dict[str, Any] = {"scorer": WordOverlapScorer(), "explain": True, "top_n": None}
    return BGERerank(**defaults | fields)


def quoted(ranked: list[NodeWithScore]) -> dict[str, str]:
    found = {}
    for node in ranked:
        text = node.node.get_content(metadata_mode=MetadataMode.NONE)
        note = node.node.metadata
        found[node.node_id] = text[note["rerank_evidence_start"] : note["rerank_evidence_end"]]
        assert note["rerank_evidence"] == found[node.node_id]
    return found


@pytest.mark.parametrize("mode", list(MetadataMode))
async def test_offsets_point_into_the_own_text_whatever_was_scored(
    titled: list[NodeWithScore], mode: MetadataMode
) -> None:
    reranker = explaining(metadata_mode=mode)
    ranked = reranker.postprocess_nodes(titled, query_str=QUERY)
    assert quoted(ranked) == {
        "0": "A fox.",
        "1": "The red fox eats mice.",
        "2": "Stocks fell.",
    }
    assert await reranker.apostprocess_nodes(titled, query_str=QUERY) == ranked


def test_the_note_is_plain_data_on_the_scale_of_the_score(titled: list[NodeWithScore]) -> None:
    reranker = explaining(top_n=1, normalize=False, metadata_mode=MetadataMode.NONE)
    (node,) = reranker.postprocess_nodes(titled, query_str=QUERY)
    assert json.loads(node.to_json())["node"]["metadata"] == {
        "title": "red fox eats",
        "rerank_evidence": "The red fox eats mice.",
        "rerank_evidence_start": 14,
        "rerank_evidence_end": 36,
        "rerank_evidence_score": 3.0,
    }


def test_neither_llm_nor_embedder_nor_a_second_pass_reads_it(titled: list[NodeWithScore]) -> None:
    ranked = explaining().postprocess_nodes(titled, query_str=QUERY)
    given = {node.node_id: node.node for node in titled}
    for node in ranked:
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert node.node.get_content(mode) == given[node.node_id].get_content(mode)
    again = explaining(metadata_mode=MetadataMode.ALL).postprocess_nodes(ranked, query_str="start")
    assert [node.score for node in again] == [0.5] * 3, "the keys of the note were scored"


def test_the_nodes_given_stay_as_they_are(titled: list[NodeWithScore]) -> None:
    before = [node.model_dump_json() for node in titled]
    explaining().postprocess_nodes(titled, query_str=QUERY)
    assert [node.model_dump_json() for node in titled] == before


def test_none_without_text_and_none_without_explain(titled: list[NodeWithScore]) -> None:
    titled.append(NodeWithScore(node=TextNode(text="", id_="empty")))
    titled.append(NodeWithScore(node=TextNode(text="", id_="meta", metadata={"a": "red fox eats"})))
    ranked = explaining(no_text="last").postprocess_nodes(titled, query_str=QUERY)
    notes = {node.node_id: node.node.metadata["rerank_evidence"] for node in ranked}
    assert notes["empty"] is None
    assert notes["meta"] is None, "no text of its own to point into"
    plain = explaining(explain=False).postprocess_nodes(titled, query_str=QUERY)
    assert [node.node.metadata.get("rerank_evidence", "absent") for node in plain] == ["absent"] * 5


def test_a_note_of_an_earlier_pass_is_replaced(
    titled: list[NodeWithScore], caplog: pytest.LogCaptureFixture
) -> None:
    ranked = explaining().postprocess_nodes(titled, query_str=QUERY)
    scorer = FailingScorer(RemoteUnavailable)
    with caplog.at_level(logging.WARNING):
        kept = explaining(scorer=scorer, on_error="keep").postprocess_nodes(
            ranked, query_str="other"
        )
    assert [node.node_id for node in kept] == [node.node_id for node in ranked]
    assert [node.node.metadata["rerank_evidence"] for node in kept] == [None] * 3
    assert [node.node.metadata["rerank_scored"] for node in kept] == [False] * 3


# LlamaIndex's bridge to LangChain imports it
@pytest.mark.filterwarnings("ignore:.langchain-community. is being sunset:DeprecationWarning")
def test_the_sentence_is_found_in_the_texts_of_a_citation_engine() -> None:
    """The engine splits nodes and writes "Source 1:" before them after the rerank."""
    text = "The zoo opened in 1901. The red fox eats mice. It closes at six. " * 20
    index = VectorStoreIndex([TextNode(text=text)], embed_model=MockEmbedding(8))
    engine = CitationQueryEngine.from_args(
        index,
        llm=MockLLM(),
        node_postprocessors=[explaining()],
        # the oldest release's own splitter downloads a list of words
        text_splitter=TokenTextSplitter(chunk_size=64, chunk_overlap=20),
    )
    sources = engine.query(QUERY).source_nodes
    places = [one.node.get_content().find(one.metadata["rerank_evidence"]) for one in sources]
    first = sources[0].node.get_content()
    assert len(sources) > 1
    assert first.startswith("Source 1:\nThe zoo opened in 1901. The red fox eats mice.")
    assert places[0] == len("Source 1:\nThe zoo opened in 1901. ")


def test_a_replaced_text_does_not_hold_the_sentence() -> None:
    node = TextNode(text="The red fox eats mice.", metadata={"window": "Another text."})
    ranked = explaining().postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    (replaced,) = MetadataReplacementPostProcessor("window").postprocess_nodes(ranked)
    assert replaced.node.get_content().find(replaced.metadata["rerank_evidence"]) == -1
