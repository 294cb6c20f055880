"""The arithmetic of benchmarks/cascade.py; nothing is timed."""

import pytest

from benchmarks.cascade import spared, values
from bge_rerank_integrations import Reranker
from bge_rerank_integrations.evaluate import JudgedQuery
from bge_rerank_integrations.ranking.cascade import CascadeStage
from tests.fakes import WordOverlapScorer

FOUR = JudgedQuery("1", "red fox", {"a": "dog", "b": "red", "c": "red fox", "d": "cat"}, {"b": 1})
TWO = JudgedQuery("2", "red fox", {"a": "red", "b": "dog"}, {"b": 1})


def test_pairs_spared_are_those_beyond_keep() -> None:
    assert spared([FOUR, TWO], keep=3) == pytest.approx(1 / 6)
    assert spared([FOUR, TWO], keep=4) == 0


def test_what_falls_out_is_not_found() -> None:
    second = pytest.approx(0.6309, abs=1e-4)  # 1 / log2(3)
    assert values([FOUR, TWO], Reranker(WordOverlapScorer())).tolist() == [second, second]
    cascade = [CascadeStage(WordOverlapScorer(), keep=1)]
    cut = values([FOUR, TWO], Reranker(WordOverlapScorer(), cascade=cascade))
    assert cut.tolist() == [0, 0]
