"""What goes to a device and comes back, and how far the host may be ahead of it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations.local.torch_backend.transfer import (
    ALIGNMENT,
    RunAhead,
    computed,
    fetch,
    pack,
    run_ahead,
    to_device,
    unpack,
)

FORMATS = (np.int32, np.int64, np.float32, np.bool_)
SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


@given(st.lists(st.tuples(st.sampled_from(FORMATS), SHAPES), max_size=6), st.integers(0, 99))
def test_a_packed_buffer_gives_back_what_was_put_in(
    kinds: list[tuple[type, tuple[int, ...]]], seed: int
) -> None:
    dice = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        str(number): dice.integers(-1000, 1000, shape).astype(dtype)
        for number, (dtype, shape) in enumerate(kinds)
    }
    views = unpack(pack(arrays), arrays)
    assert list(views) == list(arrays)
    for name, array in arrays.items():
        assert views[name].numpy().dtype == array.dtype
        assert views[name].shape == array.shape
        assert np.array_equal(views[name].numpy(), array)


def test_every_array_begins_at_a_multiple_of_sixteen_bytes() -> None:
    arrays = {"a": np.ones(3, np.bool_), "b": np.ones(5, np.int32), "c": np.ones(1, np.int64)}
    buffer = pack(arrays)
    # 3 bytes take 16, 20 take 32, 8 take 16
    assert buffer.nbytes == 64
    views = unpack(buffer, arrays)
    starts = [views[name].data_ptr() - buffer.data_ptr() for name in "abc"]
    assert starts == [0, 16, 48]
    assert ALIGNMENT == 16


def test_arrays_that_lie_crosswise_are_packed_in_their_own_order() -> None:
    rotary = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert unpack(pack({"r": rotary}), {"r": rotary})["r"].tolist() == rotary.tolist()


def test_on_the_cpu_nothing_is_copied() -> None:
    array = np.arange(4)
    assert to_device({"a": array}, "cpu")["a"].data_ptr() == array.ctypes.data


@pytest.mark.parametrize("kind", [computed, lambda rows: rows])
def test_the_rows_of_all_batches_come_back_in_one_piece(kind: object) -> None:
    assert callable(kind)
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])
    rows = fetch([kind(first), kind(second)])
    assert rows.dtype == np.float32
    assert rows.tolist() == [[1.0], [2.0], [3.0]]


def test_the_host_waits_for_the_batch_that_is_too_far_back() -> None:
    waited: list[int] = []

    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def synchronize(self) -> None:
            waited.append(self.number)

    numbers = iter(range(100))
    ahead = RunAhead(lambda: Numbered(next(numbers)), batches=2)
    for launched, expected in enumerate([[], [], [0], [0, 1], [0, 1, 2]]):
        ahead.launched()
        assert waited == expected, f"after batch {launched}"


def test_a_cpu_is_never_ahead_of_itself() -> None:
    assert run_ahead("cpu") is None
