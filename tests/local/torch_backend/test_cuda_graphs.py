"""Filling a batch up changes no row, and a graph is used only where it gives the plain rows.

A graph is stood in for by the same work on the same memory, which is what a recording replays.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.attention import Segment
from bge_rerank_integrations.local.torch_backend.cuda_graphs import (
    MOST_GRAPHS,
    Bucket,
    Graphs,
    Record,
    Replay,
    bucket_of,
    fill_up,
)
from bge_rerank_integrations.local.torch_backend.encoder import FlatEncoder
from bge_rerank_integrations.local.torch_backend.transfer import Array, to_device
from bge_rerank_integrations.local.torch_backend.varlen_attention import FlatAttention
from tests.local.torch_backend.encoder_models import CPU, build_encoder, flat, random_sequences
from tests.local.torch_backend.kernels import one_by_one

SMALL = Bucket(256, 16, 128)


class OnKernel:
    """An encoder by the way that CUDA takes, with a kernel that runs here."""

    def __init__(self, encoder: FlatEncoder) -> None:
        self.encoder = encoder

    def attend(self, lengths: list[int], most: int | None = None) -> FlatAttention:
        segments = [Segment(length) for length in lengths]
        return FlatAttention(segments, self.encoder._shape, kernel=one_by_one, most=most)

    def arrays(self, batch: list[TokenSequence]) -> dict[str, Array]:
        _, arrays = self.encoder._arrays(batch)
        return {**arrays, **self.attend([len(sequence.ids) for sequence in batch]).arrays}

    def compute(self, sent: Mapping[str, Tensor], bucket: Bucket) -> Tensor:
        return self.encoder.compute(sent, self.attend([1], bucket.longest))

    def plain(self, batch: list[TokenSequence]) -> Tensor:
        attend = self.attend([len(sequence.ids) for sequence in batch])
        return self.encoder.compute(to_device(self.arrays(batch), "cpu"), attend)


@pytest.fixture(scope="module", params=[("xlmr", "logit"), ("bert", "logit"), ("bert", "cls")])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnKernel:
    kind, output = request.param
    folder = tmp_path_factory.mktemp("model")
    build_encoder(folder, kind, head=output == "logit", type_vocab_size=2)
    return OnKernel(flat(folder, output))


def record(work: Replay) -> Replay:
    work()
    return work


def graphs_of(encoder: OnKernel, record: Record = record, told: list[str] | None = None) -> Graphs:
    told = [] if told is None else told
    return Graphs(
        encoder.compute, device="cpu", dtype=torch.float32, record=record, say=told.append
    )


def rows_of(graphs: Graphs, encoder: OnKernel, batch: list[TokenSequence], plain: Any) -> Tensor:
    bucket = bucket_of([len(sequence.ids) for sequence in batch])
    assert bucket is not None
    other = encoder.arrays(random_sequences([3], seed=9))
    return graphs.rows(bucket, encoder.arrays(batch), other=lambda: other, plain=plain)


def not_called() -> Tensor:
    raise AssertionError("the plain forward was run where there is a graph")


@pytest.mark.parametrize(
    ("lengths", "bucket"),
    [
        ([1], (256, 16, 128)),
        ([128, 128], (256, 16, 128)),
        ([128, 129], (512, 16, 512)),
        ([2] * 17, (256, 64, 128)),
        ([100] * 20, (2048, 64, 128)),
        ([512] * 16, (8192, 16, 512)),
        ([512] * 16 + [1], None),  # 8193 tokens
        ([2] * 65, None),
        ([513], None),
    ],
)
def test_the_smallest_sizes_that_fit(
    lengths: list[int], bucket: tuple[int, int, int] | None
) -> None:
    assert bucket_of(lengths) == (None if bucket is None else Bucket(*bucket))


def test_what_is_added_is_empty_and_outside() -> None:
    arrays = {
        "ids": np.array([5, 6, 7]),
        "first": np.array([0, 2]),
        "attention_queries": np.array([0, 2, 3], np.int32),
        "attention_ones": np.array([0, 1, 2], np.int32),
    }
    filled = fill_up(arrays, Bucket(tokens=6, sequences=4, longest=128))
    assert filled["ids"].tolist() == [5, 6, 7, 0, 0, 0]
    assert filled["first"].tolist() == [0, 2, 0, 0]
    # sequences 3 and 4 begin and end at row 3, and ask nothing
    assert filled["attention_queries"].tolist() == [0, 2, 3, 3, 3]
    assert filled["attention_ones"].tolist() == [0, 1, 2, 2, 2]
    assert filled["attention_ones"].dtype == np.int32


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=16), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_a_filled_batch_gives_the_rows_of_the_batch(
    encoder: OnKernel, lengths: list[int], seed: int
) -> None:
    batch = random_sequences(lengths, seed=seed)
    bucket = Bucket(1024, 16, 128)
    # the kernel leaves NaN in every row that belongs to no sequence: none may reach a row that does
    rows = encoder.compute(to_device(fill_up(encoder.arrays(batch), bucket), "cpu"), bucket)
    found = rows[: len(batch)]
    assert found.isfinite().all()
    assert found.numpy() == pytest.approx(encoder.encoder.run(batch), abs=1e-5)


def test_recorded_at_the_second_sight_and_used_from_the_third(encoder: OnKernel) -> None:
    told: list[str] = []
    recorded: list[Replay] = []

    def count(work: Replay) -> Replay:
        recorded.append(work)
        return record(work)

    graphs = graphs_of(encoder, count, told)
    for sight in range(1, 6):
        batch = random_sequences([7, 20, sight], seed=sight)
        expected = encoder.plain(batch)
        plain = (lambda rows=expected: rows) if sight < 3 else not_called
        found = rows_of(graphs, encoder, batch, plain)
        assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
        assert len(recorded) == (sight >= 2)
    assert told == []


def test_rows_stay_as_they_are_when_the_graph_runs_again(encoder: OnKernel) -> None:
    graphs = graphs_of(encoder)
    batches = [random_sequences([7, 20], seed=seed) for seed in range(4)]
    found = [rows_of(graphs, encoder, b, lambda b=b: encoder.plain(b)) for b in batches]
    for rows, batch in zip(found, batches, strict=True):
        assert rows.numpy() == pytest.approx(encoder.plain(batch).numpy(), abs=1e-5)


def stale(work: Replay) -> Replay:
    """As a recording that took its input's numbers with it."""
    rows = work()
    return lambda: rows


def nearly(work: Replay) -> Replay:
    return lambda: work() * 1.01


def broken(work: Replay) -> Replay:
    return lambda: work() * torch.nan


def refuses(work: Replay) -> Replay:
    raise RuntimeError("operation not permitted when stream is capturing")


def too_large(work: Replay) -> Replay:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (stale, "off by"),
        (nearly, "off by 1.0e-02"),
        (broken, "off by nan"),
        (refuses, "RuntimeError"),
        (too_large, "OutOfMemoryError"),
    ],
)
def test_a_graph_that_is_wrong_or_cannot_be_is_dropped_for_good_and_said(
    encoder: OnKernel, wrong: Record, why: str
) -> None:
    told: list[str] = []
    graphs = graphs_of(encoder, wrong, told)
    for sight in range(5):
        batch = random_sequences([7, 20], seed=sight)
        found = rows_of(graphs, encoder, batch, lambda b=batch: encoder.plain(b))
        assert found.tolist() == encoder.plain(batch).tolist()
    (reason,) = told
    assert reason.startswith(f"no graph of 256 tokens: {why}")


def test_another_size_is_recorded_after_one_was_dropped(encoder: OnKernel) -> None:
    told: list[str] = []

    def small_ones_fail(work: Replay) -> Replay:
        if not told:
            raise RuntimeError
        return record(work)

    graphs = graphs_of(encoder, small_ones_fail, told)
    for lengths in ([7], [7], [60] * 8, [60] * 8):
        batch = random_sequences(lengths)
        rows_of(graphs, encoder, batch, lambda b=batch: encoder.plain(b))
    batch = random_sequences([60] * 8, seed=4)
    found = rows_of(graphs, encoder, batch, not_called)
    assert found.numpy() == pytest.approx(encoder.plain(batch).numpy(), abs=1e-5)
    assert len(told) == 1


def test_no_more_graphs_than_there_is_memory_set_aside_for() -> None:
    recorded: list[Replay] = []

    def compute(sent: Mapping[str, Tensor], bucket: Bucket) -> Tensor:
        return sent["first"][:, None] + 1.0

    def count(work: Replay) -> Replay:
        recorded.append(work)
        return work

    graphs = Graphs(
        compute, device="cpu", dtype=torch.float32, record=count, say=lambda reason: None
    )
    arrays: dict[str, Array] = {"first": np.array([0])}
    for tokens in range(256, 256 + 2 * MOST_GRAPHS):
        for _ in range(3):
            bucket = Bucket(tokens, 16, 128)
            rows = graphs.rows(bucket, arrays, other=lambda: arrays, plain=lambda: torch.ones(1, 1))
            assert rows.tolist() == [[1.0]]
    assert len(recorded) == MOST_GRAPHS


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_encoder_hands_its_small_batches_over(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path, "bert", max_position_embeddings=600)
    # nested attention is laid out as that of the kernels which can be recorded
    encoder = flat(folder, plan=dataclasses.replace(CPU, attention="nested"))
    alone, recorded = flat(folder), []

    def count(work: Replay) -> Replay:
        recorded.append(work)
        return record(work)

    encoder._graphs = graphs_of(OnKernel(encoder), count)
    for seed in range(4):
        for lengths in ([7, 20, 1], [513, 2], [1]):
            batch = random_sequences(lengths, seed=seed)
            assert encoder.run(batch) == pytest.approx(alone.run(batch), abs=1e-5)
    # the first and the last list are one size; of the other a sequence is too long for any
    assert len(recorded) == 1


@pytest.mark.parametrize("output", ["logit", "mean"])
def test_on_the_cpu_there_are_none(tmp_path: Path, output: ModelOutput) -> None:
    assert flat(build_encoder(tmp_path, "bert", head=output == "logit"), output)._graphs is None
