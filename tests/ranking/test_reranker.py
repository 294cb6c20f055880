"""Sorting, showing, cutting: everything a reranker adds to a scorer, checked by hand."""

import json
import math
import traceback
from collections.abc import Sequence
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations import (
    InvalidInputError,
    NonFiniteScoreError,
    Reranker,
    RerankResult,
    ScorerContractError,
)
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.errors import RemoteUnavailable
from bge_rerank_integrations.types import FloatArray, Pair, Scale
from tests.fakes import WordOverlapScorer, plain_calibration

CERTAIN = plain_calibration()

finite = st.floats(-60, 60, width=32)


class GivenScorer:
    """Gives the n-th passage the n-th of its numbers, whatever the texts are."""

    name = "given"

    def __init__(self, numbers: Sequence[float], scale: Scale = "logit") -> None:
        self.numbers = np.asarray(numbers, dtype=np.float32)
        self.scale: Scale = scale
        self.asked: list[Sequence[Pair]] = []

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self.asked.append(pairs)
        return self.numbers


def rank(numbers: Sequence[float], scale: Scale = "logit", **options: Any) -> list[RerankResult]:
    reranker = Reranker(GivenScorer(numbers, scale), **options)
    return reranker.rerank("query", ["passage"] * len(numbers))


def sigmoid(logit: float) -> float:
    """To 50 digits, then to the nearest double."""
    getcontext().prec = 50
    return float(1 / (1 + (-Decimal(logit)).exp()))


def test_by_words_in_common() -> None:
    passages = ["a dog", "the red fox", "a fox", "red fox red"]
    results = Reranker(WordOverlapScorer()).rerank("red fox", passages)
    assert [result.index for result in results] == [1, 3, 2, 0]
    assert [result.raw_score for result in results] == [2.0, 2.0, 1.0, 0.0]
    assert [round(result.score, 6) for result in results] == [0.880797, 0.880797, 0.731059, 0.5]
    assert passages == ["a dog", "the red fox", "a fox", "red fox red"]


@given(st.lists(finite, min_size=1, max_size=30))
def test_the_order_is_that_of_the_raw_scores_and_equal_ones_keep_their_places(
    numbers: list[float],
) -> None:
    results = rank(numbers)
    assert [result.index for result in results] == sorted(
        range(len(numbers)), key=lambda index: (-numbers[index], index)
    )
    assert [result.raw_score for result in results] == sorted(numbers, reverse=True)
    shown = [result.score for result in results]
    assert shown == sorted(shown, reverse=True)


def test_large_logits_do_not_become_ties() -> None:
    # in float32 a sigmoid is exactly 1 from a logit of 17 on
    assert np.float32(1) / (np.float32(1) + np.exp(np.float32(-17))) == 1
    results = rank([17.0, 27.0, 18.0])
    assert [result.index for result in results] == [1, 2, 0]
    assert [result.score for result in results] == [
        0.9999999999981204,
        0.9999999847700205,
        0.9999999586006244,
    ]


def test_small_logits_do_not_become_zero() -> None:
    results = rank([-17.0, -90.0, -18.0])
    assert [result.index for result in results] == [0, 2, 1]
    assert [result.score for result in results] == pytest.approx(
        [4.1399375473943306e-08, 1.5229979512760347e-08, 8.194012623990515e-40], rel=1e-12
    )


@given(finite)
def test_a_logit_is_shown_as_its_sigmoid_in_double_precision(logit: float) -> None:
    (result,) = rank([logit])
    assert result.score == pytest.approx(sigmoid(logit), rel=1e-15)
    assert result.raw_score == logit
    assert type(result.score) is float
    assert type(result.raw_score) is float
    assert type(result.index) is int


@pytest.mark.parametrize("logit", [1e30, -1e30, 710.0, -710.0, 88.8, -104.0])
def test_extreme_logits_do_not_overflow(logit: float) -> None:
    (result,) = rank([logit])
    assert 0 <= result.score <= 1
    assert (result.score > 0.5) == (logit > 0)


def test_without_normalize_the_logit_itself_is_shown() -> None:
    assert [r.score for r in rank([-3.5, 2.25], normalize=False)] == [2.25, -3.5]


@pytest.mark.parametrize("scale", ["cosine", "probability"])
@pytest.mark.parametrize("normalize", [True, False])
def test_only_logits_are_squashed(scale: Scale, normalize: bool) -> None:
    results = rank([0.25, 0.75], scale, normalize=normalize)
    assert [(r.index, r.score, r.raw_score) for r in results] == [(1, 0.75, 0.75), (0, 0.25, 0.25)]


@pytest.mark.parametrize(
    ("numbers", "scale", "options", "kept"),
    [
        ([0.0, -0.5, 0.5], "logit", {"score_threshold": 0.5}, [2, 0]),
        ([0.0, -0.5, 0.5], "logit", {"score_threshold": 0.0}, [2, 0, 1]),
        ([0.0, -0.5, 0.5], "logit", {"score_threshold": 0.0, "normalize": False}, [2, 0]),
        ([0.0, -0.5, 0.5], "logit", {"score_threshold": -0.5, "normalize": False}, [2, 0, 1]),
        ([0.0, -0.5, 0.5], "cosine", {"score_threshold": 0.0}, [2, 0]),
        ([0.0, -0.5, 0.5], "cosine", {"score_threshold": 0.5}, [2]),
        ([0.0, -0.5, 0.5], "cosine", {"score_threshold": 0.75}, []),
        ([0.0, -0.5, 0.5], "cosine", {"score_threshold": 0.0, "top_n": 1}, [2]),
        ([0.0, -0.5, 0.5], "cosine", {"score_threshold": -1, "top_n": 9}, [2, 0, 1]),
        ([3.0, 2.0], "logit", {"score_threshold": 1 / (1 + math.exp(-2.0))}, [0, 1]),
    ],
)
def test_the_threshold_is_inclusive_on_the_scale_that_is_shown(
    numbers: list[float], scale: Scale, options: dict[str, Any], kept: list[int]
) -> None:
    assert [result.index for result in rank(numbers, scale, **options)] == kept


def test_top_n() -> None:
    numbers = [1.0, 3.0, 2.0]
    assert [r.index for r in rank(numbers)] == [1, 2, 0]
    assert [r.index for r in rank(numbers, top_n=2)] == [1, 2]
    assert [r.index for r in rank(numbers, top_n=99)] == [1, 2, 0]
    reranker = Reranker(GivenScorer(numbers), top_n=1)
    assert [r.index for r in reranker.rerank("q", ["a"] * 3)] == [1]
    assert [r.index for r in reranker.rerank("q", ["a"] * 3, top_n=2)] == [1, 2]
    assert [r.index for r in reranker.rerank("q", ["a"] * 3)] == [1]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", True, float("nan")], ids=repr)
def test_a_top_n_below_one_or_not_whole_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="top_n is"):
        Reranker(WordOverlapScorer(), top_n=wrong)
    scorer = WordOverlapScorer()
    with pytest.raises(InvalidInputError, match="top_n is"):
        Reranker(scorer).rerank("q", ["p"], top_n=wrong)
    assert scorer.calls == 0


@pytest.mark.parametrize("wrong", [float("nan"), "0.5", True], ids=repr)
def test_a_threshold_that_is_no_number_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="score_threshold is"):
        Reranker(WordOverlapScorer(), score_threshold=wrong)


@pytest.mark.parametrize("options", [{}, {"calibration": CERTAIN, "normalize": False}], ids=str)
def test_a_threshold_that_no_shown_score_reaches_is_refused(options: dict[str, Any]) -> None:
    for unreachable in (5, 1.0000001, math.inf):
        with pytest.raises(InvalidInputError, match="no score that is shown is above 1, so noth"):
            Reranker(WordOverlapScorer(), score_threshold=unreachable, **options)
    assert (
        Reranker(WordOverlapScorer(), score_threshold=1, **options).options.score_threshold == 1.0
    )
    results = rank([6.0, 4.0], normalize=False, score_threshold=5)
    assert [result.index for result in results] == [0]


def test_numbers_of_numpy_are_numbers() -> None:
    options: dict[str, Any] = {
        "top_n": np.int64(2),
        "score_threshold": np.float32(0.5),
        "timeout": np.float64(30),
    }
    reranker = Reranker(WordOverlapScorer(), **options)
    assert [type(getattr(reranker.options, name)) for name in options] == [int, float, float]
    results = reranker.rerank("red fox", ["a dog", "a fox", "red fox"], top_n=np.uint8(1))  # type: ignore[arg-type]
    assert [result.index for result in results] == [2]
    with pytest.raises(InvalidInputError, match=r"top_n is np.int64\(0\); it must be a whole num"):
        Reranker(WordOverlapScorer(), top_n=np.int64(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["offline", None, Reranker(WordOverlapScorer())], ids=repr)
def test_what_is_no_scorer_is_refused(wrong: Any) -> None:
    kind = type(wrong).__name__
    with pytest.raises(InvalidInputError, match=f"scorer is a {kind}; it must have name, scale"):
        Reranker(wrong)


class DistantScorer(WordOverlapScorer):
    """Knows its scale only when its server answers, and it does not."""

    @property
    def scale(self) -> Scale:  # type: ignore[override]
        raise RemoteUnavailable("the server is down")


def test_nothing_is_asked_of_a_scorer_before_it_scores() -> None:
    scorer = DistantScorer()
    Reranker(scorer, score_threshold=0.5)
    assert scorer.calls == 0


def test_a_traceback_can_show_a_reranker_whose_options_were_refused() -> None:
    with pytest.raises(InvalidInputError, match="top_n is 0") as refused:
        Reranker(WordOverlapScorer(), top_n=0)
    shown = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
    locals_of = {frame.name: frame.locals for frame in shown.stack}
    assert (locals_of["__init__"] or {})["self"] == "Reranker('word-overlap')"
    with pytest.raises(InvalidInputError, match="scorer is a str") as refused:
        Reranker("offline")  # type: ignore[arg-type]
    shown = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
    assert {frame.name: frame.locals for frame in shown.stack}["__init__"]["self"] == "Reranker()"  # type: ignore[index]


INVISIBLE = "\u200b\x00 \ufeff\u2060\u00ad\ufe0f\u3164"


@pytest.mark.parametrize(
    ("query", "passages", "scored", "said"),
    [
        ("red fox", ["a dog", "", "\n\u3000"], [0], "2 of 3 passages have no text and are not"),
        ("red fox", [INVISIBLE, "a dog"], [1], "1 of 2 passages have no text and are not"),
        (
            " \n",
            ["a dog", ""],
            [0],
            "The query is blank, so the order of 2 passages means nothing",
        ),
        ("\u200b", ["a dog"], [0], "The query is blank, so the order of 1 passages means nothing"),
    ],
)
def test_blank_texts_are_said_once_and_passages_of_them_are_not_scored(
    caplog: pytest.LogCaptureFixture,
    query: str,
    passages: list[str],
    scored: list[int],
    said: str,
) -> None:
    scorer = WordOverlapScorer()
    reranker = Reranker(scorer)
    reranker.rerank("red fox", ["a dog", " a fox"])
    assert caplog.messages == []
    for _ in range(2):
        results = reranker.rerank(query, passages)
        assert [r.index for r in results if r.scored] == scored
        assert sorted(r.index for r in results) == list(range(len(passages)))
        assert [r.scored for r in results] == sorted([r.scored for r in results], reverse=True)
    assert scorer.pairs_scored == 2 + 2 * len(scored)
    (message,) = caplog.messages
    assert message.startswith(said)
    assert message.endswith("Logged once per reranker.")


def test_a_title_does_not_give_a_passage_without_text_a_score() -> None:
    titled, bodies = ["red fox: ", "a hat: a red hat"], ["\u200b", "a red hat"]
    found = Reranker(WordOverlapScorer()).rerank("red fox", titled, evidence_texts=bodies)
    assert [(result.index, result.scored) for result in found] == [(1, True), (0, False)]
    dropped = Reranker(WordOverlapScorer(), no_text="drop").rerank(
        "red fox", titled, evidence_texts=bodies
    )
    assert [result.index for result in dropped] == [1]
    refusing = Reranker(WordOverlapScorer(), no_text="raise")
    with pytest.raises(InvalidInputError, match="passage at position 0 has no text") as refused:
        refusing.rerank("red fox", titled, evidence_texts=bodies)
    assert refused.value.index == 0


@pytest.mark.parametrize("raw", [0.9, 0.1, 0.3, 0.7])
def test_a_threshold_is_compared_in_the_precision_of_what_is_shown(raw: float) -> None:
    """A server's 0.9 is a float32 here, a little below the double 0.9."""
    scorer = GivenScorer([raw, float(np.nextafter(np.float32(raw), np.float32(0)))])
    scorer.scale = "probability"
    kept = Reranker(scorer, score_threshold=raw).rerank("q", ["a", "b"])
    assert [result.index for result in kept] == [0]


def test_the_first_of_equal_texts_and_of_equal_ids_stays() -> None:
    traces: list[RerankTrace] = []
    scorer = WordOverlapScorer()
    reranker = Reranker(scorer, drop_duplicates=True, on_trace=traces.append)
    passages = ["a dog", "a fox", "the red fox", "a fox", "a red fox", "", ""]
    found = reranker.rerank("red fox", passages, ids=["0", "1", "2", "3", "2", "4", "5"])
    assert [result.index for result in found] == [2, 1, 0, 5, 6]
    assert scorer.pairs_scored == 3
    assert traces[0].counts["duplicates"] == 2
    assert [passage.raw_score for passage in traces[0].passages] == [0, 1, 2, *[None] * 4]
    assert len(Reranker(scorer).rerank("red fox", passages)) == len(passages)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_the_wrong_number_of_scores_breaks_the_contract(count: int) -> None:
    with pytest.raises(
        ScorerContractError, match=rf"given gave scores of shape \({count},\) for 3"
    ):
        Reranker(GivenScorer([1.0] * count)).rerank("q", ["a", "b", "c"])


def test_a_column_of_scores_breaks_the_contract() -> None:
    scorer = GivenScorer([1.0, 2.0])
    scorer.numbers = scorer.numbers[:, None]
    with pytest.raises(ScorerContractError, match=r"shape \(2, 1\) for 2 pairs"):
        Reranker(scorer).rerank("q", ["a", "b"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_never_sorted(number: float) -> None:
    with pytest.raises(NonFiniteScoreError, match=f"given gave {number} for .* position 2"):
        rank([1.0, 2.0, number, 3.0, number])


def test_nothing_to_rank_does_not_touch_the_scorer() -> None:
    scorer = WordOverlapScorer()
    assert Reranker(scorer).rerank("query", []) == []
    assert scorer.calls == 0


@pytest.mark.parametrize("wrong", [None, 7, b"bytes", ["query"]], ids=repr)
def test_a_query_or_passage_that_is_no_text_never_reaches_the_scorer(wrong: Any) -> None:
    scorer = WordOverlapScorer()
    reranker = Reranker(scorer)
    with pytest.raises(InvalidInputError, match=f"the query is {type(wrong).__name__}"):
        reranker.rerank(wrong, ["a"])
    with pytest.raises(InvalidInputError, match="the passage at position 1 is") as refused:
        reranker.rerank("query", ["a", wrong])
    assert refused.value.index == 1
    assert scorer.calls == 0


@pytest.mark.parametrize(
    ("passages", "said"),
    [
        ({"one": "a red fox", "two": "a dog"}, "passages is one dict; pass a list: .*the values"),
        (pd.DataFrame({"text": ["a red fox", "a dog"], "id": [1, 2]}), "a table, a DataFrame"),
        ({"a red fox", "a dog"}, "passages is a set, which has no order"),
        (frozenset({"a red fox"}), "passages is a frozenset, which has no order"),
    ],
    ids=["dict", "frame", "set", "frozenset"],
)
def test_what_gives_keys_or_columns_or_has_no_order_is_refused(passages: Any, said: str) -> None:
    scorer = WordOverlapScorer()
    with pytest.raises(InvalidInputError, match=said):
        Reranker(scorer).rerank("red fox", passages)
    with pytest.raises(InvalidInputError, match=said.replace("passages", "evidence texts")):
        Reranker(scorer).rerank("red fox", ["a", "b"], evidence_texts=passages)
    assert scorer.calls == 0


@pytest.mark.parametrize(
    "passages",
    [
        {"one": "a dog", "two": "a red fox"}.values(),
        dict.fromkeys(["a dog", "a red fox"]).keys(),
        pd.Series(["a dog", "a red fox"], index=[8, 9]),
        np.array(["a dog", "a red fox"]),
    ],
    ids=["values", "keys", "series", "array"],
)
def test_what_has_the_callers_order_is_taken(passages: Any) -> None:
    results = Reranker(WordOverlapScorer()).rerank("red fox", passages)
    assert [result.index for result in results] == [1, 0]


@pytest.mark.parametrize("passages", ["one string", None, 7], ids=repr)
def test_passages_that_are_no_list_are_refused(passages: Any) -> None:
    with pytest.raises(InvalidInputError, match="passages is"):
        Reranker(WordOverlapScorer()).rerank("query", passages)


def test_any_iterable_of_passages_will_do() -> None:
    results = Reranker(WordOverlapScorer()).rerank("b c", (word for word in ["a", "b c", "c"]))
    assert [result.index for result in results] == [1, 2, 0]


async def test_the_asynchronous_way_gives_the_same() -> None:
    reranker = Reranker(WordOverlapScorer(), top_n=3, score_threshold=0.5)
    passages = ["a dog", "the red fox", "a fox", "red fox red"]
    assert await reranker.arerank("red fox", passages) == reranker.rerank("red fox", passages)
    assert await reranker.arerank("red fox", passages, top_n=1) == reranker.rerank(
        "red fox", passages, top_n=1
    )


def test_a_float64_scorer_is_rounded_to_float32_before_sorting() -> None:
    scorer = GivenScorer([])
    scorer.numbers = np.array([1.0, 1.0 + 1e-12])
    assert [r.index for r in Reranker(scorer).rerank("q", ["a", "b"])] == [0, 1]


def test_results_are_values_that_print_themselves() -> None:
    result = RerankResult(2, 0.5, 0.0)
    assert result == RerankResult(index=2, score=0.5, raw_score=0.0)
    assert repr(result) == (
        "RerankResult(index=2, score=0.5, raw_score=0.0, scored=True, evidence=None)"
    )
    text = repr(Reranker(WordOverlapScorer(), top_n=3, score_threshold=0.25, timeout=2))
    assert text == (
        "Reranker('word-overlap', top_n=3, score_threshold=0.25, normalize=True, timeout=2.0, "
        "on_error='raise', explain=False)"
    )
    assert math.isclose(Reranker(WordOverlapScorer()).shown(0.0), 0.5)


def test_a_result_has_its_passage_and_goes_through_json() -> None:
    passages = ["a dog", "a red fox. It eats.", ""]
    results = Reranker(WordOverlapScorer(), explain=True).rerank("red fox", passages)
    assert [result.passage for result in results] == [passages[r.index] for r in results]
    first, second, blank = json.loads(json.dumps([result.as_dict() for result in results]))
    assert first == {
        "index": 1,
        "score": results[0].score,
        "raw_score": 2.0,
        "scored": True,
        "evidence": {
            "start": 0,
            "end": 10,
            "score": results[0].score,
            "raw_score": 2.0,
            "text": "a red fox.",
        },
        "passage": "a red fox. It eats.",
    }
    assert second["passage"] == "a dog"
    assert (blank["score"], blank["raw_score"], blank["scored"]) == (None, None, False)
    assert "eats" not in repr(Reranker(WordOverlapScorer()).rerank("red fox", passages))


@pytest.mark.parametrize("name", ["page_content", "text"])
def test_a_document_is_refused_with_the_name_of_its_text(name: str) -> None:
    document = type("Document", (), {name: "a red fox"})()
    said = f"the passage at position 1 is Document, not str; pass its .{name}$"
    with pytest.raises(InvalidInputError, match=said):
        Reranker(WordOverlapScorer()).rerank("red fox", ["a dog", document])
