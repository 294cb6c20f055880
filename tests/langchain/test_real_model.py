"""A real model behind the adapter: the core's own scores, shared weights, a rebuilt adapter."""

import gc
import pickle
from pathlib import Path

import pytest

from bge_rerank_integrations import load_reranker
from bge_rerank_integrations.langchain import BGECrossEncoder, BGERerank
from tests.langchain.foxes import QUERY, TEXTS, documents, positions, scores


@pytest.fixture
def reranker(reranker_base: Path) -> BGERerank:
    return BGERerank(model=str(reranker_base), device="cpu", top_n=None, include_logit=True)


async def test_scores_are_the_cores_own_sync_and_async(
    reranker: BGERerank, reranker_base: Path
) -> None:
    expected = load_reranker(str(reranker_base), device="cpu").rerank(QUERY, TEXTS)
    ranked = reranker.compress_documents(documents(), QUERY)
    assert positions(ranked) == [result.index for result in expected]
    assert scores(ranked) == [result.score for result in expected]
    assert [document.metadata["rerank_raw_score"] for document in ranked] == [
        result.raw_score for result in expected
    ]
    assert len(set(scores(ranked))) > 1
    assert await reranker.acompress_documents(documents(), QUERY) == ranked


def test_a_cross_encoder_gives_the_same_scores(reranker: BGERerank) -> None:
    encoder = BGECrossEncoder(model=reranker.model, device="cpu")
    by_position = dict(enumerate(encoder.score([(QUERY, text) for text in TEXTS])))
    ranked = reranker.compress_documents(documents(), QUERY)
    assert scores(ranked) == pytest.approx([by_position[i] for i in positions(ranked)], abs=1e-7)


def test_a_rebuilt_adapter_gives_the_same_results(reranker: BGERerank) -> None:
    ranked = reranker.compress_documents(documents(), QUERY)
    pickled = pickle.dumps(reranker)
    assert len(pickled) < 2048
    rebuilt = pickle.loads(pickled)
    assert rebuilt._bge_loaded is None
    assert rebuilt.compress_documents(documents(), QUERY) == ranked


def test_after_close_the_next_use_loads_again(reranker: BGERerank) -> None:
    ranked = reranker.compress_documents(documents(), QUERY)
    reranker.close()
    gc.collect()
    assert reranker._bge_loaded is None
    assert reranker.compress_documents(documents(), QUERY) == ranked
