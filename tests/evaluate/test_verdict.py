"""What the verdict prints holds when it is used, and what cannot be measured blames no model."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_rerank_integrations import Reranker
from bge_rerank_integrations.evaluate import JudgedQuery, evaluate
from bge_rerank_integrations.evaluate.page import html_page
from bge_rerank_integrations.evaluate.recommend import round_down
from tests.evaluate.data import stated
from tests.fakes import StatedScorer, WordOverlapScorer

PRINTED = re.compile(r"score_threshold=(\S+) keeps (\d+)% .* drops (\d+)% of the others")


@pytest.mark.parametrize(("low", "high"), [(10, 12), (-12, -10), (30, 30.5), (0, 1e-5)])
def test_the_printed_threshold_keeps_and_drops_what_it_says(low: float, high: float) -> None:
    queries = [
        stated(n, *(low + place * (high - low) / 20 for place in range(9)), high, relevant=[9])
        for n in range(60)
    ]
    report = evaluate(queries, {"stated": StatedScorer()}, resamples=100)
    found = PRINTED.search(report.verdict)
    assert found is not None, report.verdict
    assert (found[2], found[3]) == ("100", "100")
    reranker = Reranker(StatedScorer(), score_threshold=float(found[1]))
    for query in queries:
        results = reranker.rerank(query.text, list(query.candidates.values()))
        assert [kept.index for kept in results] == [9]


@settings(max_examples=200)
@given(st.floats(1e-30, 1, exclude_max=True) | st.floats(-1e6, 1e6))
def test_a_number_is_rounded_down_and_stays_above_its_neighbour(number: float) -> None:
    for above in (None, float(np.nextafter(number, -np.inf)), number - abs(number) / 1000):
        if above is None or above < number:
            printed = float(round_down(number, above=above))
            assert (above is None) or (above < printed)
            assert printed <= number


def test_digits_count_from_the_end_that_is_near() -> None:
    assert round_down(0.8807970779778823) == "0.8807"
    assert round_down(0.9999938765) == "0.999993876"
    assert round_down(0.000012345) == "0.00001234"
    assert round_down(12345.6) == "12340"
    assert round_down(0.3) == "0.3000"
    assert round_down(-1.23456) == "-1.235"
    assert [round_down(0), round_down(1), round_down(0.5)] == ["0", "1.000", "0.5000"]
    assert round_down(0.88079, above=0.88075) == "0.88079"


def test_ids_of_two_kinds_are_no_verdict_on_a_reranker() -> None:
    found = {f"uuid-{n}": text for n, text in enumerate(("a red fox", "a dog"))}
    queries = [JudgedQuery(str(n), "red fox", found, {"faq-7": 1}) for n in range(60)]
    words = {"words": WordOverlapScorer()}
    for rerankers in (words, words | {"more": WordOverlapScorer()}):
        report = evaluate(queries, rerankers, resamples=100)
        assert report.verdict == (
            "No candidate of any question is relevant, so no order is better than another, and "
            "this says nothing about reranking. No judged id is among the candidates: are they the "
            "same ids? A judged id is 'faq-7', a candidate's id is 'uuid-0'."
        )
        assert set(report.verdicts.values()) == {report.verdict}
        assert "No judged id is among the candidates" in html_page(report)
    missed = [JudgedQuery(str(n), "red fox", found, {"x": 1, "uuid-0": 0}) for n in range(60)]
    report = evaluate(missed, words, resamples=100)
    assert report.verdict.endswith("this says nothing about reranking.")
    one = JudgedQuery("last", "red fox", found, {"uuid-0": 1})
    assert "No candidate" not in evaluate([*queries, one], words, resamples=100).verdict
