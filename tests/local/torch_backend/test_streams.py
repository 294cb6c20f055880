"""Batches side by side on a CPU: the scores of one at a time, and nobody's threads changed."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.base.deadline import time_limit
from bge_rerank_integrations.errors import ScoringTimeout
from bge_rerank_integrations.local.engine import plan_batches
from bge_rerank_integrations.local.torch_backend.cpu_streams import (
    MAX_CORES,
    MIN_TOKENS,
    StreamedEngine,
    even_budget,
    limits_one_thread,
    one_thread,
)
from bge_rerank_integrations.options import BatchOptions
from tests.contract.pairs import PAIRS, TOLERANCE
from tests.local.oracle import NO_LIMITS, OracleForward, engine_over, row_of, sequences

LONG = sequences([60] * 40)  # more tokens than two cores want
EXPECTED = [row_of(sequence).tolist() for sequence in LONG]


def streamed(forward: OracleForward, folder: Path) -> StreamedEngine:
    plain = engine_over(forward, folder)
    return StreamedEngine(plain.model, plain.fingerprint, plain.tokenizer, forward)


@pytest.fixture(autouse=True)
def threads_of_others() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cores", [1, 2, 3, MAX_CORES, MAX_CORES + 1])
def test_rows_come_back_in_order_from_so_many_threads(reranker_base: Path, cores: int) -> None:
    barrier = threading.Barrier(cores if 2 <= cores <= MAX_CORES else 1)
    seen: set[int] = set()

    def meet(_batch: object) -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            barrier.wait(60)

    torch.set_num_threads(cores)
    engine = streamed(OracleForward(before=meet, concurrency=MAX_CORES), reranker_base)
    rows = engine.run(LONG, range(len(LONG)), NO_LIMITS)
    assert rows.tolist() == EXPECTED
    assert len(seen) == barrier.parties


def test_a_small_call_and_a_call_of_one_text_stay_in_the_callers_thread(
    reranker_base: Path,
) -> None:
    callers: list[int] = []
    forward = OracleForward(before=lambda _batch: callers.append(threading.get_ident()))
    torch.set_num_threads(2)
    engine = streamed(forward, reranker_base)
    for lengths in ([2 * MIN_TOKENS], [MIN_TOKENS, MIN_TOKENS - 1]):
        engine.run(sequences(lengths), range(len(lengths)), NO_LIMITS)
    assert set(callers) == {threading.get_ident()}


@given(
    lengths=st.lists(st.integers(1, 512), min_size=2, max_size=80),
    cores=st.integers(2, MAX_CORES),
    most=st.integers(64, 4096),
)
def test_no_core_is_left_with_much_more_than_another(
    lengths: list[int], cores: int, most: int
) -> None:
    budget = even_budget(lengths, cores, most)
    batches = plan_batches(lengths, max_tokens=budget)
    assert budget <= most
    loads = [0] * cores
    for batch in batches:  # who is free first takes the next
        loads[loads.index(min(loads))] += sum(lengths[index] for index in batch)
    assert max(loads) - min(loads) <= max(budget, *lengths)
    if most >= sum(lengths):
        assert len(batches) <= cores


def test_the_callers_limits_hold(reranker_base: Path) -> None:
    forward = OracleForward()
    torch.set_num_threads(2)
    engine = streamed(forward, reranker_base)
    engine.run(LONG, range(len(LONG)), BatchOptions(max_batch_tokens=120))
    engine.run(LONG, range(len(LONG)), BatchOptions(max_batch_tokens=240, batch_size=1))
    assert max(forward.batches[:20]) == 2
    assert max(forward.batches[20:]) == 1
    with time_limit(0), pytest.raises(ScoringTimeout):
        engine.run(LONG, range(len(LONG)), NO_LIMITS)


def test_scores_are_those_of_one_batch_at_a_time(reranker_base: Path) -> None:
    torch.set_num_threads(2)
    scorer = load_scorer(str(reranker_base), device="cpu")
    distinct = [(f"{query} {n}", passage) for n, (query, passage) in enumerate(PAIRS * 12)]
    assert sum(scorer.count_tokens([passage for _, passage in distinct])) > 4 * MIN_TOKENS
    assert "a batch on each of 2" in str(scorer.plan)
    alone = [float(scorer.score([pair])[0]) for pair in distinct]
    np.testing.assert_allclose(scorer.score(distinct), alone, atol=TOLERANCE, rtol=0)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(scorer.score, [distinct] * 16):
            np.testing.assert_allclose(found, alone, atol=TOLERANCE, rtol=0)
    torch.set_num_threads(1)
    assert "a batch on each" not in str(scorer.plan), "the caller's threads stay the caller's"


def test_only_the_thread_that_asks_computes_alone() -> None:
    torch.set_num_threads(2)
    limits_one_thread.cache_clear()
    assert limits_one_thread()
    inside, done = threading.Event(), threading.Event()

    def alone() -> int:
        with one_thread():
            inside.set()
            assert done.wait(60)
            return torch.get_num_threads()

    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(alone)
        assert inside.wait(60)
        assert torch.get_num_threads() == 2
        assert pool.submit(torch.get_num_threads).result() == 2, "nor is a later thread's"
        done.set()
        assert asked.result() == 1
