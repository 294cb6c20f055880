"""What an engine promises whatever goes wrong on the device."""

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_rerank_integrations import InvalidInputError, NonFiniteScoreError, OutOfMemoryError
from bge_rerank_integrations.base.deadline import time_limit
from bge_rerank_integrations.base.option_group import read_options
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.options import BatchOptions
from tests.local.oracle import (
    BATCH,
    EXACT_DIFFERS_BY,
    LENGTHS,
    NO_LIMITS,
    POSITIONS,
    DeviceFull,
    OracleForward,
    engine_over,
    row_of,
    sequence,
    sequences,
)

EXPECTED = np.stack([row_of(s) for s in BATCH])


def fits(tokens: int) -> OracleForward:
    """A device that holds so many tokens at once."""

    def check(batch: Sequence[TokenSequence]) -> None:
        if sum(len(s.ids) for s in batch) > tokens:
            raise DeviceFull

    return OracleForward(before=check)


def test_rows_come_back_in_the_order_given(reranker_base: Path) -> None:
    rows = engine_over(OracleForward(), reranker_base).run(BATCH, POSITIONS, NO_LIMITS)
    assert rows.dtype == np.float32
    assert rows.tolist() == EXPECTED.tolist()


@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=30),
    seed=st.integers(0, 10_000),
    chance=st.floats(0, 0.9),
    limits=st.builds(
        BatchOptions,
        max_batch_tokens=st.none() | st.integers(1, 200),
        batch_size=st.none() | st.integers(1, 9),
    ),
    padded=st.booleans(),
)
@settings(max_examples=200)
def test_running_out_of_memory_at_any_time_changes_nothing(
    reranker_base: Path,
    lengths: list[int],
    seed: int,
    chance: float,
    limits: BatchOptions,
    padded: bool,
) -> None:
    dice = random.Random(seed)

    def fail_at_random(batch: Sequence[TokenSequence]) -> None:
        if len(batch) > 1 and dice.random() < chance:
            raise DeviceFull

    forward = OracleForward(before=fail_at_random, padded=padded)
    batch = sequences(lengths)
    rows = engine_over(forward, reranker_base).run(batch, range(len(batch)), limits)
    assert rows.tolist() == [row_of(s).tolist() for s in batch]
    assert set(forward.finished.values()) == {1}, "a finished batch was computed again"
    assert forward.released == forward.attempts - len(forward.batches)
    if limits.batch_size is not None:
        assert max(forward.batches) <= limits.batch_size


@pytest.mark.parametrize("tokens", [64, 70, 100, 1000])
def test_a_device_that_holds_the_longest_sequence_is_enough(
    reranker_base: Path, tokens: int
) -> None:
    forward = fits(tokens)
    limits = BatchOptions(max_batch_tokens=500)
    rows = engine_over(forward, reranker_base).run(BATCH, POSITIONS, limits)
    assert rows.tolist() == EXPECTED.tolist()
    assert set(forward.finished.values()) == {1}


def test_one_sequence_that_does_not_fit_is_named(reranker_base: Path) -> None:
    engine = engine_over(fits(60), reranker_base)
    with pytest.raises(OutOfMemoryError, match=r"position 106, of 64 tokens.* cpu .*oracle"):
        engine.run(BATCH, [100 + position for position in POSITIONS], NO_LIMITS)


def test_short_sequences_do_not_pay_for_the_long_ones_memory(reranker_base: Path) -> None:
    # 4 x 500 tokens do not fit, 2 x 500 do: 100 short ones of 1000 tokens together fit as well
    forward = fits(1000)
    batch = sequences([500] * 4 + [10] * 100)
    limits = BatchOptions(max_batch_tokens=2000)
    rows = engine_over(forward, reranker_base).run(batch, range(len(batch)), limits)
    assert rows.tolist() == [row_of(s).tolist() for s in batch]
    assert forward.attempts <= 10


def test_any_other_error_comes_through_as_the_same_object(reranker_base: Path) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(batch: Sequence[TokenSequence]) -> None:
        raise error

    forward = OracleForward(before=fail)
    with pytest.raises(RuntimeError) as raised:
        engine_over(forward, reranker_base).run(BATCH, POSITIONS, NO_LIMITS)
    assert raised.value is error
    assert forward.attempts == 1, "an error that is not about memory was tried again"
    assert forward.released == 0


def test_the_gate_is_free_again_after_an_error(reranker_base: Path) -> None:
    failures = iter([ValueError("broken"), DeviceFull()])

    def fail(batch: Sequence[TokenSequence]) -> None:
        if error := next(failures, None):
            raise error

    engine = engine_over(OracleForward(before=fail), reranker_base)
    with pytest.raises(ValueError, match="broken"):
        engine.run(BATCH, POSITIONS, NO_LIMITS)
    with pytest.raises(OutOfMemoryError, match="of 64 tokens"):
        engine.run(BATCH, POSITIONS, NO_LIMITS)
    assert engine.run(BATCH, POSITIONS, NO_LIMITS).tolist() == EXPECTED.tolist()


def test_overflow_in_half_precision_is_computed_again_exactly(reranker_base: Path) -> None:
    forward = OracleForward(overflowing=frozenset({2, 5}))
    rows = engine_over(forward, reranker_base).run(BATCH, POSITIONS, NO_LIMITS)
    for number, row in enumerate(rows):
        exact = number in {2, 5}
        assert row.tolist() == row_of(BATCH[number], exact=exact).tolist(), (
            "a row must not depend on whether another one overflowed"
        )
    assert EXACT_DIFFERS_BY > 0
    assert forward.recomputed.total() == 2


def test_a_row_that_is_nan_in_float32_too_names_its_pair(reranker_base: Path) -> None:
    engine = engine_over(OracleForward(damaged=frozenset({6})), reranker_base)
    with pytest.raises(NonFiniteScoreError, match=r"position 60 gives nan in oracle on cpu"):
        engine.run(BATCH, [10 * position for position in POSITIONS], NO_LIMITS)


@pytest.mark.parametrize("number", [np.inf, -np.inf])
def test_infinity_is_no_score_either(reranker_base: Path, number: float) -> None:
    class Infinite(OracleForward):
        def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> np.ndarray:
            return super().run(batch, exact=exact) * np.float32(number)

    with pytest.raises(NonFiniteScoreError, match=f"position 0 gives {number}"):
        engine_over(Infinite(), reranker_base).run(BATCH, POSITIONS, NO_LIMITS)


def test_running_out_of_memory_while_computing_exactly_splits_too(reranker_base: Path) -> None:
    alive: list[int] = []

    class NarrowInFloat32(OracleForward):
        def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> np.ndarray:
            if exact and sum(len(s.ids) for s in batch) > 20:
                alive.append(len(batch))
                raise DeviceFull
            return super().run(batch, exact=exact)

    batch = sequences([9] * 7)
    forward = NarrowInFloat32(overflowing=frozenset(range(7)))
    rows = engine_over(forward, reranker_base).run(batch, range(7), NO_LIMITS)
    assert alive, "the device was never full"
    assert rows.tolist() == [row_of(s, exact=True).tolist() for s in batch]


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_the_gate_bounds_how_many_batches_run_at_once(
    reranker_base: Path, concurrency: int
) -> None:
    calls = 12
    meeting = threading.Barrier(concurrency)
    lock = threading.Lock()
    inside, most = 0, 0

    def meet(batch: Sequence[TokenSequence]) -> None:
        # nobody leaves before `concurrency` are inside: the gate lets that many in
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        meeting.wait(60)
        with lock:
            inside -= 1

    engine = engine_over(OracleForward(before=meet, concurrency=concurrency), reranker_base)
    with ThreadPoolExecutor(calls) as pool:
        for _ in pool.map(lambda n: engine.run([sequence(n, 3)], [n], NO_LIMITS), range(calls)):
            pass
    assert most == concurrency


def test_the_forwards_own_limit_holds_beside_the_callers(reranker_base: Path) -> None:
    for asked, expected in ((None, 3), (2, 2), (5, 3)):
        forward = OracleForward(max_sequences=3)
        limits = BatchOptions(max_batch_tokens=1000, batch_size=asked)
        engine_over(forward, reranker_base).run(BATCH, POSITIONS, limits)
        assert max(forward.batches) == expected


def test_all_that_overflowed_is_computed_again_in_one_go(reranker_base: Path) -> None:
    forward = OracleForward(overflowing=frozenset({0, 6, 15}))
    rows = engine_over(forward, reranker_base).run(BATCH, POSITIONS, BatchOptions(batch_size=1))
    for number, row in enumerate(rows):
        assert row.tolist() == row_of(BATCH[number], exact=number in {0, 6, 15}).tolist()
    assert forward.finished.total() == len(BATCH)
    assert forward.recomputed.total() == 3


def test_what_overflowed_and_came_too_late_is_no_score(reranker_base: Path) -> None:
    with ExitStack() as over:

        class TimeIsOverWhenRowsAreThere(OracleForward):
            def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> np.ndarray:
                assert not exact, "time is over"
                over.enter_context(time_limit(0))
                return super().run(batch, exact=exact)

        forward = TimeIsOverWhenRowsAreThere(overflowing=frozenset({3}))
        limits = BatchOptions(max_batch_tokens=sum(LENGTHS))
        rows = engine_over(forward, reranker_base).run(BATCH, POSITIONS, limits)
    assert np.isnan(rows[3]).all()
    others = [number for number in POSITIONS if number != 3]
    assert rows[others].tolist() == EXPECTED[others].tolist()


def test_progress_counts_every_sequence_once(reranker_base: Path) -> None:
    told: list[int] = []
    engine = engine_over(fits(64), reranker_base)
    engine.run(BATCH, POSITIONS, BatchOptions(max_batch_tokens=200), on_batch=told.append)
    assert sum(told) == len(BATCH)


@pytest.mark.parametrize("number", [0, -1, 2.5, "8"])
def test_batch_limits_start_at_one(number: object) -> None:
    for name in ("max_batch_tokens", "batch_size"):
        with pytest.raises(InvalidInputError, match=f"{name} is .*; it must be a whole number"):
            read_options(BatchOptions, {name: number}, caller="load_scorer")
