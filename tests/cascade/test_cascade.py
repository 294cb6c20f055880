"""Stages before the last scorer: who reaches it, whose scores are shown, what errors speak of."""

import asyncio
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations import InvalidInputError, Reranker
from bge_rerank_integrations.base.deadline import check_cancelled, in_worker, seconds_left
from bge_rerank_integrations.base.trace import RerankTrace, note
from bge_rerank_integrations.errors import (
    NonFiniteScoreError,
    RemoteUnavailable,
    ScoringTimeout,
)
from bge_rerank_integrations.ranking.cascade import CascadeStage
from bge_rerank_integrations.ranking.cutoffs import Cutoff
from bge_rerank_integrations.types import FloatArray, Pair, Scale
from tests.fakes import FailingScorer, WordOverlapScorer

QUERY = "red fox"
PASSAGES = ["a dog", "the red fox jumps", "a fox", "red fox", "a red hat", "fox"]
OVERLAP = [0, 2, 1, 2, 1, 1]


class ShortFirst(WordOverlapScorer):
    """Scores a pair by the characters of its passage, negated: "fox" is -3."""

    scale: Scale = "cosine"

    def __init__(self) -> None:
        super().__init__("short-first")
        self.seen: list[str] = []

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        super().score(pairs)
        self.seen += [passage for _, passage in pairs]
        return np.array([-len(passage) for _, passage in pairs], dtype=np.float32)


def in_two(keep: int, last: WordOverlapScorer | None = None, **options: Any) -> Reranker:
    """Word overlap chooses `keep`, and the shortest of these comes first."""
    stage = CascadeStage(WordOverlapScorer(), keep)
    return Reranker(last or ShortFirst(), cascade=[stage], **options)


def test_the_last_scorer_ranks_what_the_first_one_leaves_and_shows_its_own_scores() -> None:
    last = ShortFirst()
    results = in_two(4, last).rerank(QUERY, PASSAGES)
    # overlaps of 2, 2, 1 and 1 go on: of the three with 1 the first two
    assert last.seen == [PASSAGES[1], PASSAGES[2], PASSAGES[3], PASSAGES[4]]
    assert [(result.index, result.raw_score) for result in results] == [
        (2, -5.0),
        (3, -7.0),
        (4, -9.0),
        (1, -17.0),
    ]
    assert all(result.score == result.raw_score and result.scored for result in results)


def test_three_in_a_row() -> None:
    last = WordOverlapScorer()
    shortest = CascadeStage(ShortFirst(), 2)
    reranker = Reranker(last, cascade=[CascadeStage(WordOverlapScorer(), 4), shortest])
    assert [result.index for result in reranker.rerank(QUERY, PASSAGES)] == [3, 2]
    assert last.pairs_scored == 2


@given(
    st.lists(st.sampled_from(["red", "fox", "red fox", "dog", "fox red", "a"]), max_size=12),
    st.integers(1, 6),
)
def test_the_same_scorer_twice_is_that_scorer_cut_at_keep(passages: list[str], keep: int) -> None:
    once = Reranker(WordOverlapScorer()).rerank(QUERY, passages)
    twice = in_two(keep, WordOverlapScorer()).rerank(QUERY, passages)
    assert twice == once[:keep]


@given(st.lists(st.text("ab ", max_size=6), max_size=10), st.integers(1, 5), st.integers(1, 5))
def test_ranks_and_ties_are_as_sorting_says(passages: list[str], keep: int, top_n: int) -> None:
    top_n = min(top_n, keep)
    reranker = Reranker(
        WordOverlapScorer(), cascade=[CascadeStage(ShortFirst(), keep)], top_n=top_n
    )
    places = range(len(passages))
    reached = sorted(sorted(places, key=lambda place: len(passages[place]))[:keep])
    overlap = [len({"a", "b"} & set(passage.split())) for passage in passages]
    expected = sorted(reached, key=lambda place: -overlap[place])[:top_n]
    results = reranker.rerank("a b", passages)
    assert [(result.index, result.raw_score) for result in results] == [
        (place, overlap[place]) for place in expected
    ]


def test_what_is_few_enough_costs_nothing_before_the_last_scorer() -> None:
    first = WordOverlapScorer()
    reranker = Reranker(ShortFirst(), cascade=[CascadeStage(first, 6)])
    assert len(reranker.rerank(QUERY, iter(PASSAGES))) == 6
    assert reranker.rerank(QUERY, []) == []
    assert first.calls == 0


def test_more_than_reaches_the_last_scorer_cannot_be_asked_for() -> None:
    with pytest.raises(InvalidInputError, match="top_n is 5, and the cascade leaves 4"):
        in_two(4, top_n=5)
    reranker = in_two(4, top_n=4)
    with pytest.raises(InvalidInputError, match="what fell out has no score"):
        reranker.rerank(QUERY, PASSAGES, top_n=5)
    assert [result.index for result in reranker.rerank(QUERY, PASSAGES, top_n=1)] == [2]


@pytest.mark.parametrize("keep", [0, -1, True, 2.0, "3", None])
def test_keep_is_a_number_of_passages(keep: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"keep is {keep!r}"):
        CascadeStage(WordOverlapScorer(), keep)


def test_a_number_of_numpy_is_a_number() -> None:
    stage = CascadeStage(WordOverlapScorer(), np.int64(3))  # type: ignore[arg-type]
    assert (stage.keep, type(stage.keep)) == (3, int)


def test_stages_must_narrow_and_be_stages() -> None:
    first, second = CascadeStage(WordOverlapScorer(), 4), CascadeStage(WordOverlapScorer(), 4)
    with pytest.raises(InvalidInputError, match=r"keep \[4, 4\]; each must keep fewer"):
        Reranker(ShortFirst(), cascade=[first, second])
    with pytest.raises(InvalidInputError, match="holds a WordOverlapScorer"):
        Reranker(ShortFirst(), cascade=[WordOverlapScorer()])  # type: ignore[list-item]
    for wrong in (first, None, "offline"):
        with pytest.raises(InvalidInputError, match=r"cascade is one \w+; pass a list: \[Casc"):
            Reranker(ShortFirst(), cascade=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="is a str; it must have name, scale"):
        CascadeStage("a model", 4)  # type: ignore[arg-type]


class Noting(WordOverlapScorer):
    """Word overlap that notes the pairs it computed, and where."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        note({"computed": len(pairs)}, {"model": self.name, self.name: "here"})
        return super().score(pairs)


def test_the_trace_has_each_stage_and_mixes_none_of_their_notes() -> None:
    traces: list[RerankTrace] = []
    reranker = Reranker(
        Noting("last"),
        cascade=[CascadeStage(Noting("first"), 4), CascadeStage(ShortFirst(), 2)],
        on_trace=traces.append,
    )
    results = reranker.rerank(QUERY, PASSAGES)
    (trace,) = traces
    first, second = trace.stages
    assert (first.number, first.name, first.scale, first.keep) == (1, "first", "logit", 4)
    assert (second.number, second.name, second.scale, second.keep) == (
        2,
        "short-first",
        "cosine",
        2,
    )
    assert list(first.raw_scores) == OVERLAP
    assert first.ranks == (5, 0, 2, 1, 3, 4)
    assert second.raw_scores == (None, -17.0, -5.0, -7.0, -9.0, None)
    assert second.ranks == (None, 3, 0, 1, 2, None)
    assert [(p.before, p.after, p.raw_score) for p in trace.passages] == [
        (0, None, None),
        (1, None, None),
        (2, 1, 1.0),
        (3, 0, 2.0),
        (4, None, None),
        (5, None, None),
    ]
    assert [result.index for result in results] == [3, 2]
    assert trace.kept_by == "stage 2 of the cascade leaves 2"
    assert (trace.counts, first.counts, second.counts) == ({"computed": 2}, {"computed": 6}, {})
    assert trace.facts == {"model": "last", "last": "here"}
    assert first.facts == {"model": "first", "first": "here"}
    assert trace.seconds["total"] >= first.seconds["total"] + second.seconds["total"] > 0
    written = json.dumps(trace.as_dict())
    assert json.loads(written) == trace.as_dict()
    assert "red fox" not in written


def test_a_stage_that_did_not_run_is_in_no_trace_and_cut_nothing() -> None:
    traces: list[RerankTrace] = []
    in_two(6, on_trace=traces.append).rerank(QUERY, PASSAGES)
    assert (traces[0].stages, traces[0].kept_by) == ((), None)


def test_cut_offs_are_of_the_last_scores() -> None:
    assert [r.index for r in in_two(4, score_threshold=-7).rerank(QUERY, PASSAGES)] == [2, 3]
    gap = in_two(4, cutoff=Cutoff(min_n=1)).rerank(QUERY, PASSAGES)
    assert [result.index for result in gap] == [2, 3, 4]  # the gap from -9 to -17


def test_a_failing_stage_raises_without_its_scores_and_says_which_it_was() -> None:
    stage = CascadeStage(FailingScorer(RemoteUnavailable, scored=3), 2)
    reranker = Reranker(ShortFirst(), cascade=[stage])
    with pytest.raises(RemoteUnavailable, match="the server is down") as failed:
        reranker.rerank(QUERY, PASSAGES)
    assert failed.value.partial is None
    assert failed.value.__notes__ == ["this came of stage 1 of the cascade"]


def test_on_error_keep_lets_what_a_stage_did_score_go_on_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traces: list[RerankTrace] = []
    stage = CascadeStage(FailingScorer(RemoteUnavailable, scored=3), 4)
    reranker = Reranker(ShortFirst(), cascade=[stage], on_error="keep", on_trace=traces.append)
    with caplog.at_level(logging.WARNING):
        results = reranker.rerank(QUERY, PASSAGES)
    # 0, 1 and 2 were scored, and 3 is the first of the others
    assert [result.index for result in results] == [0, 2, 3, 1]
    assert [result.raw_score for result in results] == [-5.0, -5.0, -7.0, -17.0]
    assert all(result.scored for result in results)
    assert traces[0].failure is None
    assert traces[0].stages[0].failure == "RemoteUnavailable"
    assert traces[0].stages[0].raw_scores == (0.0, 2.0, 1.0, None, None, None)
    (record,) = caplog.records
    assert record.getMessage() == (
        "stage 1 of the cascade did not score 3 of 6 passages, which count as its lowest, in the "
        "order they came in: RemoteUnavailable: the server is down"
    )


def test_what_the_last_scorer_did_not_score_has_no_score_of_an_earlier_one() -> None:
    stage = CascadeStage(WordOverlapScorer(), 4)
    failing = FailingScorer(ScoringTimeout, scored=1)
    kept = Reranker(failing, cascade=[stage], on_error="keep").rerank(QUERY, PASSAGES)
    assert [(result.index, result.scored) for result in kept] == [
        (1, True),
        (2, False),
        (3, False),
        (4, False),
    ]
    assert all(math.isnan(result.raw_score) for result in kept[1:])
    with pytest.raises(ScoringTimeout) as failed:
        Reranker(failing, cascade=[stage]).rerank(QUERY, PASSAGES)
    assert failed.value.partial is not None
    np.testing.assert_array_equal(failed.value.partial, [np.nan, 2.0, *[np.nan] * 4])


class Refusing(WordOverlapScorer):
    """Takes no passage with "hat" in it, nor a NaN out of one with "jumps"."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        raw = super().score(pairs)
        for place, (_, passage) in enumerate(pairs):
            if "hat" in passage:
                raise InvalidInputError(f"the passage at position {place} is wrong", index=place)
            if "jumps" in passage:
                raw[place] = np.nan
        return raw


@pytest.mark.parametrize("place", ["stage", "last"])
def test_errors_point_into_the_callers_list(place: str) -> None:
    stages = [CascadeStage(WordOverlapScorer(), 4)]
    if place == "stage":
        stages.append(CascadeStage(Refusing(), 2))
    last = ShortFirst() if place == "stage" else Refusing()
    with pytest.raises(InvalidInputError, match="position 3") as refused:
        Reranker(last, cascade=stages, on_error="keep").rerank(QUERY, PASSAGES)
    assert refused.value.index == 4  # the hat, which is the fourth of four that reached it
    assert "positions count the passages that" in refused.value.__notes__[0]
    with pytest.raises(NonFiniteScoreError, match="position 0"):
        Reranker(last, cascade=stages).rerank(QUERY, [*PASSAGES[:4], "fox", "red"])


class WrongPartial(WordOverlapScorer):
    """Fails with fewer partial scores than pairs."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        raise ScoringTimeout("late", partial=super().score(pairs)[1:])


def test_wrong_partial_scores_hide_no_error() -> None:
    for cascade in ([], [CascadeStage(WordOverlapScorer(), 4)]):
        with pytest.raises(ScoringTimeout, match="late"):
            Reranker(WrongPartial(), cascade=cascade).rerank(QUERY, PASSAGES)


class AsksForTime(WordOverlapScorer):
    """Notes how much time it is given."""

    left: float | None = None

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self.left = seconds_left()
        return super().score(pairs)


def test_one_time_limit_holds_for_all_stages_together() -> None:
    first, last = AsksForTime(), AsksForTime()
    Reranker(last, cascade=[CascadeStage(first, 2)], timeout=50).rerank(QUERY, PASSAGES)
    assert 0 < (last.left or 0) < (first.left or 0) <= 50


class Stopping(WordOverlapScorer):
    """Cancels the task that asked for it, and looks whether it is wanted still."""

    def __init__(self, task: "asyncio.Task[Any]", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__("stopping")
        self._task, self._loop = task, loop

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self._loop.call_soon_threadsafe(self._task.cancel)
        while True:
            check_cancelled()


async def test_cancelling_in_the_first_stage_never_asks_the_last() -> None:
    last = WordOverlapScorer()
    finished = asyncio.Event()

    async def rerank() -> None:
        task = asyncio.current_task()
        assert task is not None
        stage = CascadeStage(Stopping(task, asyncio.get_running_loop()), 2)
        try:
            await Reranker(last, cascade=[stage]).arerank(QUERY, PASSAGES)
        finally:
            finished.set()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(rerank())
    await finished.wait()
    await in_worker(lambda: None)
    assert last.calls == 0


async def test_the_async_twin_gives_the_same() -> None:
    assert await in_two(4).arerank(QUERY, PASSAGES) == in_two(4).rerank(QUERY, PASSAGES)


def test_evidence_is_looked_for_in_what_is_kept() -> None:
    passages = [
        "A dog sat. It ate.",
        "Hello. The red fox is here.",
        "A fox. Not a cat.",
    ]
    results = in_two(2, WordOverlapScorer(), explain=True).rerank(QUERY, passages)
    found = [
        passages[result.index][result.evidence.start : result.evidence.end]
        for result in results
        if result.evidence is not None
    ]
    assert [result.index for result in results] == [1, 2]
    assert found == ["The red fox is here.", "A fox."]
