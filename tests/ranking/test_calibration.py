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

from bge_rerank_integrations import InvalidInputError, Reranker
from bge_rerank_integrations.ranking.calibration import (
    Calibration,
    CalibrationMethod,
    fit_calibration,
)
from tests.fakes import WordOverlapScorer

SLOPE, INTERCEPT = 1.5, -0.75


def drawn(pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Raw scores, and judgements that are true with probability sigmoid(1.5 x - 0.75)."""
    draw = np.random.default_rng(seed)
    raw = draw.normal(0, 2, pairs)
    relevant = draw.random(pairs) < 1 / (1 + np.exp(-(SLOPE * raw + INTERCEPT)))
    return raw, relevant, [f"query {number % 50}" for number in range(pairs)]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_curve_that_the_judgements_were_drawn_from_is_found(method: CalibrationMethod) -> None:
    calibration = fit_calibration("drawn", *drawn(20_000), method=method)
    for raw in np.linspace(-3, 3, 13):
        true = 1 / (1 + math.exp(-(SLOPE * raw + INTERCEPT)))
        assert calibration.probability(float(raw)) == pytest.approx(true, abs=0.05)
    assert calibration.error < 0.015
    assert sum(some.pairs for some in calibration.bins) == calibration.pairs == 20_000
    if method == "platt":
        assert calibration.curve[0] == pytest.approx((SLOPE, INTERCEPT), abs=0.06)


def test_wrong_probabilities_have_a_large_error() -> None:
    raw, relevant, queries = drawn(5_000)
    # scores that tell nothing among the queries that a fit has not seen: half by half
    coin = np.random.default_rng(1).random(5_000) < 0.5
    good = fit_calibration("drawn", raw, relevant, queries)
    assert good.error < 0.03
    shares = [abs(some.probability - some.relevant) for some in good.bins]
    by_hand = sum(some.pairs * share for some, share in zip(good.bins, shares, strict=True)) / 5_000
    assert good.error == pytest.approx(by_hand, abs=1e-12)
    assert fit_calibration("coin", raw + 4 * coin, coin, queries).error < 0.05


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=20))
def test_a_larger_score_is_never_less_likely(scores: list[float]) -> None:
    for calibration in FITTED:
        likely = [calibration.probability(score) for score in sorted(scores)]
        assert likely == sorted(likely)
        assert all(0 <= one <= 1 for one in likely)


FITTED = [fit_calibration("drawn", *drawn(2_000), method=m) for m in ("platt", "isotonic")]


def test_the_method_follows_the_amount_of_data() -> None:
    assert fit_calibration("drawn", *drawn(200)).method == "platt"
    assert fit_calibration("drawn", *drawn(5_000)).method == "isotonic"


def test_scores_that_separate_give_no_endless_slope() -> None:
    raw = np.repeat([-1.0, 1.0], 20)
    calibration = fit_calibration("clear", raw, raw > 0, [str(n % 10) for n in range(40)])
    # Platt's targets by hand: 21/22 of 20 relevant pairs, 1/22 of 20 others
    assert calibration.probability(1.0) == pytest.approx(21 / 22, abs=1e-3)
    assert calibration.probability(-1.0) == pytest.approx(1 / 22, abs=1e-3)


def with_relevant(scores: list[float]) -> Calibration:
    return replace(FITTED[0], relevant_scores=tuple(sorted(scores)))


def test_the_threshold_of_a_recall_by_hand() -> None:
    # floor((19 + 1) * 0.05) = 1: the smallest of nineteen; floor(20 * 0.1) = 2: the second
    calibration = with_relevant([float(n) for n in range(19)])
    assert calibration.threshold(0.95) == 0.0
    assert calibration.threshold(0.9) == 1.0
    assert calibration.threshold(0.5) == 9.0
    with pytest.raises(InvalidInputError, match="at least 99 relevant pairs; this one has 19"):
        calibration.threshold(0.99)


def test_the_recall_holds_on_relevant_passages_not_seen() -> None:
    draw = np.random.default_rng(3)
    kept = []
    for _ in range(400):
        scores = draw.normal(size=60)
        threshold = with_relevant(scores[:59].tolist()).threshold(0.9)
        kept.append(scores[59] >= threshold)
    assert np.mean(kept) >= 0.87  # 0.9 less two standard errors


@pytest.mark.parametrize("recall", [0.0, 1.0, -1.0, 1.5])
def test_a_recall_lies_between_0_and_1(recall: float) -> None:
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        FITTED[0].threshold(recall)


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_gives_the_same_calibration(tmp_path: Path, number: int) -> None:
    FITTED[number].save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == FITTED[number]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "magic"},
        {"curve": []},
        {"curve": [[-1.0, 0.0]]},
        {"curve": [[math.nan, 0.0]]},
        {"relevant_scores": [2.0, 1.0]},
        {"more": 1},
        {"curve": "x"},
    ],
    ids=str,
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    FITTED[0].save(tmp_path / "c.json")
    written = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    (tmp_path / "c.json").write_text(json.dumps(written | change), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="is no calibration"):
        Calibration.load(tmp_path / "c.json")


def test_too_little_data_is_refused() -> None:
    raw, relevant, queries = drawn(200)
    with pytest.raises(InvalidInputError, match="needs 10 of each and 5 queries"):
        fit_calibration("few", raw[:12], relevant[:12], queries[:12])
    with pytest.raises(InvalidInputError, match="of 1 queries"):
        fit_calibration("one query", raw, relevant, ["the same"] * 200)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_judgements_the_wrong_way_round_are_refused(method: CalibrationMethod) -> None:
    raw, relevant, queries = drawn(400)
    with pytest.raises(InvalidInputError, match=r"do not score higher.*judgements reversed"):
        fit_calibration("wrong", -raw, relevant, queries, method=method)
    # nor where the best score alone is a relevant pair's, so that an isotonic curve rises there
    reversed_but_one = -raw
    reversed_but_one[int(np.flatnonzero(relevant)[0])] = 99.0
    with pytest.raises(InvalidInputError, match="do not score higher"):
        fit_calibration("wrong", reversed_but_one, relevant, queries, method=method)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_scores_that_tell_nothing_are_refused(method: CalibrationMethod) -> None:
    _, relevant, queries = drawn(400)
    with pytest.raises(InvalidInputError, match=r"do not score higher than others \(AUC 0\.5\)"):
        fit_calibration("flat", np.ones(400), relevant, queries, method=method)


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


@pytest.mark.parametrize("method", ["Isotonic", "sigmoid", None])
def test_another_method_is_refused_at_once(method: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"method is {method!r}; it must be 'auto', 'platt"):
        fit_calibration("drawn", *drawn(200), method=method)


def test_a_reranker_shows_the_probability_and_keeps_the_order(tmp_path: Path) -> None:
    made = replace(FITTED[0], scorer="word-overlap")
    made.save(tmp_path / "c.json")
    reranker = Reranker(WordOverlapScorer(), calibration=tmp_path / "c.json")
    results = reranker.rerank("red fox", ["a dog", "a red fox", "a fox"])
    assert [result.index for result in results] == [1, 2, 0]
    assert [result.score for result in results] == [made.probability(n) for n in (2.0, 1.0, 0.0)]
    with pytest.raises(InvalidInputError, match="was made for word-overlap and not for other"):
        Reranker(WordOverlapScorer("other"), calibration=made)
