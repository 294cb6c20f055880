"""One model on several devices: the scores of one, and its errors, limits and memory."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_rerank_integrations import (
    InvalidInputError,
    OutOfMemoryError,
    load_scorer,
)
from bge_rerank_integrations.base import deadline
from bge_rerank_integrations.base.deadline import in_worker, seconds_left, time_limit
from bge_rerank_integrations.errors import ScoringTimeout
from bge_rerank_integrations.local.device import CudaDevice, Hardware, plan_devices
from bge_rerank_integrations.local.device_group import EngineGroup
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.options import BatchOptions, DeviceOptions
from tests.contract.pairs import PAIRS, TOLERANCE
from tests.local.oracle import (
    BATCH,
    NO_LIMITS,
    PLAN,
    POSITIONS,
    DeviceFull,
    OracleForward,
    engine_over,
    row_of,
    sequence,
    sequences,
)

EXPECTED = [row_of(s).tolist() for s in BATCH]
Before = Callable[[Sequence[TokenSequence]], None]


def group_over(forwards: Sequence[OracleForward], folder: Path) -> EngineGroup:
    return EngineGroup([engine_over(forward, folder) for forward in forwards])


def devices(count: int, **how: object) -> list[OracleForward]:
    plans = [replace(PLAN, device=f"cuda:{number}") for number in range(count)]
    return [OracleForward(plan=plan, **how) for plan in plans]  # type: ignore[arg-type]


def meeting(count: int) -> Before:
    """Nobody's first batch ends before that of the others has begun."""
    barrier, met = threading.Barrier(count), threading.local()

    def meet(batch: Sequence[TokenSequence]) -> None:
        if not getattr(met, "once", False):
            met.once = True
            barrier.wait(60)

    return meet


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_device_takes_part_and_rows_come_back_in_order(
    reranker_base: Path, count: int
) -> None:
    forwards = devices(count, before=meeting(count))
    rows = group_over(forwards, reranker_base).run(BATCH, POSITIONS, NO_LIMITS)
    assert rows.tolist() == EXPECTED
    assert rows.dtype == np.float32
    assert all(forward.batches for forward in forwards)
    assert sum(forward.finished.total() for forward in forwards) == len(BATCH)


@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=30),
    count=st.integers(1, 4),
    budget=st.none() | st.integers(1, 300),
)
@settings(max_examples=60)
def test_batches_are_those_of_one_device(
    reranker_base: Path, lengths: list[int], count: int, budget: int | None
) -> None:
    batch, limits = sequences(lengths), BatchOptions(max_batch_tokens=budget)
    alone, together = OracleForward(), devices(count)
    expected = engine_over(alone, reranker_base).run(batch, range(len(batch)), limits)
    rows = group_over(together, reranker_base).run(batch, range(len(batch)), limits)
    assert rows.tolist() == expected.tolist()
    found = sorted(size for forward in together for size in forward.batches)
    assert found == sorted(alone.batches)


def test_the_smallest_device_decides_how_large_batches_are(reranker_base: Path) -> None:
    small, large = devices(2, before=meeting(2))
    large.plan = replace(large.plan, max_batch_tokens=1000)
    small.plan = replace(small.plan, max_batch_tokens=20)
    batch = sequences([10] * 8)
    group_over([large, small], reranker_base).run(batch, range(8), NO_LIMITS)
    assert set(small.batches + large.batches) == {2}


def test_a_call_of_one_batch_goes_to_each_device_in_turn(reranker_base: Path) -> None:
    forwards = devices(3)
    group = group_over(forwards, reranker_base)
    for _ in range(6):
        group.run(BATCH[:2], [0, 1], NO_LIMITS)
    assert [len(forward.batches) for forward in forwards] == [2, 2, 2]


def test_an_error_of_one_device_ends_the_call_on_all(reranker_base: Path) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    meet, failed = meeting(2), threading.Event()

    def fail(batch: Sequence[TokenSequence]) -> None:
        meet(batch)
        failed.set()
        raise error

    def work(batch: Sequence[TokenSequence]) -> None:
        meet(batch)
        assert failed.wait(60)

    broken, sound = devices(2)
    broken.before, sound.before = fail, work
    batch = sequences([60] * 500)
    with pytest.raises(RuntimeError) as raised:
        group_over([broken, sound], reranker_base).run(batch, range(500), NO_LIMITS)
    assert raised.value is error
    assert broken.attempts == 1
    assert sound.attempts < 500, "the other device went on to the end"


def test_memory_runs_out_on_one_device_alone(reranker_base: Path) -> None:
    meet = meeting(2)

    def narrow(batch: Sequence[TokenSequence]) -> None:
        meet(batch)
        if sum(len(s.ids) for s in batch) > 10:
            raise DeviceFull

    full, roomy = devices(2, before=meet)
    full.before = narrow
    batch = sequences([10] * 60)
    rows = group_over([full, roomy], reranker_base).run(batch, range(60), NO_LIMITS)
    assert rows.tolist() == [row_of(s).tolist() for s in batch]
    assert set(full.batches) == {1}
    assert set(roomy.batches) == {6}
    assert full.released > 0
    assert roomy.released == 0


def test_what_fits_on_no_device_names_pair_and_device(reranker_base: Path) -> None:
    def narrow(batch: Sequence[TokenSequence]) -> None:
        if sum(len(s.ids) for s in batch) > 60:
            raise DeviceFull

    group = group_over(devices(2, before=narrow), reranker_base)
    with pytest.raises(OutOfMemoryError, match=r"position 106, of 64 tokens.* cuda:[01] "):
        group.run(BATCH, [100 + position for position in POSITIONS], NO_LIMITS)


def test_what_overflows_is_computed_again_where_it_was(reranker_base: Path) -> None:
    forwards = devices(2, before=meeting(2), overflowing=frozenset(range(0, 16, 2)))
    rows = group_over(forwards, reranker_base).run(BATCH, POSITIONS, NO_LIMITS)
    for number, row in enumerate(rows):
        assert row.tolist() == row_of(BATCH[number], exact=number % 2 == 0).tolist()
    for forward in forwards:
        assert forward.recomputed.keys() <= forward.finished.keys()


def test_the_time_limit_reaches_every_device(reranker_base: Path) -> None:
    meet = meeting(2)

    def spend(batch: Sequence[TokenSequence]) -> None:
        meet(batch)
        assert 0 < (seconds_left() or 0) <= 1000, "the caller's limit is not seen here"
        deadline._end.set(0.0)  # this thread's own copy: its time is over now

    forwards = devices(2, before=spend)
    group = group_over(forwards, reranker_base)
    batch = sequences([60] * 10)
    with time_limit(1000):
        rows = group.run(batch, range(10), NO_LIMITS)
    assert [forward.attempts for forward in forwards] == [1, 1]
    assert (~np.isnan(rows).any(axis=1)).sum() == 2
    with time_limit(0), pytest.raises(ScoringTimeout, match="oracle on cuda:0, cuda:1"):
        group.run(batch, range(10), NO_LIMITS)


async def test_a_cancelled_task_stops_every_device(reranker_base: Path) -> None:
    begun, cancelled, ended = threading.Event(), threading.Event(), threading.Event()

    def wait(batch: Sequence[TokenSequence]) -> None:
        begun.set()
        assert cancelled.wait(60)

    forwards = devices(2, before=wait)
    group = group_over(forwards, reranker_base)

    def run() -> None:
        try:
            group.run(sequences([60] * 50), range(50), NO_LIMITS)
        finally:
            ended.set()

    task = asyncio.create_task(in_worker(run))
    assert await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()
    assert await asyncio.to_thread(ended.wait, 60)
    assert all(forward.attempts <= 1 for forward in forwards)


def test_progress_is_told_by_one_thread_at_a_time(reranker_base: Path) -> None:
    told: list[int] = []
    inside = threading.Lock()

    def tell(sequences: int) -> None:
        assert inside.acquire(blocking=False), "two threads at once"
        told.append(sequences)
        inside.release()

    forwards = devices(3, before=meeting(3))
    group_over(forwards, reranker_base).run(BATCH, POSITIONS, NO_LIMITS, on_batch=tell)
    assert sum(told) == len(BATCH)


def test_the_plan_names_every_device_and_whose_reason_is_whose(reranker_base: Path) -> None:
    first, second = devices(2)
    first.plan = replace(first.plan, reasons=("attention varlen: tried now",))
    second.plan = replace(second.plan, reasons=("attention padded: tried now",))
    second.plan = replace(second.plan, max_batch_tokens=32)
    plan = group_over([first, second], reranker_base).plan
    assert plan.device == "cuda:0, cuda:1"
    assert plan.max_batch_tokens == 32
    assert plan.precision == "fp16"
    assert plan.reasons[:2] == (
        "cuda:0: attention varlen: tried now",
        "cuda:1: attention padded: tried now",
    )


def test_memory_is_given_back_on_every_device(reranker_base: Path) -> None:
    forwards = devices(2)
    group_over(forwards, reranker_base).release_memory()
    assert [forward.released for forward in forwards] == [1, 1]


def test_two_threads_of_one_cpu_give_the_scores_of_one(reranker_base: Path) -> None:
    alone = load_scorer(str(reranker_base), device="cpu", max_batch_tokens=64)
    both = load_scorer(str(reranker_base), device=["cpu", "cpu"], max_batch_tokens=64)
    assert both.score(PAIRS) == pytest.approx(alone.score(PAIRS), abs=TOLERANCE)
    assert both.name == alone.name, "equal names, equal scores"
    assert "2 devices" in str(both.plan)
    one = load_scorer(str(reranker_base), device=["cpu"], max_batch_tokens=64)
    assert one.plan == alone.plan
    reasons = [reason for reason in both.plan.reasons if "device cpu: requested" in reason]
    assert reasons == ["cpu: device cpu: requested"] * 2


def test_sequences_of_one_device_are_not_shared_out(reranker_base: Path) -> None:
    # more devices than batches: the others are not asked
    forwards = devices(4)
    rows = group_over(forwards, reranker_base).run([sequence(5, 3)], [0], NO_LIMITS)
    assert rows.tolist() == [row_of(sequence(5, 3)).tolist()]
    assert [forward.attempts for forward in forwards] == [1, 0, 0, 0]


A100, P100 = CudaDevice("A100", (8, 0)), CudaDevice("P100", (6, 0))


def test_devices_are_planned_one_by_one() -> None:
    hardware = Hardware(cores=8, cuda=(A100, A100))
    plans = plan_devices(hardware, DeviceOptions(device=["cuda:1", "cuda"], attention="varlen"))
    assert [plan.device for plan in plans] == ["cuda:1", "cuda:0"]
    assert [plan.attention for plan in plans] == ["varlen"] * 2
    for asked, device in (("cuda:1", "cuda:1"), (None, "cuda:0")):
        (plan,) = plan_devices(hardware, DeviceOptions(device=asked))
        assert plan.device == device


def test_devices_of_different_number_formats_are_refused() -> None:
    hardware = Hardware(cores=8, cuda=(A100, P100))
    with pytest.raises(InvalidInputError, match="cuda:0 in fp16, cuda:1 in fp32"):
        plan_devices(hardware, DeviceOptions(device=["cuda:0", "cuda:1"]))
    options = DeviceOptions(device=["cuda:0", "cpu"], precision="fp32")
    assert [plan.precision for plan in plan_devices(hardware, options)] == ["fp32", "fp32"]


def test_no_device_or_one_that_is_not_there_is_refused() -> None:
    hardware = Hardware(cores=8, cuda=(A100,))
    with pytest.raises(InvalidInputError, match="device is an empty list"):
        plan_devices(hardware, DeviceOptions(device=[]))
    with pytest.raises(InvalidInputError, match="'cuda:1' is not available here; available: cpu"):
        plan_devices(hardware, DeviceOptions(device=["cuda:0", "cuda:1"]))
