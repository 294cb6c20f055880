"""What a raw score means: curves against known probabilities, and files that are refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from bge_rerank_integrations import InvalidInputError, Reranker
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.ranking.calibration import (
    WATCHED_QUERIES,
    Calibration,
    ScoreWatch,
    fit_calibration,
    ranks,
)
from tests.fakes import WordOverlapScorer, plain_calibration

SLOPE, INTERCEPT = 1.5, -0.75


def drawn(pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Raw scores, and judgements that are true with probability sigmoid(1.5 x - 0.75)."""
    draw = np.random.default_rng(seed)
    raw = draw.normal(0, 2, pairs)
    relevant = draw.random(pairs) < 1 / (1 + np.exp(-(SLOPE * raw + INTERCEPT)))
    return raw, relevant, [f"query {number % 50}" for number in range(pairs)]


def hard_and_easy(
    queries: int, seed: int, *, candidates: int = 20
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Queries whose scores are shifted, so that a score means more among low ones.

    The first stage found three relevant passages for each; a reranker that gives every passage of a
    query the same extra score orders them as before.
    """
    draw = np.random.default_rng(seed)
    relevant = np.tile(np.arange(candidates) < 3, (queries, 1))
    raw = draw.normal(0, 1, relevant.shape) + 2 * relevant + draw.normal(0, 2, (queries, 1))
    names = [f"{seed}-{number}" for number in range(queries) for _ in range(candidates)]
    return raw.ravel(), relevant.ravel(), names


def test_the_curve_that_the_judgements_were_drawn_from_is_found() -> None:
    calibration = fit_calibration("drawn", *drawn(20_000))
    for raw in np.linspace(-3, 3, 13):
        true = 1 / (1 + math.exp(-(SLOPE * raw + INTERCEPT)))
        assert calibration.probability(float(raw)) == pytest.approx(true, abs=0.05)
    assert calibration.error < 0.015
    assert sum(some.pairs for some in calibration.bins) == calibration.pairs == 20_000
    found = (calibration.slope, calibration.rank_slope, calibration.intercept)
    assert found == pytest.approx((SLOPE, 0, INTERCEPT), abs=0.06)


def test_the_first_three_are_calibrated_where_a_score_alone_is_not() -> None:
    raw, relevant, queries = hard_and_easy(150, 0)
    calibration = fit_calibration("drawn", raw, relevant, queries)
    assert calibration.rank_slope < 0
    new, answers, _ = hard_and_easy(400, 1)
    rows, judged = new.reshape(400, 20), answers.reshape(400, 20)
    said, alone = [], []
    flat = LogisticRegression(C=np.inf).fit(raw[:, None], relevant)
    for row in rows:
        order = np.argsort(-row)[:3]
        said += [calibration.probability(row[place], rank) for rank, place in enumerate(order)]
        alone += flat.predict_proba(row[order][:, None])[:, 1].tolist()
    true = np.mean([judged[number][np.argsort(-row)[:3]] for number, row in enumerate(rows)])
    assert abs(np.mean(said) - true) < 0.05
    assert np.mean(alone) < true - 0.05, "by the score alone they look too unlikely"
    assert abs(calibration.top_bias) < 0.05
    assert calibration.top_error < calibration.top_floor + 0.05
    assert calibration.error < calibration.floor + 0.05


def test_ranks_count_the_higher_scores() -> None:
    assert ranks(np.array([1.0, 3.0, 2.0, 3.0])).tolist() == [3, 0, 2, 0]


def test_wrong_probabilities_have_a_large_error() -> None:
    raw, relevant, queries = drawn(5_000)
    good = fit_calibration("drawn", raw, relevant, queries)
    assert good.error < 0.03
    shares = [abs(some.probability - some.relevant) for some in good.bins]
    by_hand = sum(some.pairs * share for some, share in zip(good.bins, shares, strict=True)) / 5_000
    assert good.error == pytest.approx(by_hand, abs=1e-12)
    assert 0 < good.floor < 0.03, "exact probabilities show some error too"
    # the meaning of a score is another one in half of the queries
    moved = raw + 6 * (np.array([int(name.split()[1]) for name in queries]) < 25)
    assert fit_calibration("moved", moved, relevant, queries).error > 2 * good.floor


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=20))
def test_a_larger_score_is_never_less_likely(scores: list[float]) -> None:
    for calibration in (FITTED, RANKED):
        placed = ranks(np.array(scores)).tolist()
        pairs = sorted(zip(scores, placed, strict=True))
        likely = [calibration.probability(score, rank) for score, rank in pairs]
        assert likely == sorted(likely)
        assert all(0 <= one <= 1 for one in likely)


FITTED = fit_calibration("drawn", *drawn(2_000))
RANKED = fit_calibration("ranked", *hard_and_easy(60, 0))


def test_scores_that_separate_give_no_endless_slope() -> None:
    raw = np.repeat([-1.0, 1.0], 20)
    calibration = fit_calibration("clear", raw, raw > 0, [str(n % 10) for n in range(40)])
    # Platt's targets by hand: 21/22 of 20 relevant pairs, 1/22 of 20 others
    assert calibration.probability(1.0) == pytest.approx(21 / 22, abs=1e-3)
    assert calibration.probability(-1.0, 2) == pytest.approx(1 / 22, abs=1e-3)


def with_relevant(*queries: list[float]) -> Calibration:
    return replace(FITTED, relevant_scores=tuple(map(tuple, queries)))


def test_the_threshold_of_a_recall_by_hand() -> None:
    # 19 queries with one relevant passage each: the loss may be 0.05 * 20 - 1 = 0 queries
    calibration = with_relevant(*([float(n)] for n in range(19)))
    assert calibration.threshold(0.95) == 0.0
    assert calibration.threshold(0.9) == 1.0
    assert calibration.threshold(0.5) == 9.0
    with pytest.raises(InvalidInputError, match="at least 99 queries with a relevant passage; th"):
        calibration.threshold(0.99)
    # a query of two relevant passages loses half of its recall with one; 0.2 * 10 - 1 = 1 query
    halves = with_relevant(*([float(n), n + 100.0] for n in range(9)))
    assert halves.threshold(0.8) == 2.0


@pytest.mark.parametrize("recall", [0.9, 0.95])
def test_the_mean_recall_of_new_queries_is_kept(recall: float) -> None:
    # queries of one to eight relevant passages, whose scores depend on one another
    draw = np.random.default_rng(3)

    def query() -> list[float]:
        number = int(draw.integers(1, 9))
        return list(draw.normal(0, 2) + draw.normal(0, 1, number))

    kept = []
    for _ in range(300):
        threshold = with_relevant(*(query() for _ in range(40))).threshold(recall)
        kept += [np.mean(np.array(query()) >= threshold) for _ in range(10)]
    assert np.mean(kept) >= recall - 0.005
    assert np.mean(kept) < recall + 0.03, "and not by keeping everything"


@pytest.mark.parametrize("recall", [0.0, 1.0, -1.0, 1.5])
def test_a_recall_lies_between_0_and_1(recall: float) -> None:
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        FITTED.threshold(recall)


def test_the_cost_of_a_recall_is_the_share_that_is_kept() -> None:
    raw, _, _ = drawn(2_000)
    for threshold in (-9.0, -1.0, 0.5, 9.0):
        assert FITTED.kept(threshold) == pytest.approx(np.mean(raw >= threshold), abs=0.02)


def test_a_file_gives_the_same_calibration(tmp_path: Path) -> None:
    RANKED.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == RANKED


@pytest.mark.parametrize(
    "change",
    [
        {"slope": -0.1},
        {"slope": math.nan},
        {"rank_slope": 0.1},
        {"intercept": "x"},
        {"relevant_scores": [[1.0], []]},
        {"relevant_scores": [[math.inf]]},
        {"percentiles": [1.0]},
        {"percentiles": list(range(101, 0, -1))},
        {"more": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    FITTED.save(tmp_path / "c.json")
    written = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    (tmp_path / "c.json").write_text(json.dumps(written | change), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="is not a calibration"):
        Calibration.load(tmp_path / "c.json")


def test_too_little_data_is_refused() -> None:
    raw, relevant, queries = drawn(200)
    with pytest.raises(InvalidInputError, match="needs 10 of each and 5 queries"):
        fit_calibration("few", raw[:12], relevant[:12], queries[:12])
    with pytest.raises(InvalidInputError, match="of 1 queries"):
        fit_calibration("one query", raw, relevant, ["the same"] * 200)


def test_judgements_the_wrong_way_round_are_refused() -> None:
    raw, relevant, queries = drawn(400)
    with pytest.raises(InvalidInputError, match=r"do not score higher.*judgements reversed"):
        fit_calibration("wrong", -raw, relevant, queries)
    # nor where the best score alone is a relevant pair's
    reversed_but_one = -raw
    reversed_but_one[int(np.flatnonzero(relevant)[0])] = 99.0
    with pytest.raises(InvalidInputError, match="do not score higher"):
        fit_calibration("wrong", reversed_but_one, relevant, queries)


def test_scores_that_tell_nothing_are_refused() -> None:
    _, relevant, queries = drawn(400)
    with pytest.raises(InvalidInputError, match=r"do not score higher than others \(AUC 0\.5\)"):
        fit_calibration("flat", np.ones(400), relevant, queries)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (-1, "-1"),
        (2, "2"),
        (0.1, "0.1"),
        (math.nan, "nan"),
        (np.float32(0.5), "0.5"),
        ("0", "str"),
        ("secret", "str"),
        (None, "NoneType"),
        ([1], "list"),
    ],
    ids=str,
)
def test_a_judgement_is_a_truth_value_or_0_or_1(wrong: Any, shown: str) -> None:
    raw, relevant, queries = drawn(200)
    judged: list[Any] = relevant.tolist()
    judged[7] = wrong
    with pytest.raises(InvalidInputError) as refused:
        fit_calibration("drawn", raw, judged, queries)
    assert str(refused.value).startswith(f"the judgement at position 7 is {shown}; it must be")


def test_judgements_may_be_written_in_several_ways() -> None:
    raw, relevant, queries = drawn(200)
    expected = fit_calibration("drawn", raw, relevant, queries)
    as_numbers: list[Any] = [relevant.tolist(), *(relevant.astype(t) for t in (int, np.float32))]
    for given_as in (*as_numbers, relevant.astype(int).tolist(), list(relevant)):
        assert fit_calibration("drawn", raw, given_as, queries) == expected


def test_a_reranker_shows_the_probability_and_keeps_the_order(tmp_path: Path) -> None:
    made = replace(RANKED, scorer="word-overlap")
    made.save(tmp_path / "c.json")
    reranker = Reranker(WordOverlapScorer(), calibration=tmp_path / "c.json")
    results = reranker.rerank("red fox", ["a dog", "a red fox", "a fox"])
    assert [result.index for result in results] == [1, 2, 0]
    scores = [made.probability(score, rank) for rank, score in enumerate((2.0, 1.0, 0.0))]
    assert [result.score for result in results] == scores
    with pytest.raises(InvalidInputError, match="was made for word-overlap and not for other"):
        Reranker(WordOverlapScorer("other"), calibration=made)


def test_scores_unlike_the_fitted_ones_are_noticed() -> None:
    raw, relevant, names = hard_and_easy(150, 0)
    calibration = fit_calibration("drawn", raw, relevant, names)
    new = hard_and_easy(60, 1)[0].reshape(60, 20)
    watch = ScoreWatch(calibration)
    assert {watch.observe(row) for row in new} == {None}, "the same kind of queries"
    moved = ScoreWatch(calibration)
    found = [moved.observe(row - 4) for row in new]
    assert found[: WATCHED_QUERIES - 1] == [None] * (WATCHED_QUERIES - 1), "too few to tell"
    assert all(index is not None and index > 0.5 for index in found[WATCHED_QUERIES - 1 :])
    back = [moved.observe(row) for row in new]
    assert back[WATCHED_QUERIES:] == [None] * (60 - WATCHED_QUERIES), "recent queries count alone"
    # a passage that was not scored does not count
    assert watch.observe(np.full(20, np.nan, dtype=np.float32)) is None


def test_a_reranker_says_once_that_scores_are_unlike_and_each_trace_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traces: list[RerankTrace] = []
    # fitted on scores from -10 to 10, and here all are 0 or 1
    reranker = Reranker(
        WordOverlapScorer(), calibration=plain_calibration(), on_trace=traces.append
    )
    for _ in range(WATCHED_QUERIES + 2):
        reranker.rerank("red fox", ["a dog", "a fox"])
    noted = [trace.facts.get("calibration", "") for trace in traces]
    assert noted[: WATCHED_QUERIES - 1] == [""] * (WATCHED_QUERIES - 1)
    assert all("unlike those of the fit" in said for said in noted[WATCHED_QUERIES - 1 :])
    (record,) = caplog.records
    assert "Probabilities may be wrong: calibrate again" in record.getMessage()
    assert "fox" not in record.getMessage()


def test_a_sentence_has_the_rank_of_its_passage() -> None:
    made = replace(RANKED, scorer="word-overlap")
    reranker = Reranker(WordOverlapScorer(), calibration=made, explain=True)
    results = reranker.rerank("red fox", ["a fox", "a red fox. It sleeps.", "a fox"])
    assert [result.index for result in results] == [1, 0, 2]
    assert [result.evidence and result.evidence.score for result in results] == [
        made.probability(2.0, 0),
        made.probability(1.0, 1),
        made.probability(1.0, 1),
    ]
    assert results[1].score == results[2].score, "equal raw scores have one rank"
