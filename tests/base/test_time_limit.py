"""What is left of a rerank when its time is over or its scorer fails: all of it, or an error."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import InvalidInputError, Reranker, load_scorer
from bge_rerank_integrations.base.deadline import seconds_left, time_limit, watched
from bge_rerank_integrations.errors import (
    OutOfMemoryError,
    RemoteAnswerError,
    RemoteUnavailable,
    ScorerContractError,
    ScoringFailed,
    ScoringTimeout,
)
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
from bge_rerank_integrations.local.text.tokenizer import _in_parts as in_parts
from bge_rerank_integrations.options import BatchOptions
from bge_rerank_integrations.types import FloatArray, Pair
from bge_rerank_integrations.wrappers.windows import WindowedScorer
from tests.fakes import FailingScorer, WordOverlapScorer
from tests.local.oracle import OracleForward, engine_over, row_of, sequences

PASSAGES = ["a dog", "the red fox", "a fox", "red fox red", "a red hat"]


def test_an_inner_limit_cannot_outlast_the_outer_one() -> None:
    assert seconds_left() is None
    with time_limit(100):
        with time_limit(1000):
            assert 0 < (seconds_left() or 0) <= 100
        with time_limit(10):
            assert 0 < (seconds_left() or 0) <= 10
        with time_limit(None):
            assert 10 < (seconds_left() or 0) <= 100
    assert seconds_left() is None


def spend(_batch: Sequence[Any]) -> None:
    """Work until the time is over."""
    while seconds_left() != 0.0:
        continue


def test_the_batch_that_is_running_is_finished_and_no_other_begins(reranker_base: Path) -> None:
    batch = sequences([4, 4, 4, 4, 4])
    forward = OracleForward(before=spend)
    engine = engine_over(forward, reranker_base)
    with time_limit(0.5):  # long enough to begin the first batch on a busy machine
        rows = engine.run(batch, range(5), BatchOptions(batch_size=2))
    scored = ~np.isnan(rows).any(axis=1)
    assert scored.sum() == 1, "the engine's speed is not known, so it begins with one"
    assert [rows[i].tolist() for i in np.flatnonzero(scored)] == [
        row_of(batch[i]).tolist() for i in np.flatnonzero(scored)
    ]
    assert forward.attempts == 1


def test_without_time_for_one_batch_nothing_is_computed(reranker_base: Path) -> None:
    forward = OracleForward()
    with time_limit(0), pytest.raises(ScoringTimeout, match="before the first of 3 texts"):
        engine_over(forward, reranker_base).run(sequences([4, 4, 4]), range(3), BatchOptions())
    assert forward.attempts == 0


def test_a_busy_device_is_not_waited_for_beyond_the_limit(reranker_base: Path) -> None:
    engine = engine_over(forward := OracleForward(), reranker_base)

    def ask_too(_batch: Sequence[Any]) -> None:
        # the gate is full: this call holds its only place
        with time_limit(0.001), pytest.raises(ScoringTimeout):
            engine.run(sequences([4]), [0], BatchOptions())

    forward.before = ask_too
    assert engine.run(sequences([4]), [0], BatchOptions()).shape[0] == 1


def score_within(seconds: float, scorer: LocalScorer, pairs: list[Pair]) -> FloatArray | str:
    """The scores that there are, and the message if they are not all."""
    try:
        with time_limit(seconds):
            return scorer.score(pairs)
    except ScoringTimeout as timeout:
        partial = np.full(len(pairs), np.nan) if timeout.partial is None else timeout.partial
        unscored = int(np.isnan(partial).sum())
        return str(timeout) if unscored == len(pairs) else partial.astype(np.float32)


@pytest.mark.parametrize("limit", [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064])
def test_however_much_time_there_is_each_score_is_the_same(
    reranker_base: Path, limit: float
) -> None:
    pairs = [("red fox", f"{passage} {number}") for number, passage in enumerate(PASSAGES * 40)]
    with load_scorer(str(reranker_base), device="cpu", max_batch_tokens=32) as scorer:
        whole = scorer.score(pairs)
        got = score_within(limit, scorer, pairs)
    if isinstance(got, str):
        assert "the time limit passed" in got
    else:
        assert np.nanmax(np.abs(got - whole)) < 1e-5


def test_what_is_scored_is_ranked_and_the_rest_follows_in_the_given_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reranker = Reranker(FailingScorer(scored=3), on_error="keep")
    with caplog.at_level(logging.WARNING):
        results = reranker.rerank("red fox", PASSAGES)
    assert [result.index for result in results] == [1, 2, 0, 3, 4]
    assert [result.scored for result in results] == [True, True, True, False, False]
    assert [result.raw_score for result in results[:3]] == [2.0, 1.0, 0.0]
    assert all(math.isnan(r.score) and math.isnan(r.raw_score) for r in results[3:])
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 of 5 passages were not scored and keep the order they came in: "
        "ScoringTimeout: the server is down"
    )


@pytest.mark.parametrize(
    "error", [ScoringTimeout, RemoteUnavailable, RemoteAnswerError, OutOfMemoryError]
)
def test_nothing_scored_keeps_the_whole_order(error: type[ScoringFailed]) -> None:
    scorer = FailingScorer(error)
    results = Reranker(scorer, on_error="keep", top_n=4).rerank("red fox", PASSAGES)
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert not any(result.scored for result in results)
    with pytest.raises(error, match="the server is down"):
        Reranker(scorer).rerank("red fox", PASSAGES)


def test_a_threshold_judges_only_what_has_a_score() -> None:
    reranker = Reranker(
        FailingScorer(scored=3), on_error="keep", normalize=False, score_threshold=1.0
    )
    assert [result.index for result in reranker.rerank("red fox", PASSAGES)] == [1, 2, 3, 4]


def test_an_error_of_the_input_is_raised_whatever_is_kept() -> None:
    reranker = Reranker(FailingScorer(), on_error="keep")
    with pytest.raises(InvalidInputError):
        reranker.rerank("red fox", ["a dog", None])  # type: ignore[list-item]


class WrongPartial(WordOverlapScorer):
    """Fails with fewer partial scores than pairs."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        raise ScoringTimeout("late", partial=super().score(pairs)[1:])


def test_partial_scores_that_cannot_be_right_are_no_scores() -> None:
    with pytest.raises(ScorerContractError, match=r"shape \(4,\) for 5 pairs"):
        Reranker(WrongPartial(), on_error="keep").rerank("red fox", PASSAGES)


class AsksForTime(WordOverlapScorer):
    """Notes how much time it is given."""

    left: float | None = None

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self.left = seconds_left()
        return super().score(pairs)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_scorer_sees_the_limit(asynchronous: bool) -> None:
    scorer = AsksForTime()
    reranker = Reranker(scorer, timeout=50)
    if asynchronous:
        asyncio.run(reranker.arerank("red fox", PASSAGES))
    else:
        reranker.rerank("red fox", PASSAGES)
    assert 0 < (scorer.left or 0) <= 50


def test_reading_the_passages_takes_of_the_limit() -> None:
    scorer = AsksForTime()

    def passages() -> Iterator[str]:
        yield from PASSAGES
        ends = time.monotonic() + 0.05
        while time.monotonic() < ends:
            continue

    Reranker(scorer, timeout=0.05).rerank("red fox", passages())
    assert scorer.left == 0.0


@pytest.mark.parametrize("timeout", [0, -1, math.nan, True, "1"])
def test_a_timeout_is_seconds(timeout: Any) -> None:
    with pytest.raises(InvalidInputError, match="it must be a number above 0, or None"):
        Reranker(WordOverlapScorer(), timeout=timeout)


def test_on_error_is_one_of_two() -> None:
    with pytest.raises(InvalidInputError, match="on_error is 'ignore'"):
        Reranker(WordOverlapScorer(), on_error="ignore")  # type: ignore[arg-type]


def test_the_clock_is_looked_at_between_texts() -> None:
    parts = in_parts(["a" * 60_000] * 3)
    assert len(next(parts)) == 1
    with time_limit(0), pytest.raises(ScoringTimeout, match="while texts were tokenized"):
        next(parts)


def test_native_code_that_takes_long_is_not_waited_for() -> None:
    """The limit passes while it runs; it ends by itself, and nobody hears of its error."""
    go_on, ended = threading.Event(), threading.Event()

    def slow() -> None:
        go_on.wait()
        ended.set()
        raise KeyError

    with time_limit(0.01), pytest.raises(ScoringTimeout, match="passed while it was slow"):
        watched(slow, "it was slow")
    go_on.set()
    ended.wait()
    assert watched(lambda: 7, "it was fast") == 7
    with pytest.raises(KeyError):
        watched(slow, "it failed")


def batches_under_a_limit(folder: Path, tokens_a_second: int) -> list[int]:
    """How many of 64 sequences of 4 tokens each batch holds, on a device of this speed."""
    now = 0.0

    def compute(batch: Sequence[TokenSequence]) -> None:
        nonlocal now
        now += sum(len(sequence.ids) for sequence in batch) / tokens_a_second

    forward = OracleForward(before=compute)  # of at most 16 sequences in a batch
    engine = Engine("oracle", str, TextTokenizer(folder), forward, clock=lambda: now)
    with time_limit(1000):
        rows = engine.run(sequences([4] * 64), range(64), BatchOptions())
    assert rows.tolist() == [row_of(one).tolist() for one in sequences([4] * 64)]
    return forward.batches


def test_under_a_limit_a_batch_takes_a_quarter_of_a_second_or_is_one_text(
    reranker_base: Path,
) -> None:
    assert max(batches_under_a_limit(reranker_base, 4)) == 1  # each takes a second
    # the speed is known after the first: four texts take a quarter of a second
    assert batches_under_a_limit(reranker_base, 64) == [1, 1, 2, *[4] * 15]
    assert batches_under_a_limit(reranker_base, 1000) == [1, 1, 2, 4, 8, 16, 16, 16]


def test_a_small_batch_does_not_hide_how_fast_large_ones_are(reranker_base: Path) -> None:
    now = 0.0

    def compute(_batch: Sequence[TokenSequence]) -> None:
        nonlocal now
        now += 0.01  # whatever it holds

    forward = OracleForward(before=compute)
    engine = Engine("oracle", str, TextTokenizer(reranker_base), forward, clock=lambda: now)
    engine.run(sequences([4] * 16), range(16), BatchOptions())
    with time_limit(1000):
        engine.run(sequences([1]), [0], BatchOptions())
        engine.run(sequences([4] * 16), range(16), BatchOptions())
    assert forward.batches == [16, 1, 16]


@pytest.mark.parametrize(
    "lengths", [[], [5], [200_000], [99_999, 1, 1], [1] * 7, [100_000] * 3, [1] * 4500]
)
def test_texts_are_tokenized_in_parts_and_none_is_lost(lengths: list[int]) -> None:
    texts = [str(number)[-1] * length for number, length in enumerate(lengths)]
    parts = list(in_parts(texts))
    assert [text for part in parts for text in part] == texts
    assert all(len(part) == 1 or sum(map(len, part)) <= 100_000 for part in parts)
    assert all(len(part) <= 2000 for part in parts)


@pytest.mark.parametrize("explain", [False, True])
def test_a_limit_that_has_passed_tokenizes_nothing(reranker_base: Path, *, explain: bool) -> None:
    scorer = load_scorer(str(reranker_base), device="cpu")
    reranker = Reranker(scorer, timeout=1e-9, explain=explain)
    with pytest.raises(ScoringTimeout, match="the time limit passed while pairs were compared"):
        reranker.rerank("what is a panda?", PASSAGES)
    windowed = Reranker(WindowedScorer(scorer), timeout=1e-9, on_error="keep")
    kept = windowed.rerank("what is a panda?", PASSAGES)
    assert [(result.index, result.scored) for result in kept] == [(i, False) for i in range(5)]
