"""The cache of token ids: never a wrong answer, never more memory than it may have."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations.local.text.tokenizer import Ids, TokenCache


class Counting:
    """Encodes a text as its code points, and counts how often each text was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> list[Ids]:
        self.asked += texts
        return [np.array([ord(character) for character in text], dtype=np.int32) for text in texts]


def expected(texts: list[str]) -> list[list[int]]:
    return [[ord(character) for character in text] for text in texts]


@given(
    calls=st.lists(st.lists(st.text("abc", max_size=6), max_size=8), max_size=8),
    max_bytes=st.integers(0, 2000),
)
def test_the_answer_is_always_that_of_the_tokenizer(calls: list[list[str]], max_bytes: int) -> None:
    cache, encode = TokenCache(max_bytes), Counting()
    for texts in calls:
        before = len(encode.asked)
        found = [ids.tolist() for ids in cache.get_or_encode(texts, encode)]
        assert found == expected(texts)
        new = encode.asked[before:]
        assert len(new) == len(set(new)), "a text was encoded twice for one call"


def test_what_is_remembered_is_not_encoded_again() -> None:
    cache, encode = TokenCache(), Counting()
    cache.get_or_encode(["a", "b", "a"], encode)
    cache.get_or_encode(["b", "c"], encode)
    assert encode.asked == ["a", "b", "c"]


def test_the_least_recently_used_goes_first() -> None:
    cache, encode = TokenCache(), Counting()
    texts = [f"{number:04}" for number in range(50)]
    cache.get_or_encode(texts, encode)
    small = TokenCache(cache._bytes)
    small.get_or_encode(texts, encode)
    small.get_or_encode(texts[:1], encode)  # used again: the second is now the oldest
    small.get_or_encode(["more"], encode)
    encode.asked.clear()
    small.get_or_encode(texts[:1], encode)
    assert encode.asked == []
    small.get_or_encode(texts[1:2], encode)
    assert encode.asked == texts[1:2]


def test_a_text_larger_than_the_cache_does_not_stay() -> None:
    cache, encode = TokenCache(1000), Counting()
    (ids,) = cache.get_or_encode(["x" * 5000], encode)
    assert len(ids) == 5000
    assert cache._bytes <= 1000


@pytest.mark.parametrize("length", [0, 5, 40, 500])
def test_texts_of_any_length_take_no_more_memory_than_allowed(length: int) -> None:
    allowed = 2**20
    cache = TokenCache(allowed)

    def encode(texts: list[str]) -> list[Ids]:
        return [np.arange(len(text) // 4, dtype=np.int32) for text in texts]

    for start in range(0, 20_000, 500):
        texts = [f"{number:06}" + "x" * length for number in range(start, start + 500)]
        cache.get_or_encode(texts, encode)
    held = sum(sys.getsizeof(text) + sys.getsizeof(ids) for text, ids in cache._ids.items())
    assert held <= 1.5 * allowed


def test_nobody_can_change_what_others_will_be_given() -> None:
    cache, encode = TokenCache(), Counting()
    (first,) = cache.get_or_encode(["abc"], encode)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 7
    assert cache.get_or_encode(["abc"], encode)[0].tolist() == expected(["abc"])[0]


def test_sixteen_threads_get_the_right_ids() -> None:
    cache, encode = TokenCache(3000), Counting()

    def work(seed: int) -> bool:
        dice = random.Random(seed)
        for _ in range(200):
            texts = [str(dice.randrange(60)) * dice.randrange(1, 9) for _ in range(5)]
            found = [ids.tolist() for ids in cache.get_or_encode(texts, encode)]
            if found != expected(texts):
                return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))
    assert cache._bytes <= 3000
    assert len(cache._ids) > 5
