"""The adapter over a real model folder: late loading, and copies that load the same again."""

import pickle
from pathlib import Path

import pytest
from llama_index.core.schema import NodeWithScore

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.llama_index import BGERerank

QUERY = "What is a panda?"


@pytest.fixture
def reranker(reranker_base: Path) -> BGERerank:
    return BGERerank(model=str(reranker_base), device="cpu", top_n=None, normalize=False)


def scores(ranked: list[NodeWithScore]) -> dict[str, float | None]:
    return {node.node_id: node.score for node in ranked}


async def test_the_scores_are_the_models(reranker: BGERerank, nodes: list[NodeWithScore]) -> None:
    pairs = [(QUERY, given.node.get_content()) for given in nodes]
    raw = load_scorer(reranker.model, device="cpu").score(pairs)
    expected = {f"n{index}": pytest.approx(score, abs=1e-5) for index, score in enumerate(raw)}
    assert len({round(float(score), 3) for score in raw}) == len(nodes)
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert scores(ranked) == expected
    assert [node.node_id for node in ranked] == sorted(expected, key=lambda id_: -raw[int(id_[1])])
    assert scores(await reranker.apostprocess_nodes(nodes, query_str=QUERY)) == expected


def test_the_model_loads_at_first_use(reranker: BGERerank, nodes: list[NodeWithScore]) -> None:
    assert reranker._bge_loaded is None
    reranker.postprocess_nodes(nodes, query_str=" ")
    reranker.postprocess_nodes([], query_str=QUERY)
    assert reranker._bge_loaded is None
    reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert reranker._bge_loaded is not None


def test_it_loads_at_construction_if_asked(reranker_base: Path) -> None:
    eager = BGERerank(model=str(reranker_base), device="cpu", lazy_load=False)
    read = BGERerank.from_json(eager.to_json())
    unpickled = pickle.loads(pickle.dumps(eager))
    for one in (eager, read, unpickled):
        assert one.lazy_load is False
        assert one._bge_loaded is not None


def test_a_pickle_holds_the_settings_and_no_weights(
    reranker: BGERerank, nodes: list[NodeWithScore]
) -> None:
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    pickled = pickle.dumps(reranker)
    assert len(pickled) < 2048
    again = pickle.loads(pickled)
    assert again._bge_loaded is None
    assert again.postprocess_nodes(nodes, query_str=QUERY) == ranked
