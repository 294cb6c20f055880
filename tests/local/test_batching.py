"""Laws of packing: nothing lost, nothing over budget, nothing that could have joined left out."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations.local.engine import plan_batches

LENGTHS = st.lists(st.integers(1, 600), max_size=60)
TOKENS = st.integers(1, 2000)
SEQUENCES = st.none() | st.integers(1, 20)


def cost(batch: list[int], lengths: list[int], padded: bool) -> int:
    sizes = [lengths[index] for index in batch]
    return max(sizes) * len(sizes) if padded else sum(sizes)


@given(lengths=LENGTHS, tokens=TOKENS, most=SEQUENCES, padded=st.booleans(), in_order=st.booleans())
def test_every_index_once_and_every_batch_within_its_limits(
    lengths: list[int], tokens: int, most: int | None, padded: bool, in_order: bool
) -> None:
    batches = plan_batches(
        lengths, max_tokens=tokens, max_sequences=most, padded=padded, in_order=in_order
    )
    if in_order:
        assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert cost(batch, lengths, padded) <= tokens or len(batch) == 1
        assert most is None or len(batch) <= most


@given(lengths=LENGTHS, tokens=TOKENS, most=SEQUENCES, padded=st.booleans())
def test_longest_first_and_equal_lengths_in_the_callers_order(
    lengths: list[int], tokens: int, most: int | None, padded: bool
) -> None:
    batches = plan_batches(lengths, max_tokens=tokens, max_sequences=most, padded=padded)
    order = [index for batch in batches for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


@given(lengths=LENGTHS, tokens=TOKENS, most=SEQUENCES, padded=st.booleans())
def test_no_batch_ends_before_it_is_full(
    lengths: list[int], tokens: int, most: int | None, padded: bool
) -> None:
    batches = plan_batches(lengths, max_tokens=tokens, max_sequences=most, padded=padded)
    for batch, following in pairwise(batches):
        wider = [*batch, following[0]]
        assert cost(wider, lengths, padded) > tokens or len(batch) == most


def test_by_hand() -> None:
    lengths = [7, 512, 9, 512, 3]
    assert plan_batches(lengths, max_tokens=1024) == [[1, 3], [2, 0, 4]]
    assert plan_batches(lengths, max_tokens=521) == [[1], [3, 2], [0, 4]]
    assert plan_batches(lengths, max_tokens=1024, padded=True) == [[1, 3], [2, 0, 4]]
    assert plan_batches(lengths, max_tokens=1030, padded=True) == [[1, 3], [2, 0, 4]]
    assert plan_batches(lengths, max_tokens=20, padded=True) == [[1], [3], [2, 0], [4]]
    assert plan_batches(lengths, max_tokens=9999, max_sequences=2) == [[1, 3], [2, 0], [4]]
    assert plan_batches(lengths, max_tokens=1) == [[1], [3], [2], [0], [4]]
    assert plan_batches([], max_tokens=5) == []
