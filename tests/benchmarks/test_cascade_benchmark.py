"""The arithmetic of benchmarks/cascade.py; nothing is timed."""

from functools import partial

import pytest

from benchmarks.cascade import order, order_in_turn, spared, values
from bge_rerank_integrations.evaluate import JudgedQuery
from tests.fakes import WordOverlapScorer

FOUR = JudgedQuery("1", "red fox", {"a": "dog", "b": "red", "c": "red fox", "d": "cat"}, {"b": 1})
TWO = JudgedQuery("2", "red fox", {"a": "red", "b": "dog"}, {"b": 1})


def test_pairs_spared_are_those_beyond_keep() -> None:
    assert spared([FOUR, TWO], keep=3) == pytest.approx(1 / 6)
    assert spared([FOUR, TWO], keep=4) == 0


def test_candidates_that_the_first_model_drops_are_not_found() -> None:
    second = pytest.approx(0.6309, abs=1e-4)  # 1 / log2(3)
    scorer = WordOverlapScorer()
    assert values([FOUR, TWO], partial(order, scorer)).tolist() == [second, second]
    assert values([FOUR, TWO], partial(order_in_turn, scorer, 1, scorer)).tolist() == [0, 0]
    assert order_in_turn(scorer, 2, scorer, FOUR) == [2, 1]
    calls = scorer.calls
    assert order_in_turn(scorer, 4, scorer, FOUR) == [2, 1, 0, 3]
    assert scorer.calls == calls + 1, "nothing to drop: the first model does not run"
