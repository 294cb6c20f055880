"""How many results stay, by numbers checked by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations import InvalidInputError, Reranker
from bge_rerank_integrations.base.option_group import read_options
from bge_rerank_integrations.base.trace import PassageTrace, RerankTrace
from bge_rerank_integrations.options import CutoffOptions
from bge_rerank_integrations.ranking.cutoffs import keep
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from tests.fakes import FailingScorer, WordOverlapScorer, plain_calibration

# the probability is the sigmoid itself; nineteen relevant pairs scored 0 to 18
PLAIN = plain_calibration([float(n) for n in range(19)])
PASSAGES = ["a dog", "the red fox", "a fox", "red fox quick", "a red hat"]
QUERY = "quick red fox"


def number(raw: Sequence[float], limit: int | None = None, **rules: Any) -> int:
    tokens = [5, 3, 4, 2, 1, 1]
    return keep(
        raw,
        CutoffOptions(**rules),
        limit=limit,
        calibration=PLAIN,
        count_tokens=lambda place: tokens[place],
    ).number


RAW = [6.0, 5.0, 1.0, 0.5, -2.0]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, 5),
        ({"limit": 3}, 3),
        ({"min_probability": 0.5}, 4),
        ({"min_probability": 0.99}, 2),
        ({"min_probability": 0.999}, 0),
        ({"target_recall": 0.9}, 3),  # the second smallest of 0 to 18 is 1
        ({"target_recall": 0.5}, 0),
        ({"min_n": 1}, 2),  # between 5 and 1
        ({"min_n": 3}, 4),  # between 0.5 and -2
        ({"min_n": 5}, 5),
        ({"min_n": 9}, 5),
        ({"min_n": 1, "limit": 1}, 1),
        ({"min_n": 3, "limit": 2}, 2),
        ({"min_n": 3, "min_probability": 0.99}, 2),
        ({"token_budget": 4}, 0),
        ({"token_budget": 4, "always_keep_best": True}, 1),
        ({"token_budget": 5}, 1),
        ({"token_budget": 11}, 2),
        ({"token_budget": 12}, 3),
        ({"token_budget": 99}, 5),
    ],
    ids=str,
)
def test_by_hand(rules: dict[str, Any], expected: int) -> None:
    assert number(RAW, **rules) == expected


@pytest.mark.parametrize(
    ("raw", "limit", "expected"),
    [([2.0, 2.0, 2.0, 2.0], None, 4), ([5.0, 5.0, 5.0, 1.0], 2, 2), ([2.0, 2.0, 1.0], None, 2)],
)
def test_equal_scores_have_no_gap(raw: list[float], limit: int | None, expected: int) -> None:
    assert number(raw, limit, min_n=1) == expected


@given(
    st.lists(st.floats(-20, 20), max_size=6).map(lambda raw: sorted(raw, reverse=True)),
    st.none() | st.integers(1, 6),
    st.none() | st.floats(0.01, 0.99),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(1, 20),
)
def test_each_rule_only_shortens(
    raw: list[float],
    limit: int | None,
    likely: float | None,
    least: int | None,
    budget: int | None,
) -> None:
    rules = {"min_probability": likely, "min_n": least, "token_budget": budget}
    kept = number(raw, limit, **rules)
    assert 0 <= kept <= len(raw)
    for name in rules:
        assert kept <= number(raw, limit, **{**rules, "min_n": None, name: None})


def test_no_results_need_no_rule() -> None:
    assert number([], min_probability=0.5, min_n=1, token_budget=1) == 0


@pytest.mark.parametrize(
    "rules",
    [
        {"min_probability": 0},
        {"min_probability": 1.0},
        {"target_recall": "0.9"},
        {"min_n": 0},
        {"min_n": True},
        {"token_budget": 1.5},
    ],
    ids=str,
)
def test_a_rule_out_of_range_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=f"{next(iter(rules))} is"):
        read_options(CutoffOptions, rules, caller="a test")


def test_numbers_of_numpy_are_numbers() -> None:
    given: dict[str, Any] = {
        "min_probability": np.float32(0.5),
        "target_recall": np.float64(0.9),
        "min_n": np.int64(2),
        "token_budget": np.int32(9),
    }
    cutoff = CutoffOptions(**given)
    assert cutoff == CutoffOptions(min_probability=0.5, target_recall=0.9, min_n=2, token_budget=9)
    assert [type(getattr(cutoff, name)) for name in given] == [float, float, int, int]


def test_probabilities_need_a_calibration_and_tokens_a_scorer_that_counts() -> None:
    with pytest.raises(InvalidInputError, match="need a calibration"):
        Reranker(WordOverlapScorer(), min_probability=0.5)
    with pytest.raises(InvalidInputError, match="need a calibration"):
        Reranker(WordOverlapScorer(), target_recall=0.5)
    with pytest.raises(InvalidInputError, match="word-overlap cannot"):
        Reranker(WordOverlapScorer(), token_budget=5)
    with pytest.raises(InvalidInputError, match="word-overlap cannot"):
        Reranker(CachedScorer(WordOverlapScorer(), MemoryStore()), token_budget=5)
    with pytest.raises(InvalidInputError, match="at least 99 queries with a relevant passage"):
        Reranker(WordOverlapScorer(), calibration=PLAIN, target_recall=0.99)


def test_a_trace_says_what_decided_and_holds_no_text() -> None:
    traces: list[RerankTrace] = []
    reranker = Reranker(
        WordOverlapScorer(),
        top_n=4,
        calibration=PLAIN,
        min_probability=0.8,
        on_trace=traces.append,
    )
    results = reranker.rerank(QUERY, PASSAGES)
    assert [result.index for result in results] == [3, 1]
    (trace,) = traces
    probability = {n: PLAIN.probability(float(n)) for n in range(4)}
    assert trace.passages == (
        PassageTrace(0, None, 0.0, probability[0]),
        PassageTrace(1, 1, 2.0, probability[2]),
        PassageTrace(2, None, 1.0, probability[1]),
        PassageTrace(3, 0, 3.0, probability[3]),
        PassageTrace(4, None, 1.0, probability[1]),
    )
    assert trace.kept_by == "min_probability 0.8 leaves 2"
    assert (trace.scale, trace.calibrated, trace.failure) == ("logit", True, None)
    assert "fox" not in str(trace.as_dict())


def test_nothing_relevant_is_an_empty_list_and_a_reason() -> None:
    traces: list[RerankTrace] = []
    reranker = Reranker(
        WordOverlapScorer(),
        calibration=PLAIN,
        min_probability=0.99,
        on_trace=traces.append,
    )
    assert reranker.rerank(QUERY, PASSAGES) == []
    assert traces[0].kept_by == "min_probability 0.99 leaves none: the best has 0.953"


def test_what_was_not_scored_is_kept_and_traced_as_such() -> None:
    traces: list[RerankTrace] = []
    reranker = Reranker(
        FailingScorer(scored=2),
        on_error="keep",
        calibration=replace(PLAIN, scorer="failing"),
        min_probability=0.8,
        on_trace=traces.append,
    )
    results = reranker.rerank(QUERY, PASSAGES)
    assert [(result.index, result.scored) for result in results] == [
        (1, True),
        (2, False),
        (3, False),
        (4, False),
    ]
    assert traces[0].failure == "ScoringTimeout"
    assert traces[0].passages[2] == PassageTrace(2, 1, None, None)


class CountingScorer(WordOverlapScorer):
    """A token for each word."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def test_a_best_passage_over_the_budget_is_said(caplog: pytest.LogCaptureFixture) -> None:
    passages = ["a quick red fox runs", "a fox"]
    assert Reranker(CountingScorer(), token_budget=4).rerank(QUERY, passages) == []
    keeping = Reranker(CountingScorer(), token_budget=4, always_keep_best=True)
    assert [result.index for result in keeping.rerank(QUERY, passages)] == [0]
    said = "The best passage has 5 tokens, more than the token_budget of 4: "
    assert caplog.messages == [
        f"{said}nothing is kept; always_keep_best=True keeps it",
        f"{said}always_keep_best keeps it alone",
    ]


def test_tokens_are_counted_on_the_texts_that_will_be_read() -> None:
    titled = ["title title title: quick red fox", "title: a fox"]
    reranker = Reranker(CountingScorer(), token_budget=5)
    assert [result.index for result in reranker.rerank(QUERY, titled)] == []
    read = reranker.rerank(QUERY, titled, read_texts=["quick red fox", "a fox"])
    assert [result.index for result in read] == [0, 1]


@pytest.mark.parametrize(
    "rule",
    [{"min_probability": 0.01}, {"min_n": 1}, {"token_budget": 99}, {"target_recall": 0.9}],
    ids=str,
)
def test_a_passage_without_text_passes_no_cut_off(rule: dict[str, Any]) -> None:
    reranker = Reranker(CountingScorer(), calibration=PLAIN, **rule)
    found = reranker.rerank(QUERY, ["", "quick red fox", "\u200b"])
    assert [result.index for result in found] == [1]
    assert reranker.rerank(QUERY, ["", " "]) == []


def test_a_failure_does_not_exceed_the_budget() -> None:
    class Failing(FailingScorer):
        count_tokens = CountingScorer.count_tokens

    reranker = Reranker(Failing(scored=0), on_error="keep", token_budget=5)
    assert [result.index for result in reranker.rerank(QUERY, PASSAGES)] == [0, 1]
