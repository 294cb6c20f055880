"""`evaluate` over questions whose figures can be worked out by hand."""

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Self

import numpy as np
import pytest

from bge_rerank_integrations import (
    InvalidInputError,
    NonFiniteScoreError,
    Reranker,
    ScorerContractError,
)
from bge_rerank_integrations.errors import ScoringTimeout
from bge_rerank_integrations.evaluate import JudgedQuery, Report, RerankerResult, evaluate
from bge_rerank_integrations.evaluate.measures import parse_measures
from bge_rerank_integrations.evaluate.page import html_page
from bge_rerank_integrations.evaluate.recommend import Gap, Recommendation, Setting
from bge_rerank_integrations.types import FloatArray, Pair
from bge_rerank_integrations.wrappers.cache import MemoryStore
from tests.evaluate.data import helped, hurt, stated
from tests.fakes import FailingScorer, StatedScorer, WordOverlapScorer

SECOND = 1 / math.log2(3)
"""nDCG of a question whose one answer is second."""


def only(queries: list[JudgedQuery], **options: object) -> tuple[Report, RerankerResult]:
    report = evaluate(queries, {"words": WordOverlapScorer()}, resamples=500, **options)  # type: ignore[arg-type]
    (result,) = report.rerankers
    return report, result


def test_where_reranking_helps_everywhere() -> None:
    report, result = only([helped(number) for number in range(12)])
    assert report.main == "nDCG@10"
    assert report.first_stage["nDCG@10"].value == pytest.approx(0.5)
    assert report.first_stage["RR@10"].value == pytest.approx(1 / 3)
    assert {name: found.value for name, found in result.measures.items()} == {
        "nDCG@10": 1,
        "RR@10": 1,
        "AP": 1,
        "R@10": 1,
        "Success@1": 1,
        "Success@5": 1,
    }
    gain = result.gains["nDCG@10"]
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (gain.wins, gain.losses, gain.ties) == (12, 0, 0)
    assert result.gains["R@10"].ties == 12
    assert [(row.depth, row.quality.value, row.recall) for row in result.depths] == [
        (1, 0.5, 0),
        (2, 0.5, 0),
        (3, 1, 1),
    ]
    found = result.recommendation
    assert found is not None
    assert (found.depth, found.top_n) == (Setting(3, 1, 1), Setting(1, 1, 1))
    # the sigmoid of 2 is 0.88079...
    assert (found.score_threshold, found.dropped) == (Setting(0.8807, 1, 1), 1)
    assert found.options == {"top_n": 1, "score_threshold": 0.8807}
    assert report.best == "words"
    assert report.verdict.startswith(
        "words helps: nDCG@10 goes from 0.500 to 1.000, by +0.500 [+0.500, +0.500], p = 0.004"
    )
    assert "the first 3 candidates: that has 100% of the gain, 100% on held-out" in report.verdict
    assert "top_n=1 " in report.verdict
    assert "score_threshold=0.8807 " in report.verdict


def gap_of(queries: Sequence[JudgedQuery]) -> tuple[Report, Recommendation, Gap]:
    report = evaluate(queries, {"stated": StatedScorer()}, resamples=500)
    found = report.rerankers[0].recommendation
    assert found is not None
    assert found.gap is not None
    return report, found, found.gap


def test_the_largest_gap_is_recommended_where_it_beats_a_fixed_number() -> None:
    # the answer is first and far ahead, or second and close: the gap keeps one result, or two
    apt = [stated(n, 1, 0.5, 9, relevant=[2]) for n in range(20)]
    apt += [stated(n, 1, 8, 9, relevant=[1]) for n in range(20)]
    report, found, gap = gap_of(apt)
    assert (gap.length, gap.f1) == pytest.approx((1.5, (1 + 2 / 3) / 2))
    # F1 of one result is 1 or 0, of two it is 2/3
    assert gap.fixed_f1 == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (found.options["top_n"], found.options["min_n"]) == (2, 1)
    assert "min_n=1 helps: the largest score gap ends the results after 1.5 on" in report.verdict
    reranker = Reranker(StatedScorer(), top_n=2, min_n=1)
    for query in apt:
        kept = reranker.rerank(query.text, list(query.candidates.values()))
        assert len(kept) == 1 + (query in apt[20:])

    # the gap now lies behind the wrong one of two, and before the second answer
    inapt = [stated(n, 1, 8.9, 9, relevant=[2]) for n in range(20)]
    inapt += [stated(n, 0, 1, 9, relevant=[1]) for n in range(20)]
    report, found, gap = gap_of(inapt)
    assert (gap.length, gap.f1) == pytest.approx((1.5, 1 / 3))
    assert "min_n" not in found.options
    assert "Leave min_n out: the largest score gap ends the results after 1.5" in report.verdict


def test_where_it_helps_some_and_hurts_others() -> None:
    report, result = only([q for n in range(6) for q in (helped(n), hurt(n))])
    gain = result.gains["nDCG@10"]
    assert gain.value == pytest.approx((0.5 + SECOND - 1) / 2)
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low < 0 < gain.high
    assert (gain.wins, gain.losses) == (6, 6)
    assert report.verdict.startswith("No measurable difference: with words, nDCG@10")
    assert "score_threshold" not in report.verdict
    assert (result.recommendation, report.best) == (None, None)
    assert {change.id for change in result.wins} == {f"helped-{n}" for n in range(6)}
    win, loss = result.wins[0], result.losses[0]
    assert (win.question, win.rank_before, win.rank_after) == ("red fox", 3, 1)
    assert (win.before, win.after) == pytest.approx((0.5, 1))
    assert (win.top_before, win.top_after) == ("a dog", "a red fox")
    assert (loss.rank_before, loss.rank_after) == (1, 2)
    assert result.differences == pytest.approx([SECOND - 1] * 6 + [0.5] * 6)


def test_where_it_hurts() -> None:
    report, result = only([hurt(number) for number in range(60)])
    assert report.verdict == (
        "words makes the order worse: nDCG@10 goes from 1.000 to 0.631, by -0.369 [-0.369, -0.369],"
        " p = 0.004."
    )
    assert result.recommendation is None
    assert [row.gain.value for row in result.depths] == pytest.approx([0, SECOND - 1])


def test_few_changed_questions_are_no_evidence() -> None:
    report, result = only([helped(number) for number in range(9)])
    assert report.verdict == (
        "Too few of the 9 questions change to tell whether words helps: nDCG@10 goes from 0.500 to "
        "1.000, by +0.500 (9 questions changed: too few to tell). Judge more questions, ideally 50."
    )
    assert (result.gains["nDCG@10"].low, result.gains["nDCG@10"].high) == (None, None)
    assert "Rerank the first" not in html_page(report), "nothing is recommended without a gain"
    report, _ = only([helped(number) for number in range(10)])
    assert "With only 10 questions the interval may be too narrow." in report.verdict
    report, _ = only([helped(number) for number in range(20)])
    assert "too narrow" not in report.verdict


def test_a_loader_is_called_in_its_turn_and_what_it_loads_is_closed() -> None:
    events: list[str] = []

    class Model(WordOverlapScorer):
        def __enter__(self) -> Self:
            events.append(f"open {self.name}")
            return self

        def __exit__(self, *_: object) -> None:
            events.append(f"close {self.name}")

    queries = [helped(number) for number in range(10)]
    loaders = {name: partial(Model, name) for name in ("a", "b")}
    report = evaluate(
        queries, {**loaders, "c": lambda: Reranker(Model("c"), top_n=1)}, resamples=100
    )
    assert events == [f"{done} {name}" for name in "abc" for done in ("open", "close")]
    given = evaluate(queries, {"a": Model("a")}, resamples=100)
    assert events[6:] == [], "a scorer that was given stays open"
    for result in report.rerankers:
        assert result.measures == given.rerankers[0].measures
        assert result.scorer == result.name


def test_what_no_reranker_can_mend_is_told_apart() -> None:
    missed = JudgedQuery("missed", "red fox", {"p0": "a red fox"}, {"p9": 1})
    nothing = JudgedQuery("nothing", "red fox", {}, {"p9": 1, "p8": 1})
    half = JudgedQuery("half", "red fox", {"p0": "a dog", "p1": "a fox"}, {"p1": 1, "p7": 1})
    pointless = JudgedQuery("pointless", "red fox", {"p0": "a fox"}, {"p0": 0, "p1": -1})
    report, result = only([helped(0), missed, nothing, half, pointless])
    assert (report.questions, report.left_out) == (4, 1)
    found = report.candidates
    assert (found.most, found.mean, found.none_found) == (3, 1.5, 1)
    assert found.recall == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert found.answerable == 0.5
    ideal = 1 / (1 + SECOND)
    assert found.best["nDCG@10"] == pytest.approx((1 + 0 + 0 + ideal) / 4)
    assert found.best["Success@1"] == 0.5
    assert result.measures["nDCG@10"].value == pytest.approx(found.best["nDCG@10"])


def test_grades_weigh_in_ndcg_and_in_the_best_order() -> None:
    texts = {"p0": "a red fox", "p1": "a fox", "p2": "a dog"}
    query = JudgedQuery("1", "red fox", texts, {"p0": 1, "p1": 3})
    report, result = only([query])
    ideal = 3 + 1 * SECOND
    assert result.measures["nDCG@10"].value == pytest.approx((1 + 3 * SECOND) / ideal)
    assert report.candidates.best["nDCG@10"] == 1


def test_equal_scores_keep_the_retrievers_order() -> None:
    # by the ids' order, as trec_eval breaks ties, the answer would move
    texts = {"z": "a fox", "m": "a fox", "a": "a fox"}
    for answer in texts:
        report, result = only([JudgedQuery("1", "red fox", texts, {answer: 1})])
        for name, before in report.first_stage.items():
            assert result.measures[name].value == before.value


def test_every_candidate_is_scored_once_and_only_the_warm_up_twice() -> None:
    scorer = WordOverlapScorer()
    queries = [helped(0), hurt(0), helped(1)]
    evaluate(queries, {"words": scorer}, resamples=100, depths=[1, 2])
    assert scorer.pairs_scored == 3 + 2 + 3 + 1
    assert scorer.calls == 4


def test_with_a_cache_no_pair_is_scored_twice() -> None:
    queries, store = [helped(0), hurt(0), helped(1)], MemoryStore()
    first, again, other = (WordOverlapScorer(name) for name in ("a", "a", "b"))
    timed = evaluate(queries, {"first": first}, resamples=100, score_cache=store)
    # helped(1) asks for the same pairs as helped(0); one pair is scored before the clock starts
    assert first.pairs_scored == 3 + 2 + 1
    assert timed.rerankers[0].latency is not None
    both = {"again": again, "other": other}
    report = evaluate(queries, both, resamples=100, score_cache=store)
    assert (again.pairs_scored, other.pairs_scored) == (1, 3 + 2 + 1)
    cached = report.rerankers[0]
    assert cached.measures == timed.rerankers[0].measures
    assert cached.latency is None
    assert "not timed" in html_page(report)


def test_a_run_that_was_stopped_goes_on_where_it_was() -> None:
    class Stopped(WordOverlapScorer):
        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().score(pairs)

    queries = [helped(0), hurt(0), stated(0, 1, 2, relevant=[1])]
    stopped, store = Stopped(), MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        evaluate(queries, {"words": stopped}, resamples=100, score_cache=store)
    assert stopped.pairs_scored == 1 + 3
    resumed = WordOverlapScorer()
    evaluate(queries, {"words": resumed}, resamples=100, score_cache=store)
    assert resumed.pairs_scored == 1 + 2 + 2


def test_a_rerankers_own_cuts_do_not_count() -> None:
    queries = [helped(number) for number in range(12)]
    strict = Reranker(WordOverlapScorer(), top_n=1, score_threshold=0.99, on_error="keep")
    plain = Reranker(WordOverlapScorer(), normalize=False)
    report = evaluate(queries, {"strict": strict, "plain": plain}, resamples=100)
    first, second = report.rerankers
    assert first.measures == second.measures
    assert first.recommendation is not None
    assert second.recommendation is not None
    assert first.recommendation.options == {"top_n": 1, "score_threshold": 0.8807}
    assert second.recommendation.options == {"top_n": 1, "score_threshold": 2}
    assert (strict.options.top_n, strict.options.score_threshold) == (1, 0.99)


def test_rerankers_are_compared_with_each_other() -> None:
    queries = [helped(number) for number in range(20)]
    backwards = StatedScorer("cosine", "backwards")
    scored = [
        dataclasses.replace(
            query, candidates={k: f"{t} {-n}" for n, (k, t) in enumerate(query.candidates.items())}
        )
        for query in queries
    ]
    # the order of before, scored in descending numbers, against the right one
    report = evaluate(scored, {"same": backwards, "words": WordOverlapScorer()}, resamples=500)
    (comparison,) = report.comparisons
    assert (comparison.first, comparison.second) == ("same", "words")
    assert comparison.difference.value == pytest.approx(0.5)
    assert comparison.difference.is_clear
    assert report.verdict.startswith("words helps: ")
    assert report.verdict.endswith("It is measurably better than same.")
    assert report.verdicts["same"] == (
        "No measurable difference: same changes nDCG@10 for none of the 20 questions."
    )
    twice = {"a": WordOverlapScorer(), "b": WordOverlapScorer()}
    report = evaluate(queries, twice, resamples=500)
    assert "No measurable difference between it and b." in report.verdict
    none = {"a": backwards, "b": backwards}
    report = evaluate(scored, none, resamples=500)
    assert report.verdict == (
        "None of the 2 rerankers measurably improves nDCG@10 over these 20 questions."
    )


def test_measures_are_named_as_in_ir_measures() -> None:
    queries = [helped(0), hurt(0)]
    report, result = only(queries, measures=["RR", "P@1", "AP(rel=2)", "nDCG"])
    assert report.main == "RR"
    assert [report.first_stage[n].value for n in ("RR", "P@1")] == pytest.approx([2 / 3, 0.5])
    assert result.measures["AP(rel=2)"].value == 0


def test_a_measures_name_says_the_same_in_ir_measures() -> None:
    names = ["nDCG", "nDCG@10", "AP", "AP(rel=2)@5", "RR(rel=3)", "RR@20", "R@10", "R(rel=2)@10"]
    names += ["P@1", "P(rel=2)@3", "Success@1", "Success(rel=4)@100"]
    assert [str(measure) for measure in parse_measures(names)] == names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"measures": ["nDCG@0"]}, "there is no measure 'nDCG@0'; measures are nDCG@10"),
        ({"measures": ["ndcg@10"]}, r"no measure 'ndcg@10' \(did you mean nDCG@10\?\)"),
        ({"measures": ["MRR@10"]}, r"no measure 'MRR@10' \(did you mean RR@10\?\)"),
        ({"measures": ["R"]}, "there is no measure 'R'"),
        ({"measures": ["precision@5"]}, "there is no measure 'precision@5'"),
        ({"measures": ["nDCG@10", "nDCG@10"]}, "give at least one, each once"),
        ({"measures": []}, "give at least one"),
        ({"depths": [0]}, r"depths is \[0\]"),
        ({"depths": []}, r"depths is \[\]"),
        ({"resamples": 10}, "resamples is 10; it must be a whole number from 100"),
        ({"examples": -1}, "examples is -1; it must be a whole number from 0"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, object], said: str) -> None:
    scorer = WordOverlapScorer()
    with pytest.raises(InvalidInputError, match=said):
        evaluate([helped(0)], {"words": scorer}, **options)  # type: ignore[arg-type]
    assert scorer.calls == 0


def test_nothing_to_measure_is_an_error() -> None:
    empty = JudgedQuery("1", "red fox", {}, {"p0": 1})
    for queries in ([], [empty], [dataclasses.replace(helped(0), grades={})]):
        with pytest.raises(InvalidInputError, match="there is nothing to measure"):
            evaluate(queries, {"words": WordOverlapScorer()})
    with pytest.raises(InvalidInputError, match="rerankers is empty"):
        evaluate([helped(0)], {})


def test_a_scorer_that_fails_fails_the_evaluation() -> None:
    class NaN(StatedScorer):
        def score(self, pairs: object) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
            return np.array([math.nan], dtype=np.float32)

    class Short(StatedScorer):
        def score(self, pairs: object) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
            return np.zeros(1, dtype=np.float32)

    for scorer, error in (
        (NaN(), NonFiniteScoreError),
        (Short(), ScorerContractError),
        (Reranker(FailingScorer(), on_error="keep"), ScoringTimeout),
    ):
        with pytest.raises(error):
            evaluate([helped(0)], {"failing": scorer})


def test_the_report_is_json() -> None:
    report, _ = only([helped(0), hurt(0)], examples=1)
    read = json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))
    assert read["rerankers"][0]["wins"][0]["question"] == "red fox"
    assert len(read["rerankers"][0]["losses"]) == 1
    assert sum(read["rerankers"][0]["histogram"]["relevant"]) == 2
    assert sum(read["rerankers"][0]["histogram"]["others"]) == 3
